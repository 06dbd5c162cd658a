"""What stands around a stage while it works: room on the disk, nobody else at it, its output kept, its machine watched.

A stage that DVC started ends when that DVC is gone (killed, out of memory): otherwise the next `dvc repro` would run
the stage a second time beside it, and both would write the same files.
"""

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from siren.progress import notice
from siren.tracking import lineage, locks

SYSTEM_SECONDS = 10.0  # between two looks at the machine, as MLflow does
ALIVE_SECONDS = 1.0
FLOOR_BYTES = 64 * 2**20  # for records and what a stage writes before its outputs
GIGABYTE = 1e9


@contextmanager
def guard(name: str) -> Iterator[None]:
    """The stage `name` runs once at a time in a workspace, and only with room for what it will write."""

    def busy(holder: str) -> None:
        notice(f"siren: the stage {name} is at work in this workspace already ({holder}); waiting for it to end")

    with locks.hold(locks.place(Path.cwd(), name), busy, poll_seconds=0.5):
        room(Path.cwd(), name)
        yield


def room(folder: Path, name: str, free: int | None = None) -> None:
    """Raise OSError where the disk has less room than the outputs of `name` took when it was last run (dvc.lock).

    DVC moves outputs to its cache and links or copies them back, so that room for one more copy is asked for.
    """
    free = shutil.disk_usage(folder).free if free is None else free
    needed = FLOOR_BYTES + 2 * lineage.out_bytes(folder, name)
    if free < needed:
        raise OSError(
            f"the stage {name} needs about {needed:,} bytes in {folder}, and {free:,} are free; `siren gc` shows what "
            "can go, or keep data/, models/ and .dvc/cache on a larger disk by links"
        )


class Tee:
    """A text stream whose whole lines are also handed to `keep`; of a progress bar the last state."""

    def __init__(self, stream: TextIO, keep: Callable[[str], None]) -> None:
        self.stream, self.keep, self.line = stream, keep, ""

    def write(self, text: str) -> int:
        done = self.stream.write(text)
        *lines, rest = (self.line + text).split("\n")
        for line in lines:
            self.keep(_last_state(line))
        self.line = _last_state(rest) + ("\r" if rest.endswith("\r") else "")  # what comes next is written over it
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Keep what this process prints, and the traceback of what ends it, in the file at `path` as well."""
    with open(path, "ab", buffering=0) as file:

        def keep(text: str) -> None:
            with suppress(OSError):  # a full disk: what the stage itself writes next will say so
                file.write(f"{text.rstrip()}\n".encode(errors="replace"))

        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = tees = Tee(streams[0], keep), Tee(streams[1], keep)
        try:
            yield
        except BaseException:
            keep(traceback.format_exc())
            raise
        finally:
            sys.stdout, sys.stderr = streams
            for tee in tees:
                if tee.line:
                    keep(_last_state(tee.line))


def _last_state(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]


@contextmanager
def heartbeat(dvc: dict[str, Any] | None, log: Callable[[int, dict[str, float]], None]) -> Iterator[None]:
    """While the block runs: `log` the machine's load every SYSTEM_SECONDS, and end this process with its DVC.

    One thread; a look costs less than a millisecond.
    """
    done = threading.Event()

    def beat() -> None:
        began = looked = time.monotonic()
        machine = Machine()
        while not done.wait(ALIVE_SECONDS):
            if dvc is not None and lineage.known() and not lineage.alive(dvc):
                print("siren: the dvc that started this stage is gone; the stage ends", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if time.monotonic() - looked >= SYSTEM_SECONDS:
                looked = time.monotonic()
                try:
                    log(round(looked - began), machine.look())
                except OSError:  # a full disk: the stage itself will find that out
                    continue

    thread = threading.Thread(target=beat, name="siren-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Machine:
    """The load of this process: CPU (percent of one core), memory and accelerator memory (GB), room on the disk."""

    def __init__(self) -> None:
        self.last = time.monotonic(), time.process_time()

    def look(self) -> dict[str, float]:
        now = time.monotonic(), time.process_time()
        share = (now[1] - self.last[1]) / max(now[0] - self.last[0], 1e-9)
        self.last = now
        found = {"cpu_percent": 100 * share, "disk_free_gigabytes": shutil.disk_usage(".").free / GIGABYTE}
        if resident := lineage.resident_bytes():
            found["memory_gigabytes"] = resident / GIGABYTE
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            found["gpu_memory_gigabytes"] = torch.cuda.memory_allocated() / GIGABYTE
            found["gpu_memory_peak_gigabytes"] = torch.cuda.max_memory_allocated() / GIGABYTE
        return {f"system/{key}": value for key, value in found.items()}
