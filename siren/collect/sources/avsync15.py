"""AVSync15 (Zhang et al., ECCV 2024): 1,500 parts of VGGSound videos in which sound and picture go together.

Index: train.txt and test.txt, a video file in each line: class/ID_SSSSSS_EEEEEE_a_b.mp4, which is seconds a to b of
VGGSound's clip from second S to E of the video. The lists come in the authors' archive, hence no default place.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from siren.collect.fetch import videos
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import Item, Row, decode, rejected
from siren.config import parse

LINE = re.compile(r"(?P<label>[^/]+)/(?P<video>[\w-]{11})_(?P<start>\d{6})_\d{6}_(?P<a>\d+\.\d+)_(?P<b>\d+\.\d+)\.mp4")


@dataclass(frozen=True)
class Options:
    index: str  # folder or URL with the two lists
    splits: tuple[str, ...] = ("test", "train")
    watch: str = videos.WATCH
    yt_dlp: tuple[str, ...] = ()  # more arguments for yt-dlp


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Clips in the order of the lists."""
    settings = parse(Options, options, "collect.fetch.sources avsync15")
    videos.require_tools()
    for split in settings.splits:
        lines = decode(downloader.read(settings.index, f"{split}.txt")).splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            found = LINE.fullmatch(line.strip())
            start, end = (int(found["start"]) + float(found[key]) for key in "ab") if found else (0.0, 0.0)
            if not found or end <= start:
                detail = f"{split}.txt line {number}: {line.strip()!r} is not class/ID_SSSSSS_EEEEEE_a_b.mp4"
                yield rejected(f"{split}.txt:{number}", "bad_row", detail)
                continue
            cut = videos.Cut(found["video"], start, end, settings.watch, settings.yt_dlp)
            labels = [re.sub(r"_+", " ", found["label"])]
            yield Item(f"avsync15-{cut.id}", f"youtube:{cut.video}", split, cut, labels=labels)
