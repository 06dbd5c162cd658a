"""Segments and captions to token shards: codes of the whole segment, text states, and where crops may begin.

A shard is a table (`SCHEMA`) whose metadata name the codec and the text encoder by fingerprint, kept as an Arrow file
that `tokens.py` maps; it refuses another codec. Segments are encoded whole: a crop of the codes is what training sees,
as the codec is convolutional and its codes inside a clip depend on their surroundings alone.

Three passes, each in pieces that any process can take (`siren.engine`): codes of the segments that a split uses, each
once; text states of the wordings, each once; and the token shards, which look both up by their place, because splits
come in another order. A piece is a number of whole batches, so batches are those of the whole corpus in its order,
whatever does the work: rounding may depend on who shares a batch. Memory does not grow with the sound: what stays is
the splits themselves, the ids of the segments and the places.

Shapes: B batch · K codebooks · T frames · S samples · L text length · P text width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from siren import shards
from siren.engine import LOCAL, Engine, each, pieces, ranges

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
        ("text", pa.binary()),  # float16 [L, P], valid tokens only
        ("text_length", pa.int32()),
        ("crop_offsets", pa.list_(pa.int32())),  # frames
    ]
)


PIECE_ROWS = 1024  # segments or wordings, rounded to whole batches
Load = Callable[[], tuple[Any, str]]  # a network and its device, in the process that calls it


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
    codec: Load,
    clap: Load,
    segments: Path,
    splits: dict[str, pa.Table],
    out: Path,
    work: Path,
    sample_rate: int,
    batch_size: int,
    shard_rows: int,
    engine: Engine = LOCAL,
) -> dict[str, int]:
    """Write the token shards of all splits (as `filter.select` makes them) to `out` → pairs of each split.

    `segments`: the folder of their shards. `work`: where codes and text states are put until the shards are written;
    what is there of an earlier run is not made again. Raises ValueError for a codec of another rate, for a pair whose
    segment is missing, for codes outside the codec's range, and for text states that float16 cannot hold.
    """
    codec, clap = Once(codec), Once(clap)
    (codes_by, _), (texts_by, _) = codec(), clap()
    if codes_by.sample_rate != sample_rate:
        raise ValueError(f"the codec works at {codes_by.sample_rate} Hz, the segments are at {sample_rate} Hz")
    there = pa.concat_tables(shards.each_shard(segments, "segments", ["id"]))["id"]
    used = pa.concat_arrays(
        [chunk for table in splits.values() for chunk in table["id"].chunks] or [pa.array([], "string")]
    )
    if missing := sorted(set(used.filter(pc.invert(pc.is_in(used, there))).to_pylist())):
        raise ValueError(f"{len(missing)} pairs have no segment, among them {missing[0]!r}; run `siren select` again")
    wanted = np.flatnonzero(pc.is_in(there, used).to_numpy())  # rows of the segments
    captions = sorted({caption for table in splits.values() for caption in table["caption"].to_pylist()})
    size = batch_size * max(1, PIECE_ROWS // batch_size)
    rows, wordings = (
        shards.picked(segments, "segments", wanted, size),
        [captions[r.start : r.stop] for r in ranges(len(captions), size)],
    )
    codes = pieces(engine, partial(Coder, codec, batch_size), rows, work / "codes", "encode", "segment", network=True)
    texts = pieces(
        engine, partial(Reader, clap, batch_size), wordings, work / "texts", "captions", "caption", network=True
    )
    facts = metadata(codes_by, texts_by)
    joiner = partial(Joiner, codes, texts, size, codes_by.hop, texts_by.text_width, facts)
    names = there.filter(pc.is_in(there, used)).combine_chunks()
    found = []
    for split, table in splits.items():
        places = [
            pc.index_in(table[column], pa.array(values, "string")).to_numpy()
            for column, values in (("id", names), ("caption", captions))
        ]
        for index, part in enumerate(ranges(table.num_rows, shard_rows) or [range(0)]):
            pairs = table.slice(part.start, len(part)).to_pylist()
            path = out / f"{split}-{index:05d}.arrow"
            found.append(Pairs(path, pairs, *(place[part.start : part.stop] for place in places)))
    for _ in each(engine, joiner, found, "write tokens", "pair"):
        pass
    for split in splits:
        for stale in set(shards.shard_paths(out, split)) - {pairs.path for pairs in found}:
            stale.unlink()
    return {split: table.num_rows for split, table in splits.items()}


class Once:
    """A network that is loaded once in this process, and again where a copy of this is sent."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.found: tuple[Any, str] | None = None

    def __call__(self) -> tuple[Any, str]:
        self.found = self.found or self.load()
        return self.found

    def __reduce__(self) -> tuple[Any, ...]:
        return Once, (self.load,)


