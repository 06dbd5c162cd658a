"""The published format once more, written from its description and not from our code: keys, shapes and the forward."""

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from siren.model.codebooks import CodecTables

TINY: dict[str, Any] = {
    "dim": 16,
    "n_heads": 4,
    "n_kv_heads": 2,
    "spatial_layers": 2,
    "factorized_layers": 1,
    "prompt_dim": 12,
    "num_codebooks": 12,
    "num_experts": 6,
    "codebook_size": 1024,
    "dac_code_dim": 4,
    "dac_feature_dim": 10,
    "max_seq_len": 24,
    "max_prompt_len": 8,
    "ffn_multiple_of": 8,
    "ffn_multiplier": None,
    "norm_eps": 1e-5,
    "dropout": 0.1,
    "initializer_range": 0.02,
}


def hidden(c: dict[str, Any]) -> int:
    """Width of SwiGLU."""
    width = math.floor(8 * c["dim"] / 3)
    if c["ffn_multiplier"] is not None:
        width = math.floor(width * c["ffn_multiplier"])
    return math.ceil(width / c["ffn_multiple_of"]) * c["ffn_multiple_of"]


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Section 2 of the format, key by key."""
    d, p, h = c["dim"], c["prompt_dim"], hidden(c)
    q = (c["n_heads"] + 2 * c["n_kv_heads"]) * d // c["n_heads"]
    found: dict[str, tuple[int, ...]] = {"sos": (1, 1, d), "prompt_summary.weight": (d, p), "prompt_summary.bias": (d,)}
    for j in range(12):
        layer = f"codebooks.layers.{j}"
        found[f"{layer}.codebook.weight"] = (1024, c["dac_code_dim"])
        found[f"{layer}.dac_out.weight"] = (c["dac_feature_dim"], c["dac_code_dim"])
        found[f"{layer}.dac_out.bias"] = (c["dac_feature_dim"],)
        found[f"{layer}.projector.weight"] = (d, c["dac_feature_dim"])
        found[f"{layer}.projector.bias"] = (d,)
    for i in range(c["spatial_layers"]):
        block, cross = f"spatial_blocks.{i}", f"spatial_blocks.{i}.cross_attention"
        found |= {f"{block}.{name}_norm.weight": (d,) for name in ("cross", "self", "ffn")}
        found |= {f"{cross}.{name}.weight": (d, d) for name in ("query", "output")}
        found |= {f"{cross}.{name}.bias": (d,) for name in ("query", "output")}
        found |= {f"{cross}.key_value.weight": (2 * d, p), f"{cross}.key_value.bias": (2 * d,)}
        found |= {f"{block}.self_attention.qkv.weight": (q, d), f"{block}.self_attention.output.weight": (d, d)}
        found |= {f"{block}.feed_forward.gate_value.weight": (2 * h, d), f"{block}.feed_forward.down.weight": (d, h)}
    for i in range(c["factorized_layers"]):
        block = f"factorized_blocks.{i}"
        found |= {f"{block}.{name}_norm.weight": (d,) for name in ("attention", "ffn")}
        found |= {f"{block}.attention.qkv.weight": (q, d), f"{block}.attention.output.weight": (d, d)}
        found |= {f"{block}.feed_forward.gate_value.weight": (2 * h, d), f"{block}.feed_forward.down.weight": (d, h)}
    found |= {f"{name}_norm.weight": (d,) for name in ("spatial", "factorized")}
    return found | {f"heads.{n}.weight": (1024, d) for n in range(2)}


def states(
    c: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32, tables: CodecTables | None = None
) -> list[dict[str, Tensor]]:
    """Six random experts over the tables of one codec, which are random too where none are given."""
    g = torch.Generator().manual_seed(seed)
    experts = [{k: torch.randn(s, generator=g).mul(0.2).to(dtype) for k, s in shapes(c).items()} for _ in range(6)]
    frozen = {k: v for k, v in experts[0].items() if ".codebook." in k or ".dac_out." in k}
    if tables is not None:
        parts = {"codebook.weight": tables.rows, "dac_out.weight": tables.weight, "dac_out.bias": tables.bias}
        frozen = {f"codebooks.layers.{j}.{k}": v[j] for k, v in parts.items() for j in range(12)}
    return [expert | {k: v.clone() for k, v in frozen.items()} for expert in experts]


def write(folder: Path, experts: list[dict[str, Tensor]], config: dict[str, Any]) -> Path:
    """A release."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for index, state in enumerate(experts):
        path = folder / f"expert_{2 * index}.safetensors"
        save_file(state, path)
        digest = sha256(path.read_bytes()).hexdigest()
        listed.append({"start_codebook": 2 * index, "weights": path.name, "sha256": digest})
    (folder / "config.json").write_text(json.dumps({"_note": "ignored", **config}))
    manifest = {"format_version": 1, "config": "config.json", "experts": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def logits(w: dict[str, Tensor], c: dict[str, Any], start: int, codes: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
    """Section 5 of the format, one operation after the other: codes [B, 12, T] → [B, 2, T, 1024]."""
    d, eps, (batch, _, frames) = c["dim"], c["norm_eps"], codes.shape

    def norm(x: Tensor, name: str) -> Tensor:
        return rms_norm(x, (d,), w[f"{name}.weight"], eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def places(length: int) -> Tensor:
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)
        table = torch.empty(length, d)
        table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()
        return table

    def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        heads, kv_heads, width = c["n_heads"], k.shape[-1] * c["n_heads"] // d, d // c["n_heads"]
        q, k, v = (x.unflatten(-1, (-1, width)).transpose(1, 2) for x in (q, k, v))
        k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(width)).masked_fill(~allowed, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def causal(x: Tensor, name: str) -> Tensor:
        kv = c["n_kv_heads"] * d // c["n_heads"]
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return linear(attend(*linear(x, f"{name}.qkv").split([d, kv, kv], dim=-1), allowed), f"{name}.output")

    def swiglu(x: Tensor, name: str) -> Tensor:
        gate, value = linear(x, f"{name}.gate_value").chunk(2, dim=-1)
        return linear(silu(gate) * value, f"{name}.down")

    embedded = []
    for j in range(12):
        layer = f"codebooks.layers.{j}"
        embedded.append(
            linear(linear(w[f"{layer}.codebook.weight"][codes[:, j]], f"{layer}.dac_out"), f"{layer}.projector")
        )
    x = torch.cat([w["sos"].expand(batch, 1, d), sum(embedded)[:, :-1]], dim=1)
    for i in range(c["spatial_layers"]):
        block, x = f"spatial_blocks.{i}", x + places(frames)
        q = linear(norm(x, f"{block}.cross_norm"), f"{block}.cross_attention.query")
        k, v = linear(prompt, f"{block}.cross_attention.key_value").chunk(2, dim=-1)
        x = x + linear(attend(q, k, v, mask[:, None, None]), f"{block}.cross_attention.output")
        x = x + causal(norm(x, f"{block}.self_norm"), f"{block}.self_attention")
        x = x + swiglu(norm(x, f"{block}.ffn_norm"), f"{block}.feed_forward")
    h = norm(x, "spatial_norm")
    mean = (prompt * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    b = linear(mean, "prompt_summary")[:, None] + sum(embedded[:start], torch.zeros(batch, frames, d))
    z = torch.stack([h, b, b + embedded[start]], dim=2).flatten(0, 1)
    for i in range(c["factorized_layers"]):
        block, z = f"factorized_blocks.{i}", z + places(3)
        z = z + causal(norm(z, f"{block}.attention_norm"), f"{block}.attention")
        z = z + swiglu(norm(z, f"{block}.ffn_norm"), f"{block}.feed_forward")
    z = norm(z, "factorized_norm").unflatten(0, (batch, frames))
    return torch.stack([linear(z[:, :, 1], "heads.0"), linear(z[:, :, 2], "heads.1")], dim=1)
