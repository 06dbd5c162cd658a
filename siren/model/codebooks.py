"""From codes to vectors: the codec's frozen tables, and one trainable linear projector per codebook on top.

The codec turns code q of codebook k into `weight_k @ rows_k[q] + bias_k` (its out-projection of a short row). A
transformer projects that latent vector to its own width. Unusual: the two linear maps are folded into one of rank
C (8 in DAC) before they touch the frames, which replaces K products of (frames × latent × D) by a single one of
(frames × K·C × D) with exact gradients to the projectors.

With the delay pattern (MusicGen) codebook k runs k frames behind the first: step s holds code s - k of codebook k, or
where there is no such frame a learned vector, so T frames take T + K - 1 steps. The parallel pattern is the same with
all delays 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from siren.shapes import Bool, Float, Int

Pattern = Literal["parallel", "delay"]
Condition = Literal["accumulated", "previous", "none"]


@dataclass(frozen=True)
class CodecTables:
    """What the model needs of a codec: f̂_k = weight_k @ rows_k[q] + bias_k, the latent of code q in codebook k."""

    rows: Float[Tensor, "K V C"]
    weight: Float[Tensor, "K latent C"]
    bias: Float[Tensor, "K latent"]

    @property
    def num_codebooks(self) -> int:
        return self.rows.shape[0]

    @property
    def codebook_size(self) -> int:
        return self.rows.shape[1]

    def to(self, device: str) -> "CodecTables":
        return CodecTables(self.rows.to(device), self.weight.to(device), self.bias.to(device))

    def latents(self) -> Float[Tensor, "K V latent"]:
        """The latent vector of every code."""
        return torch.einsum("kvc,klc->kvl", self.rows, self.weight) + self.bias[:, None]

    def normalised(self) -> "CodecTables":
        """The same tables with each codebook's latents scaled to a root mean square of 1.

        Small codecs have latents of RMS 0.2 to 0.3, which the positions (RMS 0.7, added before every block) drown.
        """
        scale = self.latents().square().mean(dim=(1, 2)).sqrt().clamp_min(1e-8)
        return CodecTables(self.rows, self.weight / scale[:, None, None], self.bias / scale[:, None])


def delays(pattern: Pattern, num_codebooks: int) -> list[int]:
    """How many steps each codebook runs behind: its index under the delay pattern, else 0."""
    return [k if pattern == "delay" else 0 for k in range(num_codebooks)]


def delay(x: Float[Tensor, "B T K C"], by: Sequence[int]) -> tuple[Float[Tensor, "B S K C"], Bool[Tensor, "S K"]]:
    """Frames to steps, codebook k later by `by[k]`: S = T + max(by). Where there is no frame: 0, not `present`."""
    frames = x.shape[1]
    if max(by) == 0:
        return x, torch.ones(x.shape[1:3], dtype=torch.bool, device=x.device)
    moved = x.new_zeros(x.shape[0], frames + max(by), *x.shape[2:])
    present = torch.zeros(moved.shape[1:3], dtype=torch.bool, device=x.device)
    for k, d in enumerate(by):
        moved[:, d : d + frames, k] = x[:, :, k]
        present[d : d + frames, k] = True
    return moved, present


def undelay(x: Float[Tensor, "B S K C"], by: Sequence[int], frames: int) -> Float[Tensor, "B T K C"]:
    """Steps back to frames."""
    return torch.stack([x[:, d : d + frames, k] for k, d in enumerate(by)], dim=2)


class Codebooks(nn.Module):
    """Embeddings E_k of every codebook for one transformer: frozen codec tables, trainable projectors."""

    rows: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, tables: CodecTables, dim: int, init_std: float, pattern: Pattern = "parallel"):
        super().__init__()
        num_codebooks, latent, _ = tables.weight.shape
        self.delays = delays(pattern, num_codebooks)
        self.register_buffer("rows", tables.rows.detach().clone().float())
        self.register_buffer("weight", tables.weight.detach().clone().float())
        self.register_buffer("bias", tables.bias.detach().clone().float())
        self.projector = nn.Parameter(torch.randn(num_codebooks, dim, latent) * init_std)
        self.projector_bias = nn.Parameter(torch.zeros(num_codebooks, dim))
        if pattern == "delay":
            self.absent = nn.Parameter(torch.randn(num_codebooks, dim) * init_std)  # where a codebook has no frame

    def folded(self) -> tuple[Float[Tensor, "K C D"], Float[Tensor, "K D"]]:
        """Projector ∘ out-projection as one linear map of the short rows, per codebook: (matrix, constant)."""
        matrix = torch.einsum("kdl,klc->kcd", self.projector, self.weight)
        constant = torch.einsum("kdl,kl->kd", self.projector, self.bias) + self.projector_bias
        return matrix, constant

    def gather(self, codes: Int[Tensor, "B K T"]) -> Float[Tensor, "B T K C"]:
        """The frozen rows of `codes`. Raises ValueError for codes that the codebooks do not have (on a CPU)."""
        num_codebooks, size, _ = self.rows.shape
        if codes.shape[1] != num_codebooks:
            raise ValueError(f"codes of {codes.shape[1]} codebooks; this model was made for {num_codebooks}")
        # The flat index below would read a code beyond the end as another codebook's. An accelerator would have to be
        # waited for, and a compiled graph broken: there the reader of the shards has looked already.
        if codes.device.type == "cpu" and not torch.compiler.is_compiling() and codes.numel():
            low, high = (int(code) for code in codes.aminmax())
            if low < 0 or high >= size:
                raise ValueError(f"code {low if low < 0 else high}; the codec's codes are 0 to {size - 1}")
        offsets = torch.arange(codes.shape[1], device=codes.device) * self.rows.shape[1]
        return self.rows.flatten(0, 1)[codes.transpose(1, 2) + offsets]

    def embed(
        self, rows: Float[Tensor, "B T K C"], first: int, group: int, condition: Condition = "accumulated"
    ) -> tuple[Float[Tensor, "B S D"], list[Float[Tensor, "B T D"]]]:
        """Sums of embeddings for a transformer that owns codebooks `first` … `first + group - 1`.

        Returns the sum over all codebooks of each step (the temporal input; S = T where nothing is delayed), and what
        the residual decoder is told before each owned codebook k: the sum over all codebooks below k (`accumulated`,
        Eq. 5), codebook k - 1 alone (`previous`), or nothing (`none`: an empty list).
        """
        matrix, constant = self.folded()
        steps, present = delay(rows, self.delays)
        if max(self.delays) == 0:
            offset = constant.sum(0)
        else:
            offset = torch.where(present[..., None], constant, self.absent).sum(1)
        everything = steps.flatten(2) @ matrix.flatten(0, 1) + offset
        if condition == "none":
            return everything, []
        low = 0 if condition == "accumulated" else max(0, first - 1)
        told = [rows[:, :, low:first].flatten(2) @ matrix[low:first].flatten(0, 1) + constant[low:first].sum(0)]
        for k in range(first, first + group - 1):
            below = told[-1] if condition == "accumulated" else 0.0
            told.append(below + rows[:, :, k] @ matrix[k] + constant[k])
        return everything, told

    def tables(self) -> Float[Tensor, "K V D"]:
        """The embedding of every code, for sampling: a lookup instead of a product."""
        matrix, constant = self.folded()
        return torch.einsum("kvc,kcd->kvd", self.rows, matrix) + constant[:, None]
