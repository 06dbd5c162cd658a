"""VGGish (Hershey et al., arXiv 1609.09430) as FAD uses it: 128 numbers for every example of 0.96 s.

As in audioldm_eval and its followers: no PCA, no quantisation, and the last ReLU is left out of the embedding.
Unusual: `width` scales the channels and `hidden` the two wide layers, so that a demo can train one; it then also has
a classification head over the embeddings, which trains them and is no part of them. The published network has none.
Parameter names are those of the torchvggish checkpoint. Shapes: B batch · S samples · N examples of a clip · E width
of the embedding · C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siren.config import require

SAMPLE_RATE, WINDOW, HOP, FFT, BANDS = 16000, 400, 160, 512, 64
FMIN, FMAX, LOG_OFFSET = 125.0, 7500.0, 0.01
FRAMES = 96  # one example: 0.96 s
EXAMPLE_SAMPLES = (FRAMES - 1) * HOP + WINDOW
EMBEDDING = 128
LAYERS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool")


@dataclass(frozen=True)
class VggishConfig:
    name: str = "vggish"  # appears in the names of metrics: figures of different weights are not comparable
    width: float = 1.0
    hidden: int = 4096
    example_hop_seconds: float = 0.96  # shorter: overlapping examples, for clips of little more than one example

    def __post_init__(self) -> None:
        require(0 < self.width <= 1, f"width is {self.width}; it lies in (0, 1], 1.0 is the published network")
        require(self.hidden > 0, f"hidden is {self.hidden}; it must be positive, 4096 is the published network")
        require(
            0.01 <= self.example_hop_seconds <= 0.96,
            f"example_hop_seconds is {self.example_hop_seconds}; it lies in [0.01, 0.96], 0.96 is the published one",
        )


class Vggish(nn.Module):
    """Waveforms at 16 kHz to one embedding for every example; `labels` empty means no head."""

    sample_rate = SAMPLE_RATE
    kind = "vggish"

    def __init__(self, config: VggishConfig, labels: Sequence[str] = ()) -> None:
        super().__init__()
        self.config, self.labels, self.name = config, list(labels), config.name
        layers: list[nn.Module] = []
        channels = 1
        for layer in LAYERS:
            if isinstance(layer, str):
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = max(1, round(layer * config.width))
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()]
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(FRAMES // 16 * BANDS // 16 * channels, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, EMBEDDING),
        )
        self.head = nn.Linear(EMBEDDING, len(self.labels)) if self.labels else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.window: Tensor
        self.mel: Tensor
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("mel", mel_matrix(), persistent=False)

    def examples(self, wav: Tensor) -> Tensor:
        """log(mel + 0.01) of magnitudes, cut into examples. [B, S] → [B, N, 96, 64]

        A partial example at the end is dropped. A clip of less than one example (0.975 s) is zero-padded to one.
        """
        wav = F.pad(wav, (0, max(0, EXAMPLE_SAMPLES - wav.shape[-1])))
        frames = wav.unfold(-1, WINDOW, HOP) * self.window
        log_mel = torch.log(torch.fft.rfft(frames, FFT).abs() @ self.mel + LOG_OFFSET)  # [B, frames, 64]
        hop = round(self.config.example_hop_seconds * SAMPLE_RATE / HOP)
        return log_mel.unfold(1, FRAMES, hop).transpose(2, 3)

    def embed(self, examples: Tensor) -> Tensor:
        """[..., 96, 64] → [..., 128]"""
        # A channel axis that lies last in memory: the same values, convolved twice as fast by CPUs.
        x = self.features(examples.reshape(-1, FRAMES, BANDS, 1).permute(0, 3, 1, 2))
        x = x.permute(0, 2, 3, 1).flatten(1)  # channels last, as the original's TensorFlow graph flattened it
        return self.embeddings(x).reshape(*examples.shape[:-2], EMBEDDING)

    def forward(self, wav: Tensor) -> Tensor:
        """[B, S] → [B, N, 128]"""
        return self.embed(self.examples(wav))

    def logits(self, wav: Tensor) -> Tensor:
        """The head on the mean of a clip's rectified embeddings. [B, S] → [B, C]. ValueError for a network without."""
        if self.head is None:
            raise ValueError(f"{self.name} has no classification head: its weights give embeddings only")
        return self.head(F.relu(self(wav)).mean(dim=1))


def mel_matrix() -> Tensor:
    """VGGish's own mel weights: ramps that are straight over mel, not over Hz, and nothing from bin 0. [257, 64]"""

    def mel(hz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log(1.0 + hz / 700.0)

    bins = mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1))[:, None]
    edges = np.linspace(mel(np.array(FMIN)), mel(np.array(FMAX)), BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    matrix = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    matrix[0] = 0.0
    return torch.from_numpy(matrix.astype(np.float32))


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a published torchvggish file without the PCA parameters that some copies carry."""
    return {k: v for k, v in state.items() if not k.startswith("pproc.")}
