"""How fast the trainer's batches come from token shards on disk, and how much memory that takes.

    python bench/data.py tmp/corpus --rows 1000000

writes a synthetic corpus of the paper's shape once (10 s segments, 12 codebooks of 1024, 500 frames; captions of 8 to
24 tokens of width 768: 36 kB a row), opens it in a fresh process and draws batches of 6 s crops in the trainer's order.
Prints rows per second of one core by CPU time and by the clock, and resident memory before and after: anonymous (what
the process holds) and file (pages of the mapped shards, which the system takes back when it needs them).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from siren import shards
from siren.encode.tokenize import SCHEMA
from siren.encode.tokens import read_tokens
from siren.train.stage1 import Batches

CODEBOOKS, SIZE, FRAMES, CROP, WIDTH, SHARD = 12, 1024, 500, 300, 768, 4096


def write(folder: Path, rows: int) -> None:
    """Random codes and text states, shard by shard; a folder that has them already is left alone."""
    metadata = {"codec": "synthetic", "num_codebooks": str(CODEBOOKS), "codebook_size": str(SIZE)}
    metadata["text_width"] = str(WIDTH)
    rng, total = np.random.default_rng(0), -(-rows // SHARD)
    for index in range(total):
        path, count = folder / f"stage1-{index:05d}.arrow", min(SHARD, rows - index * SHARD)
        if path.exists():
            continue
        lengths = rng.integers(8, 25, count)
        text = rng.integers(0, 2**14, (count, 24 * WIDTH), dtype=np.uint16)  # any finite float16
        codes = rng.integers(0, SIZE, (count, CODEBOOKS * FRAMES), dtype=np.uint16)
        columns = {
            "id": [f"{index * SHARD + i:09d}" for i in range(count)],
            "caption": ["a synthetic caption of ordinary length"] * count,
            "labels": [[]] * count,
            "relation": [None] * count,
            "codes": [row.tobytes() for row in codes],
            "num_frames": [FRAMES] * count,
            "text": [row[: n * WIDTH].tobytes() for row, n in zip(text, lengths, strict=True)],
            "text_length": lengths.tolist(),
            "crop_offsets": [list(range(0, FRAMES - CROP + 1, 5))] * count,
        }
        shards.write_table(path, pa.table(columns, SCHEMA), metadata)
        print(f"\rwritten: {index + 1} of {total} shards", end="", file=sys.stderr)


def memory() -> dict[str, int]:
    """Resident memory of this process in MB, by kind (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith("Rss")}
    return {"anonymous": found["RssAnon"], "file": found["RssFile"]}


def read(folder: Path, batch_size: int, seconds: float) -> None:
    """Open the corpus and draw batches for a while; one line of JSON."""
    before, clock = memory(), time.perf_counter()
    tokens = read_tokens(folder, "stage1", "synthetic")
    batches = Batches(tokens, CROP, batch_size, seed=0)
    batches(0)
    opened = {"rows": len(tokens), "open_seconds": round(time.perf_counter() - clock, 2), "opened": memory()}
    step, clock, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - clock < seconds:
        step += 1
        batches(step)
    wall, cpu = time.perf_counter() - clock, time.process_time() - cpu
    rows = step * batch_size
    rates = {"rows_per_cpu_second": round(rows / cpu), "rows_per_second": round(rows / wall), "drawn": rows}
    print(json.dumps({"before": before, **opened, **rates, "after": memory()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--read", action="store_true", help="only read; used for the fresh process")
    options = parser.parse_args()
    if options.read:
        read(options.folder, options.batch_size, options.seconds)
    else:
        write(options.folder, options.rows)
        subprocess.run([sys.executable, *sys.argv, "--read"], check=True)
