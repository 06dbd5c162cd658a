"""Your own sounds: a folder with a manifest (CSV, JSONL or Parquet) that names a file and a caption in each row.

Columns: `file` (path below the folder) and `caption` or `label` (with `described: false`, neither has to be there);
optional `split` (train, val, test), `licence`, `id`, `recording_id` or `source_id` (clips cut from one recording share
it), `author`, `title`, `relation`, `start` and `end` (seconds: the part of the file to use). Several labels are a list,
or separated by ";". Rows with the same file are one clip with several captions. A missing column is an error; a bad row
is quarantined with its reason and its line in the manifest, and a manifest without rows (`manifest.py`) is one bad row.
Files are copied under a name made of their content, so names in the folder may be anything; ids become names of files:
what those cannot hold is replaced by "_".
"""

import difflib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from siren.collect.fetch.media import place
from siren.collect.sources import manifest as manifests
from siren.collect.sources.manifest import BadRow, clipped, seconds, shown, text, texts
from siren.config import Audio, ConfigError, require
from siren.engine import LOCAL, Engine, each, ranges
from siren.progress import notice, track

OPTIONAL = ("caption", "label", "split", "licence", "id", "recording_id", "source_id", "author", "relation", "title")
COLUMNS = ("file", *OPTIONAL, "start", "end")
SPLITS = {"train": "train", "training": "train", "dev": "train", "development": "train"}
SPLITS |= {"val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test", "eval": "test", "evaluation": "test"}
ONE_TEXT = ("id", "recording_id", "source_id", "split", "relation", "licence", "author", "title")
RELATIONS = ("one", "while", "then")
AT_ONCE = 256  # files that one process copies between two reports
EXAMPLE = "{file: name_in_your_manifest}"
LONGEST_ID = 150  # bytes: with what is added to it, below the 255 of file systems


@dataclass(frozen=True)
class Options:
    path: str  # the folder
    manifest: str = "manifest.csv"  # below the folder, or an absolute path
    name: str | None = None  # the source's name; the folder's without it
    columns: dict[str, str] = field(default_factory=dict)  # our name: the manifest's name
    where: dict[str, Any] = field(default_factory=dict)  # only rows with these values (or one of a list of values)
    licence: str = "unknown"  # for rows that name none
    limit: int | None = None  # at most so many clips
    limit_per_label: int | None = None
    val_share: float = 0.1  # of the recordings, where the manifest has no column `split`
    test_share: float = 0.1
    described: bool = True  # a row has a caption or a label; else a captioner that hears says what there is

    def __post_init__(self) -> None:
        for key in self.columns:
            require(key in COLUMNS, f"option `columns` of the folder source has {key!r}; known: {', '.join(COLUMNS)}")
        shares = self.val_share, self.test_share
        require(min(shares) >= 0 and sum(shares) < 1, f"val_share and test_share are {shares}; together below 1")


def fetch(
    options: dict[str, Any], folder: Path, audio: Audio, seed: int, engine: Engine = LOCAL
) -> tuple[list[dict], list[dict]]:
    """The source: copies what the manifest names under `folder/audio`; rows for the corpus, and what was left out.

    Raises `ConfigError` for unknown options, no manifest or a missing column.
    """
    settings = _options(options)
    root = Path(settings.path).expanduser()
    require(root.is_dir(), f"the folder source has path {settings.path!r}; there is no such folder")
    manifest = root / settings.manifest
    require(manifest.is_file(), f"the folder {settings.path!r} has no manifest {settings.manifest!r}")
    name = settings.name or root.resolve().name
    clips: dict[str, dict[str, Any]] = {}  # by id
    files: dict[tuple[Path, float | None, float | None], str] = {}
    bad: list[dict[str, str]] = []
    taken: Counter[str] = Counter()
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    try:
        rows = list(_rows(manifest, settings))
    except BadRow as error:
        notice(f"{name}: nothing of {manifest.name} is used: {error}")
        return [], [_quarantined(None, None, manifest.name, error)]
    for line, values in track(rows, name, unit="row"):
        try:
            if isinstance(values, BadRow):
                raise values
            if not _wanted(values, settings.where):
                continue
            clip = _clip(values, root, f"{name}-{line:06d}", name, settings)
            source = clip.pop("file")
            part = (source, clip["start"], clip["end"])
            if part in files:
                _merge(clips[files[part]], clip)
                continue
            if clip["id"] in clips:
                raise BadRow("duplicate_id", f"id {clip['id']!r} was used by an earlier row with another file")
            key = " ".join(clip["labels"])
            full = settings.limit is not None and len(clips) >= settings.limit
            if full or (settings.limit_per_label is not None and taken[key] >= settings.limit_per_label):
                continue
            _readable(source)
            clips[clip["id"]] = clip
            files[part] = clip["id"]
            taken[key] += 1
        except BadRow as row:
            bad.append(_quarantined(values, line, manifest.name, row))
    sources = list(dict.fromkeys(source for source, _, _ in files))
    parts = [sources[rows.start : rows.stop] for rows in ranges(len(sources), AT_ONCE)]
    copies = each(engine, partial(Copier, folder), parts, f"copy {name}", "file")
    placed = dict(zip(sources, itertools.chain.from_iterable(copies), strict=True))
    found = [clips[clip] | placed[source] for (source, _, _), clip in files.items()]
    _assign_splits(found, settings, seed)
    return found, bad


