"""The alignment objective as pure functions (paper Eq. 9-11): group advantages, pruning, the clipped ratio.

Differences from textbook GRPO, all as the paper writes them:
  - no KL term and no entropy term in the objective (the KL to stage 1 is measured, not optimised);
  - the clip is wider upwards than downwards (ε_u > ε_d, as in DAPO);
  - rollouts with |A| < γ are dropped (as in CPPO), and the mean still divides by G, so dropping one never makes
    the others count more;
  - the ratio is per code, not per sequence: every frame of both codebooks is an action.
"""

import torch
from torch import Tensor

from siren.shapes import Bool, Float

STD_FLOOR = 1e-6  # rewards are cosines: a group's spread is small, but never this small unless they are all equal


def advantages(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Rewards normalised within their group, population standard deviation (Eq. 9).

    A group whose rewards are all equal says nothing: its advantages are 0. Raises ValueError for a group of one or
    for a reward that is not finite.
    """
    if rewards.shape[1] < 2:
        raise ValueError("a group of one rollout has no advantage; align.group_size must be at least 2")
    if not torch.isfinite(rewards).all():
        raise ValueError(f"{(~torch.isfinite(rewards)).sum()} of {rewards.numel()} rewards are not finite")
    deviation = rewards - rewards.mean(dim=1, keepdim=True)
    std = deviation.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(std > STD_FLOOR, deviation / std.clamp_min(STD_FLOOR), torch.zeros_like(deviation))


def kept(advantage: Float[Tensor, " B"], threshold: float) -> Bool[Tensor, " B"]:
    """Which rollouts take part in the update: |A| ≥ γ (Eq. 10)."""
    return advantage.abs() >= threshold


def policy_loss(
    log_probs: Float[Tensor, "B N T"],
    old_log_probs: Float[Tensor, "B N T"],
    advantage: Float[Tensor, " B"],
    rollouts: int,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The negative of Eq. 10 for the kept rollouts, and figures about the step.

    `rollouts` is how many were sampled, kept or not: the mean divides by it. A worked example with one frame, one
    codebook, ε = 0.2: ratio 1.5, A = +1 gives -min(1.5, 1.2) = -1.2 (the gain is capped); the same ratio with A = -1
    gives -min(-1.5, -1.2) = 1.5 (the loss is not).
    """
    ratio = (log_probs - old_log_probs).exp()
    weight = advantage[:, None, None]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_code = torch.minimum(ratio * weight, clipped * weight)
    loss = -per_code.mean(dim=(1, 2)).sum() / rollouts
    with torch.no_grad():
        figures = {
            "clip_fraction": ((clipped * weight) < (ratio * weight)).float().mean().item(),
            "ratio_deviation": (ratio - 1).abs().max().item(),
        }
    return loss, figures


def kl_to_reference(log_probs: Float[Tensor, "B N T"], reference: Float[Tensor, "B N T"]) -> float:
    """KL(policy ‖ reference) per code in nats, by the k3 estimator r - 1 - log r with r = reference / policy."""
    log_ratio = reference - log_probs
    return (log_ratio.exp() - 1 - log_ratio).mean().item()
