"""CLAP's audio front end in torch, on the batch and on the device: rate, length, log-mel.

The published feature extractors are numpy loops over clips; this gives their features (`rand_trunc`, `repeatpad`)
for a batch at once. One difference on purpose: a clip longer than `max_seconds` is not cropped at random but cut into
evenly spread windows, so that the same clip always has the same embedding.

Shapes: B batch · S samples · W windows · T frames · F mel bands.
"""

import math

import torch
from torch import nn

from siren.audio import mel_filterbank
from siren.networks.clap.architecture import Architecture
from siren.shapes import Float

FLOOR = 1e-10  # power below which the log is cut: -100 dB


class LogMel(nn.Module):
    """Power mel spectrogram in decibels: Hann window, centred frames, Slaney scale and norm. [B, S] → [B, 1, T, F]"""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.n_fft, self.hop = arch.n_fft, arch.hop
        filters = mel_filterbank(
            arch.mel_bands, arch.n_fft, arch.sample_rate, arch.fmin, arch.fmax, scale="slaney", norm="slaney"
        )
        self.register_buffer("window", torch.hann_window(arch.n_fft), persistent=False)
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)

    def forward(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B 1 T F"]:
        spectrum = torch.stft(
            wav, self.n_fft, self.hop, window=self.window, center=True, pad_mode="reflect", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()  # [B, n_fft / 2 + 1, T]
        mel = power.transpose(1, 2) @ self.filters
        return 10.0 * torch.log10(mel.clamp_min(FLOOR))[:, None]


def windows(wav: Float[torch.Tensor, "B S"], length: int, wrap: bool = False) -> Float[torch.Tensor, "B W S"]:
    """Clips brought to `length` samples: shorter ones repeated whole as often as they fit and then padded with zeros
    (`wrap`: repeated until it is full), longer ones cut into the fewest evenly spread windows that cover them.
    """
    samples = wav.shape[-1]
    if samples == 0:
        raise ValueError("a clip of 0 samples cannot be embedded; quarantine it earlier")
    if samples < length:
        wav = wav.repeat(1, math.ceil(length / samples))[:, :length] if wrap else wav.repeat(1, length // samples)
        return nn.functional.pad(wav, (0, length - wav.shape[-1]))[:, None]
    count = math.ceil(samples / length)
    starts = [round(i * (samples - length) / max(1, count - 1)) for i in range(count)]
    return torch.stack([wav[:, start : start + length] for start in starts], dim=1)
