"""Clotho (Drossos et al., ICASSP 2020): 15 to 30 s of Freesound with five captions by people.

A Zenodo record: its JSON names the files and their MD5 sums. For each split there are clotho_captions_SPLIT.csv
(file_name, caption_1 ... caption_5), clotho_metadata_SPLIT.csv (Freesound id, author, licence) and
clotho_audio_SPLIT.7z. Captions and archive belong to one another; a clip without metadata is kept, its licence unknown.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from siren.collect.fetch import tables
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import Archive, Item, Member, Row, decode
from siren.config import parse

SPLITS = {"evaluation": "test", "validation": "val", "development": "train"}
COLUMNS = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
METADATA = ("file_name", "sound_id", "manufacturer", "license")


@dataclass(frozen=True)
class Options:
    record: str = "https://zenodo.org/api/records/4783391"  # Clotho 2.1
    splits: tuple[str, ...] = tuple(SPLITS)


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Clips in the order of the splits."""
    settings = parse(Options, options, "collect.fetch.sources clotho")
    files = {entry["key"]: entry for entry in json.loads(downloader.read(settings.record))["files"]}

    def text(name: str) -> str:
        if name not in files:
            raise ValueError(f"the record {settings.record} has no file {name!r}; it has {', '.join(files)}")
        return decode(downloader.read(files[name]["links"]["self"]))

    for split in settings.splits:
        if split not in SPLITS:
            raise ValueError(f"collect.fetch.sources clotho: split {split!r}; there are {', '.join(SPLITS)}")
        name = next((key for key in files if key.startswith(f"clotho_audio_{split}.")), "")
        if not name:
            raise ValueError(
                f"the record {settings.record} has no archive clotho_audio_{split}; it has {', '.join(files)}"
            )
        archive = Archive(files[name]["links"]["self"], files[name]["checksum"], name)
        facts = _metadata(text(f"clotho_metadata_{split}.csv"), f"clotho_metadata_{split}.csv")

        def item(row: dict[str, str], split: str = split, archive: Archive = archive, facts: Any = facts) -> Item:
            known = facts.get(row["file_name"], {})
            sound = known.get("sound_id", "")
            recording = f"freesound:{sound}" if sound.isdigit() else f"clotho:{row['file_name']}"
            captions = [tables.described(row[column]) for column in COLUMNS[1:]]
            return Item(
                f"clotho-{split}-{row['file_name']}",
                recording,
                SPLITS[split],
                Member(archive, row["file_name"]),
                known.get("license") or "unknown",
                known.get("manufacturer") or None,
                captions,
            )

        yield from tables.items(text(f"clotho_captions_{split}.csv"), f"clotho_captions_{split}.csv", COLUMNS, item)


def _metadata(text: str, name: str) -> dict[str, dict[str, str]]:
    """file_name → its row."""
    return {row["file_name"]: row for _, row in tables.rows(text, name, METADATA) if isinstance(row, dict)}
