"""Files and folders that are whole or not there, whenever the process dies. Imports nothing heavy."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = ".partial"
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.[a-z]+")


@contextmanager
def replacing(path: str | Path, sync: bool = False, suffix: str = MARK) -> Iterator[Path]:
    """A path to write a file or a folder at, which takes the place of `path` when the block ends well.

    It lies in the same folder, because a rename is one step only within a file system. Its name is hidden, and its
    own for each writer, who may be a thread or on another machine. What a killed writer leaves there is never read.
    A folder can only take the place of none, or of an empty one.

    sync: the bytes of a file are on the disk before the rename, so that it survives the machine as well.
    suffix: for writers that take a file's format from its name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:40]}.{os.urandom(8).hex()}{suffix}")  # names may be as long as is allowed
    try:
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, sync: bool = False) -> None:
    """UTF-8, in one step; the folder is made."""
    with replacing(path, sync) as partial:
        partial.write_text(text, encoding="utf-8")


def leftovers(folder: Path) -> list[Path]:
    """What writers that were killed left in `folder` and below it."""
    return sorted(path for path in folder.rglob(".*") if UNFINISHED.fullmatch(path.name))
