"""One flow at a time in a workspace, and which one it was."""

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


@contextmanager
def signed(root: Path, run: str) -> Iterator[str | None]:
    """Leave the id of a flow run in the workspace while it works; yields that of one which never took its own back."""
    path = root / ".siren" / "flow-run"
    before = path.read_text().strip() if path.is_file() else None
    path.write_text(run)
    try:
        yield before
    finally:
        path.unlink(missing_ok=True)
