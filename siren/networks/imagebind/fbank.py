"""ImageBind's audio front end in torch, on the batch and on the device: windows of a clip, Kaldi filter banks.

The package's own reads files through a video library and calls torchaudio clip by clip; the numbers are the same.
Kaldi's habits that matter: every frame loses its mean, is pre-emphasised (0.97) and windowed (Hann, symmetric) before
it is padded to a power of two; frames must lie wholly inside the clip; the triangles are straight on the mel scale.

Shapes: B batch · S samples · W windows · T frames · F mel bands.
"""

import math

import torch
from torch import nn

from siren.shapes import Float

PREEMPHASIS = 0.97
LOW_HZ = 20.0
FLOOR = 1.1920928955078125e-07  # float32 epsilon: power below it is silence
MEAN, STD = -4.268, 9.138  # of AudioSet's filter banks, as published


class Fbank(nn.Module):
    """Normalised log filter banks, cut or zero-padded to `target_frames`. [B, S] → [B, 1, F, T]"""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, sample_rate: int, mel_bins: int, target_frames: int) -> None:
        super().__init__()
        self.length, self.hop = round(0.025 * sample_rate), round(0.010 * sample_rate)
        self.n_fft = 2 ** math.ceil(math.log2(self.length))
        self.target_frames = target_frames
        self.register_buffer("window", torch.hann_window(self.length, periodic=False), persistent=False)
        self.register_buffer("filters", _triangles(mel_bins, self.n_fft, sample_rate), persistent=False)

    def forward(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B 1 F T"]:
        wav = wav - wav.mean(dim=-1, keepdim=True)
        if wav.shape[-1] < self.length:
            wav = nn.functional.pad(wav, (0, self.length - wav.shape[-1]))
        frames = wav.unfold(-1, self.length, self.hop)[:, : self.target_frames]  # [B, T, length]
        frames = frames - frames.mean(dim=-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - PREEMPHASIS * before) * self.window
        spectrum = torch.fft.rfft(frames, n=self.n_fft)
        power = spectrum.real.square() + spectrum.imag.square()
        bands = (power[..., :-1] @ self.filters).clamp_min(FLOOR).log()
        # the package pads before it normalises, so padding is a constant far from silence's value; kept as published
        bands = nn.functional.pad(bands, (0, 0, 0, self.target_frames - bands.shape[1]))
        return ((bands - MEAN) / STD).transpose(1, 2)[:, None]


def _triangles(mel_bins: int, n_fft: int, sample_rate: int) -> torch.Tensor:
    """Kaldi's mel filters from 20 Hz to half the sample rate, without the last bin. [n_fft / 2, F]"""
    hz = torch.arange(n_fft // 2, dtype=torch.float64) * sample_rate / n_fft
    low, high = _mel(torch.tensor(LOW_HZ, dtype=torch.float64)), _mel(torch.tensor(sample_rate / 2).double())
    step = (high - low) / (mel_bins + 1)
    left = low + step * torch.arange(mel_bins, dtype=torch.float64)
    rising = (_mel(hz)[:, None] - left) / step
    return torch.minimum(rising, 2 - rising).clamp_min(0).float()


def _mel(hz: torch.Tensor) -> torch.Tensor:
    return 1127.0 * torch.log1p(hz / 700.0)


def windows(wav: Float[torch.Tensor, "B S"], length: int, count: int) -> Float[torch.Tensor, "B W length"]:
    """`count` evenly spread windows of `length` samples; a clip that is not longer is one window as it is."""
    samples = wav.shape[-1]
    if samples == 0:
        raise ValueError("a clip of 0 samples cannot be embedded; quarantine it earlier")
    if samples <= length:
        return wav[:, None]
    starts = [math.floor(i * (samples - length) / max(1, count - 1)) for i in range(count)]
    return torch.stack([wav[:, start : start + length] for start in starts], dim=1)
