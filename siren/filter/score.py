"""How well each segment, and each crop of it, matches its caption: CLAP cosines (paper, appendix A).

Of a train segment's candidates the best one may be kept (`filter.score.choose`); held-out segments keep the caption
that was drawn, because a test whose prompts the judge has chosen is an easier one. A crop that is the whole segment has
the segment's own score. Crops that begin in the padding of a short clip are left out. What cannot be scored is
quarantined, never given a number.

Shapes: N segments · S samples · E embedding.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from siren import audio, shards
from siren.config import Audio, Score
from siren.progress import track

if TYPE_CHECKING:
    from siren.networks.clap import Clap

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),  # the one that is kept
        ("candidate_scores", pa.list_(pa.float32())),  # of all that were weighed, in their order
        ("score", pa.float32()),  # cosine of the whole segment and its caption
        ("crop_offsets", pa.list_(pa.int32())),  # samples
        ("crop_scores", pa.list_(pa.float32())),
    ]
)


def score(
    clap: "Clap", segments: pa.Table, captions: pa.Table, format: Audio, settings: Score, device: str = "cpu"
) -> tuple[pa.Table, list[dict[str, str]]]:
    """Scores (`SCHEMA`) of segments (id, num_samples, split, pcm) that have a caption, and the quarantine.

    `captions`: id, caption, candidates; also of other segments.
    """
    captions = captions.filter(pc.is_in(captions["id"], segments["id"].combine_chunks()))  # of millions, some hundreds
    drawn, several = (
        dict(zip(captions["id"].to_pylist(), captions[column].to_pylist(), strict=True))
        for column in ("caption", "candidates")
    )
    rows = np.array([row for row, name in enumerate(segments["id"].to_pylist()) if name in drawn], int)
    own = segments.select(["id", "num_samples", "split"]).take(pa.array(rows))
    ids, lengths, splits = (column.to_pylist() for column in own.columns)
    crop, step = (round(s * format.sample_rate) for s in (settings.crop_seconds, settings.crop_step_seconds))
    offsets = [crop_offsets(length, format.segment_samples, crop, step) for length in lengths]
    best = [settings.choose == "best" and split == "train" for split in splits]
    wordings = [several[name] if free else [drawn[name]] for name, free in zip(ids, best, strict=True)]
    pcm = shards.pcm_array(segments["pcm"])[rows]
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
    candidates: Sequence[Sequence[str]],
    offsets: Sequence[Sequence[int]],
    crop_samples: int,
    sample_rate: int,
    batch_size: int,
    device: str = "cpu",
) -> tuple[pa.Table, list[dict[str, str]]]:
    """Scores (`SCHEMA`) of N segments: pcm int16 [N, S] at `sample_rate`, candidate captions, offsets of their crops.

    The caption of the highest score is kept, of equal ones the first. The second result is the quarantine: segments
    with a score that is not a number.
    """
    captions = [caption for wordings in candidates for caption in wordings]
    first = np.cumsum([0, *map(len, candidates)])  # of each segment, in `captions`
    owner = np.repeat(np.arange(len(pcm)), np.diff(first))
    texts = embed_captions(clap, captions, batch_size)
    cosines = np.zeros(len(captions), np.float32)
    for start in track(range(0, len(pcm), batch_size), "score", -(-len(pcm) // batch_size), unit="batch"):
        stop = min(start + batch_size, len(pcm))
        sounds = _hear(clap, pcm[start:stop], sample_rate, device)
        part = slice(first[start], first[stop])
        cosines[part] = _cosines(sounds[owner[part] - start], texts[part])
    kept_caption = [a + int(np.argmax(np.nan_to_num(cosines[a:b], nan=-2))) for a, b in pairwise(first)]
    crops: list[list[float]] = [[] for _ in pcm]
    windows = [(row, offset) for row in range(len(pcm)) for offset in offsets[row] if crop_samples < pcm.shape[1]]
    starts = range(0, len(windows), batch_size)
    for start in track(starts, "crops", len(starts), unit="batch") if windows else ():
        batch = windows[start : start + batch_size]
        wavs = np.stack([pcm[row, offset : offset + crop_samples] for row, offset in batch])
        own = texts[[kept_caption[row] for row, _ in batch]]
        for (row, _), cosine in zip(batch, _cosines(_hear(clap, wavs, sample_rate, device), own), strict=True):
            crops[row].append(float(cosine))
    kept: list[dict[str, Any]] = []
    quarantine = []
    for row, name in enumerate(ids):
        caption, value = captions[kept_caption[row]], cosines[kept_caption[row]]
        values = crops[row] if crop_samples < pcm.shape[1] else [float(value)] * len(offsets[row])
        if np.isfinite([value, *values]).all():
            weighed = cosines[first[row] : first[row + 1]]
            found = (name, caption, weighed, value, list(offsets[row]), values)
            kept.append(dict(zip(SCHEMA.names, found, strict=True)))
        else:
            detail = f"the cosine with {caption!r} is not a number"
            quarantine.append({"item": name, "stage": "score", "reason": "score_failed", "detail": detail})
    return pa.Table.from_pylist(kept, schema=SCHEMA), quarantine


def embed_captions(clap: "Clap", captions: Sequence[str], batch_size: int) -> np.ndarray:
    """Text embeddings, float32 [N, E]; each wording is embedded once."""
    import torch

    if not captions:  # of shards whose segments all lack one
        return np.zeros((0, 0), np.float32)
    unique = sorted(set(captions))
    batches = [unique[start : start + batch_size] for start in range(0, len(unique), batch_size)]
    with torch.inference_mode():
        embedded = [clap.embed_text(batch).float().cpu().numpy() for batch in batches]
    place = {text: row for row, text in enumerate(unique)}
    return np.concatenate(embedded)[[place[text] for text in captions]]


def _hear(clap: "Clap", pcm: np.ndarray, sample_rate: int, device: str) -> np.ndarray:
    """Audio embeddings of waveforms. int16 [B, S] → float32 [B, E]"""
    import torch

    wavs = audio.resample(pcm.astype(np.float32) / shards.FULL_SCALE, sample_rate, clap.sample_rate)
    with torch.inference_mode():
        return clap.embed_audio(torch.from_numpy(wavs).to(device)).float().cpu().numpy()


def _cosines(sounds: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of each pair of embeddings. [B, E] twice → [B]"""
    return np.clip((sounds * texts).sum(1), -1, 1)
