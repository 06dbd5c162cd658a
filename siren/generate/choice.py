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


class RowSampling:
    """Settings of each row's own, changed in place while a batch runs. With `guided` every row has a null twin.

    What a row draws is what it would draw if its settings were those of all (tested), whatever its neighbours want.
    """

    def __init__(self, rows: int, size: int, guided: bool, device: torch.device, fixed: bool):
        """`size`: codes of a codebook. `fixed`: always the same operations, as a CUDA graph needs them."""
        self.temperature, self.guidance = (torch.ones(rows, 1, device=device) for _ in range(2))
        self.top_k = torch.zeros(rows, 1, dtype=torch.long, device=device)  # 0: every code
        self.top_p = torch.full((rows, 1), 2.0, device=device)  # above 1: every code
        self.given: list[Sampling | None] = [None] * rows
        self.size, self.guided, self.fixed = size, guided, fixed
        self._widen()

    def put(self, row: int, sampling: Sampling | None) -> None:
        """Settings of a row that begins, or None for one that nobody listens to."""
        self.given[row] = sampling
        if sampling is not None:
            self.temperature[row], self.guidance[row] = sampling.temperature, sampling.guidance or 1.0
            self.top_k[row] = min(sampling.top_k or 0, self.size)
            self.top_p[row] = 2.0 if sampling.top_p is None or sampling.top_p == 1 else sampling.top_p
        else:
            self.top_k[row], self.top_p[row] = 0, 2.0
        self._widen()

    def _widen(self) -> None:
        wanted = [s for s in self.given if s is not None]
        self.most = self.size if self.fixed else max((min(s.top_k or 0, self.size) for s in wanted), default=0)
        self.nucleus = self.fixed or any(s.top_p is not None and s.top_p < 1 for s in wanted)

    def truncate(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """As `truncate`, row by row."""
        logits = logits.float() / self.temperature
        if self.most:
            ordered = logits.topk(self.most, dim=-1).values
            threshold = ordered.gather(-1, (self.top_k - 1).clamp(min=0))
            logits = logits.masked_fill((logits < threshold) & (self.top_k > 0), -torch.inf)
        return _nucleus(logits, self.top_p) if self.nucleus else logits


def truncate(logits: Float[Tensor, "*B V"], sampling: Sampling) -> Float[Tensor, "*B V"]:
    """Logits after temperature, top-k and top-p; codes that are cut get -inf."""
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = _nucleus(logits, sampling.top_p)
    return logits


def _nucleus(logits: Tensor, top_p: float | Tensor) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    cut = probabilities.cumsum(-1) - probabilities >= top_p  # the most likely code always stays
    return logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)


def guide(conditioned: Tensor, null: Tensor, guidance: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits: 1 is the conditioned distribution, more leans away from the null one."""
    return null + guidance * (conditioned - null)


def guided(sampling: Sampling | RowSampling) -> bool:
    """Whether each prompt needs a second row, without its text."""
    if isinstance(sampling, RowSampling):
        return sampling.guided
    return sampling.guidance not in (None, 1.0)


def choose(
    logits: Float[Tensor, "R V"], numbers: Float[Tensor, " B"], sampling: Sampling | RowSampling
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The code of each item and its log-probability. With guidance R = 2·B: conditioned rows, then null ones."""
    if guided(sampling):
        assert sampling.guidance is not None
        conditioned, null = logits.float().chunk(2)
        logits = guide(conditioned, null, sampling.guidance)
    kept = sampling.truncate(logits) if isinstance(sampling, RowSampling) else truncate(logits, sampling)
    kept = kept.log_softmax(-1)
    code = draw(kept.exp(), numbers)
    return code, kept.gather(-1, code[:, None])[:, 0]
