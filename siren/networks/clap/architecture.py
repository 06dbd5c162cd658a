"""The size of a CLAP (arXiv 2211.06687): HTS-AT audio tower, RoBERTa text tower, a projection on each.

One dataclass describes both backends and every size, from the demo's (the defaults) to the published ones
(`HTSAT_TINY_48K`, `HTSAT_BASE_48K`), so that a saved network does not depend on the library that will run it.

HTS-AT folds the log-mel image [T frames, F bands] into a square of `spec_size`: `spec_size / mel_bands` stretches of
time lie on top of each other, and fewer frames than fit are stretched (bicubic) to fill it.
"""

from dataclasses import dataclass, replace
from typing import Any

from siren.config import parse, require


@dataclass(frozen=True)
class Architecture:
    # log-mel front end, at the network's own rate
    sample_rate: int = 16000
    max_seconds: float = 1.6  # the length every clip is brought to; longer ones are cut into windows
    n_fft: int = 512
    hop: int = 160
    mel_bands: int = 64
    fmin: float = 50.0
    fmax: float = 8000.0
    # HTS-AT: shifted-window attention, a stage doubles the width and halves the grid
    spec_size: int = 128
    patch: int = 16
    width: int = 48
    depths: tuple[int, ...] = (2, 2)
    heads: tuple[int, ...] = (4, 8)
    window: int = 4
    # RoBERTa
    vocab_size: int = 512  # at most: the tokeniser that is trained on the corpus says how many there are
    text_width: int = 96
    text_layers: int = 2
    text_heads: int = 4
    text_ffn: int = 192
    max_tokens: int = 77
    max_positions: int = 80  # RoBERTa counts positions from 2: at least max_tokens + 2
    text_norm_eps: float = 1e-5
    # both
    embed_dim: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(
            len(self.depths) == len(self.heads) > 0, f"depths {self.depths} and heads {self.heads} differ in length"
        )
        require(
            self.spec_size % self.mel_bands == 0,
            f"spec_size {self.spec_size} is not a multiple of mel_bands {self.mel_bands}",
        )
        smallest = self.spec_size // self.patch // 2 ** (len(self.depths) - 1)
        require(
            smallest >= self.window and smallest % self.window == 0,
            f"the last stage's grid of {smallest} x {smallest} must be a multiple of the window {self.window}",
        )
        for stage, heads in enumerate(self.heads):
            width = self.width * 2**stage
            require(width % heads == 0, f"heads[{stage}] is {heads}; it must divide the stage's width {width}")
        require(
            self.text_width % self.text_heads == 0,
            f"text_width {self.text_width} is not a multiple of text_heads {self.text_heads}",
        )
        require(
            self.max_positions >= self.max_tokens + 2,
            f"max_positions {self.max_positions} is too small for max_tokens {self.max_tokens}: add 2",
        )
        require(self.fmax <= self.sample_rate / 2, f"fmax {self.fmax} is above half of sample_rate {self.sample_rate}")
        require(
            self.frames <= self.spec_frames,
            f"max_seconds {self.max_seconds} gives {self.frames} frames at hop {self.hop}; a spectrogram of "
            f"spec_size {self.spec_size} and {self.mel_bands} bands holds {self.spec_frames}: use a larger hop",
        )

    @property
    def max_samples(self) -> int:
        return round(self.max_seconds * self.sample_rate)

    @property
    def frames(self) -> int:
        return 1 + self.max_samples // self.hop

    @property
    def spec_frames(self) -> int:
        """How many frames the folded square holds."""
        return self.spec_size * (self.spec_size // self.mel_bands)

    @property
    def audio_width(self) -> int:
        """Width of the audio tower's last stage."""
        return self.width * int(2 ** (len(self.depths) - 1))


def architecture(data: dict[str, Any], where: str = "networks.clap.architecture") -> Architecture:
    """Settings as an `Architecture`. Raises `ConfigError` for an unknown key or an impossible size."""
    parsed: Architecture = parse(Architecture, data, where)
    return parsed


def require_same(given: dict[str, Any], made: Any, weights: str, where: str) -> None:
    """Raise `ConfigError` where settings name a size that the loaded weights do not have."""
    for key, value in given.items():
        require(hasattr(made, key), f"unknown key '{where}.{key}'")
        has = getattr(made, key)
        fits = value >= has if key == "vocab_size" else value == (list(has) if isinstance(has, tuple) else has)
        require(fits, f"{where}.{key} is {value!r}, but {weights} was made with {has!r}; train anew or change the key")


HTSAT_TINY_48K = Architecture(  # laion/clap-htsat-unfused and 630k-audioset-best.pt
    sample_rate=48000,
    max_seconds=10.0,
    n_fft=1024,
    hop=480,
    mel_bands=64,
    fmin=50.0,
    fmax=14000.0,
    spec_size=256,
    patch=4,
    width=96,
    depths=(2, 2, 6, 2),
    heads=(4, 8, 16, 32),
    window=8,
    vocab_size=50265,
    text_width=768,
    text_layers=12,
    text_heads=12,
    text_ffn=3072,
    max_tokens=77,
    max_positions=514,
    text_norm_eps=1e-5,
    embed_dim=512,
    dropout=0.1,
)
# music_speech_audioset_epoch_15_esc_89.98.pt and music_audioset_epoch_15_esc_90.14.pt: what most papers score with
HTSAT_BASE_48K = replace(HTSAT_TINY_48K, width=128, depths=(2, 2, 12, 2))
PUBLISHED = {arch.width: arch for arch in (HTSAT_TINY_48K, HTSAT_BASE_48K)}
