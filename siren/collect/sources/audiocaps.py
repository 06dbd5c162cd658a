"""AudioCaps (Kim et al., NAACL 2019): ten seconds of AudioSet videos with captions by people.

Index: train.csv, val.csv and test.csv (audiocap_id, youtube_id, start_time, caption). Training clips have one caption,
the others five, each in a row of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from siren.collect.fetch import tables, videos
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import Item, Row, decode
from siren.config import parse

SECONDS = 10.0  # length of every clip
COLUMNS = ("youtube_id", "start_time", "caption")


@dataclass(frozen=True)
class Options:
    index: str = "https://raw.githubusercontent.com/cdjkim/audiocaps/master/dataset"  # or a folder
    tables: str = "{split}.csv"  # their names in it
    splits: tuple[str, ...] = ("test", "val", "train")
    watch: str = videos.WATCH
    yt_dlp: tuple[str, ...] = ()  # more arguments for yt-dlp


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Clips in the order of the splits."""
    settings = parse(Options, options, "collect.fetch.sources audiocaps")
    videos.require_tools()
    for split in settings.splits:

        def item(row: dict[str, str], split: str = split) -> Item:
            start = tables.seconds(row["start_time"])
            video = tables.video_id(row["youtube_id"])
            cut = videos.Cut(video, start, start + SECONDS, settings.watch, settings.yt_dlp)
            caption = tables.described(row["caption"])
            return Item(f"audiocaps-{cut.id}", f"youtube:{video}", split, cut, captions=[caption])

        name = settings.tables.format(split=split)
        text = decode(downloader.read(settings.index, name))
        yield from tables.merged(tables.items(text, name, COLUMNS, item))
