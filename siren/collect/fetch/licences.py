"""Licences by one name: "Attribution 3.0", "http://creativecommons.org/licenses/by/3.0/" and "CC BY 3.0" are CC-BY-3.0.

Names are those of SPDX where there is one. A text that is not recognised stays as it is: it is never guessed to be
more permissive, and `allowed` lets it pass only where the very text was asked for.
"""

import re
from collections.abc import Sequence

VERSION = re.compile(r"\b(\d\.\d)\b")
ELEMENTS = {
    "NC": re.compile(r"\bnc\b|non-? ?commercial"),
    "ND": re.compile(r"\bnd\b|no-? ?deriv"),
    "SA": re.compile(r"\bsa\b|share-? ?alike"),
}


def normalise(text: str) -> str:
    """The licence's one name, with its version where the text has it."""
    words = re.sub(r"[\s_/-]+", " ", text.lower()).strip()
    version = VERSION.search(words)
    suffix = f"-{version[1]}" if version else ""
    if re.search(r"\bcc ?0|creative commons 0|\bzero\b", words):
        return "CC0-1.0"
    if "public domain" in words or "publicdomain" in words:
        return "PD"
    if "sampling" in words:
        return f"CC-Sampling+{suffix}"
    if (re.search(r"\bby\b", words) and re.search(r"\bcc\b|creative ?commons", words)) or "attribution" in words:
        return "-".join(["CC-BY", *(name for name, mark in ELEMENTS.items() if mark.search(words))]) + suffix
    if ELEMENTS["NC"].search(words) and version:  # "Noncommercial 3.0": BY is part of every version since 2.0
        return f"CC-BY-NC{suffix}"
    return text.strip()


def allowed(licence: str, wanted: Sequence[str] | None) -> bool:
    """Whether a licence is one of those wanted; a name without a version stands for all its versions. None: any is."""
    if wanted is None:
        return True
    name = normalise(licence)
    names = {normalise(text) for text in wanted}
    return name in names or re.sub(r"-\d\.\d$", "", name) in {re.sub("^CC0-1.0$", "CC0", other) for other in names}
