"""Sampling: frame by frame, all temporal paths first, then the residual decoders in order, code by code.

The temporal paths of a frame depend on earlier frames only, so they could run together; the decoders cannot, because
each code conditions the next. Keys and values of the text are made once, those of the frames and of the decoder are
kept in preallocated caches, and the chain codebook → out-projection → projector is one lookup in a folded table.
`sample` gives the same distribution as `ResidualTransformer.forward` gives under teacher forcing (tested).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from siren.config import Sampling
from siren.model.blocks import KeyValueCache
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer, Text
from siren.randomness import draw, uniforms
from siren.shapes import Bool, Float, Int

Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass
class Rollout:
    """What sampling produced: the codes, and the log-probability of each under the distribution it was drawn from."""

    codes: Int[Tensor, "B K T"]
    log_probs: Float[Tensor, "B K T"]


def truncate(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """Logits after temperature, top-k and top-p; codes that are cut get -inf."""
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        cut = probabilities.cumsum(-1) - probabilities >= sampling.top_p  # the most likely code always stays
        logits = logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
    return logits


def guide(conditioned: Tensor, null: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on logits: 1 is the conditioned distribution, more leans away from the null one."""
    return null + guidance * (conditioned - null)


class Stream:
    """One transformer while it samples: its text, its folded tables and its caches."""

    def __init__(self, transformer: ResidualTransformer, text: Text, batch: int, num_frames: int):
        self.transformer, self.text = transformer, text
        self.tables = transformer.codebooks.tables()
        config = transformer.config
        head_dim = config.dim // config.num_heads

        def cache(length: int) -> KeyValueCache:
            return KeyValueCache(batch, config.num_kv_heads, length, head_dim, self.tables)

        self.frames = [cache(num_frames) for _ in transformer.temporal]
        self.inside = [cache(transformer.group + 1) for _ in transformer.decoder]
        self.next_input = transformer.start.expand(batch, 1, -1)

    def embed(self, k: int, codes: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        return self.tables[k][codes]

    def advance(self) -> Float[Tensor, "B 1 D"]:
        """The temporal path of the next frame."""
        return self.transformer.temporal_path(self.next_input, self.text, self.frames)

    def begin(self, hidden: Float[Tensor, "B 1 D"], below: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Open the frame for the residual decoder → logits of the first owned codebook."""
        for cache in self.inside:
            cache.length = 0
        z = torch.cat([hidden, (self.text.start + below)[:, None]], dim=1)
        out = self.transformer.residual_decoder(z, self.inside, skip=1)
        return out[:, -1] @ self.transformer.heads[0].T

    def extend(self, below: Float[Tensor, "B D"], j: int) -> Float[Tensor, "B V"]:
        """Logits of owned codebook j, once the codes below it are known."""
        out = self.transformer.residual_decoder((self.text.start + below)[:, None], self.inside)
        return out[:, -1] @ self.transformer.heads[j].T


@torch.no_grad()
def sample(
    model: Siren,
    states: Float[Tensor, "B L P"],
    mask: Bool[Tensor, "B L"],
    seeds: Sequence[int],
    num_frames: int,
    sampling: Sampling,
    progress: Progress = iter,
) -> Rollout:
    """Codes for each text, with one random stream per seed. Raises ValueError where the model's table is too short.

    With `guidance` g, logits = null + g · (conditioned - null); only a model trained with dropped text has a null.
    """
    if num_frames > model.max_frames:
        raise ValueError(f"{num_frames} frames asked for; this model's positions end at {model.max_frames}")
    if len(seeds) != states.shape[0]:
        raise ValueError(f"{len(seeds)} seeds for {states.shape[0]} prompts; one each is needed")
    batch, device = states.shape[0], states.device
    guidance = 1.0 if sampling.guidance is None else sampling.guidance
    guided = guidance != 1.0
    if guided:
        states, mask = _with_null(model, states, mask)
    streams = [Stream(t, t.read_text(states, mask), states.shape[0], num_frames) for t in _transformers(model)]
    numbers = uniforms(seeds, num_frames, model.num_codebooks).to(device)
    codes = torch.zeros(batch, model.num_codebooks, num_frames, dtype=torch.long, device=device)
    log_probs = torch.zeros(batch, model.num_codebooks, num_frames, device=device)

    def choose(logits: Tensor, k: int, t: int) -> Tensor:
        if guided:
            conditioned, null = logits.chunk(2)
            logits = guide(conditioned, null, guidance)
        kept = truncate(logits, sampling).log_softmax(-1)
        code = draw(kept.exp(), numbers[:, t, k])
        codes[:, k, t] = code
        log_probs[:, k, t] = kept.gather(-1, code[:, None])[:, 0]
        return code.repeat(2) if guided else code

    for t in progress(range(num_frames)):
        hidden = [stream.advance() for stream in streams]
        below = [stream.text.start.new_zeros(stream.text.start.shape) for stream in streams]
        for stream, h in zip(streams, hidden, strict=True):
            first = stream.transformer.first
            for j in range(stream.transformer.group):
                own = below[stream.transformer.index]
                logits = stream.begin(h, own) if j == 0 else stream.extend(own, j)
                code = choose(logits, first + j, t)
                below = [b + s.embed(first + j, code) for b, s in zip(below, streams, strict=True)]
        for stream, everything in zip(streams, below, strict=True):
            stream.next_input = everything[:, None]
    return Rollout(codes, log_probs)


def _transformers(model: Siren) -> list[ResidualTransformer]:
    return [model[i] for i in range(len(model))]


def _with_null(model: Siren, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The batch followed by its unconditioned twin."""
    null_states, null_mask = torch.zeros_like(states), torch.zeros_like(mask)
    small_states, small_mask = model[0].null_text(states.shape[0], states.shape[-1])
    null_states[:, :1], null_mask[:, :1] = small_states, small_mask
    return torch.cat([states, null_states]), torch.cat([mask, null_mask])
