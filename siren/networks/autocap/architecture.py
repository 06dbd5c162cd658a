"""The size of an AutoCap (arXiv 2406.19388, section 3): HTS-AT, a Q-Former, BART, and how many tokens each may have.

The defaults are the demo's; `conf/captioner/autocap.yaml` has the published sizes.
"""

from dataclasses import dataclass, field
from typing import Any

from siren.config import parse, require
from siren.networks.clap.architecture import Architecture as Tower

FIELDS = ("labels", "visual_caption", "title", "description", "subtitle")  # in the order they are read in


@dataclass(frozen=True)
class Architecture:
    tower: Tower = field(default_factory=Tower)  # the HTS-AT that hears; CLAP's text tower is not part of it
    stretch: int = 1  # how often each of its moments is repeated; the published model reads 32 of them 32 times
    positions: int = 32  # as many moments as there may be after that
    # the Q-Former: learned queries that read the moments, so that the language model has few tokens to read
    queries: int = 16
    query_width: int = 64
    query_layers: int = 2
    query_heads: int = 4
    query_ffn: int = 256
    # BART
    vocab_size: int = 512  # at most: a tokeniser that is trained on the corpus says how many there are
    width: int = 96
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    ffn: int = 256
    max_positions: int = 128
    dropout: float = 0.1
    feature_dropout: float = 0.2  # of what is heard and of metadata, before BART reads them
    # what is read beside the sound
    fields: tuple[str, ...] = ("labels", "title")
    max_metadata: int = 32  # tokens of all fields together
    max_caption: int = 30  # tokens, marks included

    def __post_init__(self) -> None:
        require(self.query_width % self.query_heads == 0, f"query_width {self.query_width} / {self.query_heads} heads")
        require(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")
        unknown = sorted(set(self.fields) - set(FIELDS))
        require(not unknown, f"fields has {', '.join(unknown)}; there are {', '.join(FIELDS)}")
        require(
            self.moments <= self.positions,
            f"positions {self.positions} is too small: the tower has {self.moments} moments",
        )
        needed = 1 + 1 + self.queries + self.max_metadata + 1  # CLAP's token, the beginning, the end
        require(
            max(needed, self.max_caption) <= self.max_positions,
            f"max_positions {self.max_positions} is too small: {self.queries} queries and {self.max_metadata} tokens "
            f"of metadata with their marks are {needed}",
        )

    @property
    def moments(self) -> int:
        """How many moments of a clip the Q-Former reads."""
        return self.tower.spec_frames // self.tower.patch // 2 ** (len(self.tower.depths) - 1) * self.stretch


def architecture(data: dict[str, Any], where: str = "networks.autocap.architecture") -> Architecture:
    """Settings as an `Architecture`. Raises `ConfigError` for an unknown key or an impossible size."""
    parsed: Architecture = parse(Architecture, data, where)
    return parsed
