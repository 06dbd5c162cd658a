"""What the evaluating networks make of clips: every network once over every clip, in batches, kept as arrays.

Cnn14 and VGGish hear a clip without its constant part, as audioldm_eval does; CLAP and ImageBind hear it as it is.
Shapes: N clips · S samples · C classes · E examples of a clip · F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siren import audio
from siren.evaluate import metrics
from siren.progress import track


@dataclass(frozen=True)
class Heard:
    """Row i of every array belongs to clip i."""

    silent: np.ndarray  # bool [N]
    features: np.ndarray  # Cnn14 [N, F]
    logits: np.ndarray  # Cnn14 [N, C]
    first_half: np.ndarray  # Cnn14's logits of the first half [N, C]; NaN where `halves` was False
    second_half: np.ndarray  # and of the second
    examples: np.ndarray  # VGGish [N, E, 128]
    clap: np.ndarray  # audio embeddings [N, F]
    imagebind: np.ndarray  # audio embeddings [N, F]

    def __getitem__(self, rows: np.ndarray) -> "Heard":
        return Heard(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Ears:
    """The networks, and how to feed them. `sample_rate` is that of the clips; each network has its own."""

    cnn14: Any
    vggish: Any
    clap: Any
    imagebind: Any
    sample_rate: int
    batch_size: int
    device: str

    @torch.inference_mode()
    def listen(self, arms: Mapping[str, np.ndarray], halves: np.ndarray) -> dict[str, Heard]:
        """Clips [N, S] of every arm → what is heard; `halves` bool [N]: whose halves are judged as well."""
        batches = [(arm, i) for arm, wavs in arms.items() for i in range(0, len(wavs), self.batch_size)]
        parts: dict[str, list[Heard]] = {arm: [] for arm in arms}
        for arm, i in track(batches, "judging clips", unit="batch"):
            rows = slice(i, i + self.batch_size)
            parts[arm].append(self._batch(np.asarray(arms[arm][rows], np.float32), halves[rows]))
        return {arm: _join(part) for arm, part in parts.items()}

    @torch.inference_mode()
    def read(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Text embeddings of both audio-text networks. {"clap": [N, F], "imagebind": [N, F]}"""
        networks = {"clap": self.clap, "imagebind": self.imagebind}
        starts = range(0, len(captions), self.batch_size)
        parts = {
            name: [network.embed_text(list(captions[i : i + self.batch_size])) for i in starts]
            for name, network in networks.items()
        }
        return {name: _array(torch.cat(part)) for name, part in parts.items()}

    def _batch(self, wavs: np.ndarray, halves: np.ndarray) -> Heard:
        centred = wavs - wavs.mean(axis=1, keepdims=True)
        features, logits = (_array(x) for x in self._feed(self.cnn14, self.cnn14, centred))
        middle = wavs.shape[1] // 2
        sides = [np.full_like(logits, np.nan), np.full_like(logits, np.nan)]
        for side, part in zip(sides, (centred[halves, :middle], centred[halves, middle:]), strict=True):
            if len(part):
                side[halves] = _array(self._feed(self.cnn14, self.cnn14.logits, part))
        return Heard(
            silent=metrics.silent(wavs),
            features=features,
            logits=logits,
            first_half=sides[0],
            second_half=sides[1],
            examples=_array(self._feed(self.vggish, self.vggish, centred)),
            clap=_array(self._feed(self.clap, self.clap.embed_audio, wavs)),
            imagebind=_array(self._feed(self.imagebind, self.imagebind.embed_audio, wavs)),
        )

    def _feed(self, network: Any, function: Callable[[Tensor], Any], wavs: np.ndarray) -> Any:
        rate = getattr(network, "sample_rate", self.sample_rate)
        return function(torch.from_numpy(audio.resample(wavs, self.sample_rate, rate)).to(self.device))


def _join(parts: list[Heard]) -> Heard:
    return Heard(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Heard)))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
