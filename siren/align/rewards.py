"""What alignment may reward: functions of (codes, sound, prompt), one number a clip; and their weighted sum.

`imagebind` is the paper's (Eq. 8). The others ask whether the direction of alignment matters or only this reward:
`clap` and `t5` are the same cosine by other networks (`siren.networks`), `agreement` hears nothing and reads no prompt.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from siren.shapes import Float, Int

Reward = Callable[[Int[Tensor, "B K T"], Float[Tensor, "B S"], list[str]], Float[Tensor, " B"]]


def cosine(network: Any) -> Reward:
    """Of a text-audio network with `embed_audio` and `embed_text` on the unit sphere (Eq. 8)."""
    return lambda codes, wavs, captions: (network.embed_audio(wavs) * network.embed_text(captions)).sum(-1)


def agreement(latents: Float[Tensor, "K V L"], shallow: int) -> Reward:
    """Minus the mean squared distance between the sound of the first `shallow` codebooks and that of all of them.

    Both are sums of codec latents, so the distance is what the deeper transformers still had to add. Raises ValueError
    where there are no deeper ones.
    """
    if shallow >= len(latents):
        raise ValueError("align.rewards.agreement needs a second transformer to agree with; this model has one")

    def reward(codes: Tensor, wavs: Tensor, captions: list[str]) -> Tensor:
        added = sum(latents[k][codes[:, k]] for k in range(shallow, codes.shape[1]))  # [B, T, L]
        assert isinstance(added, Tensor)
        return -added.square().mean(dim=(1, 2))

    return reward


def weighted(rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> Reward:
    """Σ weight · reward. Advantages are of the sum, so a reward that spreads more weighs more."""

    def reward(codes: Tensor, wavs: Tensor, captions: list[str]) -> Tensor:
        parts = [weights[name] * part(codes, wavs, captions).float() for name, part in rewards.items()]
        return torch.stack(parts).sum(0)

    return reward


def check(rewards: Float[Tensor, " B"], captions: list[str], max_failed: float) -> float:
    """The share of rewards that are not finite. Raises ValueError, with one of them, for more than `max_failed`."""
    failed = ~torch.isfinite(rewards)
    share = failed.float().mean().item()
    if share > max_failed:
        row = int(failed.nonzero()[0])
        raise ValueError(
            f"{int(failed.sum())} of {len(rewards)} rewards are not finite, among them {rewards[row].item()} for "
            f"{captions[row]!r}: more than align.max_failed = {max_failed}. Look at that clip and at the reward's "
            "network; the run goes on from its last checkpoint"
        )
    return share
