"""Training AutoCap: the stages, what each moves, resuming, and that it learns to say what it hears."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from siren.config import AutoCap as Settings
from siren.config import Training
from siren.networks import autocap
from siren.train.autocap import caption_all, missing, train_autocap, with_gaps
from siren.train.loop import Checkpoint, Log
from tests.networks.test_autocap import settings
from tests.train import killing

WORDS = {300: ["a low tone", "something low"], 2400: ["a high tone", "something high"]}


def corpus(count: int) -> tuple[np.ndarray, list[list[str]], list[dict[str, str]], list[str | None]]:
    """Low and high tones in turn, with their captions; a title that tells them apart, too."""
    time, pitches = np.arange(25600) / 16000, [list(WORDS)[index % 2] for index in range(count)]
    phases = np.random.default_rng(0).uniform(0, 6, count)
    wavs = [8000 * np.sin(2 * np.pi * hz * time + phase) for hz, phase in zip(pitches, phases, strict=True)]
    known = [{"title": str(hz)} for hz in pitches]
    return np.stack(wavs).astype(np.int16), [WORDS[hz] for hz in pitches], known, ["one"] * count


def stages(steps: int, checkpoint_every: int = 1000) -> dict[str, Training]:
    one = Training(steps, 8, 1e-3, 1, 0.1, 0.0, 1.0, 5, checkpoint_every)
    return dict.fromkeys(("language", "listening", "finetuning"), one)


def made(chosen: Settings) -> autocap.AutoCap:
    torch.manual_seed(0)
    return autocap.build(chosen, [text for texts in WORDS.values() for text in texts], 16000)


def test_each_stage_moves_its_own_part_and_the_ears_never(tmp_path: Path) -> None:
    parts = {"bart": "network.writer.bart.", "queries": "network.writer.queries"}
    parts |= {"ears": "network.ears.", "clap": "clap."}  # batch norm's running figures, too
    moved = {}
    for name in ("language", "listening", "finetuning"):
        chosen = settings(tmp_path, **stages(2))
        for other in {"language", "listening", "finetuning"} - {name}:
            object.__setattr__(chosen, other, None)  # which settings of a pipeline may not say
        network = made(settings(tmp_path))
        before = {key: value.clone() for key, value in network.state_dict().items()}
        train_autocap(network, *corpus(8), chosen, 0, lambda step, metrics: None)
        after = network.state_dict()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        moved[name] = {part for part, prefix in parts.items() if any(key.startswith(prefix) for key in changed)}
    assert moved == {"language": {"bart"}, "listening": {"queries"}, "finetuning": {"bart", "queries"}}


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, stop: int) -> None:
    chosen, data = settings(tmp_path / "clap", **stages(3, 2)), corpus(8)

    def run(folder: Path, log: Log) -> dict[str, torch.Tensor]:
        network = made(chosen)
        every = dataclasses.replace(chosen.finetuning, log_every=1) if chosen.finetuning else None
        logged = dataclasses.replace(chosen, language=every, listening=every, finetuning=every)
        train_autocap(network, *data, logged, 0, log, checkpoint=lambda stage: Checkpoint(folder / stage, {}))
        return network.network.state_dict()

    whole = run(tmp_path / "whole", lambda *_: None)
    with pytest.raises(killing.Killed):
        run(tmp_path / "killed", killing.at(stop))
    again = run(tmp_path / "killed", lambda *_: None)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_it_learns_to_say_what_it_hears_with_and_without_metadata(tmp_path: Path) -> None:
    chosen = settings(tmp_path, **stages(200), architecture={}, augment_share=0.0)
    network, (wavs, captions, known, relations) = made(chosen), corpus(16)
    train_autocap(network, wavs, captions, known, relations, chosen, 0, lambda step, metrics: None)
    for metadata in (known, [{} for _ in known]):
        written = caption_all(network, wavs, metadata, beams=2)
        assert all(text in texts for text, texts in zip(written, captions, strict=True)), written


def test_gaps_leave_a_word_and_missing_fields_are_random() -> None:
    random = np.random.default_rng(0)
    kept = [with_gaps("rain", random) for _ in range(20)]
    assert set(kept) == {"rain"}
    lengths = [len(with_gaps("a b c d e f g h i j", random).split()) for _ in range(500)]
    assert 6 < np.mean(lengths) < 7
    fields = [len(missing({"title": "x", "labels": "y"}, 0.5, random)) for _ in range(500)]
    assert 0.9 < np.mean(fields) < 1.1


def test_counts_that_differ_are_refused(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    wavs, captions, known, relations = corpus(4)
    with pytest.raises(ValueError, match="4 waveforms, 4 lists of captions, 3 mappings"):
        train_autocap(made(chosen), wavs, captions, known[:3], relations, chosen, 0, lambda step, metrics: None)