class Coder:
    """Segments to a table of their codes."""

    def __init__(self, codec: Load, batch_size: int) -> None:
        (self.codec, self.device), self.batch_size = codec(), batch_size

    def __call__(self, rows: shards.Rows) -> pa.Table:
        table = rows.read(["num_samples", "pcm"])
        pcm, codes = shards.pcm_array(table["pcm"]), []
        for batch in ranges(len(rows), self.batch_size):
            codes += [code.tobytes() for code in encode_batch(self.codec, pcm[batch.start : batch.stop], self.device)]
        frames = [-(-length // self.codec.hop) for length in table["num_samples"].to_pylist()]
        return pa.table({"codes": pa.array(codes, pa.large_binary()), "num_frames": pa.array(frames, pa.int32())})


class Reader:
    """Wordings to a table of their text states."""

    def __init__(self, clap: Load, batch_size: int) -> None:
        (self.clap, _), self.batch_size = clap(), batch_size

    def __call__(self, captions: list[str]) -> pa.Table:
        batches = [captions[rows.start : rows.stop] for rows in ranges(len(captions), self.batch_size)]
        states = [states.tobytes() for batch in batches for states in text_batch(self.clap, batch)]
        return pa.table({"text": pa.array(states, pa.large_binary())})


@dataclass(frozen=True)
class Pairs:
    """The rows of one token shard, and the places of their codes and text states among all."""

    path: Path
    rows: list[dict[str, Any]]
    codes: np.ndarray
    texts: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class Joiner:
    """Writes token shards. `size`: rows of each piece but the last."""

    def __init__(
        self, codes: list[Path], texts: list[Path], size: int, hop: int, text_width: int, facts: dict[str, str]
    ) -> None:
        self.codes, self.texts = ([shards.read_table(path) for path in paths] for paths in (codes, texts))
        self.size, self.hop, self.text_width, self.facts = size, hop, text_width, facts

    def __call__(self, pairs: Pairs) -> None:
        rows = [self._row(*row) for row in zip(pairs.rows, pairs.codes.tolist(), pairs.texts.tolist(), strict=True)]
        shards.write_table(pairs.path, pa.Table.from_pylist(rows, schema=SCHEMA), self.facts)

    def _row(self, pair: dict[str, Any], code: int, text: int) -> dict[str, Any]:
        codes, states = self.codes[code // self.size], self.texts[text // self.size]
        row = {key: pair[key] for key in ("id", "caption", "labels", "relation")}
        row |= {name: codes[name][code % self.size].as_py() for name in ("codes", "num_frames")}
        row["text"] = states["text"][text % self.size].as_py()
        row["text_length"] = len(row["text"]) // (2 * self.text_width)  # float16
        return row | {"crop_offsets": sorted({offset // self.hop for offset in pair["crop_offsets"]})}


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


def text_batch(clap: "Clap", captions: Sequence[str]) -> list[np.ndarray]:
    """Text states of each caption, float16 [L, P], valid tokens only. Raises ValueError where float16 is too small."""
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
