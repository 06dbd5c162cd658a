"""What tracking costs a training: CPU time of steps that report to it, beside the same steps that report to a list.

    python bench/tracking.py --quick     # half a minute
    python bench/tracking.py             # five minutes

The server is dead (nothing listens at its port), the exporter is a real process that tries to reach it, and every step
reports six figures. The clock is the CPU time of this process, all threads. `overhead_percent` is the time of a report,
over 2000 of them, by that of a step; `pairs_percent` says the same of blocks of steps that take turns with and without
reports (quartiles and median), which on a busy machine is noise of several percent. The exporter's own CPU time is
printed too.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from siren import config, tracking

ROOT = Path(__file__).resolve().parents[1]
DEAD = "http://127.0.0.1:9"


def training(width: int = 256, batch: int = 24) -> Callable[[], dict[str, float]]:
    """One step of a small network, tens of milliseconds on a core → its figures."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)]
    net, inputs = torch.nn.Sequential(*layers), torch.randn(batch * 16, width)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)

    def step() -> dict[str, float]:
        loss = (net(inputs) - inputs).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {f"codebook_{k}": loss.item() for k in range(6)}

    return step


def measure(blocks: int, steps: int) -> dict[str, float]:
    """Ratios of CPU time, tracked over untracked, of `blocks` pairs of `steps` steps."""
    step, listed, ratios, each = training(), [], [], []
    with tracking.stage("stage1@0", config.load(ROOT / "params.yaml")) as run:
        for _ in range(5):
            step()
        for block in range(blocks):
            spent = {}
            for tracked in (True, False) if block % 2 else (False, True):
                began = time.process_time()
                for number in range(steps):
                    figures = step()
                    if tracked:
                        run.log(block * steps + number, figures)
                    else:
                        listed.append(figures)
                spent[tracked] = time.process_time() - began
            ratios.append(spent[True] / spent[False])
            each.append(spent[False] / steps)
        figures, began = step(), time.process_time()
        for number in range(2000):
            run.log(number, figures)
        log = (time.process_time() - began) / 2000
        lines = (run.folder / "metrics.jsonl").read_text().count("\n")
    assert lines >= blocks * steps  # nothing was lost
    low, _, high = statistics.quantiles(ratios, n=4)
    middle = statistics.median(each)
    return {
        "log_microseconds": round(1e6 * log, 1),
        "step_milliseconds": round(1000 * middle, 2),
        "overhead_percent": round(100 * log / middle, 2),
        "pairs_percent": [round(100 * (ratio - 1), 2) for ratio in (low, statistics.median(ratios), high)],
        "steps": blocks * steps,
    }


def exporter(folder: Path) -> float:
    """CPU seconds of the exporter of the project at `folder`, which is ended."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[2:4] == ["siren.tracking.export", str(folder)]:
            spent = sum(process.cpu_times()[:2])
            process.terminate()
            process.wait(10)
            return round(spent, 1)
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        os.chdir(folder)
        os.environ.update(MLFLOW_TRACKING_URI=DEAD, SIREN_EXPORT="1", PYTHONPATH=str(ROOT))
        found = measure(*((40, 20) if options.quick else (200, 40)))
        print(json.dumps({**found, "exporter_cpu_seconds": exporter(folder)}))
        os.chdir("/")


if __name__ == "__main__":
    main()
