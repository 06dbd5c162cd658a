"""What a judge says a clip holds: the event of a one-event prompt, both events of a two-event prompt, and their order.

Pure functions of Cnn14's logits. "Both heard" is reported by two rules, because a threshold depends on how well the
probabilities are calibrated and a ranking does not: both events at 0.5 or more, and both among the two highest.
Order is asked of "then" only, by comparing the two halves of a clip.
Shapes: N clips · C classes.
"""

from collections.abc import Sequence

import numpy as np


def positions(prompts: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int] | None]:
    """Where each prompt's events stand among the judge's labels; None where the judge lacks one (case is ignored)."""
    index = {name.lower(): i for i, name in enumerate(names)}
    found = [[index.get(label.lower()) for label in labels] for labels in prompts]
    return [[i for i in row if i is not None] if row and None not in row else None for row in found]


def named(logits: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Whether the highest logit is the prompted event. [N, C], [N] → bool [N]"""
    return np.asarray(logits.argmax(axis=1) == event)


def both_heard(logits: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Whether both events have a probability of 0.5 or more (a logit of 0). [N, C], [N, 2] → bool [N]"""
    return np.all(np.take_along_axis(logits, events, axis=1) >= 0, axis=1)


def both_top_two(logits: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Whether the two highest logits are the two events, in either order. [N, C], [N, 2] → bool [N]"""
    top = np.argsort(-logits, axis=1, kind="stable")[:, :2]
    return (np.sort(top, axis=1) == np.sort(events, axis=1)).all(axis=1)


def in_order(first_half: np.ndarray, second_half: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Whether "A then B" is heard as such: A likelier in the first half than in the second, and B the other way.

    Logits of the halves [N, C] each, events [N, 2] with A first → bool [N]. Guessing gives one in four.
    """
    change = np.take_along_axis(second_half - first_half, events, axis=1)
    return (change[:, 0] < 0) & (change[:, 1] > 0)


def confusions(
    logits: np.ndarray, event: np.ndarray, names: Sequence[str], silent: np.ndarray | None = None
) -> dict[str, dict[str, int]]:
    """For each prompted event, what was named how often, the most frequent first. Silent clips name "silence"."""
    top = logits.argmax(axis=1)
    if silent is not None:
        top = np.where(silent, -1, top)
    table: dict[str, dict[str, int]] = {}
    for i in np.unique(event):
        heard, counts = np.unique(top[event == i], return_counts=True)
        ranked = sorted(zip(counts.tolist(), heard.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
        table[names[i]] = {names[j] if j >= 0 else "silence": count for count, j in ranked}
    return table


def derange(prompts: Sequence[Sequence[str]], seed: int, tries: int = 100) -> np.ndarray:
    """A permutation that gives every prompt the clip of another prompt with no event in common. → int [N]

    One-event prompts exchange among themselves, and so do prompts with more events. Raises ValueError where some
    prompt has no such partner, as with a single event.
    """
    generator = np.random.default_rng(seed)
    order = np.arange(len(prompts))
    sets = [set(labels) for labels in prompts]
    kinds = np.array([min(len(s), 2) for s in sets])
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        order[rows] = _derange_group(rows, sets, generator, tries)
    return order


def _derange_group(rows: np.ndarray, sets: list[set[str]], generator: np.random.Generator, tries: int) -> np.ndarray:
    """Exchange at random, then repair each clash by an exchange that leaves neither side clashing."""

    def clash(i: int, j: int) -> bool:
        return not sets[i].isdisjoint(sets[j])

    for _ in range(tries):
        given = generator.permutation(rows)
        for a in range(len(rows)):
            if not clash(rows[a], given[a]):
                continue
            for b in generator.permutation(len(rows)):
                if not clash(rows[a], given[b]) and not clash(rows[b], given[a]):
                    given[a], given[b] = given[b], given[a]
                    break
        if not any(clash(i, j) for i, j in zip(rows, given, strict=True)):
            return given
    raise ValueError(
        f"no way was found to give each of {len(rows)} prompts the clip of a prompt with other events; "
        "the shuffled control needs at least two events, none in more than half of the prompts"
    )
