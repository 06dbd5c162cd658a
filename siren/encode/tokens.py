"""Token shards as the trainer reads them: codes, text states, crops. Refuses shards of another codec.

Nothing is copied into memory when a split is opened: shards are Arrow files that are mapped, a row is read when it is
asked for, and codes stay uint16 and text states float16 until a batch is made of them. So a split costs the pages that
the last batches touched, whatever its size. The layout of a shard is in `tokenize.py`.
Shapes: N pairs · B batch · K codebooks · T frames · L text length · P text width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from siren import shards


@dataclass
class Tokens:
    """One split of the tokenised corpus. Columns are lists or arrays, or read from the shards row by row."""

    ids: Sequence[str]
    captions: Sequence[str]
    labels: Sequence[list[str]]
    relations: Sequence[str | None]
    codes: "Arrays | np.ndarray"  # N times uint16 [K, T]
    num_frames: np.ndarray  # int32 [N], without the padding of short clips
    text: Sequence[np.ndarray]  # N times float16 [l, P], valid tokens only
    crop_offsets: Sequence[Sequence[int] | np.ndarray]  # frames; where a training crop may begin
    codebook_size: int
    text_width: int
    shard_rows: Sequence[int] = ()  # how many rows each shard has; () for a split that is in memory

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Tokens":
        """These pairs, in this order, in memory."""
        columns = ("ids", "captions", "labels", "relations", "text", "crop_offsets")
        picked: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in columns}
        return replace(self, **picked, codes=self.codes[list(rows)], num_frames=self.num_frames[rows], shard_rows=())

    @property
    def longest_text(self) -> int:
        """How many states the longest text has."""
        if isinstance(self.text, Arrays):
            return max(self.text.lengths(), default=0) // self.text_width
        return max((len(text) for text in self.text), default=0)

    def crops(self, rows: Sequence[int] | np.ndarray, starts: Sequence[int], frames: int) -> np.ndarray:
        """Codes of `frames` frames of some pairs, each from its own start. int64 [B, K, frames]

        Raises ValueError for a code that the codec does not have.
        """
        crops = np.empty((len(rows), self.codes[int(rows[0])].shape[0], frames), np.int64)
        for crop, row, start in zip(crops, rows, starts, strict=True):
            crop[:] = self.codes[int(row)][:, start : start + frames]
        if crops.max() >= self.codebook_size:
            bad = rows[int(np.argmax(crops.max(axis=(1, 2)) >= self.codebook_size))]
            raise ValueError(
                f"pair {self.ids[int(bad)]} has code {self.codes[int(bad)].max()}; the codec's codes end at "
                f"{self.codebook_size - 1}: run `siren tokenize` again"
            )
        return crops

    def text_batch(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Padded text states of some pairs, float32 [B, L, P], and their mask, bool [B, L]."""
        texts = [self.text[int(row)] for row in rows]
        lengths = np.array([len(text) for text in texts])
        states = np.zeros((len(texts), lengths.max(), self.text_width), np.float16)
        for state, text in zip(states, texts, strict=True):
            state[: len(text)] = text
        # torch converts from float16 several times as fast as numpy.
        return torch.from_numpy(states).float().numpy(), np.arange(lengths.max()) < lengths[:, None]


def read_tokens(folder: str | Path, split: str, codec_fingerprint: str | None = None) -> Tokens:
    """Open all shards of a split. Raises ValueError where another codec than `codec_fingerprint` made them."""
    metadata = shards.metadata(folder, split)
    if codec_fingerprint is not None and metadata["codec"] != codec_fingerprint:
        raise ValueError(
            f"token shards {split!r} in {folder} were made with codec {metadata['codec'][:12]}, but this codec is "
            f"{codec_fingerprint[:12]}; run `siren tokenize` again with it"
        )
    table = shards.read_shards(folder, split)
    num_codebooks, size, width = (int(metadata[k]) for k in ("num_codebooks", "codebook_size", "text_width"))
    codes = Arrays(table["codes"], "<u2", num_codebooks, -1)
    if len(lengths := codes.lengths()) > 1:
        raise ValueError(f"pairs {split!r} in {folder} have {lengths[:5]} codes; they must be equally long")
    return Tokens(
        ids=Values(table["id"]),
        captions=Values(table["caption"]),
        labels=Values(table["labels"]),
        relations=Values(table["relation"]),
        codes=codes,
        num_frames=table["num_frames"].to_numpy(),
        text=Arrays(table["text"], "<f2", -1, width),
        crop_offsets=Arrays(table["crop_offsets"], "<i4", -1),
        codebook_size=size,
        text_width=width,
        shard_rows=[len(chunk) for chunk in table["codes"].chunks],
    )


class Values(Sequence[Any]):
    """A column as Python values, made when they are asked for."""

    def __init__(self, column: pa.ChunkedArray):
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, rows: Any) -> Any:
        return self.column[rows].to_pylist() if isinstance(rows, slice) else self.column[int(rows)].as_py()

    def __iter__(self) -> Iterator[Any]:
        for chunk in self.column.chunks:
            yield from chunk.to_pylist()


class Arrays(Sequence[np.ndarray]):
    """A binary column, or one of lists of numbers, as one array for each row: views of the file that it lies in."""

    def __init__(self, column: pa.ChunkedArray, dtype: str, *shape: int):
        if column.null_count:
            raise ValueError(f"{column.null_count} rows of the column are null")
        self.shape_of_row = shape
        chunks = [_values_offsets(chunk, np.dtype(dtype)) for chunk in column.chunks if len(chunk)]
        self.chunks = [(values, offsets) for values, offsets, _ in chunks]
        self.unit = chunks[0][2] if chunks else 1  # offsets of a binary column count bytes, those of lists items
        self.ends = np.cumsum([len(offsets) - 1 for _, offsets in self.chunks], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, rows: Any) -> Any:
        """The array of one row, a view; several rows, which must be alike, are stacked into a new one."""
        if not isinstance(rows, int | np.integer):
            picked = range(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
            return np.stack([self[int(row)] for row in picked])
        row = int(rows) + (len(self) if rows < 0 else 0)
        if not 0 <= row < len(self):
            raise IndexError(f"row {rows} of {len(self)}")
        part = int(self.ends.searchsorted(row, side="right"))
        values, offsets = self.chunks[part]
        local = row - (int(self.ends[part - 1]) if part else 0)
        return values[int(offsets[local]) // self.unit : int(offsets[local + 1]) // self.unit].reshape(
            self.shape_of_row
        )

    def lengths(self) -> list[int]:
        """The distinct numbers of values that rows have."""
        parts = [np.unique(np.diff(offsets)) // self.unit for _, offsets in self.chunks]
        return np.unique(np.concatenate(parts)).tolist() if parts else []


def _values_offsets(chunk: pa.Array, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, int]:
    """The values of all rows end to end, where each row begins and ends, and how many offsets make one value."""
    if pa.types.is_list(chunk.type):
        return chunk.values.to_numpy(zero_copy_only=True), chunk.offsets.to_numpy(zero_copy_only=True), 1
    _, offset_buffer, data = chunk.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    count = int(offsets[-1]) // dtype.itemsize
    return np.frombuffer(data, dtype, count) if count else np.zeros(0, dtype), offsets, dtype.itemsize
