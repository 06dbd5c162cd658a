"""What raters answered: a file for each of them, appended to, and on the disk before the rater is told so.

A server that is killed loses nothing that it confirmed. A line that was cut in the middle of its writing was never
confirmed; it is skipped when read and closed before the next one. An answer is final: a second one to the same trial
(a page that was loaded twice, a reply that got lost) is not kept.
"""

import json
import math
import os
import re
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from siren.study.design import QUESTIONS, Study

ANSWERS = "answers"
CODE = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


@dataclass(frozen=True)
class Answer:
    rater: str
    trial: str
    order: list[str]  # the systems behind A, B, C
    ranks: dict[str, list[int]]  # question → the rank of A, B, C; 1 is the best
    heard_seconds: list[float]  # of A, B, C: how long each was played
    took_seconds: float
    time: float  # when it was kept, seconds since 1970


class Book:
    """The answers of a study; one at a time. Raises ValueError for what is no answer to it."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.study = folder / ANSWERS, study
        self._lock = threading.Lock()

    def done(self, rater: str) -> set[str]:
        """Trials that the rater has answered."""
        return {answer.trial for answer in read(self._file(rater))}

    def keep(
        self, rater: str, trial: str, ranks: dict[str, list[int]], heard_seconds: list[float], took_seconds: float
    ) -> bool:
        """Whether the answer is new. When this returns, it is on the disk."""
        orders = {t.id: list(systems) for t, systems in self.study.order(rater)}
        if trial not in orders:
            raise ValueError(f"there is no trial {trial!r} in this study")
        count = len(self.study.systems)
        if set(ranks) != set(QUESTIONS) or any(sorted(r) != list(range(1, count + 1)) for r in ranks.values()):
            raise ValueError(f"ranks are {ranks}; {' and '.join(QUESTIONS)} each need 1 to {count} once")
        if len(heard_seconds) != count or min(heard_seconds) <= 0:
            raise ValueError(f"heard_seconds is {heard_seconds}; every clip has to be heard before it is ranked")
        if not all(map(math.isfinite, [*heard_seconds, took_seconds])) or took_seconds < 0:
            raise ValueError(
                f"heard_seconds {heard_seconds} and took_seconds {took_seconds} must be numbers of seconds"
            )
        with self._lock:
            if trial in self.done(rater):
                return False
            answer = Answer(rater, trial, orders[trial], ranks, heard_seconds, took_seconds, time.time())
            _append(self._file(rater), json.dumps(asdict(answer)))
            return True

    def all(self) -> list[Answer]:
        return [answer for path in sorted(self.folder.glob("*.jsonl")) for answer in read(path)]

    def _file(self, rater: str) -> Path:
        if not CODE.fullmatch(rater):
            raise ValueError(f"{rater!r} is no rater's code: up to 40 lower-case letters, digits, - and _")
        return self.folder / f"{rater}.jsonl"


def read(path: Path) -> list[Answer]:
    """The answers of one file, whole lines only."""
    if not path.is_file():
        return []
    answers = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            answers.append(Answer(**json.loads(line)))
        except json.JSONDecodeError:
            continue  # cut in the middle: never confirmed
    return answers


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # the end of a line that a kill cut
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    if new:  # its name too
        for folder in (path.parent, path.parent.parent):
            handle = os.open(folder, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
