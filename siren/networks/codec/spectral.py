"""A small codec that works at the frame rate: log-mel in, residual codes, log-magnitude and phase out.

The family of Vocos (arXiv 2306.00814) and WavTokenizer (arXiv 2408.16532): both ends see one vector per hop instead of
samples, so a CPU trains it in minutes, where a waveform codec such as DAC needs hours. Between them is DAC's residual
quantiser, unchanged. Unusual: the encoder hears only the magnitudes, so the decoder invents the phase; reconstructions
sound alike and do not match sample by sample. And a decoder without any randomness turns rain into a buzz, because
equal codes give equal frames; so it adds Gaussian noise with gains that it predicts by band. Decoding uses one fixed
noise, a function of the frame's number alone: the same codes always give the same sound.

Shapes: B batch · T frames · S samples · W window · D width.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siren import audio
from siren.config import require
from siren.networks.codec.base import Codec
from siren.networks.codec.quantizer import ResidualQuantizer
from siren.shapes import Float

LOG_FLOOR = 1e-5  # amplitude (-100 dBFS) added before the logarithm
MAX_LOG_MAGNITUDE = 6.5  # a full-scale sine has a magnitude of half the window, exp(6.5) at 1280 samples
NOISE_FRAMES = 512  # the fixed noise repeats after so many frames (10 s)


@dataclass(frozen=True)
class SpectralArchitecture:
    """`networks.codec.architecture` of this backend."""

    window: int  # samples
    hop: int  # samples from one spectrum to the next
    mel_bands: int
    width: int  # of the decoder
    latent: int
    encoder_blocks: int
    decoder_blocks: int
    num_codebooks: int
    codebook_size: int
    code_dim: int
    encoder_width: int | None = None  # null: as the decoder
    expansion: int = 3  # hidden width of a block over its width
    noise_bands: int = 0  # mel bands of the noise that the decoder adds; 0 for none
    spectra_per_frame: int = 1  # consecutive spectra that share one frame of codes: fewer frames for the model

    def __post_init__(self) -> None:
        require(
            self.hop > 0 and self.window % self.hop == 0 and self.window // self.hop >= 2,
            f"window {self.window} must be at least two hops of {self.hop}, and a whole number of them",
        )
        require(self.spectra_per_frame >= 1, f"spectra_per_frame is {self.spectra_per_frame}; at least 1 is needed")
        require((self.window - self.hop) % 2 == 0, f"window {self.window} minus hop {self.hop} must be even")
        require(self.codebook_size <= 65536, f"codebook_size {self.codebook_size}: shards store codes as uint16")


class SpectralCodec(Codec):
    """See the module. Weights start at random from torch's global generator."""

    backend = "spectral"

    def __init__(self, architecture: SpectralArchitecture, sample_rate: int):
        super().__init__()
        a = self.architecture = architecture
        self.sample_rate, self.hop = sample_rate, a.hop * a.spectra_per_frame
        self.num_codebooks, self.codebook_size, self.code_dim = a.num_codebooks, a.codebook_size, a.code_dim
        self.latent_dim = a.latent
        self.encoder = MelEncoder(a, sample_rate)
        self.quantizer = ResidualQuantizer(a.latent, a.num_codebooks, a.codebook_size, a.code_dim)
        self.decoder = SpectrumDecoder(a, sample_rate)

    def analyse(self, wav: Float[Tensor, "B S"]) -> Float[Tensor, "B latent T"]:
        return self.encoder(wav).transpose(1, 2)

    def synthesise(self, latent: Float[Tensor, "B latent T"], first: int = 0) -> Float[Tensor, "B S"]:
        return self.decoder(latent.transpose(1, 2), first=first)[0]

    @property
    def context(self) -> int:
        """Three spectra on either side for each block, and the spectra whose windows reach into a hop."""
        a = self.architecture
        return -(-(3 * a.decoder_blocks + a.window // a.hop - 1) // a.spectra_per_frame)

    def synthesise_twins(
        self, latent: Float[Tensor, "B latent T"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"] | None]:
        if not self.architecture.noise_bands:
            return self.synthesise(latent), None
        first, second = self.decoder(latent.transpose(1, 2), generator)
        return first, second

    def settings(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "sample_rate": self.sample_rate,
            "architecture": asdict(self.architecture),
        }


class MelEncoder(nn.Module):
    """Waveform → log-mel → ConvNeXt → latent, one for `spectra_per_frame` spectra. [B, S] → [B, T, latent]"""

    window: Tensor
    filters: Tensor

    def __init__(self, a: SpectralArchitecture, sample_rate: int):
        super().__init__()
        width = a.encoder_width or a.width
        self.hop = a.hop
        self.register_buffer("window", torch.hann_window(a.window), persistent=False)
        filters = audio.mel_filterbank(a.mel_bands, a.window, sample_rate)
        self.register_buffer("filters", filters.t().contiguous(), persistent=False)
        self.embed = nn.Linear(a.mel_bands, width)
        self.trunk = Trunk(width, a.encoder_blocks, a.expansion)
        self.spectra = a.spectra_per_frame
        self.out = nn.Linear(width * self.spectra, a.latent)

    def forward(self, wav: Float[Tensor, "B S"]) -> Float[Tensor, "B T latent"]:
        x = self.trunk(self.embed(self.log_mel(wav)))
        return self.out(x.unflatten(1, (-1, self.spectra)).flatten(2))

    def log_mel(self, wav: Float[Tensor, "B S"]) -> Float[Tensor, "B T mel"]:
        """Natural logarithm of mel amplitudes, brought to about zero mean and unit variance."""
        size = self.window.shape[0]
        side = (size - self.hop) // 2
        frames = F.pad(wav, (side, side)).unfold(-1, size, self.hop) * self.window
        magnitude = torch.fft.rfft(frames).abs() * (2 / size)
        return (torch.log(magnitude @ self.filters + LOG_FLOOR) + 6) / 3


class SpectrumDecoder(nn.Module):
    """Latent → ConvNeXt → log-magnitude, phase and noise gain of every bin → inverse STFT.

    [B, T, latent] → one waveform [B, T · hop] with the fixed noise, or two with noises from a generator.
    """

    window: Tensor
    noise: Tensor
    bands: Tensor

    def __init__(self, a: SpectralArchitecture, sample_rate: int):
        super().__init__()
        self.hop, bins = a.hop, a.window // 2 + 1
        self.register_buffer("window", torch.hann_window(a.window), persistent=False)
        self.spectra = a.spectra_per_frame
        self.embed = nn.Linear(a.latent, a.width * self.spectra)
        self.trunk = Trunk(a.width, a.decoder_blocks, a.expansion)
        self.head = nn.Linear(a.width, 2 * bins)
        self.noise_gain = None
        if a.noise_bands:
            self.noise_gain = nn.Linear(a.width, a.noise_bands)
            nn.init.constant_(self.noise_gain.bias, -3.0)
            bands = audio.mel_filterbank(a.noise_bands, a.window, sample_rate)
            self.register_buffer("bands", bands / bands.sum(0).clamp_min(1e-3), persistent=False)
            fixed = torch.Generator().manual_seed(0)
            self.register_buffer("noise", complex_noise((NOISE_FRAMES, bins), fixed), persistent=False)

    def forward(
        self, latent: Float[Tensor, "B T latent"], generator: torch.Generator | None = None, first: int = 0
    ) -> list[Tensor]:
        x = self.trunk(self.embed(latent).unflatten(-1, (self.spectra, -1)).flatten(1, 2))
        log_magnitude, phase = self.head(x).chunk(2, dim=-1)
        magnitude = log_magnitude.clamp(max=MAX_LOG_MAGNITUDE).exp()
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        if self.noise_gain is None:
            return [inverse_stft(spectrum, self.window, self.hop)]
        gain = self.noise_gain(x).clamp(max=MAX_LOG_MAGNITUDE).exp() @ self.bands
        if generator is None:
            numbers = first * self.spectra + torch.arange(x.shape[1], device=x.device)
            noises = [self.noise[numbers % NOISE_FRAMES]]
        else:
            noises = [complex_noise(spectrum.shape, generator) for _ in range(2)]
        return [inverse_stft(spectrum + gain * noise, self.window, self.hop) for noise in noises]


def complex_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Complex Gaussian noise of unit variance, on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.complex64)


class Trunk(nn.Module):
    """ConvNeXt blocks between two normalisations. [B, T, D] → [B, T, D]"""

    def __init__(self, width: int, num_blocks: int, expansion: int):
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, expansion, 1 / max(1, num_blocks)) for _ in range(num_blocks))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)


