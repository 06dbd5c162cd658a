"""Tables as shards, for tests that need some; in the pipeline `siren.engine.gather` writes them."""

from pathlib import Path

import pyarrow as pa

from siren import shards


def write_shards(
    folder: Path, stem: str, table: pa.Table, rows_per_shard: int, metadata: dict[str, str] | None = None
) -> list[Path]:
    """No rows give one empty shard, so that schema and metadata are kept; shards of an earlier table are removed."""
    rows, paths = table.to_pylist(), []
    for index, begin in enumerate(range(0, max(1, len(rows)), rows_per_shard)):
        paths.append(folder / f"{stem}-{index:05d}.parquet")
        shards.write_table(paths[-1], shards.table(rows[begin : begin + rows_per_shard], table.schema), metadata)
    for stale in set(shards.shard_paths(folder, stem)) - set(paths):
        stale.unlink()
    return paths
