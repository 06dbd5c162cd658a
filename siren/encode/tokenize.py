"""Segments and captions to token shards: codes of the whole segment, text states, and where crops may begin.

A shard is a table (`SCHEMA`) whose metadata name the codec and the text encoder by fingerprint, kept as an Arrow file
that `tokens.py` maps; it refuses another codec. Segments are encoded whole: a crop of the codes is what training sees,
as the codec is convolutional and its codes inside a clip depend on their surroundings alone.

Memory does not grow with the sound: segments are read shard by shard, and what is made of them waits in a file without
a name (which goes with the process) until the rows of the splits, which come in another order, are put together one by
one. What stays in memory is the splits themselves and one dictionary entry for each segment and each caption.

Shapes: B batch · K codebooks · T frames · S samples · L text length · D text width.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from siren import shards
from siren.progress import track

if TYPE_CHECKING:
    from siren.networks.clap import Clap
    from siren.networks.codec import Codec

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("relation", pa.string()),
        ("codes", pa.binary()),  # uint16 [K, T], C order
        ("num_frames", pa.int32()),  # frames of the true length, without padding
        ("text", pa.binary()),  # float16 [L, D], valid tokens only
        ("text_length", pa.int32()),
        ("crop_offsets", pa.list_(pa.int32())),  # frames
    ]
)


Segments = Callable[[list[str]], Iterable[pa.Table]]  # columns → shard after shard of id, num_samples, pcm


class Spill:
    """Bytes by key in a file, which grows at its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.places: dict[str, tuple[int, int]] = {}  # where they begin, how many
        self.end = 0

    def __setitem__(self, key: str, value: bytes) -> None:
        self.file.write(value)
        self.places[key] = (self.end, len(value))
        self.end += len(value)

    def __getitem__(self, key: str) -> bytes:
        start, length = self.places[key]
        self.file.flush()
        return os.pread(self.file.fileno(), length, start)


def metadata(codec: "Codec", clap: "Clap") -> dict[str, str]:
    """What a reader must know about the shards, all as text."""
    return {
        "codec": codec.fingerprint(),
        "text_encoder": clap.text_fingerprint(),
        "num_codebooks": str(codec.num_codebooks),
        "codebook_size": str(codec.codebook_size),
        "text_width": str(clap.text_width),
        "frame_rate": repr(codec.sample_rate / codec.hop),
        "hop": str(codec.hop),
    }


