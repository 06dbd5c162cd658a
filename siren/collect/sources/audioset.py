"""AudioSet (Gemmeke et al., ICASSP 2017): ten seconds of two million videos, with labels of an ontology.

Index: CSV lists of segments (YTID, start_seconds, end_seconds, positive_labels; three lines of comment) and the
ontology (JSON), which gives the labels their names. The evaluation list is the test split.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from siren.collect.fetch import tables, videos
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import Item, Row, decode
from siren.config import parse

COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")


@dataclass(frozen=True)
class Options:
    index: str = "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"  # or a folder
    ontology: str = "https://raw.githubusercontent.com/audioset/ontology/master/ontology.json"
    parts: tuple[str, ...] = ("eval_segments", "balanced_train_segments", "unbalanced_train_segments")
    watch: str = videos.WATCH
    yt_dlp: tuple[str, ...] = ()  # more arguments for yt-dlp


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Segments in the order of the parts."""
    settings = parse(Options, options, "collect.fetch.sources audioset")
    videos.require_tools()
    names = {entry["id"]: entry["name"] for entry in json.loads(downloader.read(settings.ontology))}
    for part in settings.parts:
        split = "test" if part.startswith("eval") else "train"

        def item(row: dict[str, str], split: str = split) -> Item:
            start, end = tables.seconds(row["start_seconds"]), tables.seconds(row["end_seconds"])
            if end <= start:
                raise ValueError(f"end {end:g} s is not after start {start:g} s")
            labels = row["positive_labels"].split(",")
            unknown = [label for label in labels if label not in names]
            if unknown:
                raise ValueError(f"the ontology has no label {unknown[0]!r}")
            video = tables.video_id(row["YTID"])
            cut = videos.Cut(video, start, end, settings.watch, settings.yt_dlp)
            return Item(f"audioset-{cut.id}", f"youtube:{video}", split, cut, labels=[names[label] for label in labels])

        text = decode(downloader.read(settings.index, f"{part}.csv"))
        yield from tables.items(text, f"{part}.csv", COLUMNS, item, header=False, spaced=True)
