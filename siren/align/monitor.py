"""What a step says of itself: how its rewards lie, how long its parts took, and whether a rule ends the run."""

import time

import torch
from torch import Tensor

from siren.align.objective import STD_FLOOR
from siren.config import Align
from siren.shapes import Float
from siren.train.distributed import ALONE, Ranks


def stops(
    settings: Align,
    figures: dict[str, float],
    looked: dict[str, float],
    stage1: dict[str, float],
    device: str,
    ranks: Ranks = ALONE,
) -> str | None:
    """The rule that ends the run here, in words. Every process comes to the same answer; one may look for all."""
    watch = settings.watch
    if watch.max_kl is not None and figures.get("kl", 0.0) > watch.max_kl:
        return f"the KL to stage 1 is {figures['kl']:.3g} nats per code, above align.watch.max_kl = {watch.max_kl}"
    if watch.max_fad_rise is not None:
        fad = "held_out_fad"
        rise = ranks.total(torch.tensor(looked[fad] / stage1[fad] - 1 if looked else 0.0, device=device)).item()
        if rise > watch.max_fad_rise:
            return f"FAD rose by {rise:.1%} over stage 1, more than align.watch.max_fad_rise = {watch.max_fad_rise}"
    return None


def summary(rewards: Float[Tensor, "P G"]) -> dict[str, float]:
    """Mean reward, mean deviation within groups, and the share of groups without one; over rewards that are numbers."""
    numbers = torch.where(torch.isfinite(rewards), rewards, torch.nan)
    deviation = (numbers - numbers.nanmean(dim=1, keepdim=True)).square().nanmean(dim=1).sqrt()
    return {
        "reward": numbers.nanmean().item(),
        "reward_group_std": deviation.nanmean().item(),
        "equal_groups": (deviation.nan_to_num() <= STD_FLOOR).float().mean().item(),
    }


class Clock:
    """Seconds of the parts of a step; an accelerator is waited for at the end of each."""

    def __init__(self, device: str):
        self.cuda = torch.device(device).type == "cuda"
        self.seconds: dict[str, float] = {}
        self.begin = self._now()

    def stop(self, part: str) -> None:
        now = self._now()
        self.seconds[f"seconds_{part}"] = now - self.begin
        self.begin = now

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
