"""Segments and captions to token shards: codes of the whole segment, text states, and where crops may begin.

A shard is a table (`SCHEMA`) whose metadata name the codec and the text encoder by fingerprint, kept as an Arrow file
that `tokens.py` maps; it refuses another codec. Segments are encoded whole: a crop of the codes is what training sees,
as the codec is convolutional and its codes inside a clip depend on their surroundings alone.

Shapes: B batch · K codebooks · T frames · S samples · L text length · D text width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass
class Encoded:
    """Codes of the segments that any split uses, by id: each is encoded once, though it may be in two splits."""

    codes: dict[str, bytes]
    num_frames: dict[str, int]


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
    segments: pa.Table,
    splits: dict[str, pa.Table],
    sample_rate: int,
    batch_size: int,
    device: str = "cpu",
) -> Iterator[tuple[str, pa.Table]]:
    """Yield (split, its token table). `segments` has id, num_samples and pcm; `splits` as `filter.select` makes them.

    Raises ValueError for a codec of another rate, for a pair whose segment is missing, for codes outside the
    codec's range, and for text states that float16 cannot hold.
    """
    if codec.sample_rate != sample_rate:
        raise ValueError(f"the codec works at {codec.sample_rate} Hz, the segments are at {sample_rate} Hz")
    wanted = {name for table in splits.values() for name in table["id"].to_pylist()}
    if missing := sorted(wanted - set(segments["id"].to_pylist())):
        raise ValueError(f"{len(missing)} pairs have no segment, among them {missing[0]!r}; run `siren select` again")
    encoded = encode(codec, segments, wanted, batch_size, device)
    texts = text_states(clap, sorted({c for t in splits.values() for c in t["caption"].to_pylist()}), batch_size)
    for split, table in splits.items():
        yield split, pa.Table.from_pylist([_row(row, encoded, texts, codec.hop) for row in table.to_pylist()], SCHEMA)


def encode(codec: "Codec", segments: pa.Table, wanted: set[str], batch_size: int, device: str) -> Encoded:
    """Codes of the wanted segments, in batches, in the table's order."""
    import torch

    ids, lengths = segments["id"].to_pylist(), segments["num_samples"].to_pylist()
    pcm = shards.pcm_array(segments["pcm"])
    rows = [row for row, name in enumerate(ids) if name in wanted]
    result = Encoded({}, {})
    for start in track(range(0, len(rows), batch_size), "encode", -(-len(rows) // batch_size), unit="batch"):
        batch = rows[start : start + batch_size]
        wavs = torch.from_numpy(pcm[batch].astype(np.float32) / shards.FULL_SCALE).to(device)
        with torch.inference_mode():
            codes = codec.encode(wavs).cpu().numpy()  # [B, K, T]
        right = (len(batch), codec.num_codebooks, -(-pcm.shape[1] // codec.hop))
        if codes.shape != right:
            raise ValueError(f"the codec gave codes of shape {codes.shape} for {pcm.shape[1]} samples, not {right}")
        if codes.min() < 0 or codes.max() >= codec.codebook_size:
            raise ValueError(f"the codec gave codes {codes.min()} to {codes.max()}; it has {codec.codebook_size}")
        for row, code in zip(batch, codes.astype("<u2"), strict=True):
            result.codes[ids[row]] = code.tobytes()
            result.num_frames[ids[row]] = -(-lengths[row] // codec.hop)
    return result


def text_states(clap: "Clap", captions: list[str], batch_size: int) -> dict[str, np.ndarray]:
    """Caption → its text states, float16 [L, D], valid tokens only; each wording is encoded once."""
    import torch

    found: dict[str, np.ndarray] = {}
    starts = range(0, len(captions), batch_size)
    for start in track(starts, "captions", len(starts), unit="batch"):
        batch = captions[start : start + batch_size]
        with torch.inference_mode():
            states, mask = clap.text_states(batch)
        for text, state, valid in zip(batch, states.float().cpu().numpy(), mask.cpu().numpy(), strict=True):
            with np.errstate(over="ignore"):
                half = state[valid].astype("<f2")
            if len(half) == 0 or not np.isfinite(half).all():
                raise ValueError(f"the text encoder gave no states, or ones that float16 cannot hold, for {text!r}")
            found[text] = half
    return found


def _row(pair: dict[str, Any], encoded: Encoded, texts: dict[str, np.ndarray], hop: int) -> dict[str, Any]:
    text = texts[pair["caption"]]
    row = {key: pair[key] for key in ("id", "caption", "labels", "relation")}
    row |= {"codes": encoded.codes[pair["id"]], "num_frames": encoded.num_frames[pair["id"]]}
    row |= {"text": text.tobytes(), "text_length": len(text)}
    return row | {"crop_offsets": sorted({offset // hop for offset in pair["crop_offsets"]})}
