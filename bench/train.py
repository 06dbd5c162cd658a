"""How fast one transformer trains beside two peers: one step is forward, backward and AdamW.

    python bench/train.py --quick     # a minute: S and M, few rounds
    python bench/train.py --compile   # S, M and L, eager and compiled: half an hour
    python bench/train.py --device cuda --compile   # the paper's 1.6B size, bf16, with FLOP/s

`ours` is `siren.train.stage1.Objective`, `plain` the same function as one would write it first (`Plain` below: masks,
twelve embeddings through the latent width, norms and heads one by one, AdamW without fusion) with the same weights,
`musicgen` the decoder of transformers with as many parameters and as many predicted codes in a step.

Before anything is timed, logits and gradients of `ours` and `plain` are compared. On a CPU the clock is the CPU time of
one thread, on a GPU that of the wall between synchronisations. All rows take turns in one process, and what is printed
is the ratio to `plain` round by round (min / median / max), which a busy machine disturbs far less than the times.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from siren.config import Training
from siren.model.codebooks import CodecTables
from siren.model.published import PublishedConfig, published_config, published_state
from siren.model.transformer import ResidualTransformer
from siren.train.loop import adamw
from siren.train.stage1 import Objective

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a script, only its own folder is there

from bench import musicgen
from bench.timing import in_turns, ratios

TOLERANCE = 1e-5
CODEBOOKS, TEXT, TEXT_WIDTH, INDEX = 12, 16, 768, 3
BASELINE = "plain"


@dataclass(frozen=True)
class Size:
    """Width, layers of the temporal path and of the residual decoder, clips of a batch, frames, rounds on a CPU."""

    dim: int
    main: int
    decoder: int
    batch: int
    rounds: int
    frames: int = 300
    latent: int = 1024
    heads: int = 4

    def config(self) -> PublishedConfig:
        return PublishedConfig(
            dim=self.dim,
            n_heads=self.heads,
            n_kv_heads=self.heads,
            spatial_layers=self.main,
            factorized_layers=self.decoder,
            prompt_dim=TEXT_WIDTH,
            num_codebooks=CODEBOOKS,
            num_experts=6,
            codebook_size=1024,
            dac_code_dim=8,
            dac_feature_dim=self.latent,
            max_seq_len=max(512, self.frames),
            max_prompt_len=128,
            ffn_multiple_of=256 if self.dim >= 1024 else 32,
            ffn_multiplier=None,
            norm_eps=1e-5,
            dropout=0.0,  # attention with dropout takes a slow path, and equality could not be tested
            initializer_range=0.02,
        )


SIZES = {
    "tiny": Size(32, 1, 1, 1, 2, frames=8, latent=16),  # for tests
    "S": Size(128, 2, 1, 8, 9),
    "M": Size(256, 4, 2, 4, 9),
    "L": Size(512, 6, 2, 4, 5, heads=8),
    "1.6b": Size(1024, 14, 2, 24, 20, heads=16),
}


@dataclass
class Row:
    """One thing to time: a loss to differentiate and the optimiser of its weights."""

    name: str
    loss: Callable[[], Tensor]
    module: nn.Module
    optimiser: torch.optim.Optimizer

    def step(self, device: str) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = self.loss()
        loss.backward()
        self.optimiser.step()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--rounds", type=int, help="by default as many as the size is given")
    parser.add_argument("--quick", action="store_true", help="S and M, 5 rounds")
    parser.add_argument("--compile", action="store_true", help="each row compiled as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    usual = ["1.6b"] if options.device == "cuda" else ["S", "M"] if options.quick else ["S", "M", "L"]
    peak = matrix_peak() if options.device == "cuda" else None
    if peak:
        print(f"{torch.cuda.get_device_name()}: bf16 matrix products at {peak / 1e12:.0f} TFLOP/s")
    for name in options.sizes or usual:
        rounds = options.rounds or (5 if options.quick else SIZES[name].rounds)
        measure(name, SIZES[name], rounds, options.compile, options.device, peak)


def measure(name: str, size: Size, rounds: int, compiled: bool, device: str, peak: float | None) -> None:
    """Compare, then time; prints a line for each row."""
    rows, difference = build(size, device)
    flops = {row.name: count(row, device) for row in rows}
    if compiled:
        for row in [again for eager in rows if (again := _compiled(eager, device))]:
            rows.append(row)
            flops[row.name] = flops[row.name.split(",")[0]]
    times = in_turns([partial(row.step, device) for row in rows], rounds, device)
    base = times[[row.name for row in rows].index(BASELINE)]
    print(f"\n{name}: {size}; largest difference of ours and plain {difference:.1e}")
    for row, own in zip(rows, times, strict=True):
        middle, parameters = statistics.median(own), sum(p.numel() for p in row.module.parameters() if p.requires_grad)
        line = f"{row.name:20} {parameters / 1e6:7.1f} M {flops[row.name] / 1e9:8.1f} GFLOP {1e3 * middle:8.1f} ms"
        rate = flops[row.name] / middle
        share = f"  {rate / 1e12:.1f} TFLOP/s, MFU {rate / peak:.1%}" if peak else ""
        print(f"{line}   {ratios(base, own)} x plain{share}", flush=True)


def build(size: Size, device: str = "cpu") -> tuple[list[Row], float]:
    """The three rows on one random batch, and the largest difference of ours and plain, in logits and gradients.

    Raises ValueError where it is above the tolerance.
    """
    torch.manual_seed(0)
    config, latent = size.config(), size.latent
    tables = CodecTables(
        torch.randn(CODEBOOKS, 1024, 8), torch.randn(CODEBOOKS, latent, 8) / 3, torch.randn(CODEBOOKS, latent) / 10
    )
    ours = ResidualTransformer(config.model(), tables, TEXT_WIDTH, INDEX).to(device)
    plain = Plain(ours).to(device)
    codes = torch.randint(1024, (size.batch, CODEBOOKS, size.frames), device=device)
    states = torch.randn(size.batch, TEXT, TEXT_WIDTH, device=device)
    mask = torch.ones(size.batch, TEXT, dtype=torch.bool, device=device)
    valid = torch.ones(size.batch, size.frames, dtype=torch.bool, device=device)
    difference = compare(ours, plain, codes, states, mask, valid)
    objective, training = Objective(ours), Training(1, 1, 3e-4, 0, 0.1, 0.05, 1.0, 1, 1)
    peer = MusicGen(size.dim, ours.group, parameters=sum(p.numel() for p in ours.parameters())).to(device)
    targets = ours.targets(codes)
    rows = [
        Row("plain", lambda: plain.loss(codes, states, mask, valid), plain, _adamw(plain)),
        Row("ours", lambda: objective(codes, states, mask, None)[0].mean(), ours, adamw(ours, training)),
        Row("musicgen", lambda: peer(targets, states, mask), peer, _adamw(peer)),
    ]
    return rows, difference


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), 3e-4, (0.9, 0.95), weight_decay=0.05)


def _compiled(row: Row, device: str) -> Row:
    """The same row through torch.compile, which is done before it returns."""
    made = Row(f"{row.name}, compiled", torch.compile(row.loss), row.module, row.optimiser)
    began = time.perf_counter()
    for _ in range(2):
        made.step(device)
    print(f"{made.name}: {time.perf_counter() - began:.0f} s", flush=True)
    return made


def compare(
    ours: ResidualTransformer, plain: "Plain", codes: Tensor, states: Tensor, mask: Tensor, valid: Tensor
) -> float:
    """Largest difference: of a logit, and of a gradient relative to the largest of its tensor."""
    batch = (codes, states, mask)
    with torch.no_grad():
        worst = {"logits": (ours(*batch) - plain(*batch, valid)).abs().max().item()}
    Objective(ours)(*batch, None)[0].mean().backward()
    plain.loss(*batch, valid).backward()
    found = published_state({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    for name, p in plain.named_parameters():
        if p.requires_grad:
            # A gradient that is zero in exact arithmetic (the key bias) is rounding in both.
            scale = p.grad.abs().max().clamp_min(1e-4)
            worst[name] = ((found[name] - p.grad).abs().max() / scale).item()
    name = max(worst, key=lambda key: worst[key])
    if not worst[name] <= TOLERANCE:
        raise ValueError(f"ours and plain differ by {worst[name]:.1e} in {name}; they are one function: {TOLERANCE}")
    return worst[name]


def count(row: Row, device: str) -> int:
    """Operations of a step in matrix products, those of attention among them.

    Attention is computed by such products while torch counts: it does not know the CPU's own kernel.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        row.step(device)
    return counter.get_total_flops()


