"""The data gate: Great Expectations suites on every table; a failing one stops the pipeline and names the rows.

What is true across tables is put into small tables of its own (`accounting`, `recordings`, `sizes`) or into a column
(`has_clip`), so that every demand is an ordinary expectation and appears in the Data Docs. The token shards, which are
made after the gate, have suites of their own (`hold_tokens`). Unusual: the Data Docs pages are rendered here, without
times and random ids, because the folder is a pipeline output and must not change when nothing changed; and without the
scripts and style sheets that they would fetch from elsewhere, so that they open without a network.
great_expectations takes seconds to import and is imported only here, inside functions.
"""

import html
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from siren.config import Audio, Config

if TYPE_CHECKING:
    import pandas as pd

HINTS = ("train", "val", "test")
STAGES = ("fetch", "segment", "caption", "score")
SHOWN = 20  # failing rows of one demand that are named
ELSEWHERE = re.compile(r'href="(?:\.\./)+[^"]*"')  # pages of a full Data Docs site
STAMP = re.compile(r"\?d=\d{8}T\d{6}\.\d+Z")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
OUTSIDE = re.compile(r"<!--.*?-->|<(script|style|footer)\b.*?</\1>|<(link|img)\b[^>]*>", re.DOTALL)
SPLIT_OF = {"stage1": "train", "rl": "train", "val": "val", "test": "test"}


class GateError(ValueError):
    """The data is not what the pipeline promises; the message names the tables, the demands and the rows."""


@dataclass(frozen=True)
class Corpus:
    """All tables before tokens. `quarantined` has the quarantine of each stage, `fetched` what fetch started from."""

    clips: pa.Table
    segments: pa.Table  # pcm is not needed
    captions: pa.Table
    scores: pa.Table
    splits: dict[str, pa.Table]
    quarantined: dict[str, pa.Table]
    fetched: int


@dataclass(frozen=True)
class Check:
    """The outcome of one expectation on one table."""

    table: str
    demand: str
    holds: bool
    rows: int  # looked at
    failing: int
    examples: tuple[str, ...]  # of failing rows, at most `SHOWN`


@dataclass(frozen=True)
class Report:
    checks: tuple[Check, ...]
    results: dict[str, Any]  # table → the validation as Great Expectations returned it


def validate(corpus: Corpus, config: Config) -> Report:
    """Hold every table against its suite. Does not raise where a demand fails: see `gate`."""
    return hold(tables(corpus), config)


def hold(frames: dict[str, "pd.DataFrame"], config: Config) -> Report:
    """The same for frames that `tables` made, or for some of them."""
    demands, context = suites(config), _context()
    results = {name: _run(context, name, frame, demands[name]) for name, frame in frames.items()}
    checks = [_check(name, frames[name], outcome) for name, result in results.items() for outcome in result.results]
    return Report(tuple(checks), results)


def hold_tokens(
    tokens: dict[str, pa.Table], about: dict[str, str], splits: dict[str, pa.Table], config: Config
) -> Report:
    """Hold the token shards against their suites. `about`: their metadata; `splits`: the pairs they were made from."""
    return hold(token_tables(tokens, about, splits), config)


def gate(report: Report) -> None:
    """Raises `GateError` when a demand fails."""
    failed = [check for check in report.checks if not check.holds]
    if failed:
        lines = [f"{c.table}: {c.demand}: {c.failing} of {c.rows} rows, e.g. {_named(c)}" for c in failed]
        raise GateError("the data gate failed:\n  " + "\n  ".join(lines))


def _named(check: Check) -> str:
    """The failing rows, as far as they are shown, and how many more there are."""
    more = check.failing - len(check.examples)
    return ", ".join(check.examples) + (f", and {more} more" if more > 0 and check.examples else "")


