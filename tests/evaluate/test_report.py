"""The report: complete and self-contained, truthful about what is missing, the same bytes for the same run."""

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from siren import shards
from siren.evaluate import charts, goals, players, tables
from siren.evaluate.records import Missing, Records, read_curve, summarise
from siren.evaluate.report import Report, render
from tests.evaluate import builders
from tests.tables import write_shards


@pytest.fixture(scope="module")
def report() -> Report:
    return builders.report()


def changed(report: Report, **changes: Any) -> str:
    """The page of the same report with other parts, without its drawings."""
    bare = {"metrics": None, "curves": {}, "analysis": None}
    return render(Report(**{**vars(report), **bare, **changes}))


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report)


VOID = {"meta", "img", "br", "link", "input", "hr", "path", "use", "stop"}


class Reader(HTMLParser):
    """Tags with their attributes, and whether all of them are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def of(page: str, tag: str) -> list[dict[str, str | None]]:
    return [attributes for name, attributes in Reader(page).tags if name == tag]


def test_every_tag_is_closed_in_order(page: str) -> None:
    assert Reader(page).open == []


def test_nothing_on_the_page_asks_for_anything_outside_it(page: str) -> None:
    addresses = [a.get(key) for _, a in Reader(page).tags for key in ("src", "href", "xlink:href", "data", "action")]
    assert {a.split(":")[0][:1] if a.startswith("#") else a.split(":")[0] for a in addresses if a} == {"#", "data"}
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_each_prompt_has_a_sound_and_a_picture_for_every_arm(page: str, report: Report) -> None:
    expected = len(report.prompts) * len(players.PLAYED)
    assert len(of(page, "audio")) == expected
    assert sum("Play:" in (b.get("aria-label") or "") for b in of(page, "button")) == expected
    assert sum((i["src"] or "").startswith("data:image/png") for i in of(page, "img")) == expected


def test_the_sound_on_the_page_is_the_clip(page: str, report: Report) -> None:
    first = (of(page, "audio")[0]["src"] or "").removeprefix("data:audio/wav;base64,")
    wav, rate = soundfile.read(io.BytesIO(base64.b64decode(first)), dtype="float32")
    assert rate == report.sample_rate
    np.testing.assert_allclose(wav, report.sounds["real"][report.prompts[0]["id"]], atol=1 / 32000)


def test_the_same_report_gives_the_same_bytes(page: str, report: Report) -> None:
    assert render(report) == page
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page)


def test_a_whole_page_stays_under_ten_megabytes() -> None:
    """A demo's worth of clips at 1.6 s, and prompts of 10 s, which become FLAC."""
    rng = np.random.default_rng(0)
    rows = builders.prompts()
    for seconds, count, kind in ((1.6, 16, "wav"), (10.0, 16, "flac")):
        wavs = {p["id"]: (0.1 * rng.normal(size=round(16000 * seconds))).astype(np.float32) for p in rows[:count]}
        groups = players.players(rows[:count], dict.fromkeys(players.PLAYED, wavs), [], 16000)
        sounds = [cell["sound"] for group in groups for row in group["rows"] for cell in row["cells"]]
        assert all(sound.startswith(f"data:audio/{kind}") for sound in sounds)
        assert seconds > 5 or sum(map(len, sounds)) < 6_000_000


def test_captions_and_labels_cannot_break_out_of_the_page(report: Report) -> None:
    nasty = '<script>alert("x")</script> & "quoted"'
    prompts = [{**report.prompts[0], "caption": nasty, "labels": [nasty]}]
    page = changed(report, prompts=prompts)
    assert "<script>alert" not in page
    assert len(of(page, "script")) == 1


def test_what_is_missing_is_said_at_the_top_and_in_its_section(report: Report) -> None:
    sentence = "reports/curves/align.csv was not there; `dvc repro align` writes it."
    page = changed(report, missing=[Missing("training", sentence)])
    assert page.count(sentence) == 2
    assert "This report is not complete." in page


def test_a_complete_report_says_nothing_of_missing_parts(page: str) -> None:
    assert "not complete" not in page
    assert "Missing." not in page


def test_an_arm_that_was_not_sampled_leaves_a_notice_in_its_place(report: Report) -> None:
    sounds = {arm: clips for arm, clips in report.sounds.items() if arm != "aligned"}
    page = changed(report, sounds=sounds)
    assert page.count("no clip of this prompt in the arm") == len(report.prompts)
    assert len(of(page, "audio")) == len(report.prompts) * (len(players.PLAYED) - 1)


