"""Scores: cosines of the right sound with the right caption, for segments and for crops."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from siren import shards
from siren.config import Audio, Score
from siren.filter import score as scores


class Level:
    """A CLAP that hears one thing, the mean level; the text "level x" lies at the angle of that level."""

    def __init__(self, sample_rate: int = 8000) -> None:
        self.sample_rate = sample_rate
        self.texts: list[str] = []

    def embed_text(self, captions: list[str]) -> torch.Tensor:
        self.texts += captions
        angle = torch.tensor([float(caption.split()[1]) for caption in captions])
        return torch.stack([angle.cos(), angle.sin()], 1)

    def embed_audio(self, wav: torch.Tensor) -> torch.Tensor:
        angle = wav.abs().mean(1)
        return torch.stack([angle.cos(), angle.sin()], 1)


def constant(levels: Sequence[float], samples: int = 800) -> np.ndarray:
    return np.stack([np.frombuffer(shards.float_to_pcm(np.full(samples, level)), "<i2") for level in levels])


@pytest.mark.parametrize(
    ("num_samples", "segment", "crop", "step", "expected"),
    [
        (100, 100, 60, 10, [0, 10, 20, 30, 40]),
        (25, 100, 60, 10, [0, 10, 20]),
        (100, 100, 100, 10, [0]),
        (3, 100, 200, 10, [0]),
        (100, 100, 60, 30, [0, 30]),
    ],
)
def test_crops_fit_and_begin_in_the_sound(
    num_samples: int, segment: int, crop: int, step: int, expected: list[int]
) -> None:
    assert scores.crop_offsets(num_samples, segment, crop, step) == expected


def test_a_step_below_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="0 samples"):
        scores.crop_offsets(10, 10, 5, 0)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_are_cosines_whatever_the_batches(batch_size: int) -> None:
    levels, said = [0.1, 0.5, 0.9], [0.1, 0.9, 0.9]
    table, bad = scores.score_pairs(
        Level(),
        list("abc"),
        constant(levels),
        [[f"level {x}"] for x in said],
        [[0]] * 3,
        800,
        8000,
        batch_size,  # type: ignore[arg-type]
    )
    assert bad == []
    np.testing.assert_allclose(table["score"], np.cos(np.array(levels) - said), atol=1e-4)
    assert table["crop_scores"].to_pylist() == [[score] for score in table["score"].to_pylist()]


def test_each_crop_is_scored_where_it_lies() -> None:
    pcm = np.concatenate([constant([0.1, 0.2], 400), constant([0.9, 0.8], 400)], 1)
    table, _ = scores.score_pairs(
        Level(),
        ["a", "b"],
        pcm,
        [["level 0.1"], ["level 0.8"]],
        [[0, 400], [0, 200, 400]],
        400,
        8000,
        2,  # type: ignore[arg-type]
    )
    found = table["crop_scores"].to_pylist()
    np.testing.assert_allclose(found[0], np.cos([0, 0.8]), atol=1e-4)
    np.testing.assert_allclose(found[1], np.cos([0.6, 0.3, 0]), atol=1e-4)
    assert table["crop_offsets"].to_pylist() == [[0, 400], [0, 200, 400]]


def test_waveforms_are_brought_to_the_rate_of_the_network_and_texts_embedded_once() -> None:
    clap = Level(48000)
    table, _ = scores.score_pairs(
        clap,
        list("abc"),
        constant([0.5] * 3),
        [["level 0.5"]] * 3,
        [[0]] * 3,
        800,
        8000,
        2,  # type: ignore[arg-type]
    )
    assert clap.texts == ["level 0.5"]
    assert min(table["score"].to_pylist()) > 0.999


def test_shards_without_a_captioned_segment_give_no_scores_and_no_error() -> None:
    pcm = pa.array([wav.tobytes() for wav in constant([0.5])], pa.binary())
    segments = pa.table({"id": ["a"], "num_samples": [800], "split": ["train"], "pcm": pcm})
    captions = pa.table({"id": ["b"], "caption": ["level 1"], "candidates": [["level 1"]]})
    for some in (segments, segments.slice(0, 0)):
        table, bad = scores.score(Level(), some, captions, Audio(8000, 0.1), Score(0.05, 0.01, 2, "best"))  # type: ignore[arg-type]
        assert (table.num_rows, table.schema, bad) == (0, scores.SCHEMA, [])


def test_what_has_no_score_is_quarantined() -> None:
    table, bad = scores.score_pairs(
        Level(),
        ["a", "b"],
        constant([0.1, 0.2]),
        [["level nan"], ["level 0.2"]],
        [[0]] * 2,
        800,
        8000,
        2,  # type: ignore[arg-type]
    )
    assert table["id"].to_pylist() == ["b"]
    assert [(row["item"], row["stage"], row["reason"]) for row in bad] == [("a", "score", "score_failed")]


def test_the_best_candidate_is_kept_and_crops_are_scored_with_it() -> None:
    pcm = np.concatenate([constant([0.1, 0.9], 400), constant([0.1, 0.9], 400)], 1)
    candidates = [["level 0.8", "level 0.2", "level nan"], ["level 0.8"]]
    table, bad = scores.score_pairs(Level(), ["a", "b"], pcm, candidates, [[0, 400]] * 2, 400, 8000, 1)  # type: ignore[arg-type]
    assert bad == []
    assert table["caption"].to_pylist() == ["level 0.2", "level 0.8"]
    found = table["candidate_scores"].to_pylist()
    np.testing.assert_allclose(found[0], np.cos([0.7, 0.1, np.nan]), atol=1e-4)
    np.testing.assert_allclose(table["score"], np.cos([0.1, 0.1]), atol=1e-4)
    np.testing.assert_allclose(table["crop_scores"].to_pylist(), np.cos(np.full((2, 2), 0.1)), atol=1e-4)


def tables() -> tuple[pa.Table, pa.Table]:
    pcm = [row.tobytes() for row in constant([0.1, 0.2, 0.3])]
    given = {"id": ["a", "b", "c"], "num_samples": [800, 800, 300], "split": ["train", "train", "test"], "pcm": pcm}
    drawn = {"id": ["c", "a"], "caption": ["level 0.5", "level 0.1"]}
    return pa.table(given), pa.table(
        drawn | {"candidates": [["level 0.3", "level 0.5"], ["level 0.1", "level 0.11", "level 0.9"]]}
    )


def test_segments_are_joined_with_their_captions() -> None:
    table, _ = scores.score(Level(), *tables(), Audio(8000, 0.1), Score(0.05, 0.025, 2, "drawn"))  # type: ignore[arg-type]
    assert table["id"].to_pylist() == ["a", "c"]
    assert table["caption"].to_pylist() == ["level 0.1", "level 0.5"]
    np.testing.assert_allclose(table["score"], np.cos([0, 0.2]), atol=1e-4)
    assert table["crop_offsets"].to_pylist() == [[0, 200, 400], [0, 200]]


def test_held_out_prompts_are_not_chosen_by_the_judge() -> None:
    segments, captions = tables()
    captions = captions.set_column(1, "caption", [["level 0.5", "level 0.9"]])
    table, _ = scores.score(Level(), segments, captions, Audio(8000, 0.1), Score(0.05, 0.025, 2, "best"))  # type: ignore[arg-type]
    assert table["caption"].to_pylist() == ["level 0.1", "level 0.5"]  # train: the best; test: as drawn
    assert [len(row) for row in table["candidate_scores"].to_pylist()] == [3, 1]
