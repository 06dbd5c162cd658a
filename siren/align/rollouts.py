"""From prompts to rewards: which prompts a step takes, the clips of each, and one number for every clip."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siren.align.rewards import Reward
from siren.config import Align, Sampling
from siren.encode.tokens import Tokens
from siren.generate.sampler import Rollout, sample
from siren.hashing import item_seed
from siren.model.siren import Siren
from siren.shapes import Float, Int
from siren.train.distributed import ALONE, Ranks
from siren.train.stage1 import share

Decode = Callable[[Int[Tensor, "B K T"]], Float[Tensor, "B S"]]


@dataclass
class Prompts:
    """The prompts of one step, each repeated G times in a row."""

    captions: list[str]
    states: Tensor
    mask: Tensor
    seeds: list[int]


def draw_prompts(prompts: Tokens, settings: Align, seed: int, step: int, device: str) -> Prompts:
    """The prompts of a step, spread evenly over the first labels, so that no event waits long for its turn."""
    rng = np.random.default_rng(item_seed(seed, "align", step))
    groups: dict[str, list[int]] = {}
    for row, labels in enumerate(prompts.labels):
        groups.setdefault(labels[0] if labels else "", []).append(row)
    names = sorted(groups)
    turn = step * settings.prompts_per_step
    chosen = [names[(turn + i) % len(names)] for i in range(settings.prompts_per_step)]
    rows = np.array([groups[name][rng.integers(len(groups[name]))] for name in chosen])
    repeated = np.repeat(rows, settings.group_size)
    states, mask = prompts.text_batch(repeated)
    seeds = [item_seed(seed, "rollout", step, i) for i in range(len(repeated))]
    captions = [prompts.captions[row] for row in repeated]
    return Prompts(captions, torch.from_numpy(states).to(device), torch.from_numpy(mask).to(device), seeds)


def roll_out(model: Siren, batch: Prompts, sampling: Sampling, num_frames: int, ranks: Ranks = ALONE) -> Rollout:
    """Clips for all prompts, each process sampling its share. Raises ValueError where shares cannot be equal."""
    total = len(batch.seeds)
    if total % ranks.world:
        raise ValueError(
            f"{total} rollouts (align.prompts_per_step times group_size) cannot be shared by {ranks.world} processes"
        )
    mine = share(total, ranks.rank, ranks.world)
    rollout = sample(model, batch.states[mine], batch.mask[mine], batch.seeds[mine], num_frames, sampling)
    return Rollout(ranks.gather(rollout.codes), ranks.gather(rollout.log_probs))


@torch.no_grad()
def judge(
    codes: Int[Tensor, "B K T"],
    captions: list[str],
    decode: Decode,
    reward: Reward,
    settings: Align,
    step: int,
    ranks: Ranks = ALONE,
) -> Float[Tensor, " B"]:
    """The reward of every rollout, on the CPU. A reward that breaks down ends the run: the next would do so too."""
    mine = range(*share(len(codes), ranks.rank, ranks.world).indices(len(codes)))
    size = settings.batch_size or len(mine)
    parts = []
    try:
        for rows in (slice(i, min(i + size, mine.stop)) for i in range(mine.start, mine.stop, size)):
            parts.append(reward(codes[rows], decode(codes[rows]), captions[rows]).float())
    except Exception as error:
        raise RuntimeError(f"align: the reward broke down at step {step}: {type(error).__name__}: {error}") from error
    return ranks.gather(torch.cat(parts)).cpu()
