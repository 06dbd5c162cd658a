"""The scenes source: distinct, finite, balanced, the same bytes every time, and test wordings never trained on."""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siren import audio
from siren.collect.sources import SOURCES, collect, scenes
from siren.collect.sources.broken import BROKEN
from siren.config import Audio, ConfigError, Source

SETTINGS = Audio(16000, 1.6)
SMALL: dict[str, Any] = {"train": 30, "val": 6, "test_one": 12, "test_two": 8, "broken": 3, "seconds": 1.6}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("clips")
    rows, quarantine = SOURCES["scenes"](SMALL, folder, SETTINGS, 0)
    assert quarantine == []
    return folder, rows


def features(name: str, number: int) -> np.ndarray:
    wav = scenes.synthesise([name], "one", 1.6, 16000, np.random.default_rng([5, number]))
    bands = audio.mel_filterbank(40, 512, 16000, 40, 8000).numpy()
    power = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(wav, 512)[::160] * np.hanning(512))) ** 2
    mel = 10 * np.log10(power @ bands.T + 1e-6)
    rhythm = np.abs(np.fft.rfft(mel.mean(1) - mel.mean(), 512))[:24] / len(mel)
    return np.concatenate([mel.mean(0) - mel.mean(), mel.std(0) * 2, rhythm * 2])


def test_twelve_events_are_told_apart_by_spectrum_and_rhythm() -> None:
    centres = {name: np.mean([features(name, n) for n in range(8)], 0) for name in scenes.EVENTS}
    right = 0
    for name, number in itertools.product(scenes.EVENTS, range(100, 105)):
        this = features(name, number)
        right += min(centres, key=lambda other: float(np.linalg.norm(centres[other] - this))) == name
    assert len(scenes.EVENTS) == 12
    assert right >= 57  # of 60


@pytest.mark.parametrize("relation", ["one", "while", "then"])
def test_sounds_are_finite_varied_and_repeatable(relation: str) -> None:
    for index, first in enumerate(scenes.EVENTS):
        labels = [first, scenes.EVENTS[index - 1]][: 1 if relation == "one" else 2]
        wavs = [scenes.synthesise(labels, relation, 1.6, 16000, np.random.default_rng(seed)) for seed in (1, 1, 2)]
        assert all(wav.shape == (25600,) and np.isfinite(wav).all() and np.abs(wav).max() <= 0.96 for wav in wavs)
        np.testing.assert_array_equal(wavs[0], wavs[1])
        assert np.abs(wavs[0] - wavs[2]).max() > 0.01
        assert audio.snr_db(wavs[0], 16000) > 15


def test_then_has_the_first_event_in_the_first_half() -> None:
    wav = scenes.synthesise(["thunder", "bird"], "then", 1.6, 16000, np.random.default_rng(0))
    share = [np.abs(np.fft.rfft(half)) ** 2 for half in (wav[:12800], wav[12800:])]
    assert share[0][: 1000 * 12800 // 16000].sum() > 0.9 * share[0].sum()  # thunder is low
    assert share[1][2500 * 12800 // 16000 :].sum() > 0.9 * share[1].sum()  # a bird is high


def test_an_unknown_relation_event_or_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'beside'"):
        scenes.synthesise(["dog", "rain"], "beside", 1.6, 16000, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'cat'"):
        scenes.synthesise(["cat"], "one", 1.6, 16000, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="trian"):
        SOURCES["scenes"]({"trian": 3}, tmp_path, SETTINGS, 0)
    with pytest.raises(ConfigError, match="val"):
        SOURCES["scenes"]({"train": 3}, tmp_path, SETTINGS, 0)
    with pytest.raises(ConfigError, match="'scene'"):
        collect([Source("scene", {})], tmp_path, SETTINGS, 0)


def test_test_wordings_are_not_trained_on_and_bring_new_words() -> None:
    pairs = [
        (labels, relation) for relation in ("while", "then") for labels in itertools.permutations(scenes.EVENTS, 2)
    ]
    cases = [((name,), "one") for name in scenes.EVENTS] + pairs
    train = {caption for labels, relation in cases for caption in scenes.wordings(labels, relation, "train")}
    test = {caption for labels, relation in cases for caption in scenes.wordings(labels, relation, "test")}
    assert not train & test
    vocabulary = {word for caption in train for word in re.findall(r"\w+", caption)}
    assert all(set(re.findall(r"\w+", caption)) - vocabulary for caption in test)
    assert len(scenes.TRAIN["one"]) >= 5
    assert min(len(scenes.TRAIN["while"]), len(scenes.TRAIN["then"])) >= 4


def test_the_test_split_is_balanced() -> None:
    plan = scenes.plan(scenes.Options(0, 0, 180, 96), 0)
    one = Counter(scene.labels for scene in plan if scene.relation == "one")
    assert set(one.values()) == {15}
    two = [scene for scene in plan if scene.relation != "one"]
    assert Counter(scene.relation for scene in two) == {"while": 48, "then": 48}
    for relation in ("while", "then"):
        labels = [scene.labels for scene in two if scene.relation == relation]
        assert len({frozenset(pair) for pair in labels}) == 48
        assert set(Counter(name for pair in labels for name in pair).values()) == {8}


def test_files_are_as_mixed_as_the_world_and_readable(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    seen = set()
    for row in rows[: -SMALL["broken"]]:
        wav, rate = audio.read(folder / row["path"])
        seen.add((wav.shape[0], rate, Path(row["path"]).suffix))
        assert 0.79 < wav.shape[1] / rate / 1.6 < 1.11
    assert {channels for channels, _, _ in seen} == {1, 2}
    assert len({rate for _, rate, _ in seen}) >= 4
    assert len({suffix for _, _, suffix in seen}) == 2
    assert len({row["id"] for row in rows}) == len(rows) == 59
    assert rows[12]["id"] == "scenes-train-00012"


def test_rows_say_what_the_scene_holds(made: tuple[Path, list[dict]]) -> None:
    for row in made[1]:
        assert len(row["captions"]) == 1
        assert row["relation"] in ("one", "while", "then")
        assert len(row["labels"]) == (1 if row["relation"] == "one" else 2)
        if "broken" not in row["id"]:
            assert row["captions"][0] in scenes.wordings(row["labels"], row["relation"], row["split"])


def test_the_same_seed_gives_the_same_bytes_and_a_split_does_not_depend_on_another(
    made: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    again, _ = SOURCES["scenes"]({**SMALL, "val": 0, "train": 10}, tmp_path / "a", SETTINGS, 0)
    other, _ = SOURCES["scenes"]({**SMALL, "val": 0, "train": 10}, tmp_path / "b", SETTINGS, 1)
    before = {row["id"]: row["sha256"] for row in made[1]}
    assert all(before[row["id"]] == row["sha256"] for row in again)
    assert not {row["sha256"] for row in again if "broken" not in row["id"]} & {row["sha256"] for row in other}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_written_the_same_each_time(tmp_path: Path, kind: str) -> None:
    suffix, _, make = BROKEN[kind]
    for name in ("a", "b"):
        make(tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
