"""Synthetic scenes to learn from: "X", "X while Y" (mixed for the whole length) and "X then Y" (one half each).

Twelve events (`events.py`) in wordings. Training clips use `TRAIN` wordings, test clips the `TEST` wordings, which
hold words that no training caption has. Everything about a scene is drawn from its own generator, seeded by
(seed, split, number), so that the bytes do not depend on the order or the process in which scenes are made.
Files come at mixed sample rates, channel counts, lengths and formats, as files in the world do; some are broken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from siren import audio
from siren.collect.sources.broken import BROKEN
from siren.collect.sources.events import SOUNDS, event
from siren.config import Audio, ConfigError
from siren.engine import LOCAL, Engine, each, ranges
from siren.hashing import file_sha256

EVENTS: tuple[str, ...] = tuple(SOUNDS)
PHRASES: dict[str, tuple[str, str, str]] = {  # what it does, what one hears, the bare noun
    "dog": ("a dog barks", "a dog barking", "dog barks"),
    "rain": ("rain falls", "rain falling", "rain"),
    "alarm": ("an alarm beeps", "an alarm beeping", "alarm beeps"),
    "siren": ("a siren wails", "a siren wailing", "siren wails"),
    "bell": ("a bell rings", "a bell ringing", "bell rings"),
    "engine": ("an engine runs", "an engine running", "engine noise"),
    "bird": ("a bird chirps", "a bird chirping", "bird chirps"),
    "clock": ("a clock ticks", "a clock ticking", "clock ticks"),
    "thunder": ("thunder rumbles", "thunder rumbling", "thunder"),
    "drops": ("water drips", "water dripping", "water drops"),
    "waves": ("waves roll in", "waves rolling in", "sea waves"),
    "knock": ("someone knocks", "someone knocking", "knocks on a door"),
}
# {does}, {doing}, {noun} of the first event; {does2} ... of the second.
TRAIN: dict[str, tuple[str, ...]] = {
    "one": ("{does}", "{doing}", "{noun}", "the sound of {doing}", "{doing} nearby", "somewhere {does}"),
    "while": (
        "{does} while {does2}",
        "{doing} with {noun2} in the background",
        "{does} as {does2}",
        "{doing} and {doing2} at the same time",
        "{noun} together with {noun2}",
    ),
    "then": (
        "{does} then {does2}",
        "{doing} followed by {doing2}",
        "{does2} after {doing}",
        "{doing} before {doing2}",
        "first {noun} and then {noun2}",
    ),
}
TEST: dict[str, tuple[str, ...]] = {
    "one": ("a recording of {doing}", "{does} loudly", "you can hear {doing}", "a clip where {does}"),
    "while": (
        "a recording of {doing} while {does2}",
        "you can hear {doing} with {doing2} in the background",
        "{does} loudly as {does2}",
    ),
    "then": (
        "a recording of {doing} and then {doing2}",
        "you can hear {doing} followed by {noun2}",
        "{does} loudly then {does2}",
    ),
}
RATES = {16000: 0.4, 22050: 0.2, 32000: 0.15, 44100: 0.15, 48000: 0.1}  # Hz, with their shares
FORMATS = {("flac", "PCM_16"): 0.6, ("wav", "PCM_16"): 0.3, ("wav", "PCM_24"): 0.05, ("wav", "FLOAT"): 0.05}
SPLITS = ("train", "val", "test")
AT_ONCE = 100  # scenes that one process makes between two reports


@dataclass(frozen=True)
class Options:
    train: int
    val: int
    test_one: int
    test_two: int
    broken: int = 0
    seconds: float = 1.6
    two_share: float = 0.4  # share of training and validation scenes with two events


@dataclass(frozen=True)
class Scene:
    """What a scene holds; how it sounds is drawn when it is made."""

    split: str
    number: int
    labels: tuple[str, ...]
    relation: str  # one | while | then

    @property
    def id(self) -> str:
        return f"scenes-{self.split}-{self.number:05d}"


def fetch(
    options: dict[str, Any], folder: Path, audio: Audio, seed: int, engine: Engine = LOCAL
) -> tuple[list[dict], list[dict]]:
    """The source: writes every scene under `folder/audio`; rows for the manifest, and nothing in quarantine.

    Broken files get rows like any other: that they are broken is for the segmenter to find out.
    """
    known = [f.name for f in fields(Options)]
    if wrong := sorted(set(options) - set(known)):
        raise ConfigError(f"collect.fetch source scenes has no option {wrong[0]!r}; known: {', '.join(known)}")
    try:
        settings = Options(**options)
    except TypeError as error:
        raise ConfigError(f"collect.fetch source scenes: {error}") from None
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    scenes = plan(settings, seed)
    parts = [scenes[rows.start : rows.stop] for rows in ranges(len(scenes), AT_ONCE)]
    made = each(engine, partial(Writer, folder, settings.seconds, audio, seed), parts, "scenes", "scene")
    rows = [row for part in made for row in part]
    return rows + [_write_broken(number, folder) for number in range(settings.broken)], []


class Writer:
    """Scenes to their files and rows."""

    def __init__(self, folder: Path, seconds: float, settings: Audio, seed: int) -> None:
        self.folder, self.seconds, self.settings, self.seed = folder, seconds, settings, seed

    def __call__(self, scenes: list[Scene]) -> list[dict[str, Any]]:
        return [write_scene(scene, self.folder, self.seconds, self.settings, self.seed) for scene in scenes]


def plan(options: Options, seed: int) -> list[Scene]:
    """Which scenes there are: random ones for training and validation, a balanced list for the test."""
    found = []
    for split, count in (("train", options.train), ("val", options.val)):
        generator = np.random.default_rng([seed, 99, SPLITS.index(split)])
        for number in range(count):
            relation = "one" if generator.random() >= options.two_share else ("while", "then")[generator.integers(2)]
            names = generator.permutation(EVENTS)[: 1 if relation == "one" else 2]
            found.append(Scene(split, number, tuple(map(str, names)), relation))
    for number in range(options.test_one):
        found.append(Scene("test", number, (EVENTS[number % len(EVENTS)],), "one"))
    for index in range(options.test_two):
        relation, k = ("while", "then")[index % 2], index // 2
        first, distance = k % len(EVENTS), 1 + k // len(EVENTS) % (len(EVENTS) - 1)
        labels = (EVENTS[first], EVENTS[(first + distance) % len(EVENTS)])
        found.append(Scene("test", options.test_one + index, labels, relation))
    return found


def synthesise(
    labels: Sequence[str], relation: str, seconds: float, sample_rate: int, generator: np.random.Generator
) -> np.ndarray:
    """The sound of a scene, float32 [S]. "then" puts the first event in the first half, the second in the second."""
    if relation == "one":
        wav = event(labels[0], seconds, sample_rate, generator)
    elif relation == "while":
        gains = 10 ** (generator.uniform(-4, 0, 2) / 20)
        wav = sum(g * event(name, seconds, sample_rate, generator) for g, name in zip(gains, labels, strict=True))
    elif relation == "then":
        count = round(seconds * sample_rate)
        parts = [event(name, seconds / 2, sample_rate, generator) for name in labels]
        wav = np.zeros(count, np.float32)
        wav[: count // 2] = parts[0][: count // 2]
        wav[count // 2 :][: len(parts[1])] = parts[1][: count - count // 2]
    else:
        raise ValueError(f"relation is {relation!r}; it must be one, while or then")
    wav = wav * min(10 ** (generator.uniform(-10, 3) / 20), 0.95 / np.abs(wav).max())
    assert np.isfinite(wav).all()
    return wav.astype(np.float32)


def wordings(labels: Sequence[str], relation: str, split: str) -> list[str]:
    """Every caption that a scene of this split may have."""
    names = ("does", "doing", "noun")
    words = dict(zip(names, PHRASES[labels[0]], strict=True))
    if relation != "one":
        words.update(zip((f"{name}2" for name in names), PHRASES[labels[1]], strict=True))
    return [template.format(**words) for template in (TEST if split == "test" else TRAIN)[relation]]


def write_scene(scene: Scene, folder: Path, seconds: float, settings: Audio, seed: int) -> dict[str, Any]:
    """Make one scene, write its file, and return its manifest row."""
    generator = np.random.default_rng([seed, SPLITS.index(scene.split), scene.number])
    choices = wordings(scene.labels, scene.relation, scene.split)
    caption = choices[generator.integers(len(choices))]
    odd = generator.random()
    length = seconds * (generator.uniform(0.8, 1.0) if odd < 0.1 else generator.uniform(1.0, 1.1) if odd < 0.2 else 1.0)
    rate = list(RATES)[generator.choice(len(RATES), p=list(RATES.values()))]
    suffix, subtype = list(FORMATS)[generator.choice(len(FORMATS), p=list(FORMATS.values()))]
    wav = synthesise(scene.labels, scene.relation, length, settings.sample_rate, generator)
    wav = audio.resample(wav, settings.sample_rate, rate)
    if generator.random() < 0.5:  # two channels whose mean is the scene
        pan = generator.uniform(-0.4, 0.4)
        wav = np.stack([wav * (1 + pan), wav * (1 - pan)])
    wav = wav / max(1.0, np.abs(wav).max())
    path = folder / "audio" / f"{scene.id}.{suffix}"
    audio.write(path, wav, rate, subtype)
    return _row(scene.id, path, [caption], list(scene.labels), scene.relation, scene.split)


def _write_broken(number: int, folder: Path) -> dict[str, Any]:
    kind = list(BROKEN)[number % len(BROKEN)]
    suffix, _, make = BROKEN[kind]
    path = folder / "audio" / f"scenes-broken-{number:05d}-{kind}.{suffix}"
    make(path)
    return _row(path.stem, path, ["a dog barks"], ["dog"], "one", "train")


def _row(name: str, path: Path, captions: list[str], labels: list[str], relation: str, split: str) -> dict[str, Any]:
    return {
        "id": name,
        "path": f"audio/{path.name}",
        "source": "scenes",
        "recording_id": name,
        "start": None,
        "end": None,
        "captions": captions,
        "labels": labels,
        "relation": relation,
        "title": None,
        "licence": "CC0-1.0",
        "author": "siren",
        "split": split,
        "sha256": file_sha256(path),
    }
