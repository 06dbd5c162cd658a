"""What benchmarks time with, in turns: CPU time of one thread, or on a GPU the wall time between synchronisations.

A busy machine disturbs ratios of what took turns far less than times, so ratios are what is printed.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    """What a call takes."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    began = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return clock() - began


def in_turns(calls: Sequence[Callable[[], object]], rounds: int, device: str = "cpu") -> list[list[float]]:
    """Seconds of each call in each round, after one round that is not counted."""
    found = [[seconds(call, device) for call in calls] for _ in range(rounds + 1)]
    return [list(own) for own in zip(*found[1:], strict=True)]


def ratios(base: Sequence[float], own: Sequence[float]) -> str:
    """How many times as fast as `base`, round by round: min / median / max."""
    quotients = sorted(b / o for b, o in zip(base, own, strict=True))
    return f"{quotients[0]:.2f} / {statistics.median(quotients):.2f} / {quotients[-1]:.2f}"
