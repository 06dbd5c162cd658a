"""How fast `siren measure` is, and where its time goes: 975 clips of 10 s against as many, as AudioCaps' test list has.

    python bench/evaluate.py                  # the networks of the demo, synthetic clips
    python bench/evaluate.py --quick          # twelve clips of 2 s
    python bench/evaluate.py --networks DIR --device cuda

Measured twice: everything heard anew, and again from cached features, which loads no network. Then FD at 975 x 2048,
the published width, against the float64 eigen-decomposition of the same covariances. Times are CPU seconds of this
process (wall-clock seconds beside them), because machines are shared. Clips are noises with tones of their own.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from siren import audio
from siren.evaluate import metrics
from siren.evaluate.measure import Measured, Request, measure
from siren.progress import track

CLIPS, SECONDS, RATE, WIDTH = 975, 10.0, 16000, 2048


def sounds(folder: Path, count: int, seconds: float) -> Request:
    """Two folders and their manifest."""
    rng, time_ = np.random.default_rng(0), np.arange(round(seconds * RATE)) / RATE
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        for i in track(range(count), "clips", unit="clip"):
            writer.writerow([f"{i:04d}.wav", f"a tone of {200 + 3 * i} hertz in noise"])
            for kind in ("generated", "reference"):
                tone = np.sin(2 * np.pi * (200 + 3 * i) * (1 + 0.02 * rng.random()) * time_)
                noise = rng.standard_normal(len(time_), np.float32)
                audio.write(folder / kind / f"{i:04d}.wav", (0.2 * tone + 0.05 * noise).astype(np.float32), RATE)
    return Request(folder / "generated", folder / "reference", folder / "list.csv", cache=folder / "cache")


def timed(request: Request, count: int, seconds: float, title: str) -> Measured:
    cpu, wall = time.process_time(), time.perf_counter()
    measured = measure(request)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    heard = 2 * count * seconds
    print(f"{title}: {cpu:.1f} s of CPU, {wall:.1f} s; {heard / cpu:.0f} s of audio per CPU second", flush=True)
    for name, spent in sorted(measured.seconds.items(), key=lambda item: -item[1]):
        print(f"  {name:24} {spent:8.1f} s  {spent / wall:5.0%}")
    return measured


def frechet(count: int, width: int) -> None:
    """Our form beside the root of the covariances' product by float64 eigen-decompositions."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((width, width)) / np.sqrt(width)
    x, y = (np.maximum(rng.standard_normal((count, width)) @ mixing + shift, 0) for shift in (0.0, 0.1))
    cpu = time.process_time()
    ours = metrics.frechet_distance(x, y)
    cpu = time.process_time() - cpu
    plain = time.process_time()
    (mean_x, s_x), (mean_y, s_y) = ((s.mean(0), np.cov(s, rowvar=False)) for s in (x, y))
    values, vectors = np.linalg.eigh(s_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s_y @ root), 0)).sum()
    other = float(np.sum((mean_x - mean_y) ** 2) + np.trace(s_x) + np.trace(s_y) - 2 * trace)
    plain = time.process_time() - plain
    off = ours / other - 1
    print(f"FD of {count} x {width}: {cpu:.2f} s of CPU, eigen-decomposition {plain:.2f} s; apart by {off:.1e}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, default=Path("weights"))
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    count, seconds = (12, 2.0) if options.quick else (options.clips, options.seconds)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        request = sounds(Path(folder), count, seconds)
        resamples = 20 if options.quick else request.resamples
        request = replace(request, networks=options.networks, device=options.device, resamples=resamples)
        first = timed(request, count, seconds, f"{count} + {count} clips of {seconds:g} s, heard anew")
        again = timed(request, count, seconds, "again, from the cache")
    same = json.dumps(first.record) == json.dumps(again.record)
    equal = "equal" if same else "NOT equal"
    print(f"batches through networks: {first.forwards}, then {again.forwards}; the records are {equal}")
    frechet(*((50, 128) if options.quick else (CLIPS, WIDTH)))


if __name__ == "__main__":
    main()
