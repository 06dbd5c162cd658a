"""Resampling inside a network: in torch, on the batch and on its device, and differentiable.

`siren.audio.resample` is the one for files (soxr, numpy).
"""

import torch

from siren.shapes import Float


def resample(wav: Float[torch.Tensor, "B S"], source: int, target: int) -> Float[torch.Tensor, "B S"]:
    """Ideal band-limited resampling through the spectrum. [B, S] → [B, round(S * target / source)]

    A clip is taken as periodic, so that its edges, and only they, differ from what a windowed filter would give.
    """
    if source == target:
        return wav
    samples = round(wav.shape[-1] * target / source)
    spectrum = torch.fft.rfft(wav)[..., : samples // 2 + 1]
    return torch.fft.irfft(spectrum, n=samples) * (samples / wav.shape[-1])