def _options(options: dict[str, Any]) -> Options:
    known = [f.name for f in fields(Options)]
    if wrong := sorted(set(options) - set(known)):
        raise ConfigError(f"the folder source has no option {wrong[0]!r}; known: {', '.join(known)}")
    require("path" in options, "the folder source needs the option `path`")
    return Options(**options)


def _rows(manifest: Path, settings: Options) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(line, values under our column names) of every row."""
    table = manifests.read(manifest)
    found: dict[str, None] = {}
    for _, values in table:
        if isinstance(values, dict):
            found |= dict.fromkeys(values)
    names = {name: settings.columns.get(name, name) for name in COLUMNS}
    if "license" in found and "licence" not in found:
        names["licence"] = settings.columns.get("licence", "license")
    if found:
        _check_columns(manifest, names, list(found), settings)
    for line, values in table:
        if isinstance(values, dict):
            values = values | {ours: values.get(theirs) for ours, theirs in names.items()}
        yield line, values


def _check_columns(manifest: Path, names: dict[str, str], found: list[str], settings: Options) -> None:
    missing = [names["file"]] if names["file"] not in found else []
    nothing = names["caption"] not in found and names["label"] not in found
    if settings.described and nothing:
        missing.append(names["caption"])
    missing += [theirs for theirs in settings.columns.values() if theirs not in found and theirs not in missing]
    missing += [key for key in settings.where if key not in found]
    if missing:
        near = {name: difflib.get_close_matches(name, found, n=1, cutoff=0.4) for name in missing}
        hints = "; ".join(f"nearest to {name!r} is {close[0]!r}" for name, close in near.items() if close)
        raise ConfigError(
            f"{manifest.name} has no column {', '.join(map(repr, missing))}; it has {', '.join(found) or 'none'}"
            f"{'; ' + hints if hints else ''}; other names are given with the option columns: {EXAMPLE}"
            f"{'; of sounds without any text: described: false' if settings.described and nothing else ''}"
        )


def _wanted(values: dict[str, Any], where: dict[str, Any]) -> bool:
    def one_of(key: str, wanted: Any) -> bool:
        return text(values.get(key), key) in {text(one) for one in (wanted if isinstance(wanted, list) else [wanted])}

    return all(one_of(key, wanted) for key, wanted in where.items())


def _clip(values: dict[str, Any], root: Path, default_id: str, source: str, settings: Options) -> dict[str, Any]:
    path = _path(values["file"], root)
    said = {name: text(values[name], name) for name in ONE_TEXT}
    captions, labels = texts(values["caption"], "caption"), texts(values["label"], "label", ";")
    if settings.described and not captions and not labels:
        raise BadRow(
            "empty_caption", "it has neither a caption nor a label; for a captioner that hears: described: false"
        )
    split, relation = said["split"].lower(), said["relation"].lower()
    if split and split not in SPLITS:
        raise BadRow("bad_split", f"split is {shown(split)}; it must be train, val or test")
    if relation and relation not in RELATIONS:
        raise BadRow("bad_relation", f"relation is {shown(relation)}; it must be {', '.join(RELATIONS)} or empty")
    start, end = seconds(values["start"], "start"), seconds(values["end"], "end")
    if end is not None and end <= (start or 0):
        raise BadRow("bad_time", f"end {end:g} s is not after start {start or 0:g} s")
    below = text(path.relative_to(root.resolve()).as_posix())
    return {
        "id": _id(said["id"]) or default_id,
        "file": path,
        "source": source,
        "recording_id": said["recording_id"] or said["source_id"] or f"{source}:{below}",
        "start": start,
        "end": end,
        "captions": captions,
        "labels": labels,
        "relation": relation or ("one" if len(labels) == 1 else None),
        "title": said["title"] or None,
        "licence": said["licence"] or settings.licence,
        "author": said["author"] or None,
        "split": SPLITS.get(split),
    }


def _id(name: str) -> str:
    """An id that may be the name of a file. Raises `BadRow` for one that is too long."""
    if len(name.encode()) > LONGEST_ID:
        raise BadRow("bad_id", f"id {shown(name)} has {len(name.encode())} bytes; at most {LONGEST_ID}")
    return re.sub(r"[/\\]|^\.+", "_", name)


def _path(name: Any, root: Path) -> Path:
    """The file that a row names. Raises `BadRow` when there is none, or when it lies outside the folder."""
    if isinstance(name, bytes) or not isinstance(name, str):
        name = text(name, "file")
    name = name.strip()
    if not name or "\0" in name:
        raise BadRow("bad_row", "it names no file")
    if len(name) > manifests.MOST:
        raise BadRow("too_long_text", f"file {shown(name)} has {len(name)} characters; at most {manifests.MOST}")
    try:
        found = [(root / form(name)).resolve() for form in (str, _composed, _decomposed)]
        path = next((path for path in found if path.exists()), found[0])
        if not path.is_relative_to(root.resolve()):
            raise BadRow("path_escapes", f"file {shown(name)} lies outside the folder")
        if path.is_file():
            return path
        exists, siblings = path.exists(), _siblings(path)
    except (OSError, RuntimeError, UnicodeEncodeError) as error:  # too long, links in a circle, no permission
        raise BadRow("unreadable", f"file {shown(name)} cannot be opened: {_why(error)}") from None
    if exists:
        raise BadRow("not_a_file", f"{shown(name)} is a folder, a device or a pipe")
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.8)
    hint = f"; there is {shown(near[0])}" if near else ""
    raise BadRow("missing_file", f"file {shown(name)} does not exist{hint}")


def _readable(source: Path) -> None:
    """Raises `BadRow` where a file cannot be opened."""
    try:
        source.open("rb").close()
    except OSError as error:
        raise BadRow("unreadable", f"file {shown(source.name)} cannot be opened: {_why(error)}") from None


class Copier:
    """Files to their copies: where each lies, and its hash. Raises the system's error where nothing can be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, sources: list[Path]) -> list[dict[str, str]]:
        return [place(source, self.folder) for source in sources]


