"""AutoCap as a captioner: one caption of each clip, from its sound, title and labels.

torch is imported with the network, not before: most captions are people's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from siren import audio
from siren.config import BeamSearch
from siren.filter.caption.protocol import Answer, Clip
from siren.progress import track


class Listener:
    """The network is loaded at the first clip. A caption does not depend on the rest of its batch, but for rounding."""

    hears = True
    writes_freely = True

    def __init__(self, settings: BeamSearch) -> None:
        self.settings = settings
        self._loaded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}  # another process loads its own

    def __call__(self, clips: Sequence[Clip]) -> list[list[Answer]]:
        """One candidate of each."""
        size, found = self.settings.batch_size, []
        starts = range(0, len(clips), size)
        for start in track(starts, "autocap", len(starts), unit="batch"):
            found += self._batch(clips[start : start + size])
        return found

    def _batch(self, clips: Sequence[Clip]) -> list[list[Answer]]:
        import torch

        network = self._load()
        rate, samples = network.sample_rate, network.num_samples
        wavs = [audio.resample(clip.wav, clip.sample_rate, rate) for clip in clips if clip.wav is not None]
        wav = torch.from_numpy(np.stack([fit(wav, samples) for wav in wavs]))
        written = network.captions(wav.to(network.device), [metadata(clip) for clip in clips], self.settings.beams)
        return [[Answer.of(text, ended)] for text, ended in written]

    def _load(self) -> Any:
        if self._loaded is None:
            import torch

            from siren.networks import autocap

            self._loaded = autocap.load(self.settings.model, "cuda" if torch.cuda.is_available() else "cpu")
        return self._loaded

    def provenance(self) -> dict[str, Any]:
        from siren.networks import store

        sidecar = store.read_sidecar(self.settings.model)
        licence = sidecar["extra"].get("licence")
        return {"model": "autocap", "sha256": sidecar["sha256"], "licence": licence, "beams": self.settings.beams}


def metadata(clip: Clip) -> dict[str, str]:
    """What is known of a clip, as fields that the network may read."""
    labels = sorted(label.replace("_", " ") for label in clip.labels)  # in the order of events they would say more
    known = {"labels": ", ".join(labels), "title": clip.title or ""}
    return {name: " ".join(text.split()) for name, text in known.items()}


def fit(wav: np.ndarray, samples: int) -> np.ndarray:
    """A clip of just so many samples: a shorter one is repeated whole as often as it fits, then silent; of a longer one
    the first part. In training, measuring and captioning the same. [S]
    """
    whole = np.tile(wav, max(1, samples // len(wav)))[:samples]
    return np.pad(whole, (0, samples - len(whole)))
