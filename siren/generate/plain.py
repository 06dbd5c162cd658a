"""The reference sampler: the transformers one after the other, as their modules compute.

Every arm goes through it; `siren.generate.stacked` is faster and is held against it. Keys and values of the text are
made once, those of the frames and of the decoder are kept in preallocated caches, and the chain codebook →
out-projection → projector is one lookup in a folded table.
A step is a frame, or with delayed codebooks a diagonal of frames: T frames then take T + K - 1 steps, and a clip's end
depends on its length, because the first codebooks end before the last.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from siren.config import Sampling
from siren.generate.choice import choose, guided
from siren.model.blocks import KeyValueCache
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer, Text
from siren.shapes import Bool, Float, Int


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


class Plain:
    """The sampler of any model."""

    def __init__(self, model: Siren):
        self.model = model

    def frames(
        self,
        states: Float[Tensor, "R L P"],
        mask: Bool[Tensor, "R L"],
        numbers: Float[Tensor, "B T K"],
        sampling: Sampling,
        prefix: Int[Tensor, "B K t"] | None = None,
    ) -> Iterator[tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]]:
        """Codes of frames t … T - 1 and their log-probabilities, each as soon as it is whole; `prefix` comes before.

        Code k of frame t is drawn at numbers[:, t, k]. R = B, or with guidance 2·B: the rows without text follow.
        """
        num_frames, (batch, num_codebooks, given) = numbers.shape[1], _shape(numbers, prefix)
        delays = self.model[0].codebooks.delays
        steps = num_frames + max(delays)
        parts = [self.model[m] for m in range(len(self.model))]
        streams = [Stream(t, t.read_text(states, mask), states.shape[0], steps) for t in parts]
        codes = torch.zeros(batch, num_codebooks, num_frames, dtype=torch.long, device=states.device)
        log_probs = torch.zeros(codes.shape, device=states.device)
        if prefix is not None:
            codes[..., :given] = prefix

        def code_of(owner: Stream, j: int, k: int, t: int) -> Tensor | None:
            if not 0 <= t < num_frames:
                return None
            if t >= given:
                codes[:, k, t], log_probs[:, k, t] = choose(owner.logits(j), numbers[:, t, k], sampling)
            return codes[:, k, t].repeat(2) if guided(sampling) else codes[:, k, t]

        for step in range(steps):
            for stream in streams:
                stream.advance()
            for owner in streams:
                for j in range(owner.transformer.group):
                    k = owner.transformer.first + j
                    code = code_of(owner, j, k, step - delays[k])
                    for stream in streams:
                        stream.take(k, code)
            for stream in streams:
                stream.next_input = stream.sum[:, None]
            if (t := step - max(delays)) >= given:
                yield codes[..., t], log_probs[..., t]


def _shape(numbers: Tensor, prefix: Tensor | None) -> tuple[int, int, int]:
    """Items, codebooks, and frames that are given."""
    return numbers.shape[0], numbers.shape[2], 0 if prefix is None else prefix.shape[-1]
