"""One flow at a time in a workspace: a lock on a file, which the system releases with the process that holds it."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(root: Path, say: Callable[[str], None], poll_seconds: float = 2.0, every: float = 60.0) -> Iterator[None]:
    """Hold the workspace at `root`; waits for whoever holds it, and says so at once and now and then."""
    path = root / ".siren" / "workspace.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        said = -every
        while not _taken(file.fileno()):
            if time.monotonic() - said >= every:
                file.seek(0)
                say(f"another run ({file.read().strip()}) works in {root}; waiting for it to end")
                said = time.monotonic()
            time.sleep(poll_seconds)
        file.truncate(0)
        file.write(f"pid {os.getpid()}, since {time.strftime('%F %T')}")
        file.flush()
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
