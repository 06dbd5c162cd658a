"""The size of an ImageBind (arXiv 2305.05665), audio and text only: two plain transformers onto one sphere.

The defaults are the demo's; `HUGE` is the published one (imagebind_huge), whose audio tower is a ViT-B and whose text
tower is CLIP's ViT-H.
"""

from dataclasses import dataclass
from typing import Any, Literal

from siren.config import parse, require


@dataclass(frozen=True)
class Architecture:
    # filter banks: 25 ms every 10 ms
    sample_rate: int = 16000
    window_seconds: float = 1.6  # longer clips are cut into `windows` evenly spread ones
    windows: int = 3
    mel_bins: int = 128
    target_frames: int = 158  # cut or padded to this; 1.6 s have exactly 158
    # audio tower: overlapping patches of the filter banks, one class token
    audio_kernel: int = 16
    audio_stride: int = 16
    audio_width: int = 96
    audio_layers: int = 3
    audio_heads: int = 4
    audio_drop_path: float = 0.0
    # text tower: causal, read out at the end token
    tokens: Literal["corpus", "clip"] = "corpus"  # a BPE trained on the captions, or CLIP's, which is in the package
    vocab_size: int = 512  # without the end token; at most, where it is trained on the corpus
    context_length: int = 40
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 4
    embed_dim: int = 96

    def __post_init__(self) -> None:
        for tower in ("audio", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            require(width % heads == 0, f"{tower}_width {width} is not a multiple of {tower}_heads {heads}")
        require(self.windows >= 1, f"windows is {self.windows}; at least 1 is needed")
        require(
            min(self.mel_bins, self.target_frames) >= self.audio_kernel,
            f"a patch of {self.audio_kernel} does not fit into {self.mel_bins} bands x {self.target_frames} frames",
        )
        require(
            self.tokens == "corpus" or self.vocab_size == CLIP_VOCABULARY,
            f"tokens: clip has {CLIP_VOCABULARY} tokens, not vocab_size {self.vocab_size}",
        )

    @property
    def window_samples(self) -> int:
        return round(self.window_seconds * self.sample_rate)


CLIP_VOCABULARY = 49407  # and the end token, the highest

HUGE = Architecture(
    window_seconds=2.0,
    windows=3,
    target_frames=204,
    audio_kernel=16,
    audio_stride=10,
    audio_width=768,
    audio_layers=12,
    audio_heads=12,
    audio_drop_path=0.1,
    tokens="clip",
    vocab_size=CLIP_VOCABULARY,
    context_length=77,
    text_width=1024,
    text_layers=24,
    text_heads=16,
    embed_dim=1024,
)


def architecture(data: dict[str, Any], where: str = "networks.imagebind.architecture") -> Architecture:
    """Settings as an `Architecture`. Raises `ConfigError` for an unknown key or an impossible size."""
    parsed: Architecture = parse(Architecture, data, where)
    return parsed
