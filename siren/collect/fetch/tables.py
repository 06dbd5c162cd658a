"""Rows of a dataset's table to items: a bad row is quarantined with its line, a table of another layout is an error."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from siren.collect.fetch.media import Item, Row, rejected
from siren.collect.fetch.videos import ID


def items(
    text: str,
    name: str,
    columns: Sequence[str],
    make: Callable[[dict[str, str]], Item],
    header: bool = True,
    spaced: bool = False,
) -> Iterator[Item | Row]:
    """`make` of every row of a CSV text (see `rows`); what it raises as ValueError becomes a quarantine row."""
    for line, row in rows(text, name, columns, header, spaced):
        try:
            if isinstance(row, Exception):
                raise ValueError(str(row))
            yield make(row)
        except ValueError as error:
            yield rejected(f"{name}:{line}", "bad_row", f"{name} line {line}: {error}")


def rows(
    text: str, name: str, columns: Sequence[str], header: bool = True, spaced: bool = False
) -> Iterator[tuple[int, dict[str, str] | Exception]]:
    """(line, values by column) of every row of a CSV text, or what is wrong with it.

    Without a header, `columns` are the names in order. `spaced`: blanks follow the commas, as in AudioSet's lists.
    Lines that begin with # are left out. Raises ValueError where a column is missing.
    """
    lines = io.StringIO(text.replace("\0", ""), newline="")
    reader = csv.DictReader(lines, None if header else list(columns), skipinitialspace=spaced)
    found = list(reader.fieldnames or [])
    missing = [column for column in columns if column not in found]
    if missing:
        has = ", ".join(found) or "none"
        raise ValueError(f"{name} has no column {missing[0]!r}; it has {has}: is it the dataset's own table?")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, error
            continue
        if (row[found[0]] or "").startswith("#"):
            continue
        absent = [column for column in columns if row[column] is None]
        if absent:
            yield reader.line_num, ValueError(f"it ends before {absent[0]!r}")
        else:
            yield reader.line_num, {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}


def merged(found: Iterable[Item | Row]) -> Iterator[Item | Row]:
    """Items of one id as one, with the captions of all: tables with a row for each caption."""
    clips: dict[str, Item] = {}
    for item in found:
        if not isinstance(item, Item):
            yield item
        elif item.id in clips:
            clips[item.id] = replace(clips[item.id], captions=[*clips[item.id].captions, *item.captions])
        else:
            clips[item.id] = item
    yield from clips.values()


def seconds(text: str) -> float:
    """A time. Raises ValueError for what is none."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{text!r} is no time in seconds")
    return value


def video_id(text: str) -> str:
    """A YouTube id. Raises ValueError for what is none."""
    if not ID.fullmatch(text):
        raise ValueError(f"{text!r} is no YouTube id")
    return text


def described(text: str) -> str:
    """A caption. Raises ValueError for an empty one."""
    if not text:
        raise ValueError("its caption is empty")
    return text
