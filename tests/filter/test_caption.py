"""Captions: people's are kept, captioners fill in, nothing ends empty, and what became of each candidate is told."""

import dataclasses
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from siren import shards
from siren.config import Caption, ConfigError
from siren.filter import caption as captions
from siren.filter.caption import captioners
from siren.filter.caption.protocol import Answer, Clip

TEMPLATE = Caption("template", None, None)


def segments(*rows: tuple[str, list[str], list[str], str | None]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(captions.SOURCE_COLUMNS, (*row, None), strict=True)) for row in rows])


def made(table: pa.Table, seed: int = 0) -> tuple[pa.Table, list[dict[str, str]], dict[str, int]]:
    return captions.Captioning(TEMPLATE, seed, 8000)(table)


def test_human_captions_are_kept_templates_fill_and_the_rest_is_quarantined() -> None:
    table, quarantine, used = made(
        segments(
            ("a", ["A dog barks."], ["cat"], "one"),
            ("b", ["...", "audio"], ["sea_waves"], "one"),
            ("c", [], ["dog", "rain"], "then"),
            ("d", [], ["dog", "rain", "wind"], None),
            ("e", ["?"], [], None),
            ("f", [], [], None),
        ),
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
    assert table["history"].to_pylist()[1] == [
        {
            "origin": "human",
            "raw": "...",
            "missing": None,
            "steps": [{"rule": "final_stop", "text": ""}, {"rule": "non_descriptive", "text": None}],
        },
        {"origin": "human", "raw": "audio", "missing": None, "steps": [{"rule": "non_descriptive", "text": None}]},
        {"origin": "template", "raw": "the sound of sea waves", "missing": None, "steps": []},
    ]


def test_one_of_several_is_drawn_by_id_and_seed_alone() -> None:
    many = [f"wording {i} of rain" for i in "abcdefgh"]
    rows = [(f"s{i}", many, [], None) for i in range(40)]
    first = made(segments(*rows))[0].to_pylist()
    alone = made(segments(rows[7]))[0].to_pylist()
    other = made(segments(*rows), seed=1)[0].to_pylist()
    assert alone[0] == first[7]
    assert len({row["caption"] for row in first}) > 4
    assert first != other
    assert all(row["caption"] in row["candidates"] == many for row in first)


def test_batches_of_any_size_give_the_same() -> None:
    table = segments(*[(f"s{i}", ["A dog.", "Rain!"][: i % 3], ["dog"][: i % 2], None) for i in range(13)])
    captioning = captions.Captioning(TEMPLATE, 0, 8000)
    whole, lost, used = captioning(table)
    parts = [captioning(table.slice(i, 2)) for i in range(0, 13, 2)]
    assert whole.combine_chunks() == pa.concat_tables([part[0] for part in parts]).combine_chunks()
    assert lost == [row for part in parts for row in part[1]]
    assert used == dict(sum((Counter(part[2]) for part in parts), Counter()))
    assert whole.num_rows + len(lost) == 13


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Caption("qwen", None, None), "'qwen'; there are template, qwen2-audio"),
        (Caption("qwen2-audio", None, None), "describe null; say which model"),
    ],
)
def test_a_captioner_that_cannot_be_is_named(settings: Caption, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        captions.Captioning(settings, 0, 8000)


class Listener:
    """Says what it was given, once as a model would, once not at all."""

    hears = True
    writes_freely = True

    def __init__(self) -> None:
        self.clips: list[Clip] = []

    def __call__(self, clips: Sequence[Clip]) -> list[list[Answer]]:
        self.clips += clips
        return [
            [
                Answer(f"The audio contains {clip.labels[0]} barking loudly.", None),
                Answer(None, "timeout: no answer"),
                Answer("I'm sorry, I cannot do that"),
            ]
            for clip in clips
        ]

    def provenance(self) -> dict[str, Any]:
        return {"model": "listener"}


class Polisher:
    def __init__(self, *answers: Answer) -> None:
        self.answers = answers

    def __call__(self, texts: Sequence[str]) -> list[Answer]:
        return [*self.answers[: len(texts)]]


def heard(monkeypatch: pytest.MonkeyPatch, *answers: Answer) -> tuple[Any, Listener]:
    listener = Listener()
    monkeypatch.setitem(captioners.CAPTIONERS, "listener", lambda settings, seed: listener)
    captioning = captions.Captioning(Caption("listener", None, None), 0, 8000)
    if answers:
        captioning.rewriter = Polisher(*answers)  # type: ignore[assignment]
    return captioning, listener


def sounding(*names: str) -> pa.Table:
    pcm = [shards.float_to_pcm(np.full(8, 0.1 * (i + 1))) for i in range(len(names))]
    rows = [{"id": n, "captions": ["Rain."] if n == "h" else [], "labels": [f"a {n}"]} for n in names]
    rows = [{**row, "relation": None, "title": f"{row['id']}.wav"} for row in rows]
    table = pa.Table.from_pylist(rows)
    return table.append_column("num_samples", pa.array([5] * len(names))).append_column("pcm", pa.array(pcm))


def test_a_captioner_that_hears_gets_the_sound_without_padding_and_only_where_it_is_needed(monkeypatch) -> None:
    captioning, listener = heard(monkeypatch)
    assert {"pcm", "num_samples"} <= set(captioning.columns)
    table, quarantine, used = captioning(sounding("dog", "h", "fox"))
    assert [clip.id for clip in listener.clips] == ["dog", "fox"]
    assert [clip.wav.shape for clip in listener.clips] == [(5,), (5,)]  # type: ignore[union-attr]
    np.testing.assert_allclose(listener.clips[1].wav, 0.3, atol=1e-4)  # type: ignore[arg-type]
    assert [clip.title for clip in listener.clips] == ["dog.wav", "fox.wav"]
    assert quarantine == []
    assert table["caption"].to_pylist() == ["a dog barking loudly", "rain", "a fox barking loudly"]
    assert table["candidates"].to_pylist()[0] == ["a dog barking loudly"]
    story = table["history"].to_pylist()[0]
    assert [step["rule"] for step in story[0]["steps"]] == ["opening", "final_stop"]
    assert story[1] == {"origin": "listener", "raw": None, "missing": "timeout: no answer", "steps": []}
    assert story[2]["steps"] == [{"rule": "refusal", "text": None}]
    assert used["missing"] == used["refusal"] == 2 or used["missing"] == 2


def test_a_rewriter_polishes_what_a_model_wrote_and_the_rules_hold_again(monkeypatch) -> None:
    captioning, _ = heard(monkeypatch, Answer("Here is a caption: A Dog Bark."), Answer(None, "timeout: late"))
    table, _, _ = captioning(sounding("dog", "h", "fox"))
    assert table["caption"].to_pylist() == ["a dog bark", "rain", "a fox barking loudly"]
    steps = [row[0]["steps"] for row in table["history"].to_pylist()]
    assert [step["rule"] for step in steps[0]][2:] == ["rewrite", "opening", "final_stop", "lower_case"]
    assert steps[2][-1] == {"rule": "rewrite failed (timeout: late)", "text": "a fox barking loudly"}


def test_a_clip_is_quarantined_with_what_became_of_every_candidate(monkeypatch) -> None:
    captioning, _ = heard(monkeypatch, Answer("none"))
    table, quarantine, _ = captioning(sounding("dog"))
    assert table.num_rows == 0
    assert quarantine[0]["reason"] == "no_caption"
    for part in ("(non_descriptive)", "missing, timeout: no answer", "(refusal)"):
        assert part in quarantine[0]["detail"]


def test_models_behind_addresses_are_asked_by_one_process_because_their_limits_hold_for_one() -> None:
    from siren.config import Download, Endpoint
    from tests.filter.test_language_models import describe

    here = describe("nowhere")
    there = describe("nowhere", endpoint=Endpoint("http://localhost:1/v1", Download(1, 1, 0.0, 1.0, 1.0, None)))
    known = {(None, None): (False, False), (here, None): (True, False), (there, None): (False, True)}
    for (model, rewriter), expected in (known | {(there, here): (True, False), (here, there): (True, False)}).items():
        rewriter = rewriter and dataclasses.replace(rewriter, prompt="shorter: {caption}", candidates=1)
        found = captions.Captioning(Caption("qwen2-audio" if model else "template", model, rewriter), 0, 8000)
        assert (found.loads, found.only_asks) == expected


def test_captioning_can_be_sent_to_another_process() -> None:
    from tests.filter.test_language_models import describe

    settings = Caption("qwen2-audio", describe("nowhere"), None)
    sent = pickle.loads(pickle.dumps(captions.Captioning(settings, 3, 8000)))
    assert sent.settings == settings
    assert sent.captioner.seed == 3
