"""Three systems of tones, one of which is good by construction, and a study of them."""

import csv
from pathlib import Path

import numpy as np

from siren import audio
from siren.study import design

RATE = 16000
LOUDNESS = {"ours": 0.5, "diffusion": 0.05, "delay": 0.005}  # raw; a study makes them equal


def systems(folder: Path, sets: dict[str, int], seconds: float = 0.5) -> tuple[Path, dict[str, Path]]:
    """A manifest with `set` and a folder of sounds for each system."""
    rows = [(f"{name}-{i}", f"prompt {i} of {name}", name) for name, count in sets.items() for i in range(count)]
    time = np.arange(round(seconds * RATE)) / RATE
    for number, (system, level) in enumerate(LOUDNESS.items()):
        for i, (stem, *_) in enumerate(rows):
            tone = np.sin(2 * np.pi * (300 + 50 * i) * (1 + number) * time)
            audio.write(folder / system / f"{stem}.wav", (level * tone).astype(np.float32), RATE)
    with (folder / "prompts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption", "set"])
        writer.writerows([f"{stem}.wav", caption, name] for stem, caption, name in rows)
    return folder / "prompts.csv", {name: folder / name for name in LOUDNESS}


def study(folder: Path, sets: dict[str, int] | None = None, seconds: float = 0.5) -> design.Study:
    manifest, folders = systems(folder / "sounds", sets or {"general": 3, "multi-event": 3}, seconds)
    made, _ = design.make(folder / "study", manifest, folders, seed=0)
    return made
