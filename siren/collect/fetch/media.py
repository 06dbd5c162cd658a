"""What a source's index promises (`Item`), and how its sound is had: a file, a member of an archive, a cut of a video.

A source reads its index and yields items; `obtain` gets them with as many threads as the settings allow, copies them
beside the corpus's other clips and returns rows and quarantine, in the order of the index whatever the threads do. On a
cluster the threads are spread over its workers, which share the cache and the limits: no host is asked more often than
by one machine. What came before a worker was killed is in the cache.
"""

import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from siren.atomic import replacing
from siren.collect.fetch import licences
from siren.collect.fetch.download import Downloader, FetchError, Limits
from siren.config import ConfigError, Download
from siren.engine import LOCAL, Engine, each, threaded
from siren.hashing import file_sha256
from siren.progress import track

Row = dict[str, Any]
SHARD_ITEMS = 128  # that a worker of a cluster gets between two reports
AHEAD = 64  # items of each thread that may be begun before their turn: one that stalls does not hold the others up


class Media(Protocol):
    """Where the sound of an item is."""

    def get(self, downloader: Downloader) -> tuple[Path, Row]:
        """The file in the cache, and what came to light on the way (licence, author). Raises `FetchError`."""


@dataclass(frozen=True)
class Item:
    """A clip as the index of its dataset has it."""

    id: str
    recording_id: str
    split: str
    media: Media
    licence: str | None = None  # None: known only once the media is here
    author: str | None = None
    captions: Sequence[str] = ()
    labels: Sequence[str] = ()
    title: str | None = None


@dataclass(frozen=True)
class File:
    url: str
    checksum: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def get(self, downloader: Downloader) -> tuple[Path, Row]:
        return downloader.fetch(self.url, self.checksum, self.headers), {}


@dataclass(frozen=True)
class Archive:
    """A .zip, .tar(.gz, ...) or .7z; unpacked once into the cache, where it then replaces the archive."""

    url: str
    checksum: str | None = None
    kind: str = ""  # the suffix, where the URL does not end in it

    def members(self, downloader: Downloader) -> Path:
        """The folder of its files. Raises `FetchError`, also with reason corrupt_archive."""
        folder = downloader.path(self.url, self.checksum, ".d")
        with downloader.lock(folder):
            if not folder.is_dir():
                path = downloader.fetch(self.url, self.checksum)
                try:
                    with replacing(folder) as scratch:
                        scratch.mkdir()
                        unpack(path, scratch, self.kind or self.url)
                except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
                    path.unlink()  # a rerun gets it anew
                    raise FetchError("corrupt_archive", f"{self.url} cannot be unpacked: {error}") from None
                path.unlink()
        return folder

    def read(self, downloader: Downloader, name: str) -> str:
        """A text file of the archive, found by the end of its path."""
        return decode(self.find(downloader, name).read_bytes())

    def find(self, downloader: Downloader, name: str) -> Path:
        """The member whose path ends in `name`. Raises `FetchError` with reason missing_member."""
        folder = self.members(downloader)
        exact = [path for path in (folder / name, *folder.glob(f"*/{_escaped(name)}")) if path.is_file()]
        wanted = _plain(name)
        found = exact or [path for path in folder.rglob("*") if _plain(path.as_posix()).endswith(f"/{wanted}")]
        if not found:
            raise FetchError("missing_member", f"{self.url} holds no file {name!r}")
        return found[0]


@dataclass(frozen=True)
class Member:
    archive: Archive
    name: str  # or the end of its path

    def get(self, downloader: Downloader) -> tuple[Path, Row]:
        return self.archive.find(downloader, self.name), {}


def unpack(path: Path, folder: Path, kind: str) -> None:
    """Extract an archive, whose kind the end of `kind` says; nothing is written outside `folder`."""
    if kind.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    elif kind.endswith(".7z"):
        try:
            import py7zr
        except ImportError:
            remedy = "install it with `pip install -r requirements/extras.in`"
            raise ConfigError(f"the archive {kind} needs the package py7zr; {remedy}") from None
        try:
            with py7zr.SevenZipFile(path) as archive:
                archive.extractall(folder)
        except py7zr.exceptions.ArchiveError as error:
            raise tarfile.TarError(str(error)) from None
    else:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")


