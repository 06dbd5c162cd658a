"""What a model costs before it is built: parameters, memory, arithmetic. Counted on the meta device, without memory.

Every figure is of one transformer unless it says otherwise; all transformers of a model are of the same size.
Parameters are exact. The arithmetic is exact for its matrix products (two operations for each multiply-add) and leaves
out everything else. Activations are an estimate. Letters: F = B·T frames of a batch, n = N + 1 slots of the residual
decoder, Q = width of queries, keys and values together, H = hidden width of SwiGLU.
"""

from dataclasses import dataclass

import torch

from siren.config import Model
from siren.model.codebooks import CodecTables
from siren.model.transformer import ResidualTransformer

PARTS = (  # of the table of parameters: name, prefixes of tensors
    ("embedding", ("codebooks.projector", "codebooks.absent")),
    ("codec tables (frozen)", ("codebooks.",)),
    ("main layers", ("temporal.",)),
    ("decoder layers", ("decoder.",)),
    ("heads", ("heads",)),
    ("decoder start", ("prompt_summary.", "residual_start")),
    ("start and final norms", ("",)),
)
FLOAT32 = 4  # bytes


def skeleton(model: Model, codec: CodecTables, text_width: int, index: int = 0) -> ResidualTransformer:
    """Transformer `index` on the meta device: every shape, no memory. Of `codec` only the shapes matter."""
    with torch.device("meta"):
        return ResidualTransformer(model, codec.to("meta"), text_width, index)


def parameters(transformer: ResidualTransformer) -> dict[str, int]:
    """Values of each part of a transformer, the frozen codec tables among them; their sum is `total`."""
    counts = dict.fromkeys((name for name, _ in PARTS), 0)
    for name, tensor in transformer.state_dict().items():
        counts[next(part for part, prefixes in PARTS if name.startswith(prefixes))] += tensor.numel()
    return counts | {"total": sum(counts.values())}


@dataclass(frozen=True)
class Sizes:
    """The letters of the formulas below."""

    D: int
    H: int
    Q: int
    K: int
    C: int
    V: int
    N: int
    latent: int
    text_width: int
    main_layers: int
    decoder_layers: int

    @classmethod
    def of(cls, t: ResidualTransformer) -> "Sizes":
        c, head_dim = t.config, t.config.dim // t.config.num_heads
        num_codebooks, size, code_dim = t.codebooks.rows.shape
        hidden = next(layer.shape[1] for name, layer in t.state_dict().items() if name.endswith("down.weight"))
        qkv = (c.num_heads + 2 * c.num_kv_heads) * head_dim
        latent, layers = t.codebooks.weight.shape[1], (c.main_layers, c.decoder_layers)
        return cls(c.dim, hidden, qkv, num_codebooks, code_dim, size, t.group, latent, t.text_width, *layers)

    def slots(self) -> list[int]:
        """Slots of the residual decoder that each of its blocks computes: the last one leaves the first slot out."""
        return [self.N + 1] * (self.decoder_layers - 1) + [self.N] * (self.decoder_layers > 0)


def training_flops(transformer: ResidualTransformer, batch: int, frames: int, text_length: int) -> dict[str, int]:
    """Operations of one training step in matrix products: {forward, backward, total}.

    Forward, per frame: embedding 2·C·D·(K + first + N - 1) after folding the projectors once (2·K·D·latent·(C + 1)),
    less where the residual decoder is told less (`residual_condition`);
    main block 2·D·(Q + 3·D) + 6·D·H + 4·D·(T + L) for attention over T frames, causal or not, and L text tokens;
    decoder block the same without cross-attention, over n slots (its last block computes N of them); heads 2·N·D·V.
    Text, per token: 4·D·text_width for keys and values in each main block.
    Backward is twice that, but once where the input needs no gradient: folding, embedding, text. Attention kernels that
    compute their matrix again in the backward pass add half of the attention's share.
    """
    s, count = Sizes.of(transformer), batch * frames
    fold = 2 * s.K * s.D * s.latent * (s.C + 1)
    low = {"accumulated": transformer.first, "previous": min(1, transformer.first), "none": 1 - s.N}
    embed = 2 * count * s.C * s.D * (s.K + low[transformer.config.residual_condition] + s.N - 1)
    text = 4 * batch * text_length * s.D * s.text_width * s.main_layers
    if transformer.conditioned and transformer.config.residual_start == "prompt":
        text += 2 * batch * s.D * s.text_width
    block = 2 * s.D * s.D + 6 * s.D * s.H  # output projection and SwiGLU, per position
    main = 2 * s.D * s.Q + block + 4 * s.D * s.D + 4 * s.D * (frames + text_length)
    n = s.N + 1
    decoder = sum(n * 2 * s.D * s.Q + m * (block + 4 * s.D * n) for m in s.slots())
    once = fold + embed + text
    twice = count * (s.main_layers * main + decoder + 2 * s.N * s.D * s.V)
    forward, backward = once + twice, once + 2 * twice
    return {"forward": forward, "backward": backward, "total": forward + backward}