def test_a_report_of_nothing_but_its_missing_parts_still_renders() -> None:
    empty: dict[str, Any] = dict.fromkeys(("prompts", "clips", "funnel", "lineage"), ())
    empty |= {"sounds": {}, "curves": {}, "networks": {}, "metrics": None, "quarantine": None, "analysis": None}
    page = render(Report(scale="test", sample_rate=16000, missing=[Missing("metrics", "no metrics")], **empty))
    assert Reader(page).open == []
    assert page.count("no metrics") == 2


# -- choosing prompts -------------------------------------------------------------------------------------------------


def test_prompts_are_one_of_each_event_then_of_each_relation() -> None:
    chosen = players.choose(builders.prompts(per_event=3), len(builders.EVENTS))
    single = [p for p in chosen if len(p["labels"]) == 1]
    assert [p["labels"][0] for p in single] == sorted(builders.EVENTS)
    assert [p["relation"] for p in chosen[len(single) :]] == ["then", "while"]


def test_choice_depends_on_the_list_and_not_on_results() -> None:
    rows = builders.prompts(per_event=3)
    first = {p["labels"][0]: p["id"] for p in reversed(rows) if len(p["labels"]) == 1}
    chosen = players.choose(rows, len(builders.EVENTS))
    assert {p["labels"][0]: p["id"] for p in chosen if len(p["labels"]) == 1} == first


def test_more_prompts_than_there_are_gives_all_of_them() -> None:
    rows = builders.prompts(per_event=1)
    assert len(players.choose(rows, 100)) == len(rows)


def test_prompts_without_labels_are_chosen_too() -> None:
    rows = [{"id": str(i), "caption": "rain", "labels": [], "relation": None} for i in range(3)]
    assert [p["id"] for p in players.choose(rows, 2)] == ["0", "1"]


# -- verdicts, goals, tables ------------------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    plain = {"arm": "aligned", "id": "a", "caption": "a dog", "labels": ["dog"], "relation": "one", "silent": False}
    return {**plain, "named": "dog", "probabilities": {"dog": 0.97}, "event_accuracy": 1.0, **changes}


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (row(), [(True, "dog 97\u202f%")]),
        (row(named="rain", event_accuracy=0.0, probabilities={"dog": 0.1}), [(False, "hears rain; dog 10\u202f%")]),
        (row(silent=True, named=None, event_accuracy=0.0), [(False, "silent")]),
        (
            row(event_accuracy=None, probabilities={"dog": 0.9, "rain": 0.2}, order_all=0.0),
            [(True, "dog 90\u202f%"), (False, "rain 20\u202f%"), (False, "in order")],
        ),
        (row(event_accuracy=None, probabilities={}), [(None, "hears dog")]),
    ],
)
def test_verdicts_say_what_the_judge_hears(clip: dict[str, Any], expected: list[tuple[bool | None, str]]) -> None:
    sounds = {arm: {"a": np.zeros(100, np.float32)} for arm in players.PLAYED}
    [group] = players.players([clip], sounds, [clip], 16000)
    found = group["rows"][0]["cells"][players.PLAYED.index("aligned")]["verdicts"]
    assert [(verdict["held"], verdict["text"]) for verdict in found] == expected