def tokenize(
    codec: "Codec",
    clap: "Clap",
    segments: Segments,
    splits: dict[str, pa.Table],
    sample_rate: int,
    batch_size: int,
    scratch: Path,
    device: str = "cpu",
) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Yield (split, its rows as `SCHEMA` names them); `splits` as `filter.select` makes them.

    The rows of one split are to be taken before the next is asked for. `scratch` is a folder with room for the codes
    and text states. Raises ValueError for a codec of another rate, for a pair whose segment is missing, for codes
    outside the codec's range, and for text states that float16 cannot hold.
    """
    if codec.sample_rate != sample_rate:
        raise ValueError(f"the codec works at {codec.sample_rate} Hz, the segments are at {sample_rate} Hz")
    wanted = {name for table in splits.values() for name in table["id"].to_pylist()}
    there = {name for shard in segments(["id"]) for name in shard["id"].to_pylist()}
    if missing := sorted(wanted - there):
        raise ValueError(f"{len(missing)} pairs have no segment, among them {missing[0]!r}; run `siren select` again")
    captions = sorted({caption for table in splits.values() for caption in table["caption"].to_pylist()})
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as one, tempfile.TemporaryFile(dir=scratch) as other:
        codes, texts = Spill(one), Spill(other)
        num_frames = encode(codec, segments, wanted, batch_size, codes, device)
        text_states(clap, captions, batch_size, texts)
        for split, table in splits.items():
            pairs = (pair for batch in table.to_batches(1024) for pair in batch.to_pylist())
            yield split, (_row(pair, codes, num_frames, texts, codec.hop, clap.text_width) for pair in pairs)


def encode(
    codec: "Codec", segments: Segments, wanted: set[str], batch_size: int, codes: Spill, device: str = "cpu"
) -> dict[str, int]:
    """Put the codes of the wanted segments, each once though it may be in two splits, into `codes` → their frames.

    Batches are those of all segments in their order, whatever the shards: rounding may depend on who shares a batch.
    """
    num_frames: dict[str, int] = {}
    batches = _batches(segments(["id", "num_samples", "pcm"]), wanted, batch_size)
    for ids, lengths, pcm in track(batches, "encode", -(-len(wanted) // batch_size), unit="batch"):
        for name, length, code in zip(ids, lengths, encode_batch(codec, pcm, device), strict=True):
            codes[name] = code.tobytes()
            num_frames[name] = -(-length // codec.hop)
    return num_frames


def encode_batch(codec: "Codec", pcm: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Codes uint16 [B, K, T] of waveforms int16 [B, S]. Raises ValueError for another shape or range."""
    import torch

    wavs = torch.from_numpy(pcm.astype(np.float32) / shards.FULL_SCALE).to(device)
    with torch.inference_mode():
        codes = codec.encode(wavs).cpu().numpy()  # [B, K, T]
    right = (len(pcm), codec.num_codebooks, -(-pcm.shape[1] // codec.hop))
    if codes.shape != right:
        raise ValueError(f"the codec gave codes of shape {codes.shape} for {pcm.shape[1]} samples, not {right}")
    if codes.min() < 0 or codes.max() >= codec.codebook_size:
        raise ValueError(f"the codec gave codes {codes.min()} to {codes.max()}; it has {codec.codebook_size}")
    return codes.astype("<u2")


def _batches(
    segments: Iterable[pa.Table], wanted: set[str], size: int
) -> Iterator[tuple[Sequence[str], Sequence[int], np.ndarray]]:
    """The wanted segments, `size` at a time: ids, true lengths, pcm int16 [B, S]. A batch may span shards."""
    batch: list[tuple[str, int, np.ndarray]] = []
    for table in segments:
        rows = zip(
            table["id"].to_pylist(), table["num_samples"].to_pylist(), shards.pcm_array(table["pcm"]), strict=True
        )
        for row in rows:
            if row[0] in wanted:
                batch.append(row)
            if len(batch) == size:
                yield _columns(batch)
                batch = []
    if batch:
        yield _columns(batch)


def _columns(batch: list[tuple[str, int, np.ndarray]]) -> tuple[Sequence[str], Sequence[int], np.ndarray]:
    ids, lengths, wavs = zip(*batch, strict=True)
    return ids, lengths, np.stack(wavs)


def text_states(clap: "Clap", captions: Sequence[str], batch_size: int, texts: Spill) -> None:
    """Put the text states of each wording into `texts`, as `text_batch` gives them."""
    starts = range(0, len(captions), batch_size)
    for start in track(starts, "captions", len(starts), unit="batch"):
        batch = captions[start : start + batch_size]
        for caption, states in zip(batch, text_batch(clap, batch), strict=True):
            texts[caption] = states.tobytes()


def text_batch(clap: "Clap", captions: Sequence[str]) -> list[np.ndarray]:
    """Text states of each caption, float16 [L, D], valid tokens only. Raises ValueError where float16 is too small."""
    import torch

    with torch.inference_mode():
        states, mask = clap.text_states(list(captions))
    found = []
    for caption, state, valid in zip(captions, states.float().cpu().numpy(), mask.cpu().numpy(), strict=True):
        with np.errstate(over="ignore"):
            half = state[valid].astype("<f2")
        if len(half) == 0 or not np.isfinite(half).all():
            raise ValueError(f"the text encoder gave no states, or ones that float16 cannot hold, for {caption!r}")
        found.append(half)
    return found


def _row(
    pair: dict[str, Any], codes: Spill, num_frames: dict[str, int], texts: Spill, hop: int, width: int
) -> dict[str, Any]:
    row = {key: pair[key] for key in ("id", "caption", "labels", "relation")}
    row |= {"codes": codes[pair["id"]], "num_frames": num_frames[pair["id"]], "text": texts[pair["caption"]]}
    row["text_length"] = len(row["text"]) // (2 * width)  # float16
    return row | {"crop_offsets": sorted({offset // hop for offset in pair["crop_offsets"]})}
