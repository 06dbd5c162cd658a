"""Sampling: step by step, all temporal paths first, then the residual decoders in order, code by code.

The temporal paths of a frame depend on earlier frames only, so they could run together; the decoders cannot, because
each code conditions the next. Keys and values of the text are made once, those of the frames and of the decoder are
kept in preallocated caches, and the chain codebook → out-projection → projector is one lookup in a folded table.
A step is a frame, or with delayed codebooks a diagonal of frames: T frames then take T + K - 1 steps, and a clip's end
depends on its length, because the first codebooks end before the last.
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


def truncate(logits: Float[Tensor, "*B V"], sampling: Sampling) -> Float[Tensor, "*B V"]:
    """Logits after temperature, top-k and top-p; codes that are cut get -inf."""
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
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

    def __init__(self, transformer: ResidualTransformer, text: Text, batch: int, num_steps: int):
        self.transformer, self.text = transformer, text
        self.tables = transformer.codebooks.tables()
        config = transformer.config
        head_dim = config.dim // config.num_heads
        self.accumulated = config.residual_condition == "accumulated"

        def cache(length: int) -> KeyValueCache:
            return KeyValueCache(batch, config.num_kv_heads, length, head_dim, self.tables)

        self.frames = [cache(num_steps) for _ in transformer.temporal]
        self.inside = [cache(transformer.group + 1) for _ in transformer.decoder]
        self.next_input = transformer.start.expand(batch, 1, -1)
        self.blank = self.tables.new_zeros(batch, config.dim)

    def advance(self) -> None:
        """The temporal path of the next step, which then awaits its codes."""
        self.hidden = self.transformer.temporal_path(self.next_input, self.text, self.frames)
        self.sum = self.last = self.blank
        for cache in self.inside:
            cache.length = 0

    def take(self, k: int, codes: Int[Tensor, " B"] | None) -> None:
        """Note the code of codebook k, whoever owns it; None where a delayed codebook has no frame in this step."""
        self.last = (
            self.transformer.codebooks.absent[k].expand_as(self.blank) if codes is None else self.tables[k][codes]
        )
        self.sum = self.sum + self.last

    def logits(self, j: int) -> Float[Tensor, "B V"]:
        """Logits of owned codebook j, once the codes below it are known."""
        if self.text.start is None:
            return self.hidden[:, -1] @ self.transformer.heads[j].T
        told = (self.text.start + (self.sum if self.accumulated else self.last))[:, None]
        if j == 0:
            told = torch.cat([self.hidden, told], dim=1)
        out = self.transformer.residual_decoder(told, self.inside, skip=1 if j == 0 else 0)
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
    delays = model[0].codebooks.delays
    steps = num_frames + max(delays)
    streams = [Stream(t, t.read_text(states, mask), states.shape[0], steps) for t in _transformers(model)]
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

    for step in progress(range(steps)):
        for stream in streams:
            stream.advance()
        for owner in streams:
            for j in range(owner.transformer.group):
                k = owner.transformer.first + j
                t = step - delays[k]
                code = choose(owner.logits(j), k, t) if 0 <= t < num_frames else None
                for stream in streams:
                    stream.take(k, code)
        for stream in streams:
            stream.next_input = stream.sum[:, None]
    return Rollout(codes, log_probs)


def _transformers(model: Siren) -> list[ResidualTransformer]:
    return [model[i] for i in range(len(model))]


def _with_null(model: Siren, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The batch followed by its unconditioned twin."""
    null_states, null_mask = torch.zeros_like(states), torch.zeros_like(mask)
    small_states, small_mask = model[0].null_text(states.shape[0], states.shape[-1])
    null_states[:, :1], null_mask[:, :1] = small_states, small_mask
    return torch.cat([states, null_states]), torch.cat([mask, null_mask])
