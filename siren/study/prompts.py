"""The three prompt sets of a study (paper, section 5.4): general, multi-event, and out of distribution.

General ones are drawn from a list, multi-event ones from those of its prompts that tell of more than two events. Out
of distribution are made: two sounds that no prompt of the list has together, in a place or a manner where nobody
records. The paper had a language model write them; here a seed does, so that anyone gets the same ones.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

SETS = ("general", "multi-event", "out-of-distribution")
MANY = 3  # events: more than two
JOINTS = re.compile(r",|\band\b|\bthen\b|\bwhile\b|\bfollowed by\b|\bwith\b|\bas\b", re.IGNORECASE)
WORDS = re.compile(r"[a-z]{4,}")
SETTINGS = (
    "deep under water",
    "inside an empty cathedral",
    "on board a spaceship",
    "at the bottom of a dry well",
    "in the middle of an orchestra",
    "inside a giant glass bottle",
    "on a windless glacier",
    "through an old telephone",
    "in a library where nobody else makes a sound",
    "inside a moving lift",
    "in a desert at noon",
    "on the stage of an opera house",
)
MANNERS = (
    "{a} while {b}, {setting}",
    "{a} in the same rhythm as {b}, {setting}",
    "{a}, again and again, and far away {b}, {setting}",
    "{a}, slowly drowned out while {b}, {setting}",
)

Prompt = dict[str, Any]  # id, caption, labels


def choose(prompts: Sequence[Prompt], general: int, many: int, unusual: int, seed: int) -> list[Prompt]:
    """Rows with `set`: so many of each, no prompt twice. Raises ValueError where the list has too few."""
    rng = np.random.default_rng(seed)
    shuffled = [prompts[i] for i in rng.permutation(len(prompts))]
    several = [prompt for prompt in shuffled if events(prompt) >= MANY][:many]
    if len(several) < many:
        raise ValueError(f"only {len(several)} of {len(prompts)} prompts tell of {MANY} events; lower --many to that")
    taken = {prompt["id"] for prompt in several}
    rest = [prompt for prompt in shuffled if prompt["id"] not in taken][:general]
    if len(rest) < general:
        raise ValueError(f"{len(prompts)} prompts are too few for {general} general and {many} multi-event ones")
    made = combine(prompts, unusual, rng)
    rows = zip(SETS, (rest, several, made), strict=True)
    return [{**prompt, "set": name} for name, chosen in rows for prompt in chosen]


def events(prompt: Prompt) -> int:
    """How many events a prompt tells of: its labels, or, where it has none, the parts that its caption joins."""
    return len(prompt["labels"]) or len([part for part in JOINTS.split(prompt["caption"]) if part.strip()])


def combine(prompts: Sequence[Prompt], count: int, rng: np.random.Generator) -> list[Prompt]:
    """Prompts of two sounds that never come together in the list. Every sound is used about equally often."""
    sounds: dict[str, str] = {}  # what it is → the clause that tells of it
    for prompt in sorted((p for p in prompts if events(p) == 1), key=lambda p: (len(p["caption"]), p["id"])):
        clause = prompt["caption"].strip().rstrip(".")
        sounds.setdefault((prompt["labels"] or [clause])[0], clause[:1].lower() + clause[1:])
    labels = {label for prompt in prompts for label in prompt["labels"]}
    together = {frozenset(pair) for p in prompts for pair in itertools.combinations(p["labels"], 2)}
    pairs = [
        (a, b)
        for a, b in itertools.permutations(sorted(sounds), 2)
        if frozenset((a, b)) not in together and ({a, b} <= labels or not _share(sounds[a], sounds[b]))
    ]
    if len(pairs) < count:
        raise ValueError(
            f"the list leaves {len(pairs)} pairs of sounds that never come together; {count} were asked for"
        )
    used = dict.fromkeys(sounds, 0)
    made: list[Prompt] = []
    waiting = [pairs[i] for i in rng.permutation(len(pairs))]
    for number in range(count):
        a, b = waiting.pop(min(range(len(waiting)), key=lambda i: used[waiting[i][0]] + used[waiting[i][1]]))
        used[a], used[b] = used[a] + 1, used[b] + 1
        manner, setting = MANNERS[rng.integers(len(MANNERS))], SETTINGS[number % len(SETTINGS)]
        caption = manner.format(a=sounds[a], b=sounds[b], setting=setting)
        known = [name for name in (a, b) if name in labels]
        made.append({"id": f"unusual-{number:03d}", "caption": caption, "labels": known})
    return made


def _share(one: str, other: str) -> bool:
    """Whether two clauses have a word in common, and so perhaps a sound; short words do not count."""
    return bool(set(WORDS.findall(one.lower())) & set(WORDS.findall(other.lower())))
