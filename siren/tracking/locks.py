"""Locks on files: the system releases them with the process that holds them, however that ends."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def place(root: Path, name: str) -> Path:
    """Where the lock of the stage or experiment `name` lies in the project at `root`."""
    return root / ".siren" / "locks" / f"{name}.lock"


@contextmanager
def attempt(path: Path) -> Iterator[bool]:
    """Whether this process now holds the lock at `path`, which goes with the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        yield _taken(file.fileno())


@contextmanager
def hold(path: Path, say: Callable[[str], None], poll_seconds: float = 2.0, every: float = 60.0) -> Iterator[None]:
    """Hold the lock at `path`; waits for whoever holds it, and says for whom at once and now and then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        said = -every
        while not _taken(file.fileno()):
            if time.monotonic() - said >= every:
                file.seek(0)
                say(file.read().strip())
                said = time.monotonic()
            time.sleep(poll_seconds)
        file.truncate(0)
        file.write(f"pid {os.getpid()}, since {time.strftime('%F %T')}")
        file.flush()
        yield


@contextmanager
def share(path: Path) -> Iterator[None]:
    """Hold the lock at `path` beside others who share it, so that nobody can have it alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
