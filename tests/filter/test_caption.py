"""Captions: each rule does what its name says, and nothing ends with an empty caption."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren.config import ConfigError
from siren.filter import caption as captions

EXAMPLES = [  # rule, before, after (None: removed)
    ("whitespace", " a dog\n  barks\t", "a dog barks"),
    ("whitespace", "ｒａｉｎ ﬁlls", "rain fills"),
    ("final_stop", "A dog barks.", "A dog barks"),
    ("final_stop", "A dog barks ...", "A dog barks"),
    ("lower_case", "A Dog barks", "a dog barks"),
    ("non_descriptive", "...", None),
    ("non_descriptive", "Audio clip", None),
    ("non_descriptive", "N/A", None),
    ("non_descriptive", "recording_0012.WAV", None),
    ("non_descriptive", "see https://example.org", None),
    ("non_descriptive", "the sound of rain", "the sound of rain"),
    ("transcribed_speech", 'a man says "good morning"', None),
    ("transcribed_speech", "a man says something far away", "a man says something far away"),
    ("non_english", "собака лает", None),
    ("non_english", "犬が吠える", None),
    ("non_english", "a café with music", "a café with music"),
    ("non_english", "440 hz 1/2", "440 hz 1/2"),
]


@pytest.mark.parametrize(("rule", "before", "after"), EXAMPLES)
def test_each_rule(rule: str, before: str, after: str | None) -> None:
    assert captions.RULES[rule](before) == after


def test_every_rule_has_an_example() -> None:
    assert {rule for rule, _, _ in EXAMPLES} == set(captions.RULES)


@given(st.text(max_size=40))
def test_refining_never_gives_an_empty_caption_and_twice_is_once(text: str) -> None:
    refined, rules = captions.refine(text)
    assert set(rules) <= set(captions.RULES)
    if refined is not None:
        assert refined.strip() == refined != ""
        again, _ = captions.refine(refined)
        assert again in (refined, None)


def segments(*rows: tuple[str, list[str], list[str], str | None]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(captions.SOURCE_COLUMNS, row, strict=True)) for row in rows])


def test_human_captions_are_kept_templates_fill_and_the_rest_is_quarantined() -> None:
    table, quarantine, used = captions.caption(
        segments(
            ("a", ["A dog barks."], ["cat"], "one"),
            ("b", ["...", "audio"], ["sea_waves"], "one"),
            ("c", [], ["dog", "rain"], "then"),
            ("d", [], ["dog", "rain", "wind"], None),
            ("e", ["?"], [], None),
            ("f", [], [], None),
        ),
        "template",
        0,
    )
    found = {row["id"]: (row["caption"], row["captioner"], row["rules"]) for row in table.to_pylist()}
    assert found == {
        "a": ("a dog barks", "human", ["final_stop", "lower_case"]),
        "b": ("the sound of sea waves", "template", ["final_stop", "non_descriptive"]),
        "c": ("the sound of dog followed by rain", "template", []),
        "d": ("the sound of dog, rain and wind", "template", []),
    }
    assert [(row["item"], row["reason"]) for row in quarantine] == [("e", "no_caption"), ("f", "no_caption")]
    assert "non_descriptive" in quarantine[0]["detail"]
    assert used == {"final_stop": 2, "lower_case": 1, "non_descriptive": 2}


def test_one_of_several_is_drawn_by_id_and_seed_alone() -> None:
    many = [f"wording {i} of rain" for i in "abcdefgh"]
    rows = [(f"s{i}", many, [], None) for i in range(40)]
    first = captions.caption(segments(*rows), "template", 0)[0].to_pylist()
    alone = captions.caption(segments(rows[7]), "template", 0)[0].to_pylist()
    other = captions.caption(segments(*rows), "template", 1)[0].to_pylist()
    assert alone[0] == first[7]
    assert len({row["caption"] for row in first}) > 4
    assert first != other
    assert all(row["caption"] in row["candidates"] == many for row in first)


def test_an_unknown_captioner_is_named() -> None:
    with pytest.raises(ConfigError, match="'qwen'; there are template"):
        captions.caption(segments(), "qwen", 0)
