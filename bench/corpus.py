"""What a segment costs: cutting beside decoding and resampling alone, the networks that look at it, and memory.

    python bench/corpus.py ../shared/data/real-sounds tmp/corpus            # --quick for a small run

Takes a folder with a manifest.csv, whose list is repeated until there are enough segments, and works in a scratch
folder, which is removed. All times are CPU seconds of one thread (OMP_NUM_THREADS=1), so that a busy machine matters
little.

- `limit`: a loop of soundfile's read and soxr's resample (one channel, "HQ"); `rules`: `segment_clip` over the same
  files; `segment`: the whole stage, with its pieces and shards on disk. In turns, on the files as they are, and on 10 s
  at 44.1 kHz in two channels, which is what most sources have.
- `memory`: peak resident memory of a fresh process that cuts few segments, and of one that cuts all.
- `networks`: codec and CLAP of a scale at random weights: CPU seconds, and operations counted by torch.
"""

import argparse
import csv
import itertools
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import soxr

from siren import audio
from siren.collect import segment
from siren.collect.sources import CLIPS_SCHEMA
from siren.config import Audio, Network, Segment

RULES = Segment(min_seconds=0.2, min_snr_db=-20.0, silence_dbfs=-100.0, max_bit_errors=None)  # all are kept
FORMAT = Audio(16000, 10.0)
TURNS = 4


