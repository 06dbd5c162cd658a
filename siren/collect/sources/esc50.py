"""ESC-50 (Piczak, ACM MM 2015): 2,000 clips of five seconds in 50 classes, cut from Freesound.

One archive: meta/esc50.csv (filename, fold, target, category, esc10, src_file, take), audio/ and LICENSE, which lists
author and licence of each clip. The collection is CC BY-NC 3.0, its part ESC-10 CC BY 3.0: a clip outside ESC-10 counts
as CC-BY-NC-3.0 whatever its author allows, the stricter of the two. The dataset has folds and no splits: choose some
for validation and test, and clips of one recording stay together.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from siren.collect.fetch import tables
from siren.collect.fetch.download import Downloader, FetchError, unavailable
from siren.collect.fetch.media import Archive, Item, Member, Row
from siren.config import parse

COLUMNS = ("filename", "fold", "category", "esc10", "src_file")
CREDIT = re.compile(
    r"^- \[(?P<clip>\d-\d+-[A-Z])\.\w+\]:.* by (?P<author>.+?) \[(?P<licence>[^\]]+)\]\s*$", re.MULTILINE
)


@dataclass(frozen=True)
class Options:
    archive: str = "https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"
    val_folds: tuple[int, ...] = ()
    test_folds: tuple[int, ...] = ()


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Clips in the order of the table."""
    settings = parse(Options, options, "collect.fetch.sources esc50")
    archive = Archive(settings.archive)
    try:
        table, credits = archive.read(downloader, "meta/esc50.csv"), archive.read(downloader, "LICENSE")
    except FetchError as error:
        raise unavailable("the archive of ESC-50", error) from None
    known = {found["clip"]: found for found in CREDIT.finditer(credits)}

    def item(row: dict[str, str]) -> Item:
        fold = int(row["fold"])
        split = "test" if fold in settings.test_folds else "val" if fold in settings.val_folds else "train"
        credit = known.get("-".join(row["filename"].split("-")[:3]))
        licence = credit["licence"] if credit and row["esc10"] == "True" else "CC-BY-NC-3.0"
        labels = [tables.described(row["category"]).replace("_", " ")]
        name = f"esc50-{row['filename'].removesuffix('.wav')}"
        media = Member(archive, f"audio/{row['filename']}")
        author = credit["author"] if credit else None
        return Item(name, f"freesound:{row['src_file']}", split, media, licence, author, labels=labels)

    yield from tables.items(table, "esc50.csv", COLUMNS, item)
