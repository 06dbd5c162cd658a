"""What a segment costs: cutting beside decoding and resampling alone, the networks that look at it, and memory.

    python bench/corpus.py ../shared/data/real-sounds tmp/corpus            # --quick for a small run

Takes a folder with a manifest.csv, whose list is repeated until there are enough segments, and works in a scratch
folder, which is removed. All times are CPU seconds of one thread (OMP_NUM_THREADS=1), so that a busy machine matters
little.

- `limit`: a loop of soundfile's read and soxr's resample (one channel, "HQ"); `rules`: `segment_clip` over the same
  files; `segment`: the whole stage, with its pieces and shards on disk. In turns, on the files as they are, and on 10 s
  at 44.1 kHz in two channels, which is what most sources have.
- `memory`: peak resident memory of a fresh process that cuts few segments, and of one that cuts all.
- `tokenize`: the whole stage beside its networks alone, in turns. `select`: the whole stage on made-up scores.
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
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import soxr

from siren import audio, shards
from siren.collect import segment
from siren.collect.sources import CLIPS_SCHEMA
from siren.config import Audio, Network, Segment, Select
from siren.engine import ranges
from siren.filter import select

RULES = Segment(min_seconds=0.2, min_snr_db=-20.0, silence_dbfs=-100.0, max_bit_errors=None)  # all are kept
FORMAT = Audio(16000, 10.0)
TURNS = 4
BATCH = 64  # segments that `tokenize` encodes at once
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


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
    cut(clips.slice(0, 64), folder, out)  # imports and the first use of memory are no cost of a segment
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


def alone(*arguments: Any) -> dict[str, float]:
    """Something of this file in a process of its own, with its peak memory."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def peak_mb() -> int:
    """Peak resident memory of this process. Not getrusage's on Linux, which begins with the size of the parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20  # bytes, on macOS


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


def tokenizing(folder: Path, names: list[str], count: int, out: Path) -> dict[str, float]:
    """Milliseconds a pair of the whole stage, and of its networks alone at the same batches, in turns.

    The committed networks of scale `demo`, the smallest there are, so that all around them weighs most. Every pair has
    a caption of its own.
    """
    import torch

    from siren.encode import tokenize

    cut(listed(names, count), folder, out / "segments")
    table = shards.read_shards(out / "segments", "segments")
    captions = [f"{names[row % len(names)]}, sound number {row}" for row in range(count)]
    columns = {name: table[name] for name in ("id", "labels", "relation")}
    crops = pa.array([[0, 16000, 32000]] * count, pa.list_(pa.int32()))
    pairs = pa.table(columns | {"caption": captions, "crop_offsets": crops})
    (codec, _), (clap, _) = load_codec(), load_clap()
    wavs = shards.pcm_to_float(table["pcm"])
    spent = {"limit": 0.0, "stage": 0.0}

    def networks_alone() -> None:
        with torch.inference_mode():
            for rows in ranges(count, BATCH):
                codec.encode(torch.from_numpy(wavs[rows.start : rows.stop]))
            for rows in ranges(count, BATCH):
                clap.text_states(sorted(captions)[rows.start : rows.stop])

    def whole() -> None:
        work = out / "work"
        loads, rate = (load_codec, load_clap), FORMAT.sample_rate
        tokenize.tokenize(*loads, out / "segments", {"stage1": pairs}, out / "tokens", work, rate, BATCH, 4096)
        shutil.rmtree(work)

    networks_alone()
    for _ in range(TURNS):
        for name, work in (("limit", networks_alone), ("stage", whole)):
            clock = time.process_time()
            work()
            spent[name] += time.process_time() - clock
    each = {f"{name}_ms": round(1e3 * value / (TURNS * count), 3) for name, value in spent.items()}
    share, rate = spent["limit"] / spent["stage"], TURNS * count / spent["stage"]
    return {"pairs": count, **each, "share": round(share, 3), "pairs_per_core_second": round(rate, 1)}


def selecting(count: int, out: Path) -> dict[str, float]:
    """Write tables of so many segments and scores, and select of them in a process of its own."""
    random = np.random.default_rng(0)
    numbers = np.arange(count)
    recordings = pc.binary_join_element_wise("recording-", pc.cast(pa.array(numbers // 2), pa.string()), "")
    held = pa.array(np.select([numbers // 2 % 500 == 0, numbers // 2 % 500 == 1], [1, 2], 0))  # whole recordings
    ids = pc.binary_join_element_wise(recordings, pc.cast(pa.array(numbers % 2), pa.string()), "-")
    labels = pa.array([["sound", "thing"]]).take(pa.array(np.zeros(count, int)))
    columns = {"id": ids, "labels": labels, "relation": pa.nulls(count, pa.string()), "recording_id": recordings}
    columns["split"] = pa.array(["train", "val", "test"]).take(held)
    columns["source"] = pa.array(["audioset", "vggsound", "freesound"]).take(pa.array(random.integers(0, 3, count)))
    columns["num_samples"] = pa.array(np.full(count, FORMAT.segment_samples, np.int32))
    shards.write_table(out / "segments-00000.parquet", pa.table(columns))
    score = random.normal(0.25, 0.1, count).astype(np.float32)
    ends = pa.array(np.arange(0, 5 * count + 1, 5, dtype=np.int32))
    crops = (np.repeat(score, 5) + random.normal(-0.02, 0.05, 5 * count)).astype(np.float32)
    found = {"id": ids, "caption": pc.binary_join_element_wise("what is heard in ", ids, "")}
    found |= {"candidate_scores": pa.ListArray.from_arrays(ends, pa.array(crops)), "score": pa.array(score)}
    found["crop_offsets"] = pa.ListArray.from_arrays(
        ends, pa.array(np.tile(np.arange(5, dtype=np.int32) * 16000, count))
    )
    found["crop_scores"] = pa.ListArray.from_arrays(ends, pa.array(crops))
    shards.write_table(out / "scores.parquet", pa.table(found))
    return {"segments": count} | alone(out, out, "--select")


def chosen(folder: Path) -> dict[str, int]:
    """All of the stage `select`, as for the paper's smaller corpus, on the tables of `selecting`."""
    names = ["id", "labels", "relation", "recording_id", "split", "source", "num_samples"]
    segments, scores = shards.read_shards(folder, "segments", names), pq.read_table(folder / "scores.parquet")
    most, some = len(scores) // 42, len(scores) // 4200  # the paper's shares
    settings = Select(0.4, 0.2, max_pairs=most, rl_prompts=some, reserve_rl=True, val_pairs=some, test_pairs=None)
    swept = select.sweep(segments, scores, settings, FORMAT.sample_rate)
    splits, funnel = select.select(segments, scores, settings, 0, FORMAT.sample_rate)
    for name, table in (*splits.items(), ("sweep", swept)):
        shards.write_table(folder / f"{name}.parquet", table)
    return funnel


