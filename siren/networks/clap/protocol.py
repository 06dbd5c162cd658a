"""What a CLAP is to the rest of the pipeline, whichever library computes it.

`text_states` conditions the language model: the last hidden states of every token, not the pooled projection.
`embed_text` and `embed_audio` live on the unit sphere, where their product is the score of a pair. A backend adds
the two towers (`_text`, `_audio`) and, where they differ, the names of its weights; everything saved has
transformers' names.

Shapes: B batch · S samples · L text length · P text width · E embedding width.
"""

import hashlib
import sys
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from siren.networks import store
from siren.networks.clap.architecture import Architecture
from siren.networks.clap.features import windows
from siren.networks.clap.names import BUFFERS, check
from siren.networks.resample import resample
from siren.networks.text import MARKS, Tokenizer
from siren.shapes import Bool, Float, Int

MAX_LOGIT_SCALE = 100.0


class Clap(nn.Module, ABC):
    """`sample_rate` is that of the waveforms it is given, not the network's own: `embed_audio` resamples."""

    backend: str
    model: Any  # an nn.Module with a parameter `logit_scale_t`, the logarithm of the scale
    sizes: type[Architecture] = Architecture  # what a saved network's architecture is read as
    wrap = False  # whether a short clip is repeated until the window is full, or padded with zeros

    def __init__(self, arch: Architecture, tokenizer: Tokenizer, sample_rate: int) -> None:
        super().__init__()
        if tokenizer.vocab_size > arch.vocab_size:
            raise ValueError(
                f"the tokeniser has {tokenizer.vocab_size} tokens, the text tower {arch.vocab_size}: they do not fit"
            )
        self.arch, self.tokenizer = arch, tokenizer
        self.sample_rate, self.text_width, self.embed_dim = sample_rate, arch.text_width, arch.embed_dim

    @classmethod
    def marks(cls, arch: Architecture) -> tuple[str, str, str]:
        """The tokeniser's beginning, padding and end."""
        return MARKS

    def text_states(self, captions: list[str]) -> tuple[Float[torch.Tensor, "B L P"], Bool[torch.Tensor, "B L"]]:
        """Last hidden states of every token and which of them are tokens; the others are zero."""
        ids, mask = self._tokens(captions)
        states, _ = self._text(ids, mask)
        return states * mask[..., None], mask

    def embed_text(self, captions: list[str]) -> Float[torch.Tensor, "B E"]:
        """Captions on the unit sphere."""
        _, embedding = self._text(*self._tokens(captions))
        return nn.functional.normalize(embedding, dim=-1)

    def embed_audio(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B E"]:
        """Waveforms at `sample_rate`, full scale 1.0, on the unit sphere; the mean of the windows of a long clip."""
        if wav.ndim != 2:
            raise ValueError(f"waveforms must be [B, S], not of shape {list(wav.shape)}")
        cut = windows(resample(wav, self.sample_rate, self.arch.sample_rate), self.arch.max_samples, self.wrap)
        batch, count, samples = cut.shape
        embedding = self._audio(cut.reshape(batch * count, samples))
        embedding = nn.functional.normalize(embedding, dim=-1).reshape(batch, count, -1).mean(dim=1)
        return nn.functional.normalize(embedding, dim=-1)

    def text_fingerprint(self) -> str:
        """SHA-256 over the text tower and its tokeniser: equal where the same caption has the same states."""
        text = {k: v for k, v in self.canonical_state().items() if k.startswith("text_model.")}
        tokens = hashlib.sha256(self.tokenizer.data.encode()).hexdigest()
        return hashlib.sha256(f"{store.fingerprint(text)} {tokens}".encode()).hexdigest()

    def num_tokens(self, captions: list[str]) -> list[int]:
        """How many tokens each caption has, its marks included; of more than `arch.max_tokens` the rest is not read."""
        lengths: list[int] = self.tokenizer(self._marked(captions), sys.maxsize)[1].sum(1).tolist()
        return lengths

    def _marked(self, captions: list[str]) -> list[str]:
        """Captions with what the text tower wants added to each."""
        return captions

    def _tokens(self, captions: list[str]) -> tuple[Int[torch.Tensor, "B L"], Bool[torch.Tensor, "B L"]]:
        ids, mask = self.tokenizer(self._marked(captions), self.arch.max_tokens)
        device = self.logit_scale.device
        return ids.to(device), mask.to(device)

    @property
    def logit_scale(self) -> torch.Tensor:
        """What cosines are multiplied with in the contrastive loss (a learned inverse temperature). []"""
        scale: torch.Tensor = self.model.logit_scale_t
        return scale.exp().clamp(max=MAX_LOGIT_SCALE)

    @abstractmethod
    def _text(
        self, ids: Int[torch.Tensor, "B L"], mask: Bool[torch.Tensor, "B L"]
    ) -> tuple[Float[torch.Tensor, "B L P"], Float[torch.Tensor, "B E"]]:
        """Last hidden states and the projected pooled state, not normalised."""

    @abstractmethod
    def _audio(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B E"]:
        """Projected embedding of clips of exactly `arch.max_samples` at the network's own rate, not normalised."""

    def canonical_state(self) -> dict[str, torch.Tensor]:
        """The weights under transformers' names, which are the model's own unless a backend says otherwise."""
        return {k: v for k, v in self.model.state_dict().items() if not k.endswith(BUFFERS)}

    def load_canonical(self, state: dict[str, torch.Tensor]) -> None:
        """Take weights under transformers' names. Raises ValueError naming what is missing, extra or misshapen."""
        check(state, self.canonical_state(), f"the weights of {type(self).__name__}")
        self.model.load_state_dict(self._named(state), strict=False)

    def _named(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights under transformers' names, under the model's own."""
        return state
