"""A peer to be timed beside: the decoder of MusicGen as it stands in transformers, of a size that can be compared."""

from typing import Any

from transformers import MusicgenDecoderConfig, MusicgenForCausalLM


def width(dim: int) -> int:
    """1.5 x as wide as a transformer of ours."""
    return dim * 3 // 2


def decoder(dim: int, codebooks: int, vocabulary: int, parameters: int, **more: Any) -> MusicgenForCausalLM:
    """As deep as comes nearest to so many parameters in its blocks (16 width² each). `more` is for its config."""
    size = width(dim)
    config = MusicgenDecoderConfig(
        vocab_size=vocabulary,
        num_codebooks=codebooks,
        hidden_size=size,
        ffn_dim=4 * size,
        num_hidden_layers=max(1, round(parameters / (16 * size * size))),
        num_attention_heads=max(1, size // 64),
        dropout=0.0,
        pad_token_id=vocabulary,
        bos_token_id=vocabulary,
        attn_implementation="sdpa",
        **more,
    )
    return MusicgenForCausalLM(config)