def _composed(name: str) -> str:
    """The accents that another system writes in another way: macOS decomposes them."""
    return unicodedata.normalize("NFC", name)


def _decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or clipped(str(error))


def _siblings(path: Path) -> list[str]:
    return [other.name for other in itertools.islice(path.parent.iterdir(), 500)] if path.parent.is_dir() else []


def _merge(clip: dict[str, Any], other: dict[str, Any]) -> None:
    """Another row with the file of `clip`: its caption is one more wording."""
    for key in ("split", "recording_id"):
        if other[key] != clip[key]:
            raise BadRow("duplicate_file", f"its file was used by {clip['id']!r} with another {key}")
    for key in ("captions", "labels"):
        clip[key] += [text for text in other[key] if text not in clip[key]]


def _assign_splits(clips: list[dict[str, Any]], settings: Options, seed: int) -> None:
    """Give clips without a split one: whole recordings are drawn for validation and test, the rest trains."""
    given = {clip["recording_id"]: clip["split"] for clip in clips if clip["split"]}
    open_ = sorted({clip["recording_id"] for clip in clips} - set(given))
    order = np.random.default_rng([seed, 7]).permutation(len(open_))
    num_val, num_test = (
        (min(len(open_) // 3, max(1, round(share * len(open_)))) if share > 0 and not given else 0)
        for share in (settings.val_share, settings.test_share)
    )
    drawn = dict.fromkeys(open_, "train") | given
    for rank, index in enumerate(order[: num_val + num_test]):
        drawn[open_[index]] = "val" if rank < num_val else "test"
    for clip in clips:
        clip["split"] = clip["split"] or drawn[clip["recording_id"]]


def _quarantined(values: Any, line: int | None, manifest: str, row: BadRow) -> dict[str, str]:
    named = (values.get("id") or values.get("file")) if isinstance(values, dict) else None
    item = clipped(named.strip()) if isinstance(named, str) else named if isinstance(named, int) else None
    place = manifest if line is None else f"{manifest} line {line}"
    return {
        "item": str(item or (manifest if line is None else f"{manifest}:{line}")),
        "stage": "fetch",
        "reason": row.reason,
        "detail": f"{place}: {row}",
    }
