"""What became of the corpus, from the tables that the stages left."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from siren.config import Config
from siren.stages.places import CAPTIONS, CLIPS, SCORES, SEGMENTS, SPLITS, TOKENS


def audit(thresholds: Sequence[float], config: Config) -> Any:
    """The corpus in figures, as far as it is made; also at the paper's thresholds. For `siren corpus`."""
    from siren.filter import audit as audits

    select = config.filter.select
    taus = thresholds or (*audits.TIERS, select.min_score)
    return audits.audit(_tables(), config.audio.sample_rate, taus, select)


def history(name: str, config: Config) -> tuple[Callable[[Any], str], list[tuple[str, dict[str, Any]]]]:
    """What every stage says of an item, and how to print a value of it. For `siren corpus show`."""
    from siren.filter import audit as audits

    return audits.text, audits.history(_tables(), name, config.filter.select, config.audio.sample_rate)


def _tables() -> Any:
    """The tables of the data stages that have run."""
    import pyarrow.parquet as pq

    from siren import shards
    from siren.collect.segment import SCHEMA
    from siren.filter import audit as audits

    folders = {"fetch": CLIPS, "segment": SEGMENTS, "caption": CAPTIONS, "score": SCORES}
    columns = [column for column in SCHEMA.names if column != "pcm"]
    files = {"clips": CLIPS, "captions": CAPTIONS, "scores": SCORES}
    found = {name: folder / f"{name}.parquet" for name, folder in files.items()}
    summary = CLIPS / "summary.json"
    return audits.Tables(
        fetched=json.loads(summary.read_text())["in"] if summary.is_file() else None,
        segments=shards.read_shards(SEGMENTS, "segments", columns)
        if shards.shard_paths(SEGMENTS, "segments")
        else None,
        splits={path.stem: pq.read_table(path) for path in sorted(SPLITS.glob("*.parquet"))},
        tokens={
            path.stem: shards.read_shards(TOKENS, path.stem, ["id", "num_frames", "text_length", "crop_offsets"])
            for path in sorted(SPLITS.glob("*.parquet"))
            if shards.shard_paths(TOKENS, path.stem)
        },
        quarantined={
            name: shards.read_quarantine(folder)
            for name, folder in folders.items()
            if (folder / "quarantine.parquet").is_file()
        },
        **{name: pq.read_table(path) for name, path in found.items() if path.is_file()},
    )
