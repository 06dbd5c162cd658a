"""Prompts to files, and what is left alone by a second run."""

import dataclasses
import json

import numpy as np
import pytest

from siren.config import Sampling
from siren.generate import batch
from siren.generate.bundle import Bundle

FACTS = {"model": "a model", "model_sha256": "1", "sample_rate": 16000}
JOB = batch.Job(1600, Sampling(1.0, None, None, None), FACTS)


class Sounding(Bundle):
    """A bundle without a model: the seed is the loudness."""

    def __init__(self, asked: list):
        self.asked, self.sample_rate = asked, 16000

    def cut(self, prompt):
        return {"prompt_tokens": 99, "prompt_tokens_read": 77} if prompt.startswith("long") else {}

    def sample(self, prompts, seeds, *_):
        self.asked.append(list(seeds))
        return [np.full(1600, (seed % 7) / 10, np.float32) for seed in seeds]


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path):
    asked: list = []
    wanted = batch.clips(["a dog", "Rain!"], 3, 2, tmp_path, ".wav")
    assert [clip.path.name for clip in wanted] == [
        "000-a-dog-3.wav",
        "001-a-dog-4.wav",
        "002-rain-3.wav",
        "003-rain-4.wav",
    ]
    run = batch.make(Sounding(asked), wanted, JOB, batch_size=2)
    next(run)
    run.close()  # killed within the first batch
    rest = [clip for clip in wanted if not batch.finished(clip, JOB)]
    assert rest == wanted[1:]
    assert list(batch.make(Sounding(asked), rest, JOB, batch_size=2)) == rest
    assert asked == [[3, 4], [4, 3], [4]]
    assert all(batch.finished(clip, JOB) for clip in wanted)
    assert not any(p.name.startswith(".") for p in tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 1601},
        {"candidates": 2},
        {"facts": {**FACTS, "model": "another"}},
        {"facts": {**FACTS, "model_sha256": "2"}},
    ],
)
def test_a_clip_made_otherwise_is_not_finished(tmp_path, change):
    (clip,) = wanted = batch.clips(["a dog"], 0, 1, tmp_path, ".flac")
    list(batch.make(Sounding([]), wanted, JOB, 1))
    assert batch.finished(clip, JOB)
    assert not batch.finished(clip, dataclasses.replace(JOB, **change))
    clip.path.with_suffix(".json").write_text("{")
    assert not batch.finished(clip, JOB)


def test_the_sidecar_says_what_was_not_read_of_a_prompt(tmp_path):
    wanted = batch.clips(["long story", "a dog"], 5, 1, tmp_path, ".wav")
    for _ in range(2):
        assert len(list(batch.make(Sounding([]), [c for c in wanted if not batch.finished(c, JOB)], JOB, 1))) in (2, 0)
    long, short = (json.loads(clip.path.with_suffix(".json").read_text()) for clip in wanted)
    assert (long["prompt_tokens"], long["prompt_tokens_read"]) == (99, 77)
    assert not {"prompt_tokens", "prompt_tokens_read"} & set(short)


def test_the_sidecar_says_all_that_was_asked_for(tmp_path):
    list(batch.make(Sounding([]), batch.clips(["a dog"], 5, 1, tmp_path, ".wav"), JOB, 1))
    told = json.loads((tmp_path / "000-a-dog-5.json").read_text())
    assert told["prompt"] == "a dog"
    assert (told["seed"], told["samples"], told["seconds"], told["candidates"]) == (5, 1600, 0.1, 1)
    assert told["sampling"] == dataclasses.asdict(JOB.sampling)
