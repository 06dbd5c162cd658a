"""Licences get one name, and a filter never lets a stricter one pass."""

from pathlib import Path

import pytest

from siren.collect.fetch.licences import allowed, normalise
from siren.collect.sources import collect
from siren.config import Audio, Source
from tests.collect.test_folder import sounds, write_csv  # noqa: F401

NAMES = {
    "http://creativecommons.org/publicdomain/zero/1.0/": "CC0-1.0",
    "Creative Commons 0": "CC0-1.0",
    "CC0 1.0": "CC0-1.0",
    "CC0": "CC0-1.0",
    "https://creativecommons.org/licenses/by/4.0/": "CC-BY-4.0",
    "Attribution 3.0": "CC-BY-3.0",
    "CC-BY": "CC-BY",
    "CC BY 3.0": "CC-BY-3.0",
    "Creative Commons Attribution license (reuse allowed)": "CC-BY",
    "https://creativecommons.org/licenses/by-nc/3.0/": "CC-BY-NC-3.0",
    "Attribution Noncommercial": "CC-BY-NC",
    "Attribution-NonCommercial-ShareAlike 4.0": "CC-BY-NC-SA-4.0",
    "Noncommercial 3.0": "CC-BY-NC-3.0",
    "CC BY-NC-ND 4.0": "CC-BY-NC-ND-4.0",
    "http://creativecommons.org/licenses/sampling+/1.0/": "CC-Sampling+-1.0",
    "CC-Sampling+": "CC-Sampling+",
    "Public Domain": "PD",
    "RemArc": "RemArc",
    "Personal Use Only": "Personal Use Only",
    "YouTube": "YouTube",
    "unknown": "unknown",
    "written by hand": "written by hand",
    "CC-BY-NC4.0": "CC-BY-NC-4.0",
    "Attribution 4.0 International (CC BY 4.0)": "CC-BY-4.0",
    "https://creativecommons.org/licenses/by-sa/3.0/us/deed.en": "CC-BY-SA-3.0",
    "Creative Commons Attribution-NoDerivatives 4.0": "CC-BY-ND-4.0",
    "Public Domain Mark 1.0": "PD",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    # what says more, or less, than a licence that is known
    "Free for personal use, attribution required": "Free for personal use, attribution required",
    "No attribution required": "No attribution required",
    "Editorial use only; attribution to somebody": "Editorial use only; attribution to somebody",
    "Royalty-free, non-commercial, zero fee": "Royalty-free, non-commercial, zero fee",
    "All rights reserved. Zero tolerance": "All rights reserved. Zero tolerance",
    "not public domain": "not public domain",
    "CC0 for research": "CC0 for research",
    "CC BY 3.0 or 4.0": "CC BY 3.0 or 4.0",
    "CC BY 3.0, CC BY 4.0": "CC BY 3.0, CC BY 4.0",
    "CC0-NC": "CC0-NC",
}


@pytest.mark.parametrize("text", NAMES)
def test_every_way_of_writing_a_licence_has_one_name(text: str) -> None:
    assert normalise(text) == NAMES[text]
    assert normalise(normalise(text)) == normalise(text)


def test_a_commercial_filter_lets_pass_what_may_be_sold_and_nothing_else() -> None:
    wanted = ("CC0", "CC-BY")
    passing = {text for text in NAMES if allowed(text, wanted)}
    assert {NAMES[text] for text in passing} == {"CC0-1.0", "CC-BY", "CC-BY-3.0", "CC-BY-4.0"}
    assert len(passing) == sum(name in ("CC0-1.0", "CC-BY", "CC-BY-3.0", "CC-BY-4.0") for name in NAMES.values())
    assert allowed("anything", None)
    assert allowed("CC BY 3.0", ["CC-BY-3.0"])
    assert not allowed("CC BY 4.0", ["CC-BY-3.0"])
    assert not allowed("CC BY", ["CC-BY-3.0"])
    assert allowed("RemArc", ["remarc", "RemArc"])


def test_the_filter_holds_for_local_sources_too(sounds: Path) -> None:  # noqa: F811
    rows = [
        {"file": "a.wav", "caption": "x", "id": "1", "licence": "CC BY-NC 4.0"},
        {"file": "b.wav", "caption": "x", "id": "2", "licence": "CC BY 4.0"},
        {"file": "sub/c.wav", "caption": "x", "id": "3", "licence": ""},
    ]
    write_csv(sounds / "manifest.csv", rows)
    source = Source("folder", {"path": str(sounds)})
    table, quarantine, total = collect([source], sounds.parent / "clips", Audio(16000, 1.6), 0, None, ("CC0", "CC-BY"))
    assert (table["id"].to_pylist(), total) == (["2"], 3)
    assert [(row["item"], row["reason"]) for row in quarantine] == [("1", "licence"), ("3", "licence")]