def matrix_peak(side: int = 8192, repeats: int = 20) -> float:
    """FLOP/s of square bf16 matrix products on this GPU: what MFU is a share of."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    [seconds] = in_turns([lambda: torch.mm(a, b)], repeats, "cuda")
    return 2 * side**3 / statistics.median(seconds)


class MusicGen(nn.Module):
    """MusicGen over the owned codebooks, of as many parameters."""

    def __init__(self, dim: int, codebooks: int, parameters: int):
        super().__init__()
        width, vocabulary = musicgen.width(dim), 1024
        blocks = parameters - width * (TEXT_WIDTH + codebooks * (2 * vocabulary + 1))
        self.text = nn.Linear(TEXT_WIDTH, width)  # as MusicGen does where text and decoder differ in width
        self.decoder = musicgen.decoder(dim, codebooks, vocabulary, blocks, use_cache=False).train()

    def forward(self, targets: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Loss of the targets [B, N, T]."""
        found = self.decoder(
            labels=targets.transpose(1, 2), encoder_hidden_states=self.text(states), encoder_attention_mask=mask.long()
        )
        return found.loss


class Plain(nn.Module):
    """`ResidualTransformer` as one would write it first; its tensors are named as in the published format."""

    def __init__(self, like: ResidualTransformer):
        super().__init__()
        c = published_config(like)
        self.first, self.group, dim = like.first, like.group, c.dim
        self.sos = nn.Parameter(torch.empty(1, 1, dim))
        self.prompt_summary = nn.Linear(c.prompt_dim, dim)
        self.codebooks = nn.ModuleDict({"layers": nn.ModuleList(PlainCodebook(c) for _ in range(c.num_codebooks))})
        self.spatial_blocks = nn.ModuleList(PlainCrossBlock(c) for _ in range(c.spatial_layers))
        self.spatial_norm = PlainNorm(dim, c.norm_eps)
        self.factorized_blocks = nn.ModuleList(PlainBlock(c) for _ in range(c.factorized_layers))
        self.factorized_norm = PlainNorm(dim, c.norm_eps)
        self.heads = nn.ModuleList(nn.Linear(dim, c.codebook_size, bias=False) for _ in range(self.group))
        self.load_state_dict(published_state(like.state_dict()))

    def forward(self, codes: Tensor, states: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
        batch, _, frames = codes.shape
        embedded = [layer(codes[:, k]) for k, layer in enumerate(self.codebooks["layers"])]
        x = torch.cat([self.sos.expand(batch, 1, -1), sum(embedded)[:, :-1]], dim=1)
        causal = torch.ones(frames, frames, dtype=torch.bool, device=x.device).tril()
        allowed = causal & valid[:, None, None, :]
        for block in self.spatial_blocks:
            x = block(x + sinusoids(x), states, mask[:, None, None], allowed)
        h = self.spatial_norm(x)
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        slots, below = [h], self.prompt_summary(mean)[:, None].expand_as(h)
        for k in range(self.first):
            below = below + embedded[k]
        for k in range(self.first, self.first + self.group):
            slots.append(below)
            below = below + embedded[k]
        z = torch.stack(slots, dim=2).flatten(0, 1)
        causal = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool, device=z.device).tril()
        for block in self.factorized_blocks:
            z = block(z + sinusoids(z), causal)
        z = self.factorized_norm(z).unflatten(0, (batch, frames))
        return torch.stack([head(z[:, :, j + 1]) for j, head in enumerate(self.heads)], dim=1)

    def loss(self, codes: Tensor, states: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
        logits, losses = self(codes, states, mask, valid), []
        for j in range(self.group):
            each = F.cross_entropy(logits[:, j].flatten(0, 1), codes[:, self.first + j].flatten(), reduction="none")
            losses.append((each * valid.flatten()).sum() / valid.sum())
        return torch.stack(losses).mean()


def sinusoids(x: Tensor) -> Tensor:
    """Positions of the second axis of x [B, T, D]."""
    length, dim = x.shape[1:]
    frequencies = torch.exp(torch.arange(0, dim, 2, device=x.device) * (-math.log(10000.0) / dim))
    angles = torch.arange(length, device=x.device)[:, None] * frequencies
    table = torch.zeros(length, dim, device=x.device)
    table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()
    return table.to(x.dtype)


class PlainCodebook(nn.Module):
    def __init__(self, c: PublishedConfig):
        super().__init__()
        self.codebook = nn.Embedding(c.codebook_size, c.dac_code_dim).requires_grad_(False)
        self.dac_out = nn.Linear(c.dac_code_dim, c.dac_feature_dim).requires_grad_(False)
        self.projector = nn.Linear(c.dac_feature_dim, c.dim)

    def forward(self, codes: Tensor) -> Tensor:
        return self.projector(self.dac_out(self.codebook(codes)))


class PlainNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class PlainSelfAttention(nn.Module):
    def __init__(self, c: PublishedConfig):
        super().__init__()
        self.heads, self.kv_heads, self.width = c.n_heads, c.n_kv_heads, c.dim // c.n_heads
        self.qkv = nn.Linear(c.dim, (c.n_heads + 2 * c.n_kv_heads) * self.width, bias=False)
        self.output = nn.Linear(c.dim, c.dim, bias=False)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.width)).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, dim=1) for part in (k, v))
        return self.output(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))