def load_codec() -> tuple[Any, str]:
    from siren.networks import codec as codecs

    return codecs.load(WEIGHTS / "codec", "cpu"), "cpu"


def load_clap() -> tuple[Any, str]:
    from siren.networks import clap as claps

    return claps.load(WEIGHTS / "clap", "cpu"), "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scratch", type=Path, help="is made, and removed at the end")
    parser.add_argument("--segments", type=int, default=20_000)
    parser.add_argument("--scale", type=Path, default=Path("conf/scale/1.6b.yaml"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cut", type=int, help="only cut so many; used for the fresh process")
    parser.add_argument("--select", action="store_true", help="only select of the tables in folder; likewise")
    options = parser.parse_args()
    names = []
    if not options.select:
        with (options.folder / "manifest.csv").open(newline="") as file:
            names = [row["file"] for row in csv.DictReader(file)]
    if options.cut or options.select:
        clock = time.monotonic()
        if options.select:
            counts: dict[str, float] = dict(chosen(options.folder))
        else:
            counts = {"segments": cut(listed(names, options.cut), options.folder, options.scratch)["segments"]}
        spent = {"wall_seconds": round(time.monotonic() - clock, 1), "cpu_seconds": round(time.process_time(), 1)}
        print(json.dumps(counts | {"peak_mb": peak_mb()} | spent))
        return
    many, few, timed = (400, 100, 100) if options.quick else (options.segments, options.segments // 10, 600)
    sizes = (10_000,) if options.quick else (1_000_000, 4_200_000)
    options.scratch.mkdir(parents=True)
    try:
        wide = options.scratch / "wide"
        made = usual(options.folder, names[:100] if options.quick else names, wide)
        parts: dict[str, Callable[[], Any]] = {
            "machine": lambda: {"cpu": platform.machine(), "python": platform.python_version()},
            "as_they_are": lambda: compared(options.folder, names, timed, options.scratch / "a"),
            "44.1_khz_stereo": lambda: compared(wide, made, timed, options.scratch / "b"),
            "tokenize": lambda: tokenizing(options.folder, names, 64 if options.quick else 320, options.scratch / "t"),
            "select": lambda: [selecting(count, options.scratch / "s") for count in sizes],
            "networks": lambda: networks(options.scale),
            "memory": lambda: [alone(options.folder, options.scratch / "c", "--cut", count) for count in (few, many)],
        }
        for name, part in parts.items():
            print(json.dumps({name: part()}), flush=True)
    finally:
        shutil.rmtree(options.scratch)


if __name__ == "__main__":
    main()
