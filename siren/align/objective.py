"""The alignment objectives as pure functions (paper Eq. 9-11): group advantages, pruning, the clipped ratio; and DPO.

Differences from textbook GRPO, all as the paper writes them:
  - no KL term and no entropy term in the objective (the KL to stage 1 is measured, not optimised; `align.kl_weight` and
    `align.entropy_weight` add the terms of GRPO and PPO for who wants to compare);
  - the clip is wider upwards than downwards (ε_u > ε_d, as in DAPO);
  - rollouts with |A| < γ are dropped (as in CPPO), and the mean still divides by G, so dropping one never makes
    the others count more;
  - the ratio is per code, not per sequence: every frame of both codebooks is an action.
Ours, where the paper is silent: a group whose rewards are all equal, and a rollout whose reward is no number, take no
part, by the same rule of the mean.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siren.shapes import Bool, Float, Int

STD_FLOOR = 1e-6  # rewards are cosines: a group's spread is small, but never this small unless they are all equal


def advantages(rewards: Float[Tensor, "P G"], scale: Literal["group", "batch"] = "group") -> Float[Tensor, "P G"]:
    """Deviations from the group's mean over its population standard deviation (Eq. 9), or over that of all rewards.

    A group whose rewards are all equal says nothing: its advantages are 0. A reward that is not finite is left out of
    mean and deviation, and its advantage is NaN. Raises ValueError for a group of one.
    """
    if rewards.shape[1] < 2:
        raise ValueError("a group of one rollout has no advantage; align.group_size must be at least 2")
    finite = torch.isfinite(rewards)
    count = finite.sum(dim=1, keepdim=True).clamp_min(1)
    deviation = torch.where(finite, rewards, 0.0)
    deviation = torch.where(finite, rewards - deviation.sum(dim=1, keepdim=True) / count, 0.0)
    std = (deviation.square().sum(dim=1, keepdim=True) / count).sqrt()
    clear = std > STD_FLOOR
    if scale == "batch":
        std = rewards[finite].std(correction=0)
    result = torch.where(clear, deviation / std.clamp_min(STD_FLOOR), torch.zeros_like(deviation))
    return torch.where(finite, result, torch.nan)


def kept(advantage: Float[Tensor, " B"], threshold: float) -> Bool[Tensor, " B"]:
    """Which rollouts take part in the update: |A| ≥ γ (Eq. 10). NaN never does."""
    return advantage.abs() >= threshold


def policy_loss(
    log_probs: Float[Tensor, "B N T"],
    old_log_probs: Float[Tensor, "B N T"],
    advantage: Float[Tensor, " B"],
    rollouts: int,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, ""], float]:
    """The negative of Eq. 10 for the kept rollouts, and the share of their codes whose gain is capped.

    `rollouts` is how many were sampled, kept or not: the mean divides by it. A worked example with one frame, one
    codebook, ε = 0.2: ratio 1.5, A = +1 gives -min(1.5, 1.2) = -1.2 (the gain is capped); the same ratio with A = -1
    gives -min(-1.5, -1.2) = 1.5 (the loss is not).
    """
    ratio = (log_probs - old_log_probs).exp()
    weight = advantage[:, None, None]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_code = torch.minimum(ratio * weight, clipped * weight)
    loss = over_rollouts(-per_code, rollouts)
    return loss, ((clipped * weight) < (ratio * weight)).float().mean().item()


def over_rollouts(per_code: Float[Tensor, "B N T"], rollouts: int) -> Float[Tensor, ""]:
    """Mean over the codes of each rollout, then over all that were sampled; those that are not here count as 0."""
    return per_code.mean(dim=(1, 2)).sum() / rollouts


def k3(log_probs: Float[Tensor, "B N T"], reference: Float[Tensor, "B N T"]) -> Float[Tensor, "B N T"]:
    """What each code adds to KL(policy ‖ reference), in nats: r - 1 - log r with r = reference / policy, never < 0."""
    log_ratio = reference - log_probs
    return log_ratio.exp() - 1 - log_ratio


def kl_to_reference(log_probs: Float[Tensor, "B N T"], reference: Float[Tensor, "B N T"]) -> float:
    """KL(policy ‖ reference) per code in nats, by the k3 estimator."""
    return k3(log_probs, reference).mean().item()


def entropy(log_distribution: Float[Tensor, "B N T V"]) -> Float[Tensor, "B N T"]:
    """Entropy in nats; codes that truncation cut (-inf) add nothing, and get no gradient."""
    return -(log_distribution.exp() * log_distribution.masked_fill(log_distribution == -torch.inf, 0.0)).sum(-1)


def ratio_off(log_probs: Float[Tensor, "B N T"], old_log_probs: Float[Tensor, "B N T"]) -> float:
    """How far the ratio is off 1 at worst."""
    return ((log_probs - old_log_probs).exp() - 1).abs().max().item()


def best_and_worst(rewards: Float[Tensor, "P G"]) -> Int[Tensor, "pairs 2"]:
    """Of each group the rollouts of highest and lowest reward, by their rows p · G + g; none where all are equal."""
    finite = torch.isfinite(rewards)
    best, worst = (
        torch.where(finite, rewards, -torch.inf).max(dim=1),
        torch.where(finite, rewards, torch.inf).min(dim=1),
    )
    rows = torch.arange(len(rewards), device=rewards.device) * rewards.shape[1]
    pairs = torch.stack([rows + best.indices, rows + worst.indices], dim=1)
    return pairs[best.values - worst.values > STD_FLOOR]


def dpo_loss(
    log_probs: Float[Tensor, "B N T"],
    reference: Float[Tensor, "B N T"],
    groups: int,
    beta: float,
    winner_weight: float,
) -> tuple[Float[Tensor, ""], float]:
    """-log σ(β · margin) plus the winner's cross entropy per code (arXiv 2305.18290), and the mean margin.

    Rows 0, 2, … won against rows 1, 3, …; the margin is what the policy gained over the reference on the winner, minus
    what it gained on the loser, in nats over all codes.
    `groups` is how many were sampled: the mean divides by it. At margin 0, with no winner's term, one pair gives log 2.
    """
    gained = (log_probs - reference).sum(dim=(1, 2))
    margin = gained[0::2] - gained[1::2]
    loss = -F.logsigmoid(beta * margin).sum() / groups
    if winner_weight:
        loss = loss + winner_weight * over_rollouts(-log_probs[0::2], groups)
    return loss, margin.mean().item()


def diversity(codes: Int[Tensor, "P G N T"]) -> float:
    """Share of codes in which two rollouts of one prompt differ, over all pairs: 0 where a group is one clip G times.

    Counted code by code: of G rollouts, those with the same code in one place are n_v, and Σ n_v (n_v - 1) of the
    G (G - 1) ordered pairs agree there.
    """
    same = torch.zeros_like(codes, dtype=torch.float32)
    for other in codes.unbind(dim=1):
        same += codes == other[:, None]
    group = codes.shape[1]
    return 1 - ((same - 1).mean().item() / (group - 1))
