"""The stretches of a video without words, by its time-aligned transcript: where sounds may be that nobody talks over.

AutoReCap's way to a corpus (arXiv 2406.19388): of large public sets of videos, only the parts are fetched for which the
automatic transcript has nothing. Whatever a transcript writes counts as words, markers such as [Music] included. A cue
holds its whole time on the screen, which is longer than its words sound: rather a stretch lost than a voice in it.
WebVTT and YouTube's json3, as `yt-dlp --write-auto-subs --skip-download` leaves them; the id is in the file's name.
"""

import html
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siren.collect.fetch.media import Item, Row, rejected
from siren.collect.fetch.videos import Cut
from siren.config import require
from siren.progress import track

Span = tuple[float, float]  # seconds, from and to

NAME = re.compile(r"(?:.*\[)?(?P<video>[\w-]{11})\]?(?:\.[\w-]+)?(?P<suffix>\.vtt|\.json3|\.info\.json)", re.ASCII)
TIME = r"(?:(\d+):)?([0-5]\d):([0-5]\d)\.(\d{3})"
TIMES = re.compile(rf"\s*{TIME}[ \t]+-->[ \t]+{TIME}(?:[ \t].*)?")


@dataclass(frozen=True)
class Transcripts:
    """The option `transcripts` of sources of videos: only stretches without words are fetched."""

    folder: str
    min_seconds: float = 5.0  # shorter stretches are left out
    margin_seconds: float = 0.5  # kept from every cue

    def __post_init__(self) -> None:
        require(
            Path(self.folder).expanduser().is_dir(), f"transcripts.folder is {self.folder!r}; there is no such folder"
        )
        require(self.min_seconds > 0, f"transcripts.min_seconds is {self.min_seconds}; it must be positive")
        require(self.margin_seconds >= 0, f"transcripts.margin_seconds is {self.margin_seconds}; 0 or more")


def gaps(cues: Iterable[Span], start: float, end: float, min_seconds: float, margin_seconds: float = 0.0) -> list[Span]:
    """The stretches of `start` to `end` that keep a margin from every cue and last `min_seconds`, in order.

    The margin is from words, and not from start and end. They are disjoint, however cues lie and overlap.
    """
    found, free = [], start
    for a, b in sorted(cues):
        found.append((free, min(a - margin_seconds, end)))
        free = max(free, b + margin_seconds)
    return [(a, b) for a, b in [*found, (free, end)] if b - a >= min_seconds and b > a]


def webvtt(text: str) -> list[Span]:
    """When each cue with words is shown. Raises ValueError for what is no WebVTT, or has a time that cannot be."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or not re.fullmatch(r"WEBVTT(?:[ \t].*)?", lines[0]):
        raise ValueError("it does not begin with WEBVTT")
    cues: list[Span] = []
    times: Span | None = None
    for line in lines[1:]:
        if "-->" in line:
            found = TIMES.fullmatch(line)
            parts = [int(part or 0) for part in found.groups()] if found else []
            a, b = (
                (3600 * h + 60 * m + s + ms / 1000 for h, m, s, ms in (parts[:4], parts[4:])) if found else (0.0, -1.0)
            )
            if b < a:
                raise ValueError(f"{line.strip()[:60]!r} are no times of a cue")
            times = (a, b)
        elif not line:
            times = None
        elif times and html.unescape(re.sub(r"<[^>]*>", "", line)).strip():
            cues.append(times)
            times = None  # one line with words is enough
    return cues


def json3(text: str) -> list[Span]:
    """When each event with words is shown; one without a duration lasts. Raises ValueError for another layout."""
    try:
        return [span for event in json.loads(text)["events"] if (span := _event(event))]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is not in the layout of json3: {error!r}") from None


def _event(event: dict[str, Any]) -> Span | None:
    if not "".join(part.get("utf8", "") for part in event.get("segs", ())).strip():
        return None  # the window's own event, or a new line
    start, length = event["tStartMs"], event.get("dDurationMs", math.inf)
    if not (start >= 0 and length >= 0):
        raise ValueError(f"an event of {length} ms begins at {start} ms")
    return start / 1000, (start + length) / 1000


READERS = {".vtt": webvtt, ".json3": json3}


def find(folder: str | Path) -> dict[str, dict[str, list[Path]]]:
    """Video id → suffix → its files anywhere below a folder: transcripts in all languages, and yt-dlp's .info.json."""
    found: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(Path(folder).expanduser().rglob("*")):
        if (name := NAME.fullmatch(path.name)) and path.is_file():
            found.setdefault(name["video"], {}).setdefault(name["suffix"], []).append(path)
    return found


