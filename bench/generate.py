"""How fast sound is sampled, beside the loops one would write first and beside MusicGen.

    python bench/generate.py --quick                # about a minute: G1 and G2, few frames and rounds
    python bench/generate.py --batches 1 16         # G1, G2 and G3
    python bench/generate.py --device cuda          # the paper's 1.6B size in bf16 (not run here)

Rows, all with six transformers, twelve codebooks of 1024 and a prompt of 16 states, without guidance:
`naive` is the model's modules in a loop with caches, the decoder run again on two and then three slots, embeddings
through their two projections; `plain` is `siren.generate.plain` (the same with tables and a cached decoder), `stacked`
is `siren.generate.stacked`. `musicgen` is the decoder of transformers with as many parameters in blocks and heads,
given an explicit cache (without one it joins the text's keys to its own). All draw from the whole distribution.

A frame has one code of each codebook. MusicGen takes T + 11 steps for T frames; `per step` leaves that out.
Before anything is timed, the three of ours are checked to give the same codes. On a CPU the clock is the CPU time of
one thread; rows take turns in one process, and ratios are made round by round (min / median / max). Launches are
operations at the dispatcher that are not views, at full depth (14+2 layers) and a small width.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from siren.config import Model, Sampling
from siren.generate.choice import choose
from siren.generate.plain import Plain
from siren.generate.sampler import frames
from siren.generate.stacked import Stacked
from siren.model.blocks import KeyValueCache
from siren.model.codebooks import CodecTables
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.randomness import uniforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a script, only its own folder is there

from bench import musicgen
from bench.timing import in_turns, ratios

CODEBOOKS, TRANSFORMERS, TEXT, TEXT_WIDTH = 12, 6, 16, 768
WHOLE = Sampling(temperature=1.0, top_k=None, top_p=None, guidance=None)
BANDWIDTH = 4.3e12  # bytes a second that an H200 copies at: a frame takes at least what it has to read over this
NO_KERNEL = ("_unsafe_view", "detach", "alias", "lift_fresh")  # of dispatched names


@dataclass(frozen=True)
class Size:
    """Width, main and decoder layers, frames of a clip, rounds, and width of the codec."""

    dim: int
    main: int
    decoder: int
    frames: int
    rounds: int = 5
    heads: int = 4
    codebook_size: int = 1024
    latent: int = 1024

    def config(self) -> Model:
        return Model(
            transformers=tuple(range(TRANSFORMERS)),
            dim=self.dim,
            num_heads=self.heads,
            num_kv_heads=self.heads,
            main_layers=self.main,
            decoder_layers=self.decoder,
            max_frames=512,
            max_text=32,
            ffn_multiple_of=256 if self.dim >= 1024 else 32,
            norm_eps=1e-5,
            dropout=0.0,
            init_std=0.02,
            normalise_codes=False,
            residual_start="prompt",
        )


SIZES = {
    "tiny": Size(16, 1, 1, 4, 2, codebook_size=16, latent=8),  # for tests
    "G1": Size(128, 2, 2, 100),
    "G2": Size(256, 4, 2, 100),
    "G3": Size(512, 6, 2, 40, rounds=3, heads=8),
    "1.6b": Size(1024, 14, 2, 500, heads=16),
}
DEPTH = Size(32, 14, 2, 3, codebook_size=32, latent=8)  # the paper's 1.6B in depth: for counting


def build(size: Size, seed: int = 0) -> Siren:
    torch.manual_seed(seed)
    shape = (CODEBOOKS, size.codebook_size, 8)
    tables = CodecTables(
        torch.randn(shape), torch.randn(CODEBOOKS, size.latent, 8) / 8, torch.zeros(CODEBOOKS, size.latent)
    )
    config = size.config()
    return Siren([ResidualTransformer(config, tables, TEXT_WIDTH, m) for m in range(TRANSFORMERS)]).eval()


class Naive(Plain):
    """The modules in a loop: see the head of the file."""

    def frames(
        self, states: Tensor, mask: Tensor, numbers: Tensor, sampling: Sampling, prefix: None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        batch, num_frames, _ = numbers.shape
        parts = [self.model[m] for m in range(len(self.model))]
        texts = [t.read_text(states, mask) for t in parts]
        caches = [self._caches(t, batch, num_frames) for t in parts]
        inputs = [t.start.expand(batch, 1, -1) for t in parts]
        for step in range(num_frames):
            hidden = [t.temporal_path(x, text, c) for t, x, text, c in zip(parts, inputs, texts, caches, strict=True)]
            codes: list[Tensor] = []
            log_probs = []
            for m, t in enumerate(parts):
                for j in range(t.group):
                    below = torch.zeros_like(hidden[m][:, 0])
                    slots = [hidden[m][:, 0]]
                    for k in range(t.first + j + 1):
                        if k >= t.first:
                            slots.append(texts[m].start + below)
                        if k < len(codes):
                            below = below + embed(t, k, codes[k])
                    out = t.residual_decoder(torch.stack(slots, dim=1))[:, -1]
                    code, log_prob = choose(out @ t.heads[j].T, numbers[:, step, t.first + j], sampling)
                    codes.append(code)
                    log_probs.append(log_prob)
            inputs = [sum(embed(t, k, code) for k, code in enumerate(codes))[:, None] for t in parts]
            yield torch.stack(codes, dim=1), torch.stack(log_probs, dim=1)

    @staticmethod
    def _caches(t: ResidualTransformer, batch: int, num_frames: int) -> list[KeyValueCache]:
        head_dim = t.config.dim // t.config.num_heads
        return [KeyValueCache(batch, t.config.num_kv_heads, num_frames, head_dim, t.start) for _ in t.temporal]


def embed(t: ResidualTransformer, k: int, code: Tensor) -> Tensor:
    """E_k of a code as it is defined: row, out-projection, projector. [B] → [B, D]"""
    books = t.codebooks
    latent = torch.nn.functional.linear(books.rows[k][code], books.weight[k], books.bias[k])
    return torch.nn.functional.linear(latent, books.projector[k], books.projector_bias[k])


class MusicGen:
    """transformers' MusicGen decoder, of as many parameters in blocks and heads."""

    def __init__(self, size: Size, parameters: int, device: str, dtype: torch.dtype):
        self.width, vocabulary = musicgen.width(size.dim), size.codebook_size
        blocks = parameters - CODEBOOKS * vocabulary * self.width
        made = musicgen.decoder(size.dim, CODEBOOKS, vocabulary, blocks, max_position_embeddings=2048)
        self.decoder, self.start = made.eval().to(device, dtype), vocabulary

    def generate(self, states: Tensor, mask: Tensor, num_frames: int) -> Tensor:
        """Codes [B, K, T]; `states` stand for those of the text, projected."""
        from transformers import DynamicCache, EncoderDecoderCache

        batch, start = states.shape[0], self.start
        return self.decoder.generate(
            torch.full((batch * CODEBOOKS, 1), start, device=states.device),
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            attention_mask=torch.ones(batch, 1, dtype=torch.long, device=states.device),
            decoder_start_token_id=start,
            do_sample=True,
            top_k=0,
            use_cache=True,
            guidance_scale=1.0,
            num_return_sequences=1,
            max_new_tokens=num_frames + CODEBOOKS - 1,
        )


