"""Stages of filter: captions, their scores, the chosen corpora, and the gate in front of what follows."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from siren import tracking
from siren.config import Config
from siren.stages import places, reading
from siren.stages.places import CAPTIONS, CLIPS, REPORTS, SCORES, SEGMENTS, SHARDS_AT_ONCE, SPLITS


def caption(config: Config) -> None:
    """One refined caption for each segment; some that a captioner heard are kept in the run, with their sounds."""
    import pyarrow.compute as pc

    from siren import engine, shards

    with tracking.stage("caption", config, sections=("seed", "audio.sample_rate", "filter.caption")) as run:
        captioning = _captioning(config)  # nothing is loaded before a segment needs it
        settings, columns = [config.seed, config.audio.sample_rate, config.filter.caption], captioning.columns
        where = engine.LOCAL if captioning.only_asks else engine.chosen()
        made, network = partial(_captioning, config), captioning.network
        files = sorted(path for path in network.rglob("*") if path.is_file()) if network else []
        table, notes = _by_shard("caption", made, columns, files, settings, captioning.loads, where)
        made_with = {"made_with": json.dumps(found)} if (found := captioning.provenance()) else None
        shards.write_table(CAPTIONS / "captions.parquet", table, made_with)
        if captioning.captioner.hears:
            told = table.filter(pc.not_equal(table["captioner"], "human"))[: places.EXAMPLES].to_pylist()
            wavs = reading.recordings([row["id"] for row in told]) if told else []
            for row, wav in zip(told, wavs, strict=True):
                run.audio(places.said(row["id"], row["caption"]), wav, config.audio.sample_rate)
        quarantine = [row for rows, _ in notes for row in rows]
        counts = {"in": table.num_rows + len(quarantine), "out": table.num_rows, "quarantined": len(quarantine)}
        used = sum((Counter(rules) for _, rules in notes), Counter[str]())
        counts |= {f"rule/{name}": count for name, count in used.items()}
        run.summary(places.account(run, "caption", CAPTIONS, counts, quarantine))
        places.made("caption")


def score(config: Config) -> None:
    """CLAP cosine of every segment and of every crop with its caption."""
    from siren import shards

    with tracking.stage("score", config, sections=("audio", "filter.score")) as run:
        columns = ["id", "num_samples", "split", "pcm"]
        made_with = [CAPTIONS / "captions.parquet", *places.saved("clap")]
        settings = [config.audio, config.filter.score]
        table, notes = _by_shard("score", partial(_scoring, config), columns, made_with, settings, network=True)
        shards.write_table(SCORES / "scores.parquet", table)
        quarantine = [row for (rows,) in notes for row in rows]
        counts = {
            "in": shards.num_rows(CAPTIONS / "captions.parquet"),
            "out": table.num_rows,
            "quarantined": len(quarantine),
        }
        run.summary(places.account(run, "score", SCORES, counts, quarantine))
        places.made("score")


def select(config: Config) -> None:
    """Scores to splits: stage-1 corpus, alignment prompts, validation, test; and what other thresholds would keep."""
    import pyarrow.parquet as pq
    from pyarrow import csv

    from siren import shards
    from siren.filter import select as selection

    with tracking.stage("select", config, sections=("seed", "audio.sample_rate", "filter.select")) as run:
        columns = ["id", "labels", "relation", "recording_id", "split", "source", "num_samples"]
        segments = shards.read_shards(SEGMENTS, "segments", columns)
        scores, settings = pq.read_table(SCORES / "scores.parquet"), config.filter.select
        swept = selection.sweep(segments, scores, settings, config.audio.sample_rate)
        SPLITS.mkdir(parents=True, exist_ok=True)
        csv.write_csv(swept, SPLITS / "sweep.csv")  # before what may fail: it says which threshold would do
        splits, funnel = selection.select(segments, scores, settings, config.seed, config.audio.sample_rate)
        for name, table in splits.items():
            shards.write_table(SPLITS / f"{name}.parquet", table)
        (SPLITS / "summary.json").write_text(json.dumps(funnel, indent=1) + "\n")
        run.summary({name: float(count) for name, count in funnel.items()})
        print("select: " + ", ".join(f"{name} {count}" for name, count in funnel.items()))


def validate(config: Config) -> None:
    """The gate: every table against its suite; Data Docs. A demand that fails stops the pipeline."""
    import pyarrow.parquet as pq

    from siren import shards
    from siren.filter import validate as gate

    with tracking.stage("validate", config, sections=("filter.caption", "filter.validate")) as run:
        stages = {"fetch": CLIPS, "segment": SEGMENTS, "caption": CAPTIONS, "score": SCORES}
        corpus = gate.Corpus(
            clips=pq.read_table(CLIPS / "clips.parquet"),
            segments=shards.read_shards(
                SEGMENTS, "segments", ["id", "clip_id", "recording_id", "num_samples", "snr_db", "split"]
            ),
            captions=pq.read_table(CAPTIONS / "captions.parquet"),
            scores=pq.read_table(SCORES / "scores.parquet"),
            splits={path.stem: pq.read_table(path) for path in sorted(SPLITS.glob("*.parquet"))},
            quarantined={name: shards.read_quarantine(folder) for name, folder in stages.items()},
            fetched=json.loads((CLIPS / "summary.json").read_text())["in"],
        )
        report = gate.validate(corpus, config)
        gate.write(report, REPORTS / "data")
        failing = sum(not check.holds for check in report.checks)
        run.summary({"demands": len(report.checks), "failing": failing})
        run.artifact(REPORTS / "data")
        print(f"validate: {len(report.checks)} demands on {len(report.results)} tables, {failing} failing")
        gate.gate(report)


def _by_shard(
    name: str,
    make: Callable[[], Callable[[Any], tuple[Any, ...]]],
    columns: list[str],
    made_with: list[Path],
    settings: list[Any],
    network: bool = False,
    where: Any = None,
) -> tuple[Any, list[Any]]:
    """A function of tables of segments, some shards at a time → its tables as one, and what it notes of each.

    `where`: an engine other than the chosen one.
    """
    from siren import engine, shards

    work = places.pieces(name, [*places.segments(), *made_with], *settings)
    rows = shards.whole(SEGMENTS, "segments", SHARDS_AT_ONCE)
    tables = partial(engine.Tables, make, columns)
    paths = engine.pieces(where or engine.chosen(), tables, rows, work, name, "segment", network)
    return shards.joined([shards.read_table(path) for path in paths]), [engine.notes(path) for path in paths]


def _captioning(config: Config) -> Any:
    """What `caption` does to a table of segments."""
    from siren.filter.caption import Captioning

    return Captioning(config.filter.caption, config.seed, config.audio.sample_rate)


def _scoring(config: Config) -> Callable[[Any], tuple[Any, ...]]:
    """What `score` does to a table of segments."""
    import pyarrow.parquet as pq

    from siren.filter.score import score

    columns = ["id", "caption", "candidates"]
    (clap, device), captions = reading.load_clap(), pq.read_table(CAPTIONS / "captions.parquet", columns=columns)
    return lambda segments: score(clap, segments, captions, config.audio, config.filter.score, device)
