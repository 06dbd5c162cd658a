"""One flow at a time in a workspace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from siren.tracking import locks


@contextmanager
def exclusive(root: Path, say: Callable[[str], None], poll_seconds: float = 2.0) -> Iterator[None]:
    """Hold the workspace at `root`; waits for whoever holds it, and says so at once and now and then."""

    def busy(holder: str) -> None:
        say(f"another run ({holder}) works in {root}; waiting for it to end")

    with locks.hold(root / ".siren" / "workspace.lock", busy, poll_seconds):
        yield