def entry(value: float, count: int = 200, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {
        "value": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
        "count": count,
    }


def figures(**aligned: Any) -> dict[str, Any]:
    ours = {
        "event_accuracy": entry(0.93),
        "both_heard": entry(0.45, 96),
        "order_all": entry(0.2, 48),
        "fad@vggish-test": entry(1.0),
        "fd@cnn14-test": entry(4.0),
        "fad_per_event@vggish-test": entry(2.0),
        "fd_per_event@cnn14-test": entry(5.0),
        **aligned,
    }
    control = {"fad_per_event@vggish-test": entry(9.0), "fd_per_event@cnn14-test": entry(9.0)}
    gained = {"imagebind@imagebind-test": entry(0.02, low=0.01, high=0.03), "event_accuracy": entry(0.0)}
    return {
        "arms": {
            "aligned": ours,
            "untrained": {"fad@vggish-test": entry(9.0), "fd@cnn14-test": entry(9.0)},
            "shuffled": control,
        },
        "differences": {"aligned-stage1": gained},
        "events": {},
        "notes": [],
    }


def held(metrics: dict[str, Any]) -> list[bool | None]:
    return [goal.held for goal in goals.goals(metrics)]


def test_goals_hold_where_every_figure_is_good_and_order_is_only_reported() -> None:
    assert held(figures()) == [True, True, None, True, True, True, True, True, True]


@pytest.mark.parametrize(
    ("index", "worse"),
    [
        (0, {"event_accuracy": entry(0.899)}),
        (0, {"event_accuracy": entry(0.95, count=143)}),
        (1, {"both_heard": entry(0.39, 96)}),
        (3, {"fad@vggish-test": entry(4.6)}),
        (4, {"fd@cnn14-test": entry(4.51)}),
        (5, {"fad_per_event@vggish-test": entry(9.0)}),
    ],
)
def test_a_goal_that_is_just_not_reached_is_missed(index: int, worse: dict[str, Any]) -> None:
    assert held(figures(**worse))[index] is False


def test_a_reward_whose_interval_touches_zero_is_no_gain() -> None:
    metrics = figures()
    metrics["differences"]["aligned-stage1"]["imagebind@imagebind-test"] = entry(0.02, low=0.0, high=0.04)
    assert held(metrics)[7] is False


def test_goals_without_their_figures_stay_open() -> None:
    empty = {"arms": {}, "differences": {}, "events": {}, "notes": []}
    assert set(held(empty)) == {None}
    assert all(goal.value == "not measured" for goal in goals.goals(empty))


def test_the_metric_table_has_the_losses_of_stage_1(report: Report) -> None:
    metrics = {**report.metrics, "arms": {a: dict(figures) for a, figures in report.metrics["arms"].items()}}
    metrics["arms"]["stage1"] |= {"loss_mean": 2.5, "loss_ratio": 1.25}
    rows = {row["name"]: row for row in tables.metric_table(metrics)["rows"]}
    columns = tables.metric_table(metrics)["columns"]
    for name, value in (("Loss mean (nats, held out)", "2.50"), ("Loss ratio (last codebook over first)", "1.25")):
        shown = {c: cell["value"] for c, cell in zip(columns, rows[name]["cells"], strict=True)}
        assert shown == {c: value if c == "Stage 1" else "\u2013" for c in columns}
    assert tables.summary(metrics)["stage1/loss_ratio"] == 1.25
    assert "Loss mean (nats, held out)" not in [row["name"] for row in tables.metric_table(report.metrics)["rows"]]


def test_the_metric_table_marks_the_best_generated_arm_and_names_the_network(report: Report) -> None:
    assert report.metrics is not None
    table = tables.metric_table(report.metrics)
    assert table["columns"] == [title for arm, title in tables.TITLES.items() if arm in report.metrics["arms"]]
    fad = next(line for line in table["rows"] if line["name"] == "FAD")
    values = {
        arm: report.metrics["arms"][arm]["fad@vggish-test"]["value"] for arm in ("untrained", "stage1", "aligned")
    }
    best = table["columns"][[cell["best"] for cell in fad["cells"]].index(True)]
    assert best == tables.TITLES[min(values, key=lambda arm: values[arm])]
    assert "vggish-test" in fad["note"]
    assert fad["cells"][table["columns"].index("Real")]["value"] == "\u2013"  # no distance of the reference to itself


def test_summary_names_are_accepted_by_mlflow_and_hold_every_figure(report: Report) -> None:
    assert report.metrics is not None
    summary = tables.summary(report.metrics)
    assert all(re.fullmatch(r"[\w./ :-]+", name) for name in summary)
    assert summary["aligned/fad/vggish-test"] == report.metrics["arms"]["aligned"]["fad@vggish-test"]["value"]
    assert len(summary) == sum(len(f) for part in ("arms", "differences") for f in report.metrics[part].values())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.0407, "0.041"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (-3.2, "\u22123.20")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert goals.number(value) == text


def test_confusion_counts_include_what_was_heard_beside_the_prompted_events() -> None:
    events = {"dog": {"named": {"dog": 3, "silence": 1}}, "rain": {"named": {"dog": 2}}}
    counts, prompted, heard = charts.confusion_counts(events)
    assert (prompted, heard) == (["dog", "rain"], ["dog", "rain", "silence"])
    np.testing.assert_array_equal(counts, [[3, 0, 1], [2, 0, 0]])


def test_confusion_csv_has_a_line_for_each_judged_one_event_clip(report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(charts.confusion_csv(report.clips))))
    assert len(lines) == sum(len(p["labels"]) == 1 for p in builders.prompts())
    assert {line["prompted"] for line in lines} == set(builders.EVENTS)


