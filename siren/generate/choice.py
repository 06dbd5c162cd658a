"""From logits to a code: guidance, temperature, top-k and top-p, and the draw. What every sampler does the same way."""

from dataclasses import dataclass

import torch
from torch import Tensor

from siren.config import Sampling
from siren.randomness import draw
from siren.shapes import Float, Int


@dataclass
class Rollout:
    """What sampling produced: the codes, and the log-probability of each under the distribution it was drawn from."""

    codes: Int[Tensor, "B K T"]
    log_probs: Float[Tensor, "B K T"]


def truncate(logits: Float[Tensor, "*B V"], sampling: Sampling) -> Float[Tensor, "*B V"]:
    """Logits after temperature, top-k and top-p; codes that are cut get -inf."""
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        cut = probabilities.cumsum(-1) - probabilities >= sampling.top_p  # the most likely code always stays
        logits = logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
    return logits


def guide(conditioned: Tensor, null: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on logits: 1 is the conditioned distribution, more leans away from the null one."""
    return null + guidance * (conditioned - null)


def guided(sampling: Sampling) -> bool:
    """Whether each prompt needs a second row, without its text."""
    return sampling.guidance not in (None, 1.0)


def choose(
    logits: Float[Tensor, "R V"], numbers: Float[Tensor, " B"], sampling: Sampling
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The code of each item and its log-probability. With guidance R = 2·B: conditioned rows, then null ones."""
    if guided(sampling):
        assert sampling.guidance is not None
        conditioned, null = logits.float().chunk(2)
        logits = guide(conditioned, null, sampling.guidance)
    kept = truncate(logits, sampling).log_softmax(-1)
    code = draw(kept.exp(), numbers)
    return code, kept.gather(-1, code[:, None])[:, 0]
