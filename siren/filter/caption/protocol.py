"""What a captioner is, what it is given and what it answers; and the same of the language models behind some of them.

A candidate that could not be had is an answer with the reason and no text: never an empty caption.
Shapes: S samples.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Clip:
    """A segment as captioners see it."""

    id: str
    labels: tuple[str, ...] = ()
    relation: str | None = None  # of the labels: one | while | then
    title: str | None = None
    wav: np.ndarray | None = None  # float32 [S] without padding, for captioners that hear
    sample_rate: int = 0


@dataclass(frozen=True)
class Answer:
    """A candidate, or why there is none."""

    text: str | None
    missing: str | None = None  # "reason: detail"

    @classmethod
    def of(cls, text: str, ended: bool = True) -> "Answer":
        """What a model said, up to its last whole sentence where it was cut short; of nothing, there is no text."""
        if not text.strip():
            return cls(None, "empty: the model said nothing")
        kept = text if ended else whole(text)
        return cls(None, f"unfinished: {text[:80]!r}") if kept is None else cls(kept)


@dataclass(frozen=True)
class Question:
    """What a language model is asked: text, sound or none (float32 [S] at the model's rate), and a seed."""

    text: str
    seed: int
    wav: np.ndarray | None = None


class Captioner(Protocol):
    hears: bool  # whether clips need their waveform
    writes_freely: bool  # whether all rules are needed, or only those for people's captions

    def __call__(self, clips: Sequence[Clip]) -> list[list[Answer]]:
        """Candidates of each clip; an empty list where there is nothing to say."""

    def provenance(self) -> dict[str, Any]:
        """What captions were made with: model, revision, licence, prompt."""


class Model(Protocol):
    """A language model, run here (`local`) or behind an address (`endpoint`)."""

    @property
    def sample_rate(self) -> int:
        """Of the sound in questions."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]: ...

    def provenance(self) -> dict[str, Any]: ...


def whole(text: str) -> str | None:
    """What was broken off, up to its last whole sentence; None where there is none."""
    ends = [match.end() for match in re.finditer(r"\w.*?[.!?。](?=\s|$)", text, re.DOTALL)]
    return text[: ends[-1]] if ends else None