def activations(
    transformer: ResidualTransformer,
    batch: int,
    frames: int,
    text_length: int,
    precision: str = "fp32",
    fused_norms: bool = True,
) -> int:
    """Estimated bytes that the forward pass of a training step keeps for the backward pass.

    Values per frame: a main block 9·D + Q + 4·H (its three norms' inputs and outputs, the query and two attention
    outputs; queries, keys and values; gate and value, the gate after SiLU, the product). A decoder block 5·D + Q + 4·H
    for each slot, but only 2·D + Q for a slot whose output nobody needs. Then the norms at both ends, the code rows,
    and N·V log-probabilities. Dropout adds a mask of one byte per value. Under bf16 autocast the inputs of norms and
    the log-probabilities stay at four bytes, the others have two. Attention is assumed to keep no matrix, norms to be
    fused (as on CUDA); where they are not, each keeps its output without the weight as well.
    """
    s, count = Sizes.of(transformer), batch * frames
    wide, narrow = FLOAT32, FLOAT32 if precision == "fp32" else 2
    norm = wide * (1 if fused_norms else 2) * s.D
    dropped = s.D if transformer.config.dropout else 0
    main = 3 * norm + narrow * (6 * s.D + s.Q + 4 * s.H) + dropped
    first = norm + narrow * (s.D + s.Q)  # of a decoder block, per slot: up to its attention
    rest = norm + narrow * (2 * s.D + 4 * s.H) + dropped
    decoder = sum((s.N + 1) * first + m * rest for m in s.slots())
    normed = 1 + (s.N if s.decoder_layers else 0)
    ends = normed * (norm + narrow * s.D) + wide * (s.K * s.C + s.N * s.V)
    text = batch * text_length * narrow * (2 * s.D * s.main_layers + s.text_width)
    return round(count * (s.main_layers * main + decoder + ends) + text)


def training_memory(
    transformer: ResidualTransformer,
    batch: int,
    frames: int,
    text_length: int,
    precision: str = "fp32",
    averaged: bool = False,
) -> dict[str, int]:
    """Bytes while one transformer trains with AdamW: weights, gradients and two moments of four bytes each, and the
    activations. Autocast to bf16 adds a copy of the weights at two bytes, averaged weights (EMA) one at four."""
    trainable, weights = sum(p.numel() for p in transformer.parameters()), parameters(transformer)["total"]
    parts = {
        "weights": FLOAT32 * weights,
        "gradients": FLOAT32 * trainable,
        "optimiser": 2 * FLOAT32 * trainable,
        "weights in bf16": 0 if precision == "fp32" else 2 * trainable,
        "averaged weights": FLOAT32 * weights if averaged else 0,
        "activations (estimate)": activations(transformer, batch, frames, text_length, precision),
    }
    return {name: count for name, count in parts.items() if count} | {"total": sum(parts.values())}


def sampling_memory(transformer: ResidualTransformer, batch: int, frames: int, text_length: int) -> dict[str, int]:
    """Bytes while ALL transformers sample together in float32; with guidance the batch counts twice.

    Weights; embedding tables folded to K·V·D; keys and values of T frames in every main block and of n slots in every
    decoder block, 2·(heads of keys and values)·(head width) each; keys and values of L text tokens, 2·D in every main
    block.
    """
    s, c = Sizes.of(transformer), transformer.config
    kept = 2 * c.num_kv_heads * (s.D // c.num_heads)
    parts = {
        "weights": parameters(transformer)["total"],
        "embedding tables": s.K * s.V * s.D,
        "frame caches": batch * kept * (frames * s.main_layers + (s.N + 1) * s.decoder_layers),
        "text caches": batch * text_length * 2 * s.D * s.main_layers,
    }
    parts = {name: FLOAT32 * len(c.transformers) * count for name, count in parts.items()}
    return parts | {"total": sum(parts.values())}