def test_a_networks_own_figures_stand_beside_those_of_the_untrained_one() -> None:
    data = {"mel_distance": 0.41, "perplexity": {"0": 100.0, "1": 90.5}, "untrained": {"mel_distance": 2.5}}
    table = tables.network_table("codec", data)
    assert table["columns"] == ["held out", "untrained"]
    cells = {line["name"]: line["cells"] for line in table["rows"]}
    assert cells == {"mel distance": ["0.410", "2.50"], "perplexity": ["100, 90.5", "\u2013"]}


# -- what earlier stages left -----------------------------------------------------------------------------------------


def captioner() -> dict[str, Any]:
    """As the stage `autocap` reports it."""
    interval = {"value": 1.7, "low": 1.54, "high": 1.87, "count": 276}
    spoken = [{"id": f"clip-{i}", "written": f"<b>dog</b> {i}", "people": f"a dog barks {i}"} for i in range(8)]
    figures = {"clap_score": 0.774, "cider_d": interval, "mean_length": {**interval, "value": 6.358}}
    alone = {**figures, "examples": spoken}
    return {"val": {"people": {"clap_score": 0.1}}, "test": {"people": {"clap_score": 0.768}, "sound alone": alone}}


def test_a_captioner_stands_beside_people_with_intervals_and_examples(report: Report) -> None:
    shown = tables.captioner_table(captioner())
    assert shown is not None
    assert (shown["split"], shown["columns"]) == ("test", ["People", "Sound alone"])
    cells = {row["name"]: [(cell["value"], cell["interval"]) for cell in row["cells"]] for row in shown["rows"]}
    assert cells["CLAP score"] == [("0.768", ""), ("0.774", "")]
    assert cells["CIDEr-D"] == [("\u2013", ""), ("1.70", "1.54\u20131.87")]
    assert cells["Words a caption"] == [("\u2013", ""), ("6.36", "")]
    page = changed(report, captioner=captioner())
    assert Reader(page).open == []
    assert page.count("a dog barks") == 6
    assert "<b>dog" not in page
    assert 'href="#captioner"' in page


@pytest.mark.parametrize("none", [None, {}, {"val": {}, "test": {}}])
def test_without_a_captioner_the_page_does_not_speak_of_one(report: Report, none: dict[str, Any] | None) -> None:
    assert "captioner" not in changed(report, captioner=none)


def test_curves_leave_out_points_that_were_not_measured(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("step,loss,val_loss_codebook_3\n0,5.5,5.4\n10,4.0,\n20,3.0,2.5\n")
    curve = read_curve(tmp_path / "curve.csv")
    assert curve == {"loss": ([0, 10, 20], [5.5, 4.0, 3.0]), "val_loss_codebook_3": ([0, 20], [5.4, 2.5])}
    assert charts.codebook_losses([curve]) == {3: ([0, 20], [5.4, 2.5])}


def test_missing_files_are_named_with_what_writes_them(tmp_path: Path) -> None:
    records = Records()
    assert records.curve(tmp_path / "align.csv", "align") is None
    assert records.json(tmp_path / "codec.json", "networks", "codec") is None
    assert records.rows(tmp_path / "segments-*.parquet", "segment") is None
    assert [part.section for part in records.missing] == ["training", "networks", "corpus"]
    assert all("dvc repro" in part.text for part in records.missing)


def test_quarantine_is_counted_by_reason_with_an_instance(tmp_path: Path) -> None:
    rows = [{"item": f"clip-{i}", "stage": "segment", "reason": "silent", "detail": f"{i}"} for i in range(3)]
    rows.append({"item": "text.wav", "stage": "segment", "reason": "corrupt", "detail": "not sound"})
    shards.write_quarantine(tmp_path, rows)
    found = Records().quarantine({"segment": tmp_path})
    assert [(r["reason"], r["count"], r["item"]) for r in found] == [
        ("silent", 3, "clip-0"),
        ("corrupt", 1, "text.wav"),
    ]
    assert summarise([]) == []


def test_rows_are_counted_over_all_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, "segments", pa.table({"id": ["a", "b", "c"]}), rows_per_shard=2)
    assert Records().rows(tmp_path / "segments-*.parquet", "segment") == 3


def test_the_sweep_of_thresholds_is_drawn_and_told(report: Report, page: str) -> None:
    assert "Pairs kept by threshold" in page
    assert " h) at 0.35" in page
    row = next(row for row in report.sweep or () if row["source"] == "all" and row["tau"] == 0.4)
    assert f"{row['pairs']} pairs ({row['hours']:.3g} h) at 0.4" in page
    assert "freesound" in page
    assert "Pairs kept by threshold" not in changed(report, sweep=None)
