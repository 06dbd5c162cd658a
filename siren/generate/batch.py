"""Prompts to files: WAV or FLAC with a JSON sidecar that has everything needed to make the same sound again.

A file's name is its place in the list, the prompt and the seed. The sidecar is written last, so a clip that has one
saying what is asked for is finished, and a run that was stopped goes on where it was. What is in a batch together
changes no clip beyond rounding.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from siren import audio
from siren.atomic import replacing
from siren.config import Sampling
from siren.generate.bundle import Bundle
from siren.generate.offline import cosines
from siren.hashing import item_seed


@dataclass(frozen=True)
class Job:
    """What every clip of a run has in common. `facts`: the model's address, digest and sample rate, for the sidecars.

    An address alone would not do: a folder, or an alias, may hold other weights tomorrow.
    """

    num_samples: int
    sampling: Sampling
    facts: dict[str, Any]
    candidates: int = 1  # of each clip, of which CLAP chooses
    suffix: str = ".wav"
    prefix: Tensor | None = None  # codes that every clip follows

    @property
    def seconds(self) -> float:
        return self.num_samples / self.facts["sample_rate"]


@dataclass(frozen=True)
class Clip:
    path: Path
    prompt: str
    seed: int


def clips(prompts: Sequence[str], seed: int, samples: int, out: Path, suffix: str) -> list[Clip]:
    """`samples` clips for each prompt, at seeds `seed`, `seed` + 1, …"""
    wanted = [(prompt, seed + n) for prompt in prompts for n in range(samples)]
    return [Clip(out / f"{i:03d}-{slug(p)}-{own}{suffix}", p, own) for i, (p, own) in enumerate(wanted)]


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "prompt"


def sidecar(clip: Clip, job: Job) -> dict[str, Any]:
    """How the clip is made; what was found on the way (`scores`) comes on top."""
    wanted = {"prompt": clip.prompt, "seed": clip.seed, **job.facts, "samples": job.num_samples, "seconds": job.seconds}
    return wanted | {"sampling": asdict(job.sampling), "candidates": job.candidates}


def finished(clip: Clip, job: Job) -> bool:
    """Whether the file is there, made as this job would make it."""
    try:
        told = json.loads(clip.path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    wanted = sidecar(clip, job)
    return clip.path.is_file() and {key: told.get(key) for key in wanted} == json.loads(json.dumps(wanted))


def make(bundle: Bundle, wanted: Iterable[Clip], job: Job, batch_size: int) -> Iterator[Clip]:
    """Write these clips, `batch_size` at a time, and yield each when it is there."""
    rest = list(wanted)
    for begin in range(0, len(rest), batch_size):
        some = rest[begin : begin + batch_size]
        texts = [clip.prompt for clip in some]
        takes = []
        for c in range(job.candidates):
            seeds = [item_seed(clip.seed, "candidate", c) if c else clip.seed for clip in some]
            takes.append(bundle.sample(texts, seeds, job.seconds, job.sampling, batch_size, job.prefix))
        scores = np.zeros((1, len(some)))
        if job.candidates > 1:
            scores = np.stack([cosines(bundle.clap, np.stack(wavs), texts, batch_size) for wavs in takes])
        for row, clip in enumerate(some):
            best = int(scores[:, row].argmax())
            found = {"chosen": best, "scores": scores[:, row].round(6).tolist()} if job.candidates > 1 else {}
            found |= bundle.cut(clip.prompt)
            write(clip, job, takes[best][row], bundle.sample_rate, found)
            yield clip


def write(clip: Clip, job: Job, wav: np.ndarray, sample_rate: int, found: dict[str, Any]) -> None:
    """The sound, whole or not at all, and then its sidecar."""
    with replacing(clip.path, suffix=clip.path.suffix) as partial:
        audio.write(partial, wav, sample_rate)
    clip.path.with_suffix(".json").write_text(json.dumps(sidecar(clip, job) | found, indent=1) + "\n")


def make_streaming(bundle: Bundle, clip: Clip, job: Job) -> Iterator[float]:
    """Write one clip as it is made, under its own name so that it can be heard; yields the seconds written so far."""
    import soundfile

    clip.path.parent.mkdir(parents=True, exist_ok=True)
    clip.path.with_suffix(".json").unlink(missing_ok=True)  # until the end it is no finished clip
    with soundfile.SoundFile(clip.path, "w", bundle.sample_rate, 1, "PCM_16") as file:
        for chunk in bundle.stream([clip.prompt], [clip.seed], job.seconds, job.sampling, job.prefix):
            file.write(chunk[0])
            file.flush()
            yield file.frames / bundle.sample_rate
    told = sidecar(clip, job) | bundle.cut(clip.prompt)
    clip.path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
