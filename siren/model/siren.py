"""The collaboration: M isolated transformers that share nothing but the codes (paper Figure 3).

They are trained, stored and loaded one by one; together they only sample. `check` refuses a set that does not belong
together: a missing or repeated index, or tables of different codecs.
"""

from collections.abc import Sequence

import torch
from torch import nn

from siren.model.transformer import ResidualTransformer


class Siren(nn.Module):
    """Transformers 0 … M-1 in order."""

    def __init__(self, transformers: Sequence[ResidualTransformer]):
        super().__init__()
        check(transformers)
        self.transformers = nn.ModuleList(transformers)

    @property
    def num_codebooks(self) -> int:
        return self[0].codebooks.rows.shape[0]

    @property
    def codebook_size(self) -> int:
        return self[0].codebooks.rows.shape[1]

    @property
    def max_frames(self) -> int:
        return self[0].max_frames

    def __getitem__(self, index: int) -> ResidualTransformer:
        transformer = self.transformers[index]
        assert isinstance(transformer, ResidualTransformer)
        return transformer

    def __len__(self) -> int:
        return len(self.transformers)


def check(transformers: Sequence[ResidualTransformer]) -> None:
    """Raise ValueError unless these are all the transformers of one model over one codec."""
    found = [t.index for t in transformers]
    if not transformers or found != list(range(len(transformers[0].config.transformers))):
        count = len(transformers[0].config.transformers) if transformers else "its"
        raise ValueError(f"these are transformers {found}; the model has {count} of them and needs each, in order")
    rows = transformers[0].codebooks.rows
    for transformer in transformers[1:]:
        if not torch.equal(transformer.codebooks.rows, rows):
            raise ValueError(f"transformer {transformer.index} was trained on another codec than transformer 0")
