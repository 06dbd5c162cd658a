"""How good a text-audio encoder is on held-out clips: retrieval, events, and what one event more or its order changes.

Figures of a small corpus flatter: with few events many clips mean the same, and any of them counts as found.

Shapes: N clips · S samples · E embedding width · C captions.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from siren.shapes import Bool, Float
from siren.shards import FULL_SCALE
from siren.train.contrastive import Key, meaning


@torch.inference_mode()
def quality(
    model: Any,
    wavs: np.ndarray,
    captions: list[str],
    labels: list[list[str]],
    relations: list[str | None],
    wordings: dict[Key, list[str]] | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """How well `model` knows int16 clips [N, S] and their captions, as flat figures (shares in [0, 1]).

    - `text_to_audio_r1`, `_r10`, `audio_to_text_r1`, `_r10`: retrieval among all N. Clips with the same meaning (the
      same events, in the same order where there is one) are each other's right answers, and any of them is a hit.
    - `zero_shot_accuracy`: a one-event clip is nearest to its own event's caption among one caption for each event,
      drawn in turn from that event's captions here (chance 1 / `events`).
    - `prompt_accuracy`: the other way round, a one-event caption is nearest to the mean clip of its event.
    - `order_accuracy`: an "A then B" clip is nearer to its own caption than to one of "B then A"; `relation_accuracy`:
      a two-event clip against the same events in another relation (chance 1/2). The other captions come from
      `wordings` (by meaning) or from here; clips that have none are left out, `order_pairs` counts the comparisons.
    """
    if not len(wavs) == len(captions) == len(labels) == len(relations) > 0:
        raise ValueError(f"{len(wavs)} waveforms, {len(captions)} captions: all must be equally many, and at least one")
    keys = [meaning(*pair) for pair in zip(labels, relations, strict=True)]
    text, audio = embed_captions(model, captions, batch_size), embed_wavs(model, wavs, batch_size)
    cosine = text @ audio.T
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    kinds = torch.tensor([number[key] for key in keys])
    figures = {"clips": float(len(keys)), "pair_cosine": float(cosine.diagonal().mean())}
    figures |= _retrieval("text_to_audio", cosine, kinds[:, None] == kinds)
    figures |= _retrieval("audio_to_text", cosine.T, kinds[:, None] == kinds)
    figures |= _events(text, audio, keys)
    found = wordings or by_meaning([[caption] for caption in captions], labels, relations)
    return figures | _contrasts(model, audio, cosine.diagonal(), keys, found, batch_size)


def by_meaning(captions: list[list[str]], labels: list[list[str]], relations: list[str | None]) -> dict[Key, list[str]]:
    """All wordings of clips that mean the same."""
    found: dict[Key, list[str]] = defaultdict(list)
    for wordings, names, relation in zip(captions, labels, relations, strict=True):
        found[meaning(names, relation)] += wordings
    return dict(found)


@torch.inference_mode()
def embed_wavs(model: Any, wavs: np.ndarray, batch_size: int = 64) -> Float[torch.Tensor, "N E"]:
    """int16 waveforms [N, S] on the sphere, batch by batch on the model's device; the result is on the CPU."""
    device = model.logit_scale.device
    parts = []
    for start in range(0, len(wavs), batch_size):
        wav = torch.from_numpy(wavs[start : start + batch_size].astype(np.float32) / np.float32(FULL_SCALE))
        parts.append(model.embed_audio(wav.to(device)).cpu())
    return torch.cat(parts)


@torch.inference_mode()
def embed_captions(model: Any, captions: list[str], batch_size: int = 64) -> Float[torch.Tensor, "C E"]:
    """Captions on the sphere, batch by batch; the result is on the CPU."""
    starts = range(0, len(captions), batch_size)
    return torch.cat([model.embed_text(captions[start : start + batch_size]).cpu() for start in starts])


def _retrieval(name: str, scores: Float[torch.Tensor, "N N"], right: Bool[torch.Tensor, "N N"]) -> dict[str, float]:
    figures = {}
    for k in (1, 10):
        best = scores.topk(min(k, len(scores)), dim=1).indices
        figures[f"{name}_r{k}"] = float(right.gather(1, best).any(dim=1).float().mean())
    return figures


def _events(text: torch.Tensor, audio: torch.Tensor, keys: list[Key]) -> dict[str, float]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, (relation, labels) in enumerate(keys):
        if len(labels) == 1 and relation in ("one", None):
            rows[labels[0]].append(row)
    if len(rows) < 2:
        return {}
    names = sorted(rows)
    centres = torch.stack([audio[rows[name]].mean(dim=0) for name in names])
    zero_shot, prompt, turn = 0, 0, 0
    for answer, name in enumerate(names):
        for row in rows[name]:
            candidates = torch.stack([text[rows[other][turn % len(rows[other])]] for other in names])
            zero_shot += int((candidates @ audio[row]).argmax()) == answer
            prompt += int((centres @ text[row]).argmax()) == answer
            turn += 1
    return {"events": float(len(names)), "zero_shot_accuracy": zero_shot / turn, "prompt_accuracy": prompt / turn}


def _contrasts(
    model: Any, audio: torch.Tensor, own: torch.Tensor, keys: list[Key], wordings: dict[Key, list[str]], batch_size: int
) -> dict[str, float]:
    by_events: dict[tuple[str, ...], list[Key]] = defaultdict(list)
    for key in wordings:
        by_events[tuple(sorted(key[1]))].append(key)
    rows, rivals, kinds = [], [], []
    for row, key in enumerate(keys):
        for other in by_events[tuple(sorted(key[1]))]:
            if len(key[1]) == 2 and other != key:
                rows.append(row)
                rivals.append(wordings[other][row % len(wordings[other])])
                kinds.append("order" if key[0] == other[0] == "then" else "relation")
    if not rows:
        return {}
    won = own[rows] > (embed_captions(model, rivals, batch_size) * audio[rows]).sum(dim=1)
    figures: dict[str, float] = {}
    for kind in ("order", "relation"):
        wins = [bool(win) for win, which in zip(won, kinds, strict=True) if which == kind]
        if wins:
            figures |= {f"{kind}_accuracy": sum(wins) / len(wins), f"{kind}_pairs": float(len(wins))}
    return figures