class PlainCrossAttention(nn.Module):
    def __init__(self, c: PublishedConfig):
        super().__init__()
        self.width = c.dim // c.n_heads
        self.query = nn.Linear(c.dim, c.dim)
        self.key_value = nn.Linear(c.prompt_dim, 2 * c.dim)
        self.output = nn.Linear(c.dim, c.dim)

    def forward(self, x: Tensor, text: Tensor, allowed: Tensor) -> Tensor:
        parts = self.query(x), *self.key_value(text).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in parts)
        return self.output(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))


class PlainFeedForward(nn.Module):
    def __init__(self, c: PublishedConfig):
        super().__init__()
        hidden = -(-(8 * c.dim // 3) // c.ffn_multiple_of) * c.ffn_multiple_of
        self.gate_value = nn.Linear(c.dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, c.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class PlainBlock(nn.Module):
    def __init__(self, c: PublishedConfig):
        super().__init__()
        self.attention_norm, self.ffn_norm = (PlainNorm(c.dim, c.norm_eps) for _ in range(2))
        self.attention, self.feed_forward = PlainSelfAttention(c), PlainFeedForward(c)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), allowed)
        return x + self.feed_forward(self.ffn_norm(x))


class PlainCrossBlock(nn.Module):
    def __init__(self, c: PublishedConfig):
        super().__init__()
        self.cross_norm, self.self_norm, self.ffn_norm = (PlainNorm(c.dim, c.norm_eps) for _ in range(3))
        self.cross_attention, self.self_attention = PlainCrossAttention(c), PlainSelfAttention(c)
        self.feed_forward = PlainFeedForward(c)

    def forward(self, x: Tensor, text: Tensor, heard: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.cross_attention(self.cross_norm(x), text, heard)
        x = x + self.self_attention(self.self_norm(x), allowed)
        return x + self.feed_forward(self.ffn_norm(x))


if __name__ == "__main__":
    main()
