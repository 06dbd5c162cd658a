"""Cnn14 of PANNs (Kong et al., arXiv 1912.10211, table 1) behind a 16 kHz front: the judge of FD, KL, IS and of events.

Unusual: `width` scales every channel count, so the same code is the published network (1.0: 64 … 2048 channels) and
one that a demo trains in seconds. Parameter names are those of the published checkpoint, whose spectrogram and mel
matrices are constants computed here. Logits come before the sigmoid, features after fc1's ReLU (the "2048" vector).
Shapes: B batch · S samples · F features · C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siren.audio import mel_filterbank
from siren.config import require

SAMPLE_RATE, WINDOW, HOP, BANDS = 16000, 512, 160, 64
FMIN, FMAX = 50.0, 8000.0
CHANNELS = (64, 128, 256, 512, 1024, 2048)
MIN_SAMPLES = 31 * HOP  # 32 frames: five poolings by two leave one


@dataclass(frozen=True)
class Cnn14Config:
    name: str = "cnn14"  # appears in the names of metrics: figures of different weights are not comparable
    width: float = 1.0
    dropout: float = 0.2  # after every block; training only
    head_dropout: float = 0.5  # around fc1; training only

    def __post_init__(self) -> None:
        require(0 < self.width <= 1, f"width is {self.width}; it lies in (0, 1], 1.0 is the published network")
        for name in ("dropout", "head_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it lies in [0, 1)")


class Cnn14Output(NamedTuple):
    features: Tensor  # [B, F]
    logits: Tensor  # [B, C], before the sigmoid


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU, then average pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        nn.init.xavier_uniform_(self.conv1.weight)
        nn.init.xavier_uniform_(self.conv2.weight)

    def forward(self, x: Tensor, pool: int) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, pool) if pool > 1 else x


class Cnn14(nn.Module):
    """Waveforms at 16 kHz to features and to one logit for every label; labels are independent (multi-label)."""

    sample_rate = SAMPLE_RATE
    kind = "cnn14"

    def __init__(self, config: Cnn14Config, labels: Sequence[str]) -> None:
        super().__init__()
        self.config, self.labels, self.name = config, list(labels), config.name
        channels = [max(1, round(c * config.width)) for c in CHANNELS]
        self.bn0 = nn.BatchNorm2d(BANDS)
        for i, (inputs, outputs) in enumerate(zip([1, *channels], channels, strict=False), 1):
            self.add_module(f"conv_block{i}", Block(inputs, outputs))
        self.fc1 = nn.Linear(channels[-1], channels[-1])
        self.fc_audioset = nn.Linear(channels[-1], len(self.labels))
        for layer in (self.fc1, self.fc_audioset):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.window: Tensor
        self.mel: Tensor
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        mel = mel_filterbank(BANDS, WINDOW, SAMPLE_RATE, FMIN, FMAX, scale="slaney", norm="slaney")
        self.register_buffer("mel", mel, persistent=False)

    def log_mel(self, wav: Tensor) -> Tensor:
        """Power in dB (reference 1, floor 1e-10, no top). [B, S] → [B, 1, frames, 64]

        A clip of less than 32 frames (0.31 s), of which the poolings would leave nothing, is zero-padded to that.
        """
        wav = F.pad(wav, (0, max(0, MIN_SAMPLES - wav.shape[-1])))
        spectrum = torch.stft(wav, WINDOW, HOP, window=self.window, pad_mode="reflect", return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # [B, bins, frames]
        return 10 * torch.log10(torch.clamp(self.mel @ power, min=1e-10)).transpose(1, 2)[:, None]

    def forward(self, wav: Tensor) -> Cnn14Output:
        return self.of_log_mel(self.log_mel(wav))

    def of_log_mel(self, log_mel: Tensor) -> Cnn14Output:
        """[B, 1, frames, 64], at whatever rate"""
        x = self.bn0(log_mel.transpose(1, 3)).transpose(1, 3)  # bn0 normalises each mel band
        # A channel axis that lies last in memory: the same values, trained half as fast again by CPUs.
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for i in range(1, 7):
            x = self.get_submodule(f"conv_block{i}")(x, pool=2 if i < 6 else 1)
            x = F.dropout(x, self.config.dropout, self.training)
        x = x.mean(dim=3)  # [B, F, frames / 32]
        x = x.amax(dim=2) + x.mean(dim=2)
        features = F.relu(self.fc1(F.dropout(x, self.config.head_dropout, self.training)))
        return Cnn14Output(features, self.fc_audioset(F.dropout(features, self.config.head_dropout, self.training)))

    def logits(self, wav: Tensor) -> Tensor:
        """[B, S] → [B, C]"""
        return self(wav).logits


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a published PANNs Cnn14_16k file without its constants, which are computed here.

    Raises ValueError where the file is of another kind, such as the 32 kHz variant, which has another mel matrix.
    """
    mel = state.get("logmel_extractor.melW")
    if mel is not None:
        ours = mel_filterbank(BANDS, WINDOW, SAMPLE_RATE, FMIN, FMAX, scale="slaney", norm="slaney").T
        if mel.shape != ours.shape or not torch.allclose(mel, ours, atol=1e-5):
            raise ValueError(
                f"these weights have a mel matrix of shape {tuple(mel.shape)} that is not that of Cnn14_16k "
                f"(window 512, 64 bands, 50-8000 Hz at 16 kHz); take the file Cnn14_16k_mAP=0.438.pth"
            )
    return {k: v for k, v in state.items() if not k.startswith(("spectrogram_extractor.", "logmel_extractor."))}
