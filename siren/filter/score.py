"""How well each segment, and each crop of it, matches its caption: CLAP cosines (paper, appendix A).

A crop that is the whole segment has the segment's own score. Crops that begin in the padding of a short clip are
left out. What cannot be scored is quarantined, never given a number.

Shapes: N segments · S samples · E embedding.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from siren import audio, shards
from siren.config import Audio, Score
from siren.progress import track

if TYPE_CHECKING:
    from siren.networks.clap import Clap

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("score", pa.float32()),  # cosine of the whole segment and its caption
        ("crop_offsets", pa.list_(pa.int32())),  # samples
        ("crop_scores", pa.list_(pa.float32())),
    ]
)


def score(
    clap: "Clap", segments: pa.Table, captions: pa.Table, format: Audio, settings: Score, device: str = "cpu"
) -> tuple[pa.Table, list[dict[str, str]]]:
    """Scores (`SCHEMA`) of segments (id, num_samples, pcm) that have a caption (id, caption), and the quarantine."""
    texts = dict(zip(captions["id"].to_pylist(), captions["caption"].to_pylist(), strict=True))
    rows = [row for row, name in enumerate(segments["id"].to_pylist()) if name in texts]
    ids, lengths = (segments[column].take(rows).to_pylist() for column in ("id", "num_samples"))
    crop, step = (round(s * format.sample_rate) for s in (settings.crop_seconds, settings.crop_step_seconds))
    offsets = [crop_offsets(length, format.segment_samples, crop, step) for length in lengths]
    pcm = shards.pcm_array(segments["pcm"])[rows]
    wordings = [texts[name] for name in ids]
    return score_pairs(clap, ids, pcm, wordings, offsets, crop, format.sample_rate, settings.batch_size, device)


def crop_offsets(num_samples: int, segment_samples: int, crop_samples: int, step_samples: int) -> list[int]:
    """Where crops begin, in samples: every step while the crop fits and holds some of the true length.

    A segment no longer than a crop has one, at 0. Raises ValueError for a step below one sample.
    """
    if step_samples < 1:
        raise ValueError(f"the step between crops is {step_samples} samples; at least 1 is needed")
    last = max(0, segment_samples - crop_samples)
    return [offset for offset in range(0, last + 1, step_samples) if offset == 0 or offset < num_samples]


def score_pairs(
    clap: "Clap",
    ids: Sequence[str],
    pcm: np.ndarray,
    captions: Sequence[str],
    offsets: Sequence[Sequence[int]],
    crop_samples: int,
    sample_rate: int,
    batch_size: int,
    device: str = "cpu",
) -> tuple[pa.Table, list[dict[str, str]]]:
    """Scores (`SCHEMA`) of N pairs: pcm int16 [N, S] at `sample_rate`, one caption each, offsets of their crops.

    The second result is the quarantine: pairs whose score is not a number.
    """
    texts = embed_captions(clap, captions, batch_size)
    scores = np.zeros(len(pcm), np.float32)
    crops: list[list[float]] = [[] for _ in pcm]
    windows = [(row, offset) for row in range(len(pcm)) for offset in offsets[row] if crop_samples < pcm.shape[1]]
    for start in track(range(0, len(pcm), batch_size), "score", -(-len(pcm) // batch_size), unit="batch"):
        rows = range(start, min(start + batch_size, len(pcm)))
        scores[start : rows.stop] = _cosines(
            clap, pcm[start : rows.stop], texts[start : rows.stop], sample_rate, device
        )
    starts = range(0, len(windows), batch_size)
    for start in track(starts, "crops", len(starts), unit="batch") if windows else ():
        batch = windows[start : start + batch_size]
        wavs = np.stack([pcm[row, offset : offset + crop_samples] for row, offset in batch])
        cosines = _cosines(clap, wavs, texts[[row for row, _ in batch]], sample_rate, device)
        for (row, _), cosine in zip(batch, cosines, strict=True):
            crops[row].append(float(cosine))
    kept: list[dict[str, Any]] = []
    quarantine = []
    for row, name in enumerate(ids):
        values = crops[row] if crop_samples < pcm.shape[1] else [float(scores[row])] * len(offsets[row])
        if np.isfinite([scores[row], *values]).all():
            kept.append(dict(zip(SCHEMA.names, (name, scores[row], list(offsets[row]), values), strict=True)))
        else:
            detail = f"the cosine with {captions[row]!r} is not a number"
            quarantine.append({"item": name, "stage": "score", "reason": "score_failed", "detail": detail})
    return pa.Table.from_pylist(kept, schema=SCHEMA), quarantine


def embed_captions(clap: "Clap", captions: Sequence[str], batch_size: int) -> np.ndarray:
    """Text embeddings, float32 [N, E]; each wording is embedded once."""
    import torch

    unique = sorted(set(captions))
    batches = [unique[start : start + batch_size] for start in range(0, len(unique), batch_size)]
    with torch.inference_mode():
        embedded = [clap.embed_text(batch).float().cpu().numpy() for batch in batches]
    place = {text: row for row, text in enumerate(unique)}
    return np.concatenate(embedded)[[place[text] for text in captions]]


def _cosines(clap: "Clap", pcm: np.ndarray, texts: np.ndarray, sample_rate: int, device: str) -> np.ndarray:
    """Cosine of each waveform, int16 [B, S], with its text embedding [B, E]. [B]"""
    import torch

    wavs = audio.resample(pcm.astype(np.float32) / shards.FULL_SCALE, sample_rate, clap.sample_rate)
    with torch.inference_mode():
        sounds = clap.embed_audio(torch.from_numpy(wavs).to(device)).float().cpu().numpy()
    return np.clip((sounds * texts).sum(1), -1, 1)
