"""Progress for every loop that a person may wait for: a bar with rate and ETA, or in a log a line now and then.

Of the processes that torchrun starts together, only the first speaks.
"""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def track(
    items: Iterable[Item],
    label: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    sizes: Iterable[int] | None = None,
) -> Iterator[Item]:
    """Yield `items` while showing how many of `total` are done, the rate and the time left (on standard error).

    With `sizes` each item counts for so many.
    """
    terminal = sys.stderr.isatty()
    if total is None and isinstance(items, Sized):
        total = len(items)
    with tqdm(
        desc=label,
        total=total,
        initial=initial,
        unit=unit,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 10.0,
        leave=True,
        smoothing=0.05,
        disable=_silent or not _speaks(),
    ) as bar:
        for item, size in zip(items, itertools.repeat(1) if sizes is None else sizes, strict=False):
            yield item
            bar.update(size)


def notice(text: str) -> None:
    """Something that a person should know, on standard error."""
    if _speaks():
        print(text, file=sys.stderr)


def silence() -> None:
    """No bars from this process: another one shows those of the whole."""
    global _silent
    _silent = True


_silent = False


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"
