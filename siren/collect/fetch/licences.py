"""Licences by one name: "Attribution 3.0", "http://creativecommons.org/licenses/by/3.0/" and "CC BY 3.0" are CC-BY-3.0.

Names are those of SPDX where there is one. A text is recognised only as a whole: one that says anything besides,
such as "attribution required, personal use only", stays as it is. So it is never guessed to be more permissive, and
`allowed` lets it pass only where the very text was asked for.
"""

import re
from collections.abc import Sequence

VERSION = re.compile(r"(?<![\d.])\d\.\d(?![\d.]*\d)")
LINK = re.compile(r"(?:https?://)?(?:www\.)?creativecommons\.org/(?:licen[sc]es/)?(\S*)")
PORT = re.compile(r"(?<=\d\.\d)/[a-z]{2}(?=/|$)")  # of a link: a country's wording of the same licence
ONE_WORD = {
    "creativecommons": r"creative[\s_-]*commons",
    "nc": r"non[\s_-]*commercial",
    "nd": r"no[\s_-]*deriv(?:ative)?s?(?:[\s_-]+works?)?\b",
    "sa": r"share[\s_-]*alike",
    "pd": r"public[\s_-]*domain",
}
ELEMENTS = ("nc", "nd", "sa")
SAYS_NOTHING = {"license", "licence", "licensed", "under", "the", "a", "v", "version", "reuse", "allowed", "mark"}
SAYS_NOTHING |= {"international", "unported", "generic", "universal", "dedication", "deed", "deed.en", "legalcode", ""}
ZERO = {"cc", "cc0", "0", "zero", "pd"}


def normalise(text: str) -> str:
    """The licence's one name, with its version where the text has it."""
    plain = LINK.sub(lambda found: "cc " + PORT.sub("", found[1]), text.lower())
    for word, written in ONE_WORD.items():
        plain = re.sub(written, f" {word} ", plain)
    versions = set(VERSION.findall(plain))
    plain = VERSION.sub(" ", plain)
    words = {word.strip(".") for word in re.split(r"[^a-z0-9+.]+", plain)} - SAYS_NOTHING
    words = {"cc" if word == "creativecommons" else word for word in words}
    if len(versions) > 1:
        return text.strip()
    suffix = f"-{versions.pop()}" if versions else ""
    by = "attribution" in words or {"cc", "by"} <= words
    if words <= {"cc", "cc0", "0", "zero", "pd"} and (
        "cc0" in words or (words & {"0", "zero"} and words & {"cc", "pd"})
    ):
        return "CC0-1.0"
    if "pd" in words and words <= {"pd", "cc"}:
        return "PD"
    if words & {"sampling", "sampling+"} and words <= {"cc", "sampling", "sampling+", "plus"}:
        return f"CC-Sampling+{suffix}"
    # "Noncommercial 3.0": BY is part of every version since 2.0
    if (by or ("nc" in words and suffix)) and words <= {"cc", "by", "attribution", *ELEMENTS}:
        return "-".join(["CC-BY", *(name.upper() for name in ELEMENTS if name in words)]) + suffix
    return text.strip()


def allowed(licence: str, wanted: Sequence[str] | None) -> bool:
    """Whether a licence is one of those wanted; a name without a version stands for all its versions. None: any is."""
    if wanted is None:
        return True
    name = normalise(licence)
    names = {normalise(text) for text in wanted}
    return name in names or re.sub(r"-\d\.\d$", "", name) in {re.sub("^CC0-1.0$", "CC0", other) for other in names}
