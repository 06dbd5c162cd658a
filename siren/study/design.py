"""What raters hear: blinded clips of equal loudness, in an order of each rater's own.

A trial is one prompt with one clip of each system (three in the paper, two to six here). Clips are copied under names
that say nothing, at one loudness within a trial (ITU-R BS.1770, as pyloudnorm measures it): a louder clip is preferred
for its loudness. A rater's order of trials, and who is A, B and C in each, follow from the study's seed and the
rater's code, so nothing about a rater needs to be kept for resuming. Each arrangement of the systems comes about
equally often for every rater. Shapes: S samples.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siren import audio
from siren.atomic import write_text
from siren.evaluate.folders import gather, read_manifest
from siren.progress import track

STUDY, CLIPS = "study.json", "clips"
QUESTIONS = {
    "fidelity": "Which sounds most real and clear?",
    "instruction": "Which fits the text best?",
}
MOST_SYSTEMS = 6
LOUDNESS = -23.0  # LUFS, EBU R 128's
PEAK = 0.99  # no clip is driven into clipping to reach the others: the whole trial is made quieter instead
SHORTEST = 0.4  # seconds, one block of the meter


@dataclass(frozen=True)
class Trial:
    id: str
    caption: str
    set: str  # general, multi-event, out-of-distribution
    clips: dict[str, str]  # system → file below CLIPS
    gains_db: dict[str, float]


@dataclass(frozen=True)
class Study:
    seed: int
    systems: tuple[str, ...]
    trials: tuple[Trial, ...]

    def order(self, rater: str) -> list[tuple[Trial, tuple[str, ...]]]:
        """The trials as this rater gets them, each with the systems behind A, B, C."""
        rng = np.random.default_rng(int(hashlib.sha256(f"{self.seed} {rater}".encode()).hexdigest()[:16], 16))
        arrangements = list(itertools.permutations(self.systems))
        rounds = math.ceil(len(self.trials) / len(arrangements))
        turns = [i for _ in range(rounds) for i in rng.permutation(len(arrangements))]
        trials = [self.trials[i] for i in rng.permutation(len(self.trials))]
        return [(trial, arrangements[i]) for trial, i in zip(trials, turns, strict=False)]


def make(folder: Path, manifest: Path, systems: Mapping[str, Path], seed: int) -> tuple[Study, list[str]]:
    """Write a study of these systems' folders, and give it with notes. Clips are paired by name, as in `siren measure`.

    The manifest has the columns file and caption, and perhaps `set`. Raises ValueError for clips that are missing or
    unreadable, and where `folder` holds a study already.
    """
    if not 2 <= len(systems) <= MOST_SYSTEMS:
        raise ValueError(
            f"{len(systems)} systems: a ranking needs 2 to {MOST_SYSTEMS}; give --system NAME=FOLDER again"
        )
    if (folder / STUDY).exists():
        raise ValueError(f"{folder} holds a study already, perhaps with answers; take another folder")
    prompts = read_manifest(manifest, keep=("set",))
    found = {name: gather(path, [p["id"] for p in prompts], name) for name, path in systems.items()}
    trials = []
    wide = {name: max(sounds.channels) for name, sounds in found.items()}
    notes = [f"{name} has {count} channels; raters hear their mean" for name, count in wide.items() if count > 1]
    for row, prompt in enumerate(track(prompts, "clips", unit="prompt")):
        wavs = {name: (audio.to_mono(audio.read(s.paths[row])[0]), s.sample_rate) for name, s in found.items()}
        gains = _gains(wavs)
        names = {name: hashlib.sha256(f"{seed} {prompt['id']} {name}".encode()).hexdigest()[:20] for name in wavs}
        for name, (wav, rate) in wavs.items():
            audio.write(folder / CLIPS / f"{names[name]}.wav", wav * 10 ** (gains[name] / 20), rate)
        notes += [f"{prompt['id']}: the clip of {n} is silent" for n, (wav, _) in wavs.items() if not np.any(wav)]
        files = {name: f"{stem}.wav" for name, stem in names.items()}
        trials.append(Trial(prompt["id"], prompt["caption"], prompt["set"] or "general", files, gains))
    study = Study(seed, tuple(systems), tuple(trials))
    write_text(folder / STUDY, json.dumps(asdict(study), indent=1) + "\n")  # last: a folder with it is whole
    return study, notes


def load(folder: Path) -> Study:
    """Raises ValueError where there is no study."""
    path = folder / STUDY
    if not path.is_file():
        raise ValueError(f"no study in {folder} ({STUDY} is missing); `siren study make` makes one")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Study(data["seed"], tuple(data["systems"]), tuple(Trial(**trial) for trial in data["trials"]))


def _gains(wavs: Mapping[str, tuple[np.ndarray, int]]) -> dict[str, float]:
    """dB that bring clips to one loudness: the target, or the highest that none of them clips at. Silence stays."""
    levels = {name: loudness(wav, rate) for name, (wav, rate) in wavs.items()}
    heard = {name: level for name, level in levels.items() if np.isfinite(level)}
    room = [level + 20 * math.log10(PEAK / np.abs(wavs[name][0]).max()) for name, level in heard.items()]
    target = min([LOUDNESS, *room])
    return {name: round(target - level, 3) if name in heard else 0.0 for name, level in levels.items()}


def loudness(wav: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness in LUFS; -inf below the gate of -70. [S]"""
    import pyloudnorm

    wav = np.pad(wav.astype(np.float64), (0, max(0, math.ceil(SHORTEST * sample_rate) + 1 - len(wav))))
    with np.errstate(divide="ignore", invalid="ignore"):
        level = float(pyloudnorm.Meter(sample_rate).integrated_loudness(wav)) if np.any(wav) else -np.inf
    return level if np.isfinite(level) else -np.inf


def letters(count: int) -> Sequence[str]:
    return "ABCDEF"[:count]
