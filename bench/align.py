"""Where the time of one step of alignment goes, at the settings of params.yaml.

    python bench/align.py                    # the pipeline's own stage 1, codec and reward
    python bench/align.py --synthetic        # random transformers over a codec of the paper's shape; no weights needed

Prints seconds of rollout, reward and update of each step (the first one warms up), and of one more under torch's
profiler the share of its time that is spent in operators (or in kernels, on a GPU) rather than in Python. The synthetic
world leaves out the codec and the reward, which are about a tenth of a step at scale `demo`.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from siren.align.anticausal import align
from siren.config import Config, load
from siren.encode.tokens import Tokens, read_tokens
from siren.generate.bundle import load_model
from siren.model.codebooks import CodecTables
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.networks import codec as codecs
from siren.stages import places
from siren.stages.align import build_reward

CODEBOOKS, SIZE, CODE, LATENT, WIDTH, FRAMES = 12, 1024, 8, 1024, 768, 500  # DAC's at 50 Hz, CLAP's text, 10 s


def pipeline(config: Config, device: str) -> tuple:
    """What `siren align` would start from."""
    codec = codecs.load(places.MODELS / "codec", device)
    prompts = read_tokens(places.TOKENS, "rl", codec.fingerprint())
    model = load_model(places.stage1_folders(config), codec.fingerprint()).to(device)
    frames = places.num_frames(config.filter.score.crop_seconds, codec)
    return model, prompts, codec.decode, build_reward(config, codec, model, prompts, device), frames


def synthetic(config: Config, device: str, frames: int) -> tuple:
    """Random weights, prompts of 16 tokens, and a reward that is as random."""
    tables = CodecTables(
        torch.randn(CODEBOOKS, SIZE, CODE), torch.randn(CODEBOOKS, LATENT, CODE) / 8, torch.zeros(CODEBOOKS, LATENT)
    )
    count = config.align.prompts_per_step
    text = [np.random.default_rng(i).standard_normal((16, WIDTH)).astype(np.float16) for i in range(count)]
    names = [f"prompt {i}" for i in range(count)]
    codes = np.zeros((count, CODEBOOKS, frames), np.uint16)
    lists = ([[name] for name in names], ["one"] * count, codes, np.full(count, frames), text, [[0]] * count)
    prompts = Tokens(names, names, *lists, codebook_size=SIZE, text_width=WIDTH)
    model = Siren([ResidualTransformer(config.model, tables, WIDTH, k) for k in config.model.transformers])
    return model.to(device), prompts, lambda c: c[:, 0].float(), lambda c, wavs, captions: wavs.mean(dim=1), frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of the synthetic world's clips")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    config, device = load(), "cuda" if torch.cuda.is_available() else "cpu"
    model, *rest, frames = synthetic(config, device, options.frames) if options.synthetic else pipeline(config, device)

    def run(steps: int) -> float:
        settings, begin = replace(config.align, steps=steps, watch=replace(config.align.watch, every=None)), time.time()
        align(model, *rest, settings, frames, 0, lambda step, m: print(step, line(m), flush=True), device=device)
        return time.time() - begin

    def line(metrics: dict[str, float]) -> dict[str, float]:
        return {k: float(f"{v:.3g}") for k, v in metrics.items() if k.startswith("seconds") or k == "ratio_off"}

    run(options.steps)
    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        wall = run(1)
    events = found.key_averages()
    inside = sum(e.self_device_time_total if cuda else e.self_cpu_time_total for e in events) / 1e6
    print(f"{inside / wall:.0%} of {wall:.1f} s in {'kernels' if cuda else 'operators'}, the rest in Python")
    print(events.table(sort_by=f"self_{'cuda' if cuda else 'cpu'}_time_total", row_limit=12, max_name_column_width=40))


if __name__ == "__main__":
    main()