class Block(nn.Module):
    """ConvNeXt in one dimension: depthwise convolution over 7 frames, then a pointwise network, scaled and added."""

    def __init__(self, width: int, expansion: int, scale: float):
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        y = self.mix(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y))))


def inverse_stft(spectrum: Float[Tensor, "B T bins"], window: Float[Tensor, " W"], hop: int) -> Float[Tensor, "B S"]:
    """Overlap-add of windowed frames over the sum of squared windows, cut to the T · hop samples in the middle."""
    size, side = window.shape[0], (window.shape[0] - hop) // 2
    frames = torch.fft.irfft(spectrum, n=size) * window
    envelope = overlap_add(window.square().expand(1, frames.shape[1], size), hop)
    return (overlap_add(frames, hop) / envelope.clamp_min(1e-8))[:, side : side + frames.shape[1] * hop]


def overlap_add(frames: Float[Tensor, "B T W"], hop: int) -> Float[Tensor, "B S"]:
    """Sum of frames placed a hop apart, (T - 1) · hop + W samples. W is a multiple of the hop."""
    parts = frames.unflatten(-1, (-1, hop)).unbind(2)  # each [B, T, hop]
    total = frames.new_zeros(frames.shape[0], frames.shape[1] + len(parts) - 1, hop)
    for index, part in enumerate(parts):
        total[:, index : index + frames.shape[1]] += part
    return total.flatten(1)
