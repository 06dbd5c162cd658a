"""Transformer blocks: pre-norm, RMSNorm, SwiGLU, no biases but in cross-attention, no rotary positions.

Two kinds: `CrossBlock` (cross-attention to the text first, then causal self-attention, then the feed-forward) for the
temporal path, `Block` (without the cross-attention) for the residual decoder. Each has two ways through it that give
the same numbers: `forward` over a whole sequence, and `extend` by the next tokens with a cache of keys and values.
Order, row layout and initialisation are those of the published checkpoints.

Under torch.compile both attentions take other ways to the same numbers (within rounding), which pay only where the
compiler fuses what lies between the products; eager results keep their bits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siren.shapes import Bool, Float

FEW = 4  # tokens up to which attention by elementwise products beats the attention kernel (Siren's decoder has 3)


def positions(length: int, dim: int) -> Float[Tensor, "T D"]:
    """Interleaved sinusoids: even columns sin(t·w), odd columns cos(t·w), w = 10000^(-2i/D)."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def feed_forward_width(dim: int, multiple_of: int, multiplier: float | None = None) -> int:
    """Hidden width of SwiGLU: two thirds of 4·D, times the multiplier if there is one, rounded up to a multiple."""
    hidden = 8 * dim // 3
    hidden = hidden if multiplier is None else int(hidden * multiplier)
    return -(-hidden // multiple_of) * multiple_of


class KeyValueCache:
    """Preallocated keys and values of one attention layer; `length` tokens are filled."""

    def __init__(self, batch: int, heads: int, capacity: int, head_dim: int, like: Tensor):
        self.keys = like.new_zeros(batch, heads, capacity, head_dim)
        self.values = like.new_zeros(batch, heads, capacity, head_dim)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next tokens' keys and values → all so far, [B, H, t, d] each."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class SelfAttention(nn.Module):
    """Causal self-attention with optional grouped keys and values. Rows of `qkv`: queries, keys, values."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, (num_heads + 2 * num_kv_heads) * self.head_dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "B T D"], cache: KeyValueCache | None = None, skip: int = 0
    ) -> Float[Tensor, "B t D"]:
        """Attention of the tokens from `skip` on, to all up to themselves: the first ones may serve as keys only."""
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        if cache is not None:
            # A cached call takes either the first tokens, which attend causally, or a single further one.
            assert length == 1 or cache.length == 0
            k, v = cache.append(k, v)
        dropout = self.dropout if self.training else 0.0
        if torch.compiler.is_compiling() and cache is None and length <= FEW:
            return self.output(_attend_to_few(q[:, :, skip:], k, v, dropout).transpose(1, 2).flatten(2))
        mask = None
        if skip:
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[skip:]
        attended = F.scaled_dot_product_attention(
            q[:, :, skip:],
            k,
            v,
            attn_mask=mask,
            is_causal=length > 1 and mask is None,
            dropout_p=dropout,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        return self.output(attended.transpose(1, 2).flatten(2))


def _attend_to_few(
    q: Float[Tensor, "B H t d"], k: Float[Tensor, "B h T d"], v: Float[Tensor, "B h T d"], dropout: float
) -> Float[Tensor, "B H t d"]:
    """Causal attention of the last t of T tokens, without matrix products: one loop when compiled."""
    sharing, length = q.shape[1] // k.shape[1], k.shape[2]
    k, v = (part.repeat_interleave(sharing, dim=1) if sharing > 1 else part for part in (k, v))
    allowed = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()[length - q.shape[2] :]
    scores = (q[:, :, :, None] * k[:, :, None]).sum(-1) / math.sqrt(q.shape[-1])
    weights = F.dropout(scores.masked_fill(~allowed, -math.inf).softmax(-1), dropout)
    return (weights[..., None] * v[:, :, None]).sum(-2)


class CrossAttention(nn.Module):
    """Attention of the frames to the text states; all heads, with biases. Rows of `key_value`: keys, values."""

    def __init__(self, dim: int, num_heads: int, text_width: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(text_width, 2 * dim)
        self.output = nn.Linear(dim, dim)

    def keys_values(self, text: Float[Tensor, "B L P"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the text, [B, H, L, d] each: constant for a prompt, so sampling makes them once."""
        batch, length, _ = text.shape
        heads = self.key_value(text).view(batch, length, 2, self.num_heads, -1)
        keys, values = heads.permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(
        self, x: Float[Tensor, "B T D"], text: tuple[Tensor, Tensor], mask: Bool[Tensor, "B 1 1 L"]
    ) -> Float[Tensor, "B T D"]:
        dropout = self.dropout if self.training else 0.0
        (frames, dim), length = x.shape[1:], mask.shape[-1]
        products = frames * (dim + length), length * dim + frames * self.num_heads * length  # both times 2·D
        if torch.compiler.is_compiling() and products[1] < products[0]:
            return self._folded(x, text, mask, dropout)
        q = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, *text, attn_mask=mask, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).flatten(2))

    def _folded(
        self, x: Float[Tensor, "B T D"], text: tuple[Tensor, Tensor], mask: Bool[Tensor, "B 1 1 L"], dropout: float
    ) -> Float[Tensor, "B T D"]:
        """The same with the projections folded into the text: (Q x)·k = x·(Qᵀ k), and O Σ w v = Σ w (O v).

        All frames of a clip read one text, so the projections cost H·L·D a frame instead of D²: at 16 heads, 20 tokens
        and D 1024 the whole is 0.37 of the products.
        """
        (keys, values), heads = text, self.num_heads
        query, output = self.query.weight.unflatten(0, (heads, -1)), self.output.weight.unflatten(1, (heads, -1))
        bias = torch.einsum("bhld,hd->bhl", keys, self.query.bias.unflatten(0, (heads, -1)))
        keys = torch.einsum("bhld,hde->bhle", keys, query).flatten(1, 2)  # [B, H·L, D]
        values = torch.einsum("bhld,ehd->bhle", values, output).flatten(1, 2)
        scores = (x @ keys.transpose(1, 2)).unflatten(2, (heads, -1)) + bias[:, None]  # [B, T, H, L]
        scores = (scores / math.sqrt(x.shape[-1] // heads)).masked_fill(~mask, -math.inf)
        return F.dropout(scores.softmax(-1), dropout).flatten(2) @ values + self.output.bias


class FeedForward(nn.Module):
    """SwiGLU. Rows of `gate_value`: gate, value."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.gate_value = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return F.dropout(self.down(F.silu(gate) * value), self.dropout, self.training)


class Block(nn.Module):
    """Causal self-attention, then SwiGLU, each added to its input."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, hidden: int, eps: float, dropout: float):
        super().__init__()
        self.attention_norm = RMSNorm(dim, eps)
        self.attention = SelfAttention(dim, num_heads, num_kv_heads, dropout)
        self.ffn_norm = RMSNorm(dim, eps)
        self.feed_forward = FeedForward(dim, hidden, dropout)

    def forward(
        self, x: Float[Tensor, "B T D"], cache: KeyValueCache | None = None, skip: int = 0
    ) -> Float[Tensor, "B t D"]:
        x = x[:, skip:] + self.attention(self.attention_norm(x), cache, skip)
        return x + self.feed_forward(self.ffn_norm(x))


class CrossBlock(nn.Module):
    """Cross-attention to the text first, then as `Block`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        text_width: int,
        hidden: int,
        eps: float,
        dropout: float,
    ):
        super().__init__()
        self.cross_norm = RMSNorm(dim, eps)
        self.cross_attention = CrossAttention(dim, num_heads, text_width, dropout)
        self.block = Block(dim, num_heads, num_kv_heads, hidden, eps, dropout)

    def keys_values(self, text: Float[Tensor, "B L P"]) -> tuple[Tensor, Tensor]:
        """The text as this block attends to it."""
        return self.cross_attention.keys_values(text)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        text: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "B 1 1 L"],
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        x = x + self.cross_attention(self.cross_norm(x), text, mask)
        return self.block(x, cache)
