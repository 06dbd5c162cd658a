"""Representation-similarity regularisation (arXiv 2309.08773): clips should be as alike as their captions are.

Applied only to batches whose text was dropped (the training of guidance): there the model cannot read the caption, and
the loss moves its states of a clip into the neighbourhood that the caption has among the captions of the batch. Only
cosine matrices are compared, so text and audio may differ in width, and nothing is learned but the model itself.

Ours where the paper leaves it open: the mean square over the pairs i ≠ j (the diagonal is 0 on both sides), text states
constant, audio states those after the last norm of the temporal path, pairs of all processes together.
Shapes: B batch · T frames or tokens · D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siren.shapes import Bool, Float

Pooling = Literal["max", "average"]


def pool(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"], pooling: Pooling) -> Float[Tensor, "B D"]:
    """One vector for each sequence, in float32, over the states that the mask names. The paper found max the better."""
    states, valid = states.float(), mask[..., None]
    if pooling == "max":
        return states.masked_fill(~valid, -torch.inf).amax(dim=1)
    return (states * valid).sum(dim=1) / valid.sum(dim=1)


def similarity_loss(
    audio: Float[Tensor, "B D"], text: Float[Tensor, "B P"]
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """L_rr: mean over pairs i ≠ j of (cos(audio_i, audio_j) - cos(text_i, text_j))², and both sides' figures.

    Raises ValueError for a batch without a pair.
    """
    if len(audio) < 2:
        raise ValueError("one clip has no pair to compare; raise train.stage1.training.batch_size, or lower accumulate")
    others = ~torch.eye(len(audio), dtype=torch.bool, device=audio.device)
    heard, told = cosines(audio)[others], cosines(text.detach())[others]
    loss = (heard - told).square().mean()
    with torch.no_grad():
        a, b = heard - heard.mean(), told - told.mean()
        correlation = (a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12)
    figures = {"loss": loss, "audio_mean": heard.mean(), "text_mean": told.mean(), "correlation": correlation}
    return loss, {f"similarity_{name}": value.item() for name, value in figures.items()}


def cosines(vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    """Cosine of every pair."""
    unit = F.normalize(vectors, dim=-1, eps=1e-8)
    return unit @ unit.T
