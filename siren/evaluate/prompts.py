"""The test prompts as arrays, and the checks that nothing is missing before anything is computed.

Shapes: N prompts · S samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siren.evaluate import judging

MADE_HERE = ("real", "shuffled")  # arms that evaluate() adds itself


@dataclass(frozen=True)
class Prompts:
    """The test prompts as arrays over N."""

    rows: list[dict[str, Any]]
    names: list[str]  # the judge's labels
    events: np.ndarray  # int [N, 2]: positions among `names`, in the prompt's order; -1 where there is none
    group: np.ndarray  # int [N]: which event a one-event prompt names; -1 for prompts with more
    then: np.ndarray  # bool [N]: two events in sequence, both known to the judge

    @property
    def known(self) -> np.ndarray:
        """The events with 0 for -1, which would index the last class; `one` and `two` say what to leave out."""
        return np.maximum(self.events, 0)

    @property
    def one(self) -> np.ndarray:
        return (self.group >= 0) & (self.events[:, 0] >= 0)

    @property
    def two(self) -> np.ndarray:
        return self.events[:, 1] >= 0


def check(clips: Mapping[str, np.ndarray], reference: np.ndarray, prompts: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError unless every arm and the reference have one finite clip for each prompt."""
    if len(prompts) == 0:
        raise ValueError("there are no test prompts to evaluate")
    for arm in set(clips) & set(MADE_HERE):
        raise ValueError(f"{arm!r} is no name for an arm: it is made here from the other clips")
    for arm, wavs in [*clips.items(), ("reference", reference)]:
        if wavs.ndim != 2 or len(wavs) != len(prompts) or wavs.shape[1] == 0:
            raise ValueError(f"arm {arm!r} holds clips of shape {wavs.shape}; {len(prompts)} prompts need as many rows")
        for prompt, wav in zip(prompts, wavs, strict=True):
            if not np.isfinite(wav).all():
                raise ValueError(f"arm {arm!r} has NaN or infinite samples in the clip of prompt {prompt['id']!r}")


def index(prompts: Sequence[dict[str, Any]], names: Sequence[str]) -> Prompts:
    """The prompts as arrays, their events by position among the judge's labels."""
    events = np.full((len(prompts), 2), -1)
    for i, found in enumerate(judging.positions([p["labels"] for p in prompts], names)):
        if found is not None and len(found) <= 2:
            events[i, : len(found)] = found
    singles = sorted({p["labels"][0] for p in prompts if len(p["labels"]) == 1})
    group = np.array([singles.index(p["labels"][0]) if len(p["labels"]) == 1 else -1 for p in prompts])
    then = np.array([p["relation"] == "then" for p in prompts]) & (events[:, 1] >= 0)
    return Prompts(list(prompts), list(names), events, group, then)


def counts(listed: Prompts) -> dict[str, int]:
    known = listed.one | listed.two
    return {
        "all": len(listed.rows),
        "one_event": int(listed.one.sum()),
        "two_events": int(listed.two.sum()),
        "then": int(listed.then.sum()),
        "not_judged": int((~known).sum()),  # no labels, more than two, or some that the judge does not know
    }
