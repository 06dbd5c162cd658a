"""Tables on disk: whole or in numbered shards, each file written to a temporary name and then renamed.

The suffix chooses the format. `.parquet` is compressed: for tables that are read whole. `.arrow` (Arrow IPC) is not: a
reader maps it and touches the rows it wants, so a table may be larger than memory.
One file for each shard and never one for each clip, because versioning and network filesystems are slow with many
small files. Nothing written here depends on the time or the machine: the same table gives the same bytes.
Waveforms are stored as little-endian int16, all rows of a column equally long.

Shapes: N rows · S samples.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siren.atomic import replacing

FULL_SCALE = 32767
LARGEST = 2**30  # bytes that lie in one chunk: Arrow counts those of a column of texts in 31 bits
GROUP = 2**22  # bytes of a group of rows, which Parquet's writer holds in memory
QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("item", "stage", "reason", "detail")])


def write_table(path: str | Path, table: pa.Table, metadata: dict[str, str] | None = None) -> None:
    """Write one file atomically, in the format of its suffix, `metadata` in its schema."""
    path = Path(path)
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    with replacing(path) as partial:
        if path.suffix == ".arrow":
            with pa.ipc.new_file(partial, table.schema) as file:
                file.write_table(table.combine_chunks())
        else:
            rows = max(1, table.num_rows * GROUP // max(1, table.nbytes))
            repeating = _repeating(table.schema)
            pq.write_table(table, partial, compression="zstd", use_dictionary=repeating, row_group_size=rows)


def _repeating(schema: pa.Schema) -> list[str]:
    """Columns worth a dictionary, as Parquet calls them. Of sound, looking for one costs as much as packing it."""
    columns = [field for field in schema if field.type != pa.binary()]
    return [f"{c.name}.list.element" if pa.types.is_list(c.type) else c.name for c in columns]


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """All their rows, as one chunk where that can be: the bytes of a file do not depend on how rows were divided."""
    found = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    return found.combine_chunks() if found.nbytes <= LARGEST else found


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """What `pa.Table.from_pylist` makes, sooner; every row must have every column."""
    columns = [_column([row[field.name] for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """What `pa.array` makes; of bytes, which may be most of a shard, without its growing and copying."""
    if kind != pa.binary() or None in values or sum(map(len, values)) >= 2**31:
        return pa.array(values, kind)
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))])


def read_shards(folder: str | Path, stem: str, columns: list[str] | None = None) -> pa.Table:
    """All shards of `stem` as one table, in order, memory-mapped. Raises ValueError when one is missing."""
    return pa.concat_tables(each_shard(folder, stem, columns))


def each_shard(folder: str | Path, stem: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The same, one shard after the other. Raises ValueError when one is missing, before the first."""
    return (read_table(path, columns) for path in _complete(folder, stem))


def _complete(folder: str | Path, stem: str) -> list[Path]:
    paths = shard_paths(folder, stem)
    numbers = [int(path.stem[-5:]) for path in paths]
    if numbers != list(range(len(numbers))) or not paths:
        found = ", ".join(path.name for path in paths) or "none"
        raise ValueError(f"shards {stem}-00000 ... in {folder} are not complete (found: {found}); run the stage again")
    return paths


@dataclass(frozen=True)
class Rows:
    """Some rows of a table in shards, in their order: what one worker reads. (shard, its rows; None for all) each."""

    parts: tuple[tuple[Path, np.ndarray | None], ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, columns: list[str]) -> pa.Table:
        found = [(read_table(path, columns), rows) for path, rows in self.parts]
        return pa.concat_tables([table if rows is None else table.take(pa.array(rows)) for table, rows in found])


def whole(folder: str | Path, stem: str, shards: int) -> list[Rows]:
    """All rows of `stem`, so many shards at a time."""
    paths = _complete(folder, stem)
    groups = [paths[start : start + shards] for start in range(0, len(paths), shards)]
    return [Rows(tuple((path, None) for path in group), sum(map(num_rows, group))) for group in groups]


def picked(folder: str | Path, stem: str, chosen: np.ndarray, size: int) -> list[Rows]:
    """The rows of `stem` with these numbers (ascending), `size` at a time."""
    paths = _complete(folder, stem)
    ends = np.cumsum([num_rows(path) for path in paths])
    starts, found = ends - np.diff(ends, prepend=0), []
    for begin in range(0, len(chosen), size):
        part = chosen[begin : begin + size]
        owners = np.searchsorted(ends, part, side="right")
        parts = tuple((paths[k], part[owners == k] - starts[k]) for k in np.unique(owners))
        found.append(Rows(parts, len(part)))
    return found


