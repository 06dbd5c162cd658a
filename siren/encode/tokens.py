"""Token shards as the trainer reads them: codes, text states, crops. Refuses shards of another codec.

Codes stay uint16 and text states float16 until a batch is made of them; codes come from memory-mapped Parquet. The
layout of a shard is in `tokenize.py`. Shapes: N pairs · K codebooks · T frames · L text length · P text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from siren import shards


@dataclass
class Tokens:
    """One split of the tokenised corpus."""

    ids: list[str]
    captions: list[str]
    labels: list[list[str]]
    relations: list[str | None]
    codes: np.ndarray  # uint16 [N, K, T]
    num_frames: np.ndarray  # int32 [N], without the padding of short clips
    text: list[np.ndarray]  # N times float16 [l, P], valid tokens only
    crop_offsets: list[list[int]]  # frames; where a training crop may begin
    codebook_size: int
    text_width: int

    def __len__(self) -> int:
        return len(self.ids)

    def text_batch(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Padded text states of some pairs, float32 [B, L, P], and their mask, bool [B, L]."""
        texts = [self.text[int(row)] for row in rows]
        lengths = np.array([len(text) for text in texts])
        states = np.zeros((len(texts), lengths.max(), self.text_width), np.float32)
        for state, text in zip(states, texts, strict=True):
            state[: len(text)] = text
        return states, np.arange(lengths.max()) < lengths[:, None]


def read_tokens(folder: str | Path, split: str, codec_fingerprint: str | None = None) -> Tokens:
    """Read all shards of a split.

    Raises ValueError where the shards were made with another codec than `codec_fingerprint`, or hold codes that
    this codec does not have.
    """
    metadata = shards.metadata(folder, split)
    if codec_fingerprint is not None and metadata["codec"] != codec_fingerprint:
        raise ValueError(
            f"token shards {split!r} in {folder} were made with codec {metadata['codec'][:12]}, but this codec is "
            f"{codec_fingerprint[:12]}; run `siren tokenize` again with it"
        )
    table = shards.read_shards(folder, split)
    num_codebooks, size, width = (int(metadata[k]) for k in ("num_codebooks", "codebook_size", "text_width"))
    codes = _codes(table["codes"], num_codebooks)
    if codes.size and int(codes.max()) >= size:
        row = int(np.argmax(codes.reshape(len(codes), -1).max(axis=1) >= size))
        raise ValueError(f"pair {table['id'][row]} has code {codes[row].max()}; the codec's codes end at {size - 1}")
    return Tokens(
        ids=table["id"].to_pylist(),
        captions=table["caption"].to_pylist(),
        labels=table["labels"].to_pylist(),
        relations=table["relation"].to_pylist(),
        codes=codes,
        num_frames=table["num_frames"].to_numpy(),
        text=[np.frombuffer(text.as_buffer(), "<f2").reshape(-1, width) for text in table["text"]],
        crop_offsets=table["crop_offsets"].to_pylist(),
        codebook_size=size,
        text_width=width,
    )


def _codes(column: pa.ChunkedArray, num_codebooks: int) -> np.ndarray:
    matrix = shards.binary_matrix(column, "<u2")
    return matrix.reshape(len(matrix), num_codebooks, -1)
