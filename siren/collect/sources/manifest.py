"""The rows of a manifest (CSV, JSONL, Parquet), whatever is wrong with it: each is a dictionary or a `BadRow`.

Repaired by rule: a byte-order mark, UTF-16, lines that are Latin-1 and not UTF-8, any end of line, NUL bytes, names of
columns with spaces around them, semicolons or tabs instead of commas, control characters and lone surrogates in texts.
A CSV row that cannot be parsed costs its own line only: reading goes on with the next line, also where a quote that
nobody closed would have swallowed the rest of the file.
"""

import codecs
import csv
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from siren.config import ConfigError

MOST = 10_000  # characters of a text: no caption is longer
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]+")
DELIMITERS = ",;\t"


class BadRow(ValueError):
    """A row of the manifest that cannot be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


Rows = list[tuple[int, dict[str, Any] | BadRow]]


def read(manifest: Path) -> Rows:
    """(line, or row of a Parquet file; values under the manifest's own column names) of every row.

    Raises `BadRow` with reason bad_manifest where not even rows can be found, `ConfigError` for another suffix.
    """
    if manifest.suffix.lower() not in READERS:
        raise ConfigError(f"the manifest {manifest.name} must end in {', '.join(READERS)}")
    try:
        rows = list(READERS[manifest.suffix.lower()](manifest))
    except (pa.ArrowException, OSError) as error:
        raise BadRow("bad_manifest", f"it cannot be read: {clipped(str(error))}") from None
    if not rows:
        raise BadRow("bad_manifest", "it holds no rows")
    return rows


def _lines(manifest: Path) -> list[str]:
    """Lines of a text file with their ends, decoded one by one: one bad byte does not change the others' letters."""
    data = manifest.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return list(io.StringIO(data.decode("utf-16", "replace"), newline=""))
    data = data.removeprefix(codecs.BOM_UTF8)
    return [_decoded(line) for line in re.split(rb"(?<=\n)|(?<=\r)(?!\n)", data) if line]


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _csv(manifest: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    lines = _lines(manifest)
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    if first == len(lines):
        return
    delimiter = max(DELIMITERS, key=lines[first].count) if "," not in lines[first] else ","
    try:
        header, used = _record(lines, first, delimiter)
    except csv.Error as error:
        raise BadRow("bad_manifest", f"its line of column names cannot be parsed: {error}") from None
    names = [name.strip() for name in header]
    if twice := [name for name, count in Counter(names).items() if count > 1 and name]:
        raise BadRow("bad_manifest", f"two columns are called {shown(twice[0])}")
    place = first + used
    while place < len(lines):
        line = place + 1
        if not lines[place].strip():
            place += 1
            continue
        try:
            values, used = _record(lines, place, delimiter)
        except csv.Error as error:
            place += 1
            yield line, BadRow("bad_row", f"it is no row of CSV: {error}")
            continue
        place += used
        if len(values) > len(names):
            detail = f"it has {len(values) - len(names)} more values than there are columns"
            yield line + used - 1, BadRow("bad_row", detail)
        else:
            yield line + used - 1, dict(itertools.zip_longest(names, values))


def _record(lines: list[str], place: int, delimiter: str) -> tuple[list[str], int]:
    """The values of the row that begins at a line, and how many lines it has. Raises `csv.Error`."""
    # Not islice, which would count up to `place` again for every row.
    rest = (lines[number] for number in range(place, len(lines)))
    reader = csv.reader(rest, delimiter=delimiter, strict=True)
    return next(reader), reader.line_num


def _jsonl(manifest: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    for line, text in enumerate(_lines(manifest), 1):
        if not (text := text.replace("\0", "").strip()):
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # also of integers with thousands of digits
            yield line, BadRow("bad_row", f"it is not JSON: {clipped(str(error))}")
            continue
        yield line, values if isinstance(values, dict) else BadRow("bad_row", "it is JSON, but not an object")


def _parquet(manifest: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(manifest.read_bytes()))  # whose errors do not name the machine's paths
    if len(set(table.column_names)) < table.num_columns:
        raise BadRow("bad_manifest", "two columns have one name")
    for line in range(table.num_rows):
        try:
            yield line + 1, table.slice(line, 1).to_pylist()[0]
        except (ValueError, OverflowError, pa.ArrowException) as error:  # text that is not UTF-8, impossible dates
            yield line + 1, BadRow("bad_row", f"a value cannot be read: {clipped(str(error))}")


READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any] | BadRow]]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def text(value: Any, name: str = "a value") -> str:
    """A value as text, without control characters; "" for none. Raises `BadRow` for what is no text or number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = _decoded(value)
    if not isinstance(value, (str, int, float, Decimal)):
        raise BadRow("bad_type", f"{name} is {shown(value)}; it must be text")
    if isinstance(value, str) and len(value) > MOST:
        raise BadRow("too_long_text", f"{name} has {len(value)} characters; at most {MOST}")
    return UNPRINTABLE.sub(" ", str(value)).strip()


def texts(value: Any, name: str, separator: str | None = None) -> list[str]:
    """A list of texts, or one of them, or several in one with a separator. Raises `BadRow` for other types."""
    values = value if isinstance(value, list) else [value]
    if wrong := [one for one in values if not (one is None or _is_text(one))]:
        raise BadRow("bad_type", f"{name} is {shown(wrong[0])}; it must be text, or a list of texts")
    parts = [part for one in values for part in (text(one, name).split(separator) if separator else [text(one, name)])]
    return [part.strip() for part in parts if part.strip()]


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes)) or (isinstance(value, float) and math.isnan(value))


def seconds(value: Any, name: str) -> float | None:
    """A time, or None. Raises `BadRow` for what is none."""
    if not (found := text(value, name)):
        return None
    try:
        number = float(found)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not (math.isfinite(number) and number >= 0):
        raise BadRow("bad_time", f"{name} is {shown(found)}; it must be seconds, 0 or more")
    return number


def shown(value: Any) -> str:
    """A value for people, as Python writes it."""
    return clipped(repr(value), 80)


def clipped(words: str, most: int = 200) -> str:
    """The beginning of a text, without anything unprintable."""
    return UNPRINTABLE.sub(" ", words[:most]) + ("..." if len(words) > most else "")
