"""Selection: thresholds only ever take away, splits never share a recording, and too few is an error that helps."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siren.config import Select
from siren.filter import select as selection
from siren.filter.score import SCHEMA as SCORES

RATE = 100  # samples a second
RULES: dict[str, Any] = {
    "min_score": 0.2,
    "min_crop_score": 0.1,
    "max_pairs": None,
    "rl_prompts": 2,
    "reserve_rl": False,
    "val_pairs": 2,
    "test_pairs": None,
}


def corpus(train: list[float], crops: list[list[float]] | None = None, held: int = 3) -> tuple[pa.Table, ...]:
    names = [f"t{i}" for i in range(len(train))] + [f"v{i}" for i in range(held)] + [f"x{i}" for i in range(held)]
    splits = ["train"] * len(train) + ["val"] * held + ["test"] * held
    crops = (crops or [[score] for score in train]) + [[-0.5, -0.2]] * 2 * held
    segments = pa.table(
        {
            "id": names,
            "labels": [["dog"]] * len(names),
            "relation": ["one"] * len(names),
            "recording_id": [f"r-{name}" for name in names],
            "split": splits,
            "source": ["forest" if name.endswith(("1", "3")) else "city" for name in names],
            "num_samples": [3600 * RATE] * len(names),
        }
    )
    values = train + [-0.3] * 2 * held
    columns = [names, [f"caption of {name}" for name in names], [[v] for v in values], values]
    return segments, pa.table([*columns, [[100 * i for i in range(len(c))] for c in crops], crops], schema=SCORES)


def choose(tables: tuple[pa.Table, ...], seed: int = 0, **rules: Any) -> tuple[dict[str, pa.Table], dict[str, int]]:
    return selection.select(*tables, Select(**RULES | rules), seed, RATE)


def test_thresholds_top_and_held_out_splits() -> None:
    tables = corpus([0.1, 0.3, 0.9, 0.5], [[0.1], [0.3, 0.05], [0.9], [0.0, 0.01]])
    splits, funnel = choose(tables)
    assert splits["stage1"]["id"].to_pylist() == ["t1", "t2"]
    assert splits["stage1"]["crop_offsets"].to_pylist() == [[0], [0]]
    assert splits["rl"]["id"].to_pylist() == ["t2", "t1"]  # by score
    assert splits["test"]["id"].to_pylist() == ["x0", "x1", "x2"]  # not filtered by score
    assert splits["test"]["crop_offsets"].to_pylist() == [[100]] * 3  # the best of those below
    assert len(splits["val"]) == 2
    assert funnel == {
        "segments": 10,
        "scored": 10,
        "train": 4,
        "above_min_score": 3,
        "with_a_good_crop": 2,
        "stage1": 2,
        "rl": 2,
        "val": 2,
        "test": 3,
    }
    assert all(table.schema.equals(selection.SCHEMA) for table in splits.values())


def test_a_segment_without_a_score_is_no_pair() -> None:
    segments, scores = corpus([0.5, 0.6, 0.7])
    splits, funnel = choose((segments, scores.slice(1)))
    assert splits["stage1"]["id"].to_pylist() == ["t1", "t2"]
    assert (funnel["segments"], funnel["scored"]) == (9, 8)


SCORE_LISTS = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20)


@given(scores=SCORE_LISTS, low=st.floats(-1, 1), high=st.floats(-1, 1), crop=st.floats(-1, 1))
@settings(deadline=None, max_examples=50)
def test_raising_a_threshold_never_keeps_more(scores: list[float], low: float, high: float, crop: float) -> None:
    low, high = sorted((low, high))
    kept = []
    for threshold in (low, high):
        try:
            splits, _ = choose(corpus(scores), min_score=threshold, min_crop_score=crop, rl_prompts=0)
            kept.append(set(splits["stage1"]["id"].to_pylist()))
        except ValueError:
            kept.append(set())
    assert kept[1] <= kept[0]


@given(scores=SCORE_LISTS, wanted=st.integers(1, 25), name=st.sampled_from(["max_pairs", "rl_prompts"]))
@settings(deadline=None, max_examples=50)
def test_too_few_names_a_threshold_that_would_do(scores: list[float], wanted: int, name: str) -> None:
    tables = corpus(scores)
    try:
        choose(tables, **{"rl_prompts": 0, "min_score": 0.8, name: wanted})
    except ValueError as error:
        message = str(error)
        if "no threshold would do" in message:
            assert wanted > len(scores)
            return
        kind, threshold = re.search(r"(both|min_score) at (-?[\d.]+) would do", message).groups()  # type: ignore[union-attr]
        changed = {"min_score": float(threshold)} | ({"min_crop_score": float(threshold)} if kind == "both" else {})
        choose(tables, **{"rl_prompts": 0, name: wanted} | changed)


@pytest.mark.parametrize(("name", "asked"), [("val_pairs", 4), ("test_pairs", 9)])
def test_too_few_held_out_pairs_are_counted(name: str, asked: int) -> None:
    with pytest.raises(ValueError, match=f"{name} asks for {asked} pairs; split .* has 3"):
        choose(corpus([0.5, 0.6]), **{name: asked})


def test_more_prompts_than_pairs_is_an_error_of_the_settings() -> None:
    with pytest.raises(ValueError, match=r"rl_prompts is 3, .* max_pairs 2; raise max_pairs"):
        choose(corpus([0.5, 0.6, 0.7]), max_pairs=2, rl_prompts=3)


def test_a_recording_in_two_splits_is_an_error() -> None:
    segments, scores = corpus([0.5, 0.6])
    column = segments["recording_id"].to_pylist()
    column[-1] = column[0]
    segments = segments.set_column(segments.column_names.index("recording_id"), "recording_id", [column])
    with pytest.raises(ValueError, match="1 recordings are in two splits: r-t0"):
        choose((segments, scores))


def test_a_random_corpus_depends_on_the_seed_alone() -> None:
    tables = corpus(list(np.linspace(0.3, 0.9, 30)))
    draws = [choose(tables, seed, max_pairs=10)[0]["stage1"]["id"].to_pylist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 10


def test_the_threshold_alone_is_named_where_crops_are_no_hindrance() -> None:
    tables = corpus([0.31, 0.32, 0.5])
    with pytest.raises(ValueError, match=r"max_pairs needs 3 pairs; 1 of 3 .* min_score at 0.31 would do"):
        choose(tables, min_score=0.4, max_pairs=3)
    with pytest.raises(ValueError, match=r"both at 0.05 would do"):
        choose(corpus([0.31, 0.32, 0.5], [[0.05], [0.3], [0.3]]), min_score=0.4, max_pairs=3)


def test_reserved_prompts_are_the_best_of_all_and_trained_on_nowhere_else() -> None:
    tables = corpus(list(np.linspace(0.3, 0.9, 30)))
    splits, funnel = choose(tables, max_pairs=10, rl_prompts=4, reserve_rl=True)
    assert splits["rl"]["id"].to_pylist() == ["t29", "t28", "t27", "t26"]
    assert not set(splits["rl"]["id"].to_pylist()) & set(splits["stage1"]["id"].to_pylist())
    assert (funnel["stage1"], funnel["rl"]) == (10, 4)
    rest, _ = choose(tables, max_pairs=None, rl_prompts=4, reserve_rl=True)
    assert rest["stage1"].num_rows == 26
    with pytest.raises(ValueError, match=r"max_pairs and the reserved rl_prompts needs 31 pairs; 30 of 30"):
        choose(tables, max_pairs=27, rl_prompts=4, reserve_rl=True)


def test_crops_below_the_threshold_are_left_out_and_one_is_always_left() -> None:
    tables = corpus([0.5, 0.5], [[0.3, 0.05, 0.3], [0.2, 0.4]])
    splits, _ = choose(tables, min_crop_score=0.25, rl_prompts=0)
    assert splits["stage1"]["crop_offsets"].to_pylist() == [[0, 200], [100]]
    segments, scores = corpus([0.5], held=1)
    scores = scores.set_column(5, "crop_scores", pa.array([[0.5], [-0.2, -0.2], [-0.3, -0.2]], pa.list_(pa.float32())))
    splits, _ = choose((segments, scores), val_pairs=1, rl_prompts=0)
    assert splits["val"]["crop_offsets"].to_pylist() == [[0]]  # the earlier of equal ones
    assert splits["test"]["crop_offsets"].to_pylist() == [[100]]


def test_the_sweep_agrees_with_the_selection_at_every_threshold() -> None:
    values = [0.101, 0.2, 0.25, 0.31, 0.31, 0.9, 0.5]
    tables = corpus(values, [[v] for v in values[:-1]] + [[0.0]])
    swept = selection.sweep(*tables, Select(**RULES), RATE).to_pylist()
    assert {row["source"] for row in swept} == {"all", "forest", "city"}
    for row in swept:
        if row["source"] == "all":
            try:
                _, funnel = choose(tables, min_score=row["tau"], rl_prompts=0)
                assert funnel["stage1"] == row["pairs"]
            except ValueError:
                assert row["pairs"] == 0
            parts = [r["pairs"] for r in swept if r["tau"] == row["tau"] and r["source"] != "all"]
            assert sum(parts) == row["pairs"]
        assert row["hours"] == pytest.approx(row["pairs"])
    assert [swept[0]["pairs"], swept[0]["tau"]] == [6, 0.1]  # t6 has no crop above 0.1
    assert selection.sweep(tables[0].slice(0, 0), tables[1], Select(**RULES), RATE).num_rows == 0


# Filters of AutoReCap: words that captions shall not have, and a least length.


def described(
    tables: tuple[pa.Table, ...], captions: dict[str, str], seconds: dict[str, float]
) -> tuple[pa.Table, ...]:
    """The same tables with other captions and lengths, by id."""
    segments, scores = tables
    names = segments["id"].to_pylist()
    lengths = [round(RATE * seconds.get(name, 10.0)) for name in names]
    words = [captions.get(name, "rain falls") for name in scores["id"].to_pylist()]
    return (
        segments.set_column(segments.column_names.index("num_samples"), "num_samples", [lengths]),
        scores.set_column(scores.column_names.index("caption"), "caption", [words]),
    )


@pytest.mark.parametrize(
    ("caption", "holds"),
    [
        ("Music plays", True),
        ("a man speaks over MUSIC.", True),
        ("music-like humming", True),
        ("the music's echo", True),
        ("musical notes", False),
        ("muzak", False),
        ("two melodies, then wind", True),
        ("a melody", True),
        ("church bells ring", True),
        ("a belly laugh", False),
        ("waltzes at night", True),
        ("a man  speaking far away", True),
        ("a man, speaking", False),
        ("a man speaks", False),
        ("Canción", True),
        ("canciónes", True),
        ("", False),
    ],
)
def test_whole_words_and_their_plurals_are_found(caption: str, holds: bool) -> None:
    words = ["music", "melody", "Bell", "waltz", "man speaking", "canción"]
    assert selection.holds_word(pa.chunked_array([[caption]]), words).tolist() == [holds]


def test_a_caption_that_is_none_has_no_word() -> None:
    assert selection.holds_word(pa.chunked_array([[None, "music"]], pa.string()), ["music"]).tolist() == [False, True]


def test_words_and_length_take_from_train_alone_and_are_counted() -> None:
    captions = dict.fromkeys(("t0", "t3", "v0", "x0"), "speech and music")
    tables = described(corpus([0.9, 0.8, 0.7, 0.6, 0.05]), captions, {"t2": 4.99, "t3": 1, "x1": 1, "t1": 5})
    splits, funnel = choose(tables, drop_words=("music",), min_seconds=5.0, rl_prompts=1, val_pairs=3)
    assert splits["stage1"]["id"].to_pylist() == splits["rl"]["id"].to_pylist() == ["t1"]
    assert (len(splits["val"]), len(splits["test"])) == (3, 3)
    assert list(funnel.items())[2:7] == [
        ("train", 5),
        ("without_drop_words", 3),
        ("of_min_seconds", 2),
        ("above_min_score", 1),
        ("with_a_good_crop", 1),
    ]
    swept = selection.sweep(*tables, Select(**RULES | {"drop_words": ("music",), "min_seconds": 5.0}), RATE)
    assert next(row["pairs"] for row in swept.to_pylist() if row["source"] == "all") == 1  # t4 has no crop above 0.1


def test_rules_that_are_not_set_change_nothing() -> None:
    tables = described(corpus([0.9, 0.8, 0.7, 0.6]), {"t0": "music"}, {"t1": 0.1})
    splits, funnel = choose(tables)
    assert not {"without_drop_words", "of_min_seconds"} & set(funnel)
    same, _ = choose(tables, drop_words=(), min_seconds=0.0)
    assert all(splits[name].equals(same[name]) for name in splits)
    assert splits["stage1"].num_rows == 4


def test_too_few_says_what_words_and_length_took() -> None:
    tables = described(corpus([0.9, 0.8, 0.7]), {"t0": "music"}, {"t1": 1})
    with pytest.raises(
        ValueError, match=r"1 of 1 train pairs are left \(without the 2 that drop_words and min_seconds"
    ):
        choose(tables, drop_words=("music",), min_seconds=5.0, max_pairs=2)


@given(words=st.lists(st.sampled_from(["rain", "dog", "music", "a dog"]), max_size=3), least=st.floats(0, 12))
@settings(deadline=None, max_examples=50)
def test_a_word_or_a_second_more_never_keeps_more(words: list[str], least: float) -> None:
    captions = {f"t{i}": text for i, text in enumerate(["rain", "a dog in rain", "dogs", "a cat", "musical chairs"])}
    tables = described(corpus([0.5] * 5), captions, {f"t{i}": 2.0 * i for i in range(5)})
    pairs = selection.join(*tables)
    masks = [
        selection.passing(pairs, Select(**RULES | {"drop_words": tuple(some), "min_seconds": least / divisor}), RATE)
        for some, divisor in ((words, 1), (words[:-1], 1), (words, 2))
    ]
    assert np.all(masks[0] <= masks[1])
    assert np.all(masks[0] <= masks[2])