def cues_of(files: dict[str, list[Path]]) -> list[Span]:
    """Cues of all transcripts of a video, whose times are joined. Raises ValueError naming one that cannot be read."""
    cues = []
    for suffix, read in READERS.items():
        for path in files.get(suffix, ()):
            try:
                cues += read(path.read_text(encoding="utf-8"))
            except ValueError as error:  # also of bytes that are no UTF-8, and text that is no JSON
                raise ValueError(f"the transcript {path.name} cannot be read: {error}") from None
    return cues


def duration_of(files: dict[str, list[Path]]) -> float | None:
    """Length of a video as its .info.json has it, in seconds. Raises ValueError for one that cannot be read."""
    for path in files.get(".info.json", ()):
        try:
            return float(json.loads(path.read_text(encoding="utf-8"))["duration"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path.name} has no duration: {error!r}") from None
    return None


def title_of(files: dict[str, list[Path]]) -> str:
    """Title of a video as its .info.json has it, on one line; empty where nothing tells it."""
    for path in files.get(".info.json", ()):
        try:
            return " ".join(str(json.loads(path.read_text(encoding="utf-8")).get("title") or "").split())
        except (ValueError, AttributeError):
            break  # `duration_of` says what is wrong with it
    return ""


def wordless(items: Iterable[Item | Row], settings: Transcripts) -> Iterator[Item | Row]:
    """Items of videos as their stretches without words; a clip with none is a row of quarantine, as is one unknown.

    Captions and labels were said of the whole clip, so that only a clip that stays whole keeps them.
    Reasons: no_transcript, bad_transcript, words.
    """
    known = find(settings.folder)
    for item in items:
        if not isinstance(item, Item):
            yield item
            continue
        cut = item.media
        assert isinstance(cut, Cut), f"{item.id} is no part of a video"
        files = known.get(cut.video, {})
        if not files.keys() & READERS:
            yield rejected(item.id, "no_transcript", f"{settings.folder} has no transcript of {cut.video}")
            continue
        try:
            found = gaps(cues_of(files), cut.start, cut.end, settings.min_seconds, settings.margin_seconds)
        except ValueError as error:
            yield rejected(item.id, "bad_transcript", str(error))
            continue
        if not found:
            told = f"no {settings.min_seconds:g} s without words from {cut.start:g} to {cut.end:g} s of {cut.video}"
            yield rejected(item.id, "words", told)
        elif found == [(cut.start, cut.end)]:
            yield item
        else:
            for a, b in found:
                part = replace(cut, start=a, end=b, parts=tuple(found))
                name = item.id.removesuffix(cut.id) + part.id
                yield replace(item, id=name, media=part, captions=(), labels=())


def listed(settings: Transcripts) -> tuple[list[Row], list[Row]]:
    """Rows (video, start, end, title) of all transcripts, and the quarantine of those that cannot be used.

    A video ends where its .info.json says; without one at its last word, because nobody knows how long it goes on.
    Raises ConfigError for a folder without transcripts.
    """
    rows, bad = [], []
    known = {video: files for video, files in find(settings.folder).items() if files.keys() & READERS}
    require(
        bool(known),
        f"{settings.folder!r} has no transcript; their names are ID.LANGUAGE.vtt or .json3, ID a video's 11 characters",
    )
    for video, files in track(known.items(), "transcripts", unit="video"):
        try:
            cues, end = cues_of(files), duration_of(files)
            end = max((b for _, b in cues if math.isfinite(b)), default=0.0) if end is None else end
            found = gaps(cues, 0.0, end, settings.min_seconds, settings.margin_seconds)
        except ValueError as error:
            bad.append(rejected(video, "bad_transcript", str(error)))
            continue
        title = title_of(files)
        rows += [{"video": video, "start": round(a, 3), "end": round(b, 3), "title": title} for a, b in found]
        if not found:
            bad.append(rejected(video, "words", f"no {settings.min_seconds:g} s without words in {end:g} s"))
    return rows, bad
