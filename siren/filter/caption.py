"""One caption for each segment: people's captions refined by small named rules, a captioner where there are none.

Unusual: a rule is a function `caption -> caption or None`; None removes the candidate. Which rules changed or removed
something is kept with the caption, and a segment that is left without one is quarantined: there is never an empty
caption. Of several candidates one is drawn, by the segment's id and the seed alone; the others are kept beside it.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from siren.config import ConfigError

Rule = Callable[[str], str | None]
Captioner = Callable[[list[dict[str, Any]]], list[list[str]]]  # a batch of segments → candidates of each

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("candidates", pa.list_(pa.string())),  # all that are left after refinement, the caption among them
        ("captioner", pa.string()),  # "human" or a key of CAPTIONERS
        ("rules", pa.list_(pa.string())),  # those that changed the caption or removed a candidate
    ]
)
SOURCE_COLUMNS = ("id", "captions", "labels", "relation")

NON_DESCRIPTIVE = {
    *("audio", "sound", "sounds", "noise", "recording", "clip", "untitled", "unknown", "none", "null", "nan", "n a"),
    *("test", "todo", "caption", "no caption", "no description", "description", "audio clip", "sound effect"),
}
SPEECH = re.compile(r"""\b(says?|saying|said|asks?|shouts?)\b\s*[:,]?\s*["“«']""", re.IGNORECASE)
FILE_OR_LINK = re.compile(r"https?://|www\.|\.(wav|flac|mp3|ogg|m4a|aiff?)$", re.IGNORECASE)


def caption(segments: pa.Table, captioner: str, seed: int) -> tuple[pa.Table, list[dict[str, str]], dict[str, int]]:
    """Captions (`SCHEMA`) of `segments` (`SOURCE_COLUMNS`), the quarantine, and how often each rule did something."""
    if captioner not in CAPTIONERS:
        raise ConfigError(f"filter.caption.captioner is {captioner!r}; there are {', '.join(CAPTIONERS)}")
    rows = segments.select(list(SOURCE_COLUMNS)).to_pylist()
    refined = [refine_all(row["captions"]) for row in rows]
    lacking = [index for index, (candidates, _) in enumerate(refined) if not candidates]
    names = ["human"] * len(rows)
    made = CAPTIONERS[captioner]([rows[index] for index in lacking]) if lacking else []
    for index, candidates in zip(lacking, made, strict=True):
        again, rules = refine_all(candidates)
        refined[index] = (again, refined[index][1] | rules)
        names[index] = captioner
    kept, quarantine = [], []
    used: Counter[str] = Counter()
    for row, name, (candidates, rules) in zip(rows, names, refined, strict=True):
        used.update(rules.keys())
        if candidates:
            chosen = candidates[_draw(row["id"], seed, len(candidates))]
            kept.append(dict(zip(SCHEMA.names, (row["id"], chosen, candidates, name, list(rules)), strict=True)))
        else:
            lost = "; ".join(f"{text!r} ({rule})" for rule, text in rules.items()) or "it has none, and no label"
            quarantine.append({"item": row["id"], "stage": "caption", "reason": "no_caption", "detail": lost})
    return pa.Table.from_pylist(kept, schema=SCHEMA), quarantine, dict(used)


def refine_all(captions: list[str]) -> tuple[list[str], dict[str, str]]:
    """What is left of the candidates, without repetition; rules that did something, each with one example."""
    left: dict[str, None] = {}
    used: dict[str, str] = {}
    for text in captions:
        refined, names = refine(text)
        used |= dict.fromkeys(names, text)
        if refined is not None:
            left[refined] = None
    return list(left), used


def refine(text: str) -> tuple[str | None, list[str]]:
    """The caption after all `RULES` in order, or None if one removed it, and the names of those that did something."""
    names = []
    for name, rule in RULES.items():
        changed = rule(text)
        if changed != text:
            names.append(name)
        if changed is None:
            return None, names
        text = changed
    return text, names


def whitespace(text: str) -> str:
    """One space between words; compatibility forms of characters (full width, ligatures) made ordinary."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def final_stop(text: str) -> str:
    """No full stop, comma or semicolon at the end."""
    return text.rstrip(" .,;。")


def lower_case(text: str) -> str:
    """Small letters."""
    return text.lower()


def non_descriptive(text: str) -> str | None:
    """Remove what says nothing about the sound: no letters, a bare "audio clip", a file name, a link."""
    words = " ".join(re.findall(r"[^\W\d_]+", text)).lower()
    return None if not words or words in NON_DESCRIPTIVE or FILE_OR_LINK.search(text) else text


def transcribed_speech(text: str) -> str | None:
    """Remove captions that quote what is said: they describe words, not sounds."""
    return None if SPEECH.search(text) else text


def non_english(text: str) -> str | None:
    """Remove captions most of whose letters are not Latin. Other languages in Latin letters are not found."""
    letters = [letter for letter in text if letter.isalpha()]
    latin = sum("LATIN" in unicodedata.name(letter, "") for letter in letters)
    return None if latin < 0.5 * len(letters) else text


RULES: dict[str, Rule] = {
    "whitespace": whitespace,
    "final_stop": final_stop,
    "non_descriptive": non_descriptive,
    "transcribed_speech": transcribed_speech,
    "non_english": non_english,
    "lower_case": lower_case,
}


def template(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A sentence from the labels; no candidate for a segment without labels."""
    return [_sentence([label.replace("_", " ") for label in row["labels"]], row["relation"]) for row in rows]


def _sentence(labels: list[str], relation: str | None) -> list[str]:
    if not labels:
        return []
    if relation == "then":
        return ["the sound of " + " followed by ".join(labels)]
    return ["the sound of " + (" and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]])))]


CAPTIONERS: dict[str, Captioner] = {"template": template}


def _draw(name: str, seed: int, count: int) -> int:
    digest = hashlib.sha256(f"{seed}\x1fcaption\x1f{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % count