def num_rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows if path.suffix == ".parquet" else read_table(path).num_rows)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """One file, memory-mapped."""
    if path.suffix == ".arrow":
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()  # columns are views of the file
        return table.select(columns) if columns else table
    return pq.read_table(path, columns=columns, memory_map=True)


def metadata(folder: str | Path, stem: str) -> dict[str, str]:
    """Metadata of the first shard of `stem`."""
    paths = shard_paths(folder, stem)
    if not paths:
        raise ValueError(f"no shards {stem}-00000 ... in {folder}; run the stage that makes them")
    return table_metadata(paths[0])


def table_metadata(path: str | Path) -> dict[str, str]:
    """What `write_table` was given as `metadata`."""
    mapped = Path(path).suffix == ".arrow"
    schema = pa.ipc.open_file(pa.memory_map(str(path))).schema if mapped else pq.read_schema(path)
    items = (schema.metadata or {}).items()
    return {key.decode(): value.decode() for key, value in items if not key.startswith(b"ARROW:")}


def shard_paths(folder: str | Path, stem: str) -> list[Path]:
    """The shards of `stem` that are there, in order."""
    pattern = re.compile(re.escape(stem) + r"-\d{5}\.(parquet|arrow)")
    return sorted(path for path in Path(folder).glob(f"{stem}-*") if pattern.fullmatch(path.name))


def write_quarantine(folder: str | Path, rows: list[dict[str, str]]) -> None:
    """Write `quarantine.parquet`: what was left out, at which stage, and why. Also written when there is nothing."""
    write_table(Path(folder) / "quarantine.parquet", pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA))


def read_quarantine(folder: str | Path) -> pa.Table:
    """The quarantine of one stage."""
    return pq.read_table(Path(folder) / "quarantine.parquet")


def float_to_pcm(wav: np.ndarray) -> bytes:
    """A waveform with full scale 1.0 as little-endian int16, clipped to the int16 range. Raises ValueError for NaN."""
    low, high = wav.min(initial=0), wav.max(initial=0)  # NaN, where there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("a waveform with NaN or infinite values cannot be stored as int16")
    scaled = np.multiply(wav, FULL_SCALE, dtype=np.float64)
    np.rint(scaled, out=scaled)
    if max(-low, high) > 1:
        np.clip(scaled, -FULL_SCALE - 1, FULL_SCALE, out=scaled)
    return scaled.astype("<i2").tobytes()


def pcm_to_float(pcm: Any) -> np.ndarray:
    """Stored waveforms as float32: bytes → [S]; a binary column, all rows equally long → [N, S]."""
    return pcm_array(pcm).astype(np.float32) / np.float32(FULL_SCALE)


def pcm_array(pcm: Any) -> np.ndarray:
    """Stored waveforms as int16, without a copy where the column has one chunk: bytes → [S]; a column → [N, S]."""
    if isinstance(pcm, (bytes, bytearray, memoryview)):
        return np.frombuffer(pcm, "<i2")
    return binary_matrix(pcm, "<i2")


def binary_matrix(column: pa.Array | pa.ChunkedArray, dtype: str) -> np.ndarray:
    """A binary column whose rows are equally long, as [N, items per row]. Raises ValueError for unequal rows."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_chunk_matrix(chunk, np.dtype(dtype)) for chunk in chunks if len(chunk)]
    if not parts:
        return np.zeros((0, 0), dtype)
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise ValueError(f"rows of the column have {sorted(widths)} values; they must be equally long")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _chunk_matrix(chunk: pa.Array, dtype: np.dtype) -> np.ndarray:
    if chunk.null_count:
        raise ValueError(f"{chunk.null_count} rows of the column are null")
    large = pa.types.is_large_binary(chunk.type)
    _, offset_buffer, data = chunk.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64 if large else np.int32)[
        chunk.offset : chunk.offset + len(chunk) + 1
    ]
    lengths = np.unique(np.diff(offsets))
    if len(lengths) > 1 or lengths[0] % dtype.itemsize:
        raise ValueError(f"rows of the column have {lengths.tolist()[:5]} bytes; they must be equally long")
    flat = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if lengths[0] else np.zeros(0, np.uint8)
    return flat.view(dtype).reshape(len(chunk), -1) if lengths[0] else np.zeros((len(chunk), 0), dtype)