class Launches(TorchDispatchMode):
    """Counts what is dispatched and is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not func.is_view and func.overloadpacket.__name__ not in NO_KERNEL:
            self.count += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def launches(sampler: Plain | Stacked, batch: int = 1) -> int:
    """Of one frame, the third."""
    numbers = uniforms(range(batch), 3, CODEBOOKS)
    run = sampler.frames(*texts(batch), numbers, WHOLE)
    next(run)
    next(run)
    with Launches() as found:
        next(run)
    return found.count


def texts(batch: int, width: int = TEXT_WIDTH, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    states = torch.randn(batch, TEXT, width, generator=generator).to(device)
    return states, torch.ones(batch, TEXT, dtype=torch.bool, device=device)


def check(rows: dict[str, Plain | Stacked], num_frames: int, device: str) -> None:
    """Raise ValueError unless all give the same codes."""
    found = {}
    for name, sampler in rows.items():
        run = frames(sampler, *texts(2, device=device), [0, 1], num_frames, WHOLE)
        found[name] = torch.stack([codes.clone() for codes, _ in run])
    first, *others = found
    for name in others:
        if not torch.equal(found[first], found[name]):
            raise ValueError(f"{first} and {name} give other codes; they are samplers of one model")


def measure(
    name: str, size: Size, batch: int, rounds: int, num_frames: int, device: str, compile: bool = False
) -> dict[str, list[float]]:
    """Seconds of each row in each round, printed as ratios."""
    cuda = device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    model = build(size).to(device)
    rows: dict[str, Plain | Stacked] = {"naive": Naive(model), "plain": Plain(model)}
    if not cuda:  # rounding in bf16 is another sampler
        check({**rows, "stacked": Stacked(model)}, min(6, num_frames), device)
    rows["stacked"] = Stacked(model, dtype)
    if compile:
        rows["compiled"] = Stacked(model, dtype, "inductor")
    counted = ("temporal.", "decoder.", "heads", "temporal_norm", "decoder_norm")
    parameters = sum(
        p.numel() for t in rows["plain"].model.transformers for n, p in t.named_parameters() if n.startswith(counted)
    )
    peer = MusicGen(size, parameters, device, dtype)
    told, heard = texts(batch, device=device), texts(batch, peer.width, device)

    def ours(sampler: Plain | Stacked) -> None:
        for _ in frames(sampler, *told, range(batch), num_frames, WHOLE):
            pass

    calls: dict[str, Callable[[], object]] = {row: partial(ours, sampler) for row, sampler in rows.items()}
    calls["musicgen"] = lambda: peer.generate(heard[0].to(dtype), heard[1], num_frames)
    assert peer.generate(heard[0].to(dtype), heard[1], 16).shape == (batch, CODEBOOKS, 16)
    times = dict(zip(calls, in_turns(list(calls.values()), rounds, device), strict=True))
    print(
        f"{name}, batch {batch}, {num_frames} frames, {rounds} rounds; {parameters / 1e6:.1f} M parameters in blocks "
        f"and heads, MusicGen {peer.width} wide, {peer.decoder.config.num_hidden_layers} layers",
        flush=True,
    )
    steps = 1 + (CODEBOOKS - 1) / num_frames
    assert isinstance(rows["stacked"], Stacked)
    volume = read(rows["stacked"], batch, num_frames)
    for row, own in times.items():
        rate = batch * num_frames / statistics.median(own)
        against = "".join(f"   {ratios(times[peer], own)} x {peer}" for peer in ("naive", "plain", "musicgen"))
        level = ratios([s / steps for s in times["musicgen"]], own) if row != "musicgen" else ""
        print(f"  {row:9}{rate:9.1f} frames/s{against}   {level}{' per step' if level else ''}", flush=True)
        if row in ("stacked", "compiled"):
            speed = volume * rate / batch
            share = f", {speed / BANDWIDTH:.0%} of the bound of an H200" if cuda else ""
            print(f"{'':12}reads {volume / 2**20:,.0f} MiB a frame: {speed / 1e9:,.1f} GB/s{share}", flush=True)
    return times


def read(stacked: Stacked, batch: int, num_frames: int) -> int:
    """Bytes that a frame has to read: matrices, those of a decoder for each code of its group, and half the caches."""
    decoder = sum(held[i].nbytes for held, i in stacked.decoder.tensors())
    temporal = sum(held[i].nbytes for held, i in stacked.temporal.tensors())
    caches = stacked.memory(batch, num_frames, TEXT)["caches"] // 2
    return temporal + stacked.N * decoder + stacked.classifier.nbytes + caches


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--frames", type=int, help="of a clip; by default as the size says")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="G1 and G2, 30 frames, 3 rounds")
    parser.add_argument("--compile", action="store_true", help="another row: stacked, compiled (a minute or more)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = build(DEPTH)
    counts = {kind.__name__.lower(): launches(kind(model)) for kind in (Naive, Plain, Stacked)}
    shown = ", ".join(f"{name} {count} ({count / counts['naive']:.2f})" for name, count in counts.items())
    print(f"launches per frame at {DEPTH.main}+{DEPTH.decoder} layers: {shown}")
    usual = ["1.6b"] if options.device == "cuda" else ["G1", "G2"] if options.quick else ["G1", "G2", "G3"]
    for name in options.sizes or usual:
        size = SIZES[name]
        num_frames = options.frames or min(size.frames, 30 if options.quick else size.frames)
        for batch in options.batches:
            rounds = options.rounds or (3 if options.quick else size.rounds)
            measure(name, size, batch, rounds, num_frames, options.device, options.compile)


if __name__ == "__main__":
    main()
