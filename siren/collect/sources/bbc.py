"""BBC Sound Effects: 33,000 recordings of the BBC's archive, described by its librarians.

Index: BBCSoundEffects.csv (location, description, secs, category, CDNumber, CDName, tracknum), where the location is
the file's name. Under the RemArc licence: personal, educational or research use.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from siren.collect.fetch import tables
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import Archive, File, Item, Media, Member, Row, decode
from siren.config import parse

COLUMNS = ("location", "description", "category")


@dataclass(frozen=True)
class Options:
    catalogue: str = "http://bbcsfx.acropolis.org.uk/assets/BBCSoundEffects.csv"  # or a file
    media: str = "https://sound-effects-media.bbcrewind.co.uk/zip/{location}.zip"  # a sound, or an archive with it
    split: Literal["train", "val", "test"] = "train"


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Sounds in the order of the catalogue."""
    settings = parse(Options, options, "collect.fetch.sources bbc")

    def item(row: dict[str, str]) -> Item:
        location = row["location"]
        if not location or not location.replace(".", "").isalnum():
            raise ValueError(f"location {location!r} is no file name")
        url = settings.media.format(location=location)
        media: Media = Member(Archive(url), location) if url.endswith(".zip") else File(url)
        name = location.rsplit(".", 1)[0]
        captions, labels = [tables.described(row["description"])], [row["category"]] if row["category"] else []
        return Item(f"bbc-{name}", f"bbc:{name}", settings.split, media, "RemArc", "BBC", captions, labels)

    text = decode(downloader.read(settings.catalogue))
    yield from tables.items(text, "BBCSoundEffects.csv", COLUMNS, item)
