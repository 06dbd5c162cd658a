"""The residual vector quantiser of DAC (arXiv 2306.06546), and how to start and revive its codebooks.

Each layer projects the residual to a few dimensions, takes the row of its codebook with the nearest direction (both
sides L2-normalised for the search only), projects the raw row back and subtracts it. Names and return values are those
of `dac` and transformers, so the functions below work on all three.

Unusual: `fit_quantizer` starts a quantiser from latents. Projections start as the principal axes of each layer's
residual and rows as spherical k-means centres, so that the first quantised step is already a fair reconstruction;
random ones collapse to a handful of codes.

Shapes: B batch · K codebooks · T frames · V codebook size · C code width · N vectors.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siren.shapes import Float, Int


class VectorQuantizer(nn.Module):
    """One layer. Gradients pass straight through the choice of the row."""

    def __init__(self, latent_dim: int, codebook_size: int, code_dim: int):
        super().__init__()
        self.in_proj = nn.Conv1d(latent_dim, code_dim, kernel_size=1)
        self.out_proj = nn.Conv1d(code_dim, latent_dim, kernel_size=1)
        self.codebook = nn.Embedding(codebook_size, code_dim)

    def forward(self, latent: Float[Tensor, "B latent T"]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """→ (quantised [B, latent, T], commitment loss, codebook loss, codes [B, T], projected [B, C, T])"""
        projected = self.in_proj(latent)
        codes = nearest(projected.transpose(1, 2), self.codebook.weight)
        rows = self.codebook(codes).transpose(1, 2)
        commitment = F.mse_loss(projected, rows.detach())
        codebook = F.mse_loss(rows, projected.detach())
        straight = projected + (rows - projected).detach()
        return self.out_proj(straight), commitment, codebook, codes, projected


class ResidualQuantizer(nn.Module):
    """K layers, each quantising what the ones before it left."""

    def __init__(self, latent_dim: int, num_codebooks: int, codebook_size: int, code_dim: int):
        super().__init__()
        self.quantizers = nn.ModuleList(
            VectorQuantizer(latent_dim, codebook_size, code_dim) for _ in range(num_codebooks)
        )

    def forward(self, latent: Float[Tensor, "B latent T"]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """→ (quantised [B, latent, T], codes [B, K, T], projected [B, K·C, T], commitment loss, codebook loss)"""
        residual, quantised = latent, torch.zeros_like(latent)
        layers = []
        for layer in self.quantizers:
            step, *rest = layer(residual)
            quantised, residual = quantised + step, residual - step
            layers.append(rest)
        commitments, codebooks, codes, projected = zip(*layers, strict=True)
        return (
            quantised,
            torch.stack(codes, dim=1),
            torch.cat(projected, dim=1),
            torch.stack(commitments).sum(),
            torch.stack(codebooks).sum(),
        )

    def from_codes(self, codes: Int[Tensor, "B K T"]) -> tuple[Float[Tensor, "B latent T"], Tensor, Tensor]:
        """The quantised latent of codes (of the first codebooks, where fewer are given), the rows, the codes."""
        layers: list[Any] = list(self.quantizers)[: codes.shape[1]]
        rows = [layer.codebook(codes[:, k]).transpose(1, 2) for k, layer in enumerate(layers)]
        steps = [layer.out_proj(row) for layer, row in zip(layers, rows, strict=True)]
        return torch.stack(steps).sum(0), torch.cat(rows, dim=1), codes


def nearest(vectors: Float[Tensor, "... C"], rows: Float[Tensor, "V C"]) -> Int[Tensor, "..."]:
    """Index of the row whose direction is nearest to each vector's."""
    return (F.normalize(vectors, dim=-1) @ F.normalize(rows, dim=-1).t()).argmax(-1)


def folded_weight(conv: Any) -> Tensor:
    """The effective weight of a convolution, with weight normalisation (w = g · v / |v|) multiplied out."""
    if not hasattr(conv, "weight_g"):
        return conv.weight
    norm = conv.weight_v.flatten(1).norm(dim=1).view_as(conv.weight_g)
    return conv.weight_g * conv.weight_v / norm


@torch.no_grad()
def fit_quantizer(quantizer: Any, latent: Float[Tensor, "B latent T"], generator: torch.Generator) -> None:
    """Start every layer from the latents that it will see; at least one vector per row is needed."""
    residual = latent
    for layer in quantizer.quantizers:
        vectors = residual.transpose(1, 2).flatten(0, 1)
        mean = vectors.mean(0)
        count, code_dim = layer.codebook.weight.shape
        covariance = (vectors - mean).t() @ (vectors - mean)
        axes = torch.linalg.eigh(covariance).eigenvectors[:, -code_dim:].t()  # [C, latent]
        set_projection(layer.in_proj, axes, -axes @ mean)
        set_projection(layer.out_proj, axes.t(), mean)
        layer.codebook.weight.copy_(spherical_kmeans((vectors - mean) @ axes.t(), count, generator))
        residual = residual - layer(residual)[0]


@torch.no_grad()
def revive(quantizer: Any, projected: Float[Tensor, "B K*C T"], dead: Tensor, generator: torch.Generator) -> int:
    """Move the rows marked in `dead` [K, V] onto random in-projected latents of a batch; returns how many moved."""
    parts = projected.chunk(len(quantizer.quantizers), dim=1)
    for layer, part, gone in zip(quantizer.quantizers, parts, dead, strict=True):
        vectors = part.transpose(1, 2).flatten(0, 1)
        picks = torch.randint(len(vectors), (int(gone.sum()),), generator=generator).to(vectors.device)
        layer.codebook.weight[gone] = vectors[picks]
    return int(dead.sum())


def spherical_kmeans(
    vectors: Float[Tensor, "N C"], count: int, generator: torch.Generator, rounds: int = 10
) -> Float[Tensor, "V C"]:
    """Rows for the search by direction: the mean of the vectors whose direction is nearest. [N, C] → [count, C]"""
    if len(vectors) < count:
        raise ValueError(f"{len(vectors)} latent vectors cannot start a codebook of {count} rows; use a larger batch")
    rows = vectors[torch.randperm(len(vectors), generator=generator)[:count].to(vectors.device)]
    for _ in range(rounds):
        codes = nearest(vectors, rows)
        sums = torch.zeros_like(rows).index_add_(0, codes, vectors)
        counts = torch.bincount(codes, minlength=count).unsqueeze(1)
        rows = torch.where(counts > 0, sums / counts.clamp_min(1), rows)
    return rows


def set_projection(conv: Any, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"]) -> None:
    """Give a pointwise convolution this weight and bias, whether or not it is weight-normalised."""
    weight = weight.unsqueeze(-1)
    if hasattr(conv, "weight_g"):
        conv.weight_v.copy_(weight)
        conv.weight_g.copy_(weight.flatten(1).norm(dim=1).view_as(conv.weight_g))
    else:
        conv.weight.copy_(weight)
    conv.bias.copy_(bias)
