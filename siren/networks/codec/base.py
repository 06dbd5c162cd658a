"""What every codec here does: waveforms to residual codes and back, and the tables that the model reads.

A codec is three modules with the names that the field gives them. `encoder` and `decoder` differ; `quantizer` is DAC's
residual quantiser in all of them (ours, transformers' or descript's: the same attributes and return values), so what is
written here once holds for all. The length contract: S samples give T = ceil(S / hop) frames, and T frames give exactly
T · hop samples.

Shapes: B batch · K codebooks · T frames · S samples · V codebook size · C code width.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siren.model.codebooks import CodecTables
from siren.networks import store
from siren.networks.codec.quantizer import folded_weight
from siren.shapes import Float, Int

KIND = "codec"


@dataclass(frozen=True)
class CodecOutput:
    """One differentiable pass: sound, the latent before the quantiser, and what the quantiser made of it."""

    wav: Float[Tensor, "B S"]  # S is a multiple of the hop
    twin: Float[Tensor, "B S"] | None  # the same with other noise, from a decoder that draws some
    latent: Float[Tensor, "B latent T"]
    projected: Float[Tensor, "B K*C T"] | None  # in-projections, what the nearest rows are searched for
    codes: Int[Tensor, "B K T"] | None
    commitment: Float[Tensor, ""]  # pulls latents to their rows
    codebook: Float[Tensor, ""]  # pulls rows to their latents


class Codec(nn.Module):
    """A codec behind one protocol. Subclasses set the numbers below, `quantizer`, and the two maps `analyse` and
    `synthesise`; `settings()` is what `build` needs to make the same one again."""

    backend: str
    sample_rate: int
    hop: int
    num_codebooks: int
    codebook_size: int
    code_dim: int
    latent_dim: int
    encoder: Any
    quantizer: Any
    decoder: Any

    @abstractmethod
    def analyse(self, wav: Float[Tensor, "B S"]) -> Float[Tensor, "B latent T"]:
        """The latent of waveforms whose length is a multiple of the hop."""

    @abstractmethod
    def synthesise(self, latent: Float[Tensor, "B latent T"], first: int = 0) -> Float[Tensor, "B S"]:
        """The waveform of a latent; at most T · hop samples, any that are missing are at the end.

        `first` is the number of the first frame in its clip, for a decoder whose noise depends on it."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Frames on either side that the sound of a frame depends on when it is decoded."""

    def synthesise_twins(
        self, latent: Float[Tensor, "B latent T"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"] | None]:
        """Two waveforms of a latent that differ in their noise; (waveform, None) from a decoder without any."""
        return self.synthesise(latent), None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """{backend, sample_rate, architecture} as plain data."""

    def forward(
        self, wav: Float[Tensor, "B S"], quantise: bool = True, generator: torch.Generator | None = None
    ) -> CodecOutput:
        """Encode and decode with gradients; without `quantise` the latent goes straight to the decoder.

        With a generator (on the codec's device) the decoder's noise is drawn from it, twice if it uses any.
        """
        latent = heard = self.analyse(self.padded(wav))
        codes = projected = None
        commitment = codebook = latent.new_zeros(())
        if quantise:
            heard, codes, projected, commitment, codebook = self.quantizer(latent)
        twins = (self.synthesise(heard), None) if generator is None else self.synthesise_twins(heard, generator)
        first, second = (wav if wav is None else self.to_length(wav, latent) for wav in twins)
        assert first is not None
        return CodecOutput(first, second, latent, projected, codes, commitment.mean(), codebook.mean())

    @torch.no_grad()
    def encode(self, wav: Float[Tensor, "B S"]) -> Int[Tensor, "B K T"]:
        """Codes (int64) of waveforms at `sample_rate`; the tail is zero-padded to a whole frame."""
        if wav.ndim != 2 or wav.shape[1] == 0:
            raise ValueError(f"the codec encodes waveforms [B, S] of at least one sample, not {tuple(wav.shape)}")
        return self.quantizer(self.analyse(self.padded(wav)))[1]

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B K T"], first: int = 0) -> Float[Tensor, "B S"]:
        """The waveform of codes, T · hop samples. The first n < K codebooks alone give a coarser sound.

        For a part of a clip `first` is the number of its first frame; `context` frames at its ends sound otherwise."""
        if codes.ndim != 3 or not 0 < codes.shape[1] <= self.num_codebooks:
            raise ValueError(f"codes are [B, K, T] with K up to {self.num_codebooks}, not {tuple(codes.shape)}")
        latent = self.quantizer.from_codes(codes)[0]
        return self.to_length(self.synthesise(latent, first), latent)

    def padded(self, wav: Tensor) -> Tensor:
        """`wav` with zeros up to a whole number of frames."""
        return F.pad(wav, (0, -wav.shape[-1] % self.hop))

    def to_length(self, wav: Tensor, latent: Tensor) -> Tensor:
        """`wav` with zeros up to T · hop samples: transposed convolutions of odd stride end a few samples early."""
        return F.pad(wav, (0, latent.shape[-1] * self.hop - wav.shape[-1]))

    @torch.no_grad()
    def tables(self) -> CodecTables:
        """Code rows and out-projections; the latent of a frame is the sum over k of weight_k @ rows_k[q_k] + bias_k."""
        layers = list(self.quantizer.quantizers)
        return CodecTables(
            rows=torch.stack([layer.codebook.weight for layer in layers]).detach().clone(),
            weight=torch.stack([folded_weight(layer.out_proj)[:, :, 0] for layer in layers]).detach().clone(),
            bias=torch.stack([layer.out_proj.bias for layer in layers]).detach().clone(),
        )

    def fingerprint(self) -> str:
        """SHA-256 over the tables: which codec a code belongs to."""
        tables = self.tables()
        return store.fingerprint({"rows": tables.rows, "weight": tables.weight, "bias": tables.bias})