def write(report: Report, folder: Path) -> None:
    """index.html and checks.json (nothing else needed to read them), and one Data Docs page for each table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checks.json").write_text(json.dumps([asdict(check) for check in report.checks], indent=1) + "\n")
    for table, result in report.results.items():
        (folder / f"{table}.html").write_text(_page(result), encoding="utf-8")
    (folder / "index.html").write_text(_index(report), encoding="utf-8")


def tables(corpus: Corpus) -> dict[str, "pd.DataFrame"]:
    """The frames that the suites look at: each table with lists counted, and what is true across tables."""
    import pandas as pd

    splits = {
        name: table.select(["id", "caption", "recording_id", "score", "crop_offsets"]).to_pandas()
        for name, table in corpus.splits.items()
    }
    pairs = pd.concat([frame.assign(split=name) for name, frame in splits.items()], ignore_index=True)
    parts = pairs.assign(part=pairs["split"].map(SPLIT_OF)).groupby("recording_id")["part"].agg(["nunique", "unique"])
    frames = {
        "clips": corpus.clips.to_pandas(),
        "segments": corpus.segments.select([c for c in corpus.segments.column_names if c != "pcm"]).to_pandas(),
        "captions": corpus.captions.to_pandas(),
        "scores": corpus.scores.to_pandas(),
        "splits": pairs,
    }
    for frame in frames.values():
        for column in ("captions", "labels", "candidates", "crop_offsets", "crop_scores", "rules", "history"):
            if column in frame:
                frame[f"num_{column}"] = frame.pop(column).map(len)
    clips, segments, captions, scores = (frames[name] for name in ("clips", "segments", "captions", "scores"))
    clips["part"] = [f"{p} {s} {e}" for p, s, e in zip(clips["path"], clips["start"], clips["end"], strict=True)]
    clips["num_texts"] = clips["num_captions"] + clips["num_labels"]
    segments["has_clip"] = segments["clip_id"].isin(clips["id"])
    captions["has_segment"] = captions["id"].isin(segments["id"])
    scores["has_caption"] = scores["id"].isin(captions["id"])
    pairs["has_score"] = pairs["id"].isin(scores["id"])
    frames["quarantine"] = pa.concat_tables(corpus.quarantined.values()).to_pandas()
    frames["recordings"] = pd.DataFrame({"recording_id": parts.index, "num_splits": parts["nunique"].to_numpy()})
    frames["sizes"] = pd.DataFrame({"split": list(splits), "pairs": [len(frame) for frame in splits.values()]})
    frames["accounting"] = accounting(corpus)
    return frames


def token_tables(
    tokens: dict[str, pa.Table], about: dict[str, str], splits: dict[str, pa.Table]
) -> dict[str, "pd.DataFrame"]:
    """The index of the token shards: lengths of what each row holds, beside what they should be. No code is read."""
    import pandas as pd
    import pyarrow.compute as pc

    per_frame, per_token = 2 * int(about["num_codebooks"]), 2 * int(about["text_width"])  # bytes
    parts = []
    for split, table in tokens.items():
        offsets = table["crop_offsets"].combine_chunks()
        frame = table.select(["id", "caption", "num_frames", "text_length"]).to_pandas().assign(split=split)
        code_bytes = pc.binary_length(table["codes"]).to_numpy()
        frame["frames"] = code_bytes / per_frame
        frame["text_states"] = pc.binary_length(table["text"]).to_numpy() / per_token
        frame["frame_part"] = frame["frames"] % 1  # where bytes are missing
        frame["padding"] = frame["frames"] - frame["num_frames"]
        frame["missing_states"] = frame["text_length"] - frame["text_states"]
        frame["num_crop_offsets"] = pc.list_value_length(offsets).to_numpy(zero_copy_only=False)
        parts.append(frame)
    rows = [(name, len(set(table["id"].to_pylist()))) for name, table in splits.items()]
    made = [len(set(tokens[name]["id"].to_pylist())) if name in tokens else 0 for name, _ in rows]
    lost = pd.DataFrame(rows, columns=["split", "pairs"]).assign(made=made)
    return {
        "tokens": pd.concat(parts, ignore_index=True),
        "token_splits": lost.assign(lost=lost["pairs"] - lost["made"]),
    }


def accounting(corpus: Corpus) -> "pd.DataFrame":
    """For every stage: how many came in, went out and were quarantined, and how many are lost (must be 0)."""
    import pandas as pd

    clips, segments = set(corpus.clips["id"].to_pylist()), set(corpus.segments["id"].to_pylist())
    captions, scores = set(corpus.captions["id"].to_pylist()), set(corpus.scores["id"].to_pylist())
    items = {stage: set(table["item"].to_pylist()) for stage, table in corpus.quarantined.items()}
    cut = set(corpus.segments["clip_id"].to_pylist())
    # "a-001" is a clip, or a piece of the clip "a", or both
    left_out = (items["segment"] | {re.sub(r"-\d{3,}$", "", item) for item in items["segment"]}) - cut
    rows = [
        ("fetch", corpus.fetched, len(clips), corpus.quarantined["fetch"].num_rows),
        ("segment", len(clips), len(cut & clips), len(left_out & clips)),
        ("caption", len(segments), len(captions & segments), len(items["caption"] & segments)),
        ("score", len(captions), len(scores & captions), len(items["score"] & captions)),
    ]
    frame = pd.DataFrame(rows, columns=["stage", "came_in", "went_out", "quarantined"])
    frame["lost"] = frame["came_in"] - frame["went_out"] - frame["quarantined"]
    earlier = frame["quarantined"].cumsum()
    frame["share_quarantined"] = earlier / max(1, corpus.fetched)
    frame.loc[2:, "share_quarantined"] = 0.0  # those two count segments, not clips
    return frame


def suites(config: Config) -> dict[str, list[Any]]:
    """Table → its expectations."""
    import great_expectations.expectations as gxe

    from siren.filter.caption.captioners import captioner

    hears = captioner(config.filter.caption, config.seed).hears

    def unique_ids(column: str = "id") -> list[Any]:
        return [gxe.ExpectColumnValuesToNotBeNull(column=column), gxe.ExpectColumnValuesToBeUnique(column=column)]

    def between(column: str, low: float | None, high: float | None = None) -> Any:
        return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)

    def cosine() -> list[Any]:
        return [gxe.ExpectColumnValuesToNotBeNull(column="score"), between("score", -1.0, 1.0)]

    def split_in(names: Iterable[str]) -> Any:
        return gxe.ExpectColumnValuesToBeInSet(column="split", value_set=list(names))

    def true(column: str) -> Any:
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[True])

    def there(*columns: str) -> list[Any]:
        return [gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns]

    def text() -> list[Any]:  # neither empty nor padded
        padded = gxe.ExpectColumnValuesToMatchRegex(column="caption", regex=r"^\S(?:.*\S)?$")
        return [gxe.ExpectColumnValuesToNotBeNull(column="caption"), padded]

    audio: Audio = config.audio
    longest = audio.segment_samples
    shortest = int(0.99 * audio.sample_rate * min(config.collect.segment.min_seconds, audio.segment_seconds))
    allowed = config.filter.validate.max_quarantined
    return {
        "clips": [
            *unique_ids(),
            gxe.ExpectColumnValuesToBeUnique(column="part"),
            split_in(HINTS),
            *([] if hears else [between("num_texts", 1)]),  # a captioner that hears finds words for a clip without any
            *there("recording_id", "source", "licence"),
            gxe.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
        ],
        "segments": [
            *unique_ids(),
            split_in(HINTS),
            between("num_samples", max(1, shortest), longest),
            between("snr_db", config.collect.segment.min_snr_db),
            true("has_clip"),
        ],
        "captions": [*unique_ids(), *text(), between("num_candidates", 1), true("has_segment")],
        "scores": [*unique_ids(), *cosine(), between("num_crop_offsets", 1), true("has_caption")],
        "splits": [
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["split", "id"]),
            split_in(SPLIT_OF),
            *text(),
            *cosine(),
            between("num_crop_offsets", 1),
            true("has_score"),
        ],
        "quarantine": [
            *there("item", "detail"),
            gxe.ExpectColumnValuesToBeInSet(column="stage", value_set=list(STAGES)),
            gxe.ExpectColumnValuesToMatchRegex(column="reason", regex="^[a-z][a-z0-9_]*$"),
            # a whole list of clips that could not be read is one row here, whatever it would have held
            gxe.ExpectColumnValuesToNotBeInSet(column="reason", value_set=["bad_manifest"]),
        ],
        "tokens": [
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["split", "id"]),
            split_in(SPLIT_OF),
            *text(),
            between("num_frames", 1),
            between("padding", 0),
            gxe.ExpectColumnValuesToBeInSet(column="frame_part", value_set=[0.0]),
            between("text_length", 1),
            between("missing_states", 0, 0),
            between("num_crop_offsets", 1),
        ],
        "token_splits": [between("pairs", 1), between("lost", 0, 0)],
        "recordings": [between("num_splits", 1, 1)],
        "sizes": [between("pairs", 1)],
        "accounting": [between("lost", 0, 0), between("share_quarantined", 0.0, allowed)],
    }


def _context() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _run(context: Any, name: str, frame: "pd.DataFrame", expectations: list[Any]) -> Any:
    import great_expectations as gx

    source = context.data_sources.add_pandas(name)
    data = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
    suite = context.suites.add(gx.ExpectationSuite(name, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=data, suite=suite))
    form = {"result_format": "SUMMARY", "partial_unexpected_count": SHOWN}
    form["unexpected_index_column_names"] = [frame.columns[0]]
    return definition.run(batch_parameters={"dataframe": frame}, result_format=form)


def _check(table: str, frame: "pd.DataFrame", outcome: Any) -> Check:
    config, result = outcome.expectation_config, outcome.result
    infos = [info for info in [outcome.exception_info, *outcome.exception_info.values()] if isinstance(info, dict)]
    if any(info.get("raised_exception") for info in infos):  # ours: a suite that does not fit its table
        raise RuntimeError(f"{table}: {config.type} could not be computed: {infos[-1].get('exception_message')}")
    arguments = {k: v for k, v in config.kwargs.items() if k != "batch_id" and v is not None}
    demand = f"{config.type} ({', '.join(f'{key} {value}' for key, value in arguments.items())})"
    key = frame.columns[0]
    column = arguments.get("column", key)
    examples = [
        str(row[key]) + (f" ({row[column]})" if column != key and column in row else "")
        for row in (result.get("partial_unexpected_index_list") or [])[:SHOWN]
    ]
    return Check(table, demand, bool(outcome.success), len(frame), result.get("unexpected_count", 0), tuple(examples))


def _page(result: Any) -> str:
    """GX's own page for a validation: the same bytes for the same data, and nothing from elsewhere."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    result.meta["run_id"] = {"run_name": "siren", "run_time": "2000-01-01T00:00:00+00:00"}
    result.meta["validation_time"] = "2000-01-01T00:00:00+00:00"
    result.meta["batch_markers"] = {}
    page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
    page = OUTSIDE.sub("", ELSEWHERE.sub('href="index.html"', STAMP.sub("", page)))
    page = re.sub(r"\n\s*\n", "\n", page.replace("</head>", f"<style>{STYLE}</style></head>"))
    names: dict[str, str] = {}
    return UUID.sub(lambda found: names.setdefault(found[0], f"id-{len(names)}"), page)


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 1rem auto; padding: 0 1rem; color: #1c2430 }
.navbar ol { list-style: none; display: flex; gap: 1rem; padding: 0 }
.col-lg-2, [data-toggle=collapse] { display: none }
table { border-collapse: collapse; margin: .5rem 0 } th { text-align: left }
h4, h5, h6 { font-size: 1rem; margin: 1rem 0 0 }
td, th { padding: .3rem .6rem; border-bottom: 1px solid #d9dee6; vertical-align: top }
ul { list-style: none; padding: 0 } [id$="-parent"] { font-size: .85rem; color: #5a6472 }
.alert { border-top: 3px solid #1c2430; margin-top: 1rem }
.text-success { color: #2e8b57 } .text-danger { color: #c0392b }
.fa-check-circle::before { content: "\\2713" } .fa-times::before, .fa-exclamation-triangle::before { content: "\\2717" }
i.fas { font-style: normal; font-weight: bold } .badge { background: #eef1f5; padding: 0 .3rem; border-radius: 3px }
"""


def _index(report: Report) -> str:
    """A page that needs no network: what was demanded of which table, and whether it holds."""
    rows = "\n".join(
        f'<tr class="{"holds" if c.holds else "fails"}"><td><a href="{c.table}.html">{c.table}</a></td>'
        f"<td>{html.escape(c.demand)}</td><td>{c.rows}</td><td>{c.failing}</td>"
        f"<td>{html.escape(_named(c))}</td></tr>"
        for c in report.checks
    )
    failing = sum(not check.holds for check in report.checks)
    verdict = f"{failing} of {len(report.checks)} demands fail" if failing else f"all {len(report.checks)} demands hold"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data gate</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }}
table {{ border-collapse: collapse; width: 100% }} th {{ text-align: left }}
td, th {{ padding: .3rem .6rem; border-bottom: 1px solid #d9dee6; vertical-align: top }}
tr.holds td:first-child {{ border-left: 4px solid #2e8b57 }}
tr.fails td:first-child {{ border-left: 4px solid #c0392b }}
tr.fails {{ background: #fdf0ee }}
</style></head><body><h1>Data gate: {verdict}</h1>
<p>Great Expectations on every table. The name of a table leads to its Data Docs page. No page needs a network.</p>
<table><tr><th>table</th><th>demand</th><th>rows</th><th>failing</th><th>examples</th></tr>
{rows}
</table></body></html>
"""