def usual(folder: Path, names: list[str], out: Path) -> list[str]:
    """The sounds as most sources have them: two after each other, 10 s, 44.1 kHz, two channels, FLAC."""
    made = []
    for number, pair in enumerate(zip(names[::2], names[1::2], strict=False)):
        wav = np.concatenate([audio.to_mono(audio.read(folder / name)[0]) for name in pair])
        wav = np.tile(wav, -(-FORMAT.segment_samples // len(wav)))[: FORMAT.segment_samples]
        wide = audio.resample(wav, FORMAT.sample_rate, 44100)
        made.append(f"{number:05d}.flac")
        audio.write(out / made[-1], np.clip([wide, 0.8 * np.roll(wide, 20)], -1, 1), 44100)
    return made


def listed(names: list[str], count: int) -> pa.Table:
    """`count` clips: the files again and again, each time under another id."""
    some = dict.fromkeys(CLIPS_SCHEMA.names) | {"source": "bench", "captions": ["a sound"], "labels": ["sound"]}
    rows = [
        some | {"id": f"{index:08d}", "path": name, "recording_id": f"{index:08d}", "split": "train"}
        for index, name in enumerate(itertools.islice(itertools.cycle(names), count))
    ]
    return pa.Table.from_pylist(rows, schema=CLIPS_SCHEMA)


def limit(paths: list[Path]) -> None:
    """Decoding and resampling, and nothing else."""
    for path in paths:
        wav, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != FORMAT.sample_rate:
            soxr.resample(wav[:, 0], rate, FORMAT.sample_rate, quality="HQ")


def cut(clips: pa.Table, folder: Path, out: Path) -> dict[str, float]:
    """All of the stage, in this process."""
    work = out / "work"
    counts = segment.segment(clips, folder, out, RULES, FORMAT, work)[1]
    shutil.rmtree(work, ignore_errors=True)
    return counts


def compared(folder: Path, names: list[str], count: int, out: Path) -> dict[str, float]:
    """Milliseconds a segment of both, in turns over the same files, and what share of the limit is reached."""
    clips, spent = listed(names, count), {"limit": 0.0, "rules": 0.0, "segment": 0.0, "segments": 0.0}
    for part in np.array_split(np.arange(count), TURNS):
        rows = clips.take(part)
        clock = time.process_time()
        limit([folder / name for name in rows["path"].to_pylist()])
        spent["limit"] += time.process_time() - clock
        clock = time.process_time()
        for row in rows.to_pylist():
            segment.segment_clip(row, folder, RULES, FORMAT)
        spent["rules"] += time.process_time() - clock
        clock = time.process_time()
        spent["segments"] += cut(rows, folder, out)["segments"]
        spent["segment"] += time.process_time() - clock
    size = sum(path.stat().st_size for path in out.glob("*.parquet")) * TURNS / spent["segments"]
    each = {f"{name}_ms": round(1e3 * spent[name] / spent["segments"], 3) for name in ("limit", "rules", "segment")}
    shares = {f"{name}_share": round(spent["limit"] / spent[name], 3) for name in ("rules", "segment")}
    rate = {"segments_per_core_second": round(spent["segments"] / spent["segment"], 1)}
    return {"segments": spent["segments"], **each, **shares, **rate, "bytes": round(size)}


def fresh(folder: Path, count: int, out: Path) -> dict[str, float]:
    """Cut so many segments in a process of their own; its peak memory."""
    command = [sys.executable, __file__, str(folder), str(out), "--cut", str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def networks(scale: Path) -> dict[str, Any]:
    """CPU seconds and operations for one segment: the codec's encoder, CLAP's sound and its text, at random weights.

    CLAP is transformers' own class in its default sizes, those of laion/clap-htsat-unfused: 10 s of mel spectrogram,
    which a crop is padded to as well.
    """
    import torch
    import yaml
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import ClapConfig, ClapModel

    from siren.filter.score import crop_offsets
    from siren.networks import codec as codecs

    settings = yaml.safe_load(scale.read_text())
    codec = codecs.build(Network(**settings["networks"]["codec"]), FORMAT).eval()
    clap = ClapModel(ClapConfig()).eval()
    wav = torch.randn(1, FORMAT.segment_samples) / 10
    mel, longer, text = torch.randn(1, 1, 1001, 64), torch.zeros(1, 1, dtype=torch.bool), torch.arange(16)[None]
    work = {
        "codec": lambda: codec.encode(wav),
        "clap_sound": lambda: clap.get_audio_features(input_features=mel, is_longer=longer),
        "clap_text": lambda: clap.get_text_features(input_ids=text),
    }
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for name, run in work.items():
            with FlopCounterMode(display=False) as counter:
                run()
            clock = time.process_time()
            run()
            spent = time.process_time() - clock
            found[name] = {"cpu_seconds": round(spent, 4), "gflop": round(counter.get_total_flops() / 1e9, 3)}
    crop, step = (
        round(settings["filter"]["score"][f"crop{part}_seconds"] * FORMAT.sample_rate) for part in ("", "_step")
    )
    found["crops"] = len(crop_offsets(wav.shape[1], wav.shape[1], crop, step))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scratch", type=Path, help="is made, and removed at the end")
    parser.add_argument("--segments", type=int, default=20_000)
    parser.add_argument("--scale", type=Path, default=Path("conf/scale/1.6b.yaml"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cut", type=int, help="only cut so many; used for the fresh process")
    options = parser.parse_args()
    with (options.folder / "manifest.csv").open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    if options.cut:
        counts = cut(listed(names, options.cut), options.folder, options.scratch)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"segments": counts["segments"], "peak_mb": peak, "cpu_seconds": time.process_time()}))
        return
    many, few, timed = (400, 100, 100) if options.quick else (options.segments, options.segments // 10, 600)
    options.scratch.mkdir(parents=True)
    try:
        wide = options.scratch / "wide"
        made = usual(options.folder, names[:100] if options.quick else names, wide)
        parts: dict[str, Callable[[], Any]] = {
            "machine": lambda: {"cpu": platform.machine(), "python": platform.python_version()},
            "as_they_are": lambda: compared(options.folder, names, timed, options.scratch / "a"),
            "44.1_khz_stereo": lambda: compared(wide, made, timed, options.scratch / "b"),
            "networks": lambda: networks(options.scale),
            "memory": lambda: [fresh(options.folder, count, options.scratch / "c") for count in (few, many)],
        }
        for name, part in parts.items():
            print(json.dumps({name: part()}), flush=True)
    finally:
        shutil.rmtree(options.scratch)


if __name__ == "__main__":
    main()
