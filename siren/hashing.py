"""Hashes that name things: files, settings, and the random stream of one item. Imports nothing heavy."""

import hashlib
import json
from pathlib import Path
from typing import Any

from siren.atomic import write_text


def file_sha256(path: str | Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path, memory: Path) -> str:
    """The same, looked up in the JSON file `memory` while the file's inode, size and time of change stay.

    As DVC does it: reading all shards of a corpus takes minutes. Several processes may do so at once; then what one of
    them has just read may be forgotten, and is read again.
    """
    stat = path.stat()
    state = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
    try:
        known = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    key = str(path.resolve())
    if (found := known.get(key)) and found[:-1] == state:
        return str(found[-1])
    known[key] = [*state, file_sha256(path)]
    write_text(memory, json.dumps(known, indent=0))
    return str(known[key][-1])


def digest(data: Any) -> str:
    """A short hash of plain data, for telling one run's settings and inputs from another's."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def item_seed(seed: int, *names: str | int) -> int:
    """A seed for one item of a run: a hash of the run's seed and the item's name. 63 bits."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
