"""VGGSound (Chen et al., ICASSP 2020): ten seconds of 200,000 videos in 309 classes.

Index: vggsound.csv without a header: YouTube id, start in seconds, class, train or test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from siren.collect.fetch import tables, videos
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import Item, Row, decode
from siren.config import parse

SECONDS = 10.0  # length of every clip
COLUMNS = ("video", "start", "label", "split")


@dataclass(frozen=True)
class Options:
    index: str = "https://www.robots.ox.ac.uk/~vgg/data/vggsound"  # or a folder
    watch: str = videos.WATCH
    yt_dlp: tuple[str, ...] = ()  # more arguments for yt-dlp


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Clips in the order of the table."""
    settings = parse(Options, options, "collect.fetch.sources vggsound")
    videos.require_tools()

    def item(row: dict[str, str]) -> Item:
        if row["split"] not in ("train", "test"):
            raise ValueError(f"split is {row['split']!r}; it must be train or test")
        start, video = tables.seconds(row["start"]), tables.video_id(row["video"])
        cut = videos.Cut(video, start, start + SECONDS, settings.watch, settings.yt_dlp)
        labels = [tables.described(row["label"])]
        return Item(f"vggsound-{cut.id}", f"youtube:{video}", row["split"], cut, labels=labels)

    text = decode(downloader.read(settings.index, "vggsound.csv"))
    yield from tables.items(text, "vggsound.csv", COLUMNS, item, header=False)
