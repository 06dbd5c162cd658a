"""The part of the report that is heard: prompts with their clips, spectrograms and the judge's verdict on each.

Prompts are chosen by their position in the test list, never by how they came out. Sounds are put into the page as WAV,
which every browser plays, or as FLAC where a page of long clips would grow too large. Shapes: S samples.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siren.evaluate.figures import spectrogram_png
from siren.evaluate.goals import percent
from siren.evaluate.tables import TITLES

PLAYED = ("real", "stage1", "aligned")
SOUND_BUDGET = 6_000_000  # bytes of 16-bit WAV on the page; above it the sounds are FLAC, which is about half

Prompt = Mapping[str, Any]  # id, caption, labels, relation
Sounds = Mapping[str, Mapping[str, np.ndarray]]  # arm → prompt id → wav [S]


def choose(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` prompts of at most one event, one event after the other in turn, and a third as many of more events.

    Within an event or a relation the order of the list decides.
    """
    single = [p for p in prompts if len(p["labels"]) <= 1]
    several = [p for p in prompts if len(p["labels"]) > 1]
    chosen = _in_turn(single, lambda p: p["labels"][0] if p["labels"] else "", count)
    return chosen + _in_turn(several, lambda p: p["relation"] or "", -(-count // 3))


def _in_turn(prompts: Sequence[Prompt], group: Any, count: int) -> list[Prompt]:
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(group(prompt), []).append(prompt)
    turns = [(i, name, prompt) for name, members in groups.items() for i, prompt in enumerate(members)]
    chosen = sorted(turns, key=lambda turn: turn[:2])[:count]
    return [prompt for _, _, prompt in sorted(chosen, key=lambda turn: (turn[1], turn[0]))]


def players(
    prompts: Sequence[Prompt],
    sounds: Sounds,
    clips: Sequence[Mapping[str, Any]] | None,
    sample_rate: int,
    played: Sequence[str] = PLAYED,
    titles: Mapping[str, str] = TITLES,
    figures: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Groups of prompts, each with one cell for every arm that is played. `clips` are the evaluation's rows; None
    shows no verdicts, but under every clip what `figures` say of its arm."""
    kinds = (
        ("One event", [p for p in prompts if len(p["labels"]) <= 1]),
        ("Two events", [p for p in prompts if len(p["labels"]) > 1]),
    )
    rows = {(row["arm"], row["id"]): row for row in clips or ()}
    total = sum(2 * wav.size for arm in sounds.values() for wav in arm.values())
    encoding = "WAV" if total <= SOUND_BUDGET else "FLAC"

    def cell(arm: str, prompt: Prompt) -> dict[str, Any]:
        wav = sounds.get(arm, {}).get(prompt["id"])
        if wav is None:
            reason = f"no clip of this prompt in the arm {titles[arm].lower()!r}."
            return {"title": titles[arm], "sound": None, "reason": reason}
        clip = _clip(wav, rows.get((arm, prompt["id"])), sample_rate, encoding)
        plain = {"verdicts": [], "figures": (figures or {}).get(arm, "")}
        return {"title": titles[arm], **clip, **(plain if clips is None else {})}

    return [
        {
            "title": title,
            "rows": [
                {"caption": p["caption"], "labels": p["labels"], "cells": [cell(arm, p) for arm in played]}
                for p in group
            ],
        }
        for title, group in kinds
        if group
    ]


def _clip(wav: np.ndarray, row: Mapping[str, Any] | None, sample_rate: int, encoding: str) -> dict[str, Any]:
    return {
        "sound": _sound(wav, sample_rate, encoding),
        "image": _uri("image/png", spectrogram_png(wav, sample_rate)),
        "seconds": f"{len(wav) / sample_rate:.3g}",
        "verdicts": _verdicts(row) if row else [{"held": None, "text": "not judged"}],
        "figures": _scores(row) if row else "",
    }


def _verdicts(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the judge says of one clip, question by question."""
    if row["silent"]:
        return [{"held": False, "text": "silent"}]
    chances = row["probabilities"]
    if row.get("event_accuracy") is not None:
        right = bool(row["event_accuracy"])
        (label, chance), *_ = chances.items()
        heard = "" if right else f"hears {row['named']}; "
        return [{"held": right, "text": f"{heard}{label} {percent(chance)}"}]
    verdicts = [{"held": chance >= 0.5, "text": f"{label} {percent(chance)}"} for label, chance in chances.items()]
    if row.get("order_all") is not None:
        verdicts.append({"held": bool(row["order_all"]), "text": "in order"})
    return verdicts or [{"held": None, "text": f"hears {row['named']}"}]


def _scores(row: Mapping[str, Any]) -> str:
    names = {"clap": "CLAP", "imagebind": "reward"}
    shown = [f"{title} {row[key]:.2f}" for key, title in names.items() if row.get(key) is not None]
    return " · ".join(shown).replace("-", "\u2212")


def _sound(wav: np.ndarray, sample_rate: int, encoding: str) -> str:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav, -1, 1), sample_rate, subtype="PCM_16", format=encoding)
    return _uri(f"audio/{encoding.lower()}", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def kilohertz(sample_rate: int) -> list[dict[str, str]]:
    """Where 1 and 4 kHz lie on the pictures' mel axis, in percent from the bottom."""
    top = np.log10(1 + sample_rate / 2 / 700)
    marks = [h for h in (1000, 4000) if h < sample_rate / 2]
    return [{"at": f"{100 * np.log10(1 + h / 700) / top:.1f}", "text": f"{h // 1000} kHz"} for h in marks]