def rejected(item: str, reason: str, detail: str) -> Row:
    """A quarantine row of this stage."""
    return {"item": item, "stage": "fetch", "reason": reason, "detail": detail}


def obtain(
    found: Iterable[Item | Row],
    source: str,
    folder: Path,
    downloader: Downloader,
    wanted: Sequence[str] | None = None,
    engine: Engine = LOCAL,
) -> tuple[list[Row], list[Row]]:
    """Rows and quarantine of all items, which are in order; what a source rejected itself (rows) passes through."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    threads = downloader.settings.concurrency
    if engine.name == LOCAL.name:  # it waits more than it computes: threads of one process do
        one = partial(_row, source=source, folder=folder, downloader=downloader, wanted=wanted)
        results = list(track(threaded(one, found, threads, AHEAD * threads), source, unit="clip"))
    else:
        items = list(found)
        parts = [items[start : start + SHARD_ITEMS] for start in range(0, len(items), SHARD_ITEMS)]
        workers = max(1, min(threads, len(parts), engine.room()))
        made = (source, folder, downloader.folder, downloader.settings, downloader.limits, wanted, threads // workers)
        results = []
        for rows, requests in each(engine, partial(Getter, *made), parts, source, "clip", most=workers):
            results += rows
            downloader.count(requests)
    return [row for row in results if "reason" not in row], [row for row in results if "reason" in row]


class Getter:
    """Items to their rows, and how many requests they took: what a worker of a cluster does, in so many threads."""

    def __init__(
        self,
        source: str,
        folder: Path,
        cache: Path,
        settings: Download,
        limits: Limits,
        wanted: Sequence[str] | None,
        threads: int,
    ) -> None:
        self.downloader, self.threads = Downloader(cache, settings, limits), threads
        self.one = partial(_row, source=source, folder=folder, downloader=self.downloader, wanted=wanted)

    def __call__(self, items: list[Item | Row]) -> tuple[list[Row], int]:
        before = self.downloader.requests
        return list(threaded(self.one, items, self.threads, AHEAD * self.threads)), self.downloader.requests - before


def _row(item: Item | Row, source: str, folder: Path, downloader: Downloader, wanted: Sequence[str] | None) -> Row:
    """A clip's row, or one of quarantine."""
    if not isinstance(item, Item):
        return item
    if item.licence is not None and not licences.allowed(item.licence, wanted):
        return rejected(item.id, "licence", f"its licence is {licences.normalise(item.licence)}")
    try:
        path, facts = item.media.get(downloader)
    except FetchError as error:
        return rejected(item.id, error.reason, error.detail)
    licence = facts.get("licence") or item.licence or "unknown"
    return {
        "id": item.id,
        "source": source,
        "recording_id": item.recording_id,
        "start": None,  # the file is the clip, whole
        "end": None,
        "captions": list(item.captions),
        "labels": list(item.labels),
        "relation": "one" if len(item.labels) == 1 else None,
        "title": item.title,
        "licence": licences.normalise(licence),
        "author": facts.get("author") or item.author,
        "split": item.split,
    } | place(path, folder)


def place(source: Path, folder: Path) -> dict[str, str]:
    """Copy a file to where its content puts it. A copy and never a link: versioning makes its files read-only."""
    digest = file_sha256(source)
    suffix = source.suffix.lower() if source.suffix[1:].isalnum() and source.suffix.isascii() else ""
    path = folder / "audio" / f"{digest[:24]}{suffix[:8]}"
    if not path.exists():
        with replacing(path) as copy:  # a worker that is killed in the middle leaves no half of a file
            shutil.copyfile(source, copy)
    return {"path": f"audio/{path.name}", "sha256": digest}


def decode(data: bytes) -> str:
    """Text of an index: UTF-8, or Latin-1, which some datasets' tables are in."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
