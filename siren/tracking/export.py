"""The exporter: one background process per project that mirrors the local records of runs to MLflow.

The first stage starts it, detached, unless one is alive (a lock on `.siren/exporter.lock` that the system releases
with the process). It follows every unfinished record, sends what is new in batches, marks runs whose process died,
waits out a server that does not answer, and leaves when nothing has happened for half a minute. What it has not sent
when it leaves is sent by the next one, or by `siren track flush`. One process pays for importing mlflow, once for all
stages, and no stage ever waits for a server.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from siren.tracking import lineage, locks, mirror, records, store

IDLE_SECONDS = 30.0  # without unfinished runs
PATIENCE_SECONDS = 600.0  # with a store that does not answer, after the last stage has ended
POLL_SECONDS = 1.0
LONGEST_WAIT = 30.0  # between two tries of a store that does not answer


def start(root: Path) -> None:
    """Start the exporter of the project at `root` unless one is alive; takes milliseconds.

    Never with `SIREN_EXPORT=0`, or where MLflow is not installed: `siren track import` brings those records to it.
    """
    with exclusive(root) as free:
        pass
    if not free or os.environ.get("SIREN_EXPORT") == "0" or importlib.util.find_spec("mlflow") is None:
        return
    command = [sys.executable, "-m", "siren.tracking.export", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(root / ".siren" / "exporter.log", "a") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    process.returncode = 0  # it outlives this process; without this, Popen complains that nobody waited for it


def flush(root: Path, timeout: float = 120.0, uri: str | None = None) -> int:
    """Return when every record, as far as it goes by now, is in MLflow: the number of records.

    Does the work here if no exporter is alive, else waits for it. Raises ValueError when the store does not answer
    within `timeout` seconds; nothing is lost then, and a later flush continues. With `uri` only the records of that
    store count: another one that is gone keeps nobody waiting.
    """
    deadline = time.monotonic() + timeout
    exporter: Exporter | None = None
    while True:
        with exclusive(root) as mine:
            if mine:
                exporter = exporter or Exporter(root, uri)
                exporter.sweep()
        ours = [f for f in records.folders(root) if uri in (None, records.store_of(f))]
        waiting = [f for f in ours if not records.caught_up(f)]
        if not waiting:
            break
        if time.monotonic() > deadline:
            why = f": {exporter.trouble}" if exporter and exporter.trouble else ""
            stores = sorted({records.store_of(folder) for folder in waiting})
            raise ValueError(
                f"{len(waiting)} runs could not be sent to MLflow within {timeout:.0f} s{why}; they are kept in "
                f"{root / '.siren' / 'runs'}, and `siren track flush` sends them once {' and '.join(stores)} answers; "
                f"where that is gone for good, `siren track flush --redirect {stores[0]}` sends them to the "
                "present one (MLFLOW_TRACKING_URI)"
            )
        time.sleep(0.2)
    if any(not records.read_state(folder)["done"] for folder in records.folders(root)):
        start(root)  # a stage that began meanwhile found the lock taken
    return len(ours)


def redirect(root: Path, old: str, timeout: float = 120.0) -> int:
    """Give the records of the store at `old` to the project's present one, as if nothing had been sent: how many.

    The exporter leaves first. Raises ValueError where it does not within `timeout` seconds, where there are none, where
    `old` is the present store, or where a stage at work writes one: it would write the old store back when it ends.
    """
    new = store.address(root)
    if new == old:
        raise ValueError(f"{old} is the present store; set MLFLOW_TRACKING_URI to the one that its runs shall go to")
    deadline = time.monotonic() + timeout
    with locks.share(_leaving(root)):
        while True:
            with exclusive(root) as mine:
                if mine:
                    return records.redirect(root, old, new)
            if time.monotonic() > deadline:
                raise ValueError(f"the exporter is still busy after {timeout:.0f} s; nothing was changed, try again")
            time.sleep(0.2)


class Exporter:
    """Sweeps over the records of a project; remembers which are done, and when to try again where a store failed."""

    def __init__(self, root: Path, only: str | None = None) -> None:
        self.root = root
        self.only = only  # the store that it serves; None: all
        self.folder = root.stat().st_ino
        self.mirrors: dict[tuple[str, str], mirror.Mirror] = {}
        self.waits: dict[str, tuple[float, float]] = {}  # store or record → (when to try again, seconds waited)
        self.done: dict[str, dict[str, Any]] = {}  # records that need nothing more
        self.seen: set[str] = set()
        self.trouble = ""

    def until_idle(self) -> None:
        """Sweep until there is nothing to wait for any more, or a store has not answered for too long."""
        busy = living = time.monotonic()  # when something was last unfinished; when it last was alive, or nothing was
        unfinished = 1
        while (unfinished or time.monotonic() - busy < IDLE_SECONDS) and self.there():
            unfinished, alive = self.sweep()
            busy = time.monotonic() if unfinished else busy
            living = time.monotonic() if alive or not unfinished else living
            if time.monotonic() - living > PATIENCE_SECONDS:
                return
            time.sleep(POLL_SECONDS)

    def there(self) -> bool:
        """Whether the folder is the one it was, since another at the same path has an exporter and a lock of its own,
        and nobody wants the records to himself."""
        try:
            if self.root.stat().st_ino != self.folder:
                return False
        except FileNotFoundError:
            return False
        with locks.attempt(_leaving(self.root)) as free:
            return free

    def sweep(self) -> tuple[int, bool]:
        """Send what is new. Returns how many records and pipelines are unfinished, and whether any process lives."""
        unfinished, living = 0, False
        found: list[dict[str, Any]] = []
        moving: set[str] = set()  # pipelines of records that were not done before
        for folder in records.folders(self.root):
            self.seen.add(folder.name)
            if folder.name in self.done:
                found.append(self.done[folder.name])
                continue
            record, state = records.read_record(folder), records.read_state(folder)
            found.append(record)
            moving.add(record["pipeline"]["id"])
            if not state["done"]:
                self._attempt(record["store"], record["id"], self._advance, folder, record, state)
            if state["done"]:
                self.done[folder.name] = record
            unfinished += not state["done"]
            living |= record["status"] == records.RUNNING
        for note in records.pipeline_notes(self.root):
            if note["status"] == records.RUNNING or note["id"] in moving:
                stages = [r for r in found if r["pipeline"]["id"] == note["id"]]
                self._attempt(note["store"], note["id"], self._settle, note, stages)
                unfinished += note["status"] == records.RUNNING
                living |= lineage.alive(note["process"])
        return unfinished, living

    def _advance(self, folder: Path, record: dict[str, Any], state: dict[str, Any]) -> None:
        target = self._mirror(record["store"], record["experiment"])
        target.export(folder, record, state)
        if record["status"] != records.RUNNING and lineage.taken_over(self.root, record):
            target.finish(folder, record, state)

    def _settle(self, note: dict[str, Any], stages: list[dict[str, Any]]) -> None:
        self._mirror(note["store"], note["experiment"]).settle(note, stages)

    def _mirror(self, uri: str, experiment: str) -> mirror.Mirror:
        if (uri, experiment) not in self.mirrors:
            self.mirrors[uri, experiment] = mirror.Mirror(self.root, uri, experiment)
        return self.mirrors[uri, experiment]

    def _attempt(self, uri: str, item: str, action: Callable[..., None], *arguments: Any) -> None:
        """Do it, unless it or the store at `uri` failed a moment ago. A failure is waited out, longer each time."""
        if self.only not in (None, uri):
            return
        if any(time.monotonic() < self.waits.get(key, (0.0, 0.0))[0] for key in (uri, item)):
            return
        try:
            action(*arguments)
            self.waits.pop(uri, None)
            self.waits.pop(item, None)
        except Exception as error:  # whatever a store, a network or a proxy may raise
            key = uri if mirror.unreachable(error) else item
            wait = min(LONGEST_WAIT, max(1.0, 2 * self.waits.get(key, (0.0, 0.0))[1]))
            self.waits[key] = (time.monotonic() + wait, wait)
            self.trouble = f"{item}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            print(f"{time.strftime('%F %T')} {self.trouble}; again in {wait:.0f} s", file=sys.stderr, flush=True)


def exclusive(root: Path) -> AbstractContextManager[bool]:
    """Whether this process now is the project's only exporter; the lock goes with the block, or with the process."""
    return locks.attempt(root / ".siren" / "exporter.lock")


def _leaving(root: Path) -> Path:
    """The lock that is held by those for whom the exporter shall leave."""
    return root / ".siren" / "exporter-leaves.lock"


def main(root: Path) -> None:
    """The exporter's process. A stage that starts while this one is leaving still finds the lock taken: look again."""
    while True:
        with exclusive(root) as mine:
            if not mine:
                return
            exporter = Exporter(root)
            exporter.until_idle()
        if not exporter.there() or all(folder.name in exporter.seen for folder in records.folders(root)):
            return


if __name__ == "__main__":
    os.nice(10)
    main(Path(sys.argv[1]))
