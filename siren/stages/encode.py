"""The stage of encode: splits to token shards."""

from pathlib import Path
from typing import Any

from siren import tracking
from siren.config import Config
from siren.stages import places, reading
from siren.stages.places import SEGMENTS, SPLITS, TOKENS


def tokenize(config: Config) -> None:
    """Segments and captions to token shards: codes, text states, crops."""
    import pyarrow.parquet as pq

    from siren import engine
    from siren.encode import tokenize as tokens

    with tracking.stage("tokenize", config, sections=("encode.tokenize",)) as run:
        splits = {path.stem: pq.read_table(path) for path in sorted(SPLITS.glob("*.parquet"))}
        settings, rate, where = config.encode.tokenize, config.audio.sample_rate, engine.chosen()
        made_with = [*places.segments(), *sorted(SPLITS.glob("*.parquet")), *places.saved("codec", "clap")]
        work = places.pieces("tokenize", made_with, settings)
        made = tokens.tokenize(
            reading.load_codec,
            reading.load_clap,
            SEGMENTS,
            splits,
            TOKENS,
            work,
            rate,
            settings.batch_size,
            settings.shard_rows,
            where,
        )
        run.summary({f"pairs/{split}": count for split, count in made.items()})
        _hold_tokens(splits, config, run)
        places.made("tokenize")
        pairs = sum(table.num_rows for table in splits.values())
        each = ", ".join(f"{split} {count}" for split, count in made.items())
        print(f"tokenize: {pairs} in, {sum(made.values())} out ({each}), {places.took(run, pairs)}")


def _hold_tokens(splits: dict[str, Any], config: Config, run: tracking.Run) -> None:
    """The gate once more, for the token shards. Machines that only train have no Great Expectations, and say so."""
    from importlib.util import find_spec
    from tempfile import TemporaryDirectory

    from siren import shards
    from siren.filter import validate as gate
    from siren.progress import notice

    if find_spec("great_expectations") is None:
        notice("tokenize: the shards are not held against their suite; install great_expectations for that")
        return
    columns = ["id", "caption", "codes", "num_frames", "text", "text_length", "crop_offsets"]
    tokens = {name: shards.read_shards(TOKENS, name, columns) for name in splits}
    report = gate.hold_tokens(tokens, shards.metadata(TOKENS, next(iter(splits))), splits, config)
    with TemporaryDirectory() as folder:
        gate.write(report, Path(folder) / "gate")
        run.artifact(Path(folder) / "gate")
    run.summary({"demands": len(report.checks), "failing": sum(not check.holds for check in report.checks)})
    gate.gate(report)
