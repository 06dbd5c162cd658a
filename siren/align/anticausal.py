"""Anti-causal alignment (paper section 4.2, Algorithm 3): transformer 0 learns what the others prefer to follow.

One step: the whole collaboration samples G clips for each of P prompts; the codec and the reward network turn each
clip into one number; transformer 0, whose codes were the actions, is moved by the clipped objective for μ inner
iterations; the next step samples from the moved policy. All other transformers, the codec and the reward are frozen.

The sampler is the one users get. Its log-probabilities are the old policy's, so the ratio of the first inner iteration
must be 1: anything else means that sampling and training disagree, and stops the run. Where users sample with
guidance the policy is the guided distribution, on both sides of the ratio: one that is moved without it is pushed past
its optimum by the guidance that comes on top.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siren.align.objective import advantages, kept, kl_to_reference, policy_loss
from siren.config import Align, Sampling
from siren.encode.tokens import Tokens
from siren.generate.sampler import Rollout, guide, sample
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.progress import track
from siren.randomness import item_seed
from siren.shapes import Float, Int
from siren.train.loop import Checkpoint, Log, set_learning_rate

Decode = Callable[[Int[Tensor, "B K T"]], Float[Tensor, "B S"]]
Reward = Callable[[Float[Tensor, "B S"], list[str]], Float[Tensor, " B"]]

RATIO_TOLERANCE = 1e-3  # float32 sampling against float32 training: 1e-6 to 1e-5 is seen


@dataclass
class Prompts:
    """The prompts of one step, each repeated G times in a row."""

    captions: list[str]
    states: Tensor
    mask: Tensor
    seeds: list[int]


def align(
    model: Siren,
    prompts: Tokens,
    decode: Decode,
    reward: Reward,
    settings: Align,
    num_frames: int,
    seed: int,
    log: Log,
    checkpoint: Checkpoint | None = None,
    device: str = "cpu",
) -> None:
    """Align transformer 0 of `model` in place. Logged: reward, its spread, kept and clipped shares, KL to stage 1."""
    policy, reference = model[0], copy.deepcopy(model[0]).eval()
    optimiser = torch.optim.AdamW(
        policy.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    first_step = checkpoint.restore(policy, optimiser) if checkpoint else 0
    sampling = Sampling(temperature=settings.temperature, top_k=None, top_p=None, guidance=settings.guidance)
    model.eval()  # dropout off on both sides of the ratio
    for step in track(range(first_step, settings.steps), "align", settings.steps, first_step, "step"):
        batch = draw_prompts(prompts, settings, seed, step, device)
        rollout = sample(model, batch.states, batch.mask, batch.seeds, num_frames, sampling)
        with torch.no_grad():
            rewards = reward(decode(rollout.codes), batch.captions).float().cpu()
        advantage = advantages(rewards.view(-1, settings.group_size)).flatten()
        set_learning_rate(optimiser, settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps)))
        figures = update(policy, reference, optimiser, rollout, batch, advantage.to(device), settings)
        spread = rewards.view(-1, settings.group_size).std(dim=1, correction=0).mean().item()
        log(step, {"reward": rewards.mean().item(), "reward_group_std": spread, **figures})
        if checkpoint and (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps:
            checkpoint.save(step + 1, policy, optimiser)


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


def update(
    policy: ResidualTransformer,
    reference: ResidualTransformer,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    batch: Prompts,
    advantage: Float[Tensor, " B"],
    settings: Align,
) -> dict[str, float]:
    """μ inner iterations on one batch of rollouts → figures of the last one."""
    keep = kept(advantage, settings.min_advantage)
    figures = {"kept": keep.float().mean().item(), "clip_fraction": 0.0, "kl": 0.0, "gradient_norm": 0.0}
    if not keep.any():
        return figures  # every group had equal rewards: nothing to learn from this step
    own = slice(policy.first, policy.first + policy.group)
    codes, states, mask = rollout.codes[keep], batch.states[keep], batch.mask[keep]
    old = rollout.log_probs[keep][:, own]
    for inner in range(settings.inner_steps):
        log_probs = code_log_probs(policy, codes, states, mask, settings)
        loss, step_figures = policy_loss(
            log_probs, old, advantage[keep], len(advantage), settings.clip_low, settings.clip_high
        )
        if inner == 0 and step_figures["ratio_deviation"] > RATIO_TOLERANCE:
            deviation = step_figures["ratio_deviation"]
            raise RuntimeError(f"the first ratio is off 1 by {deviation:.2g}: sampling and training disagree")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.clip_norm or math.inf)
        optimiser.step()
        figures |= {"clip_fraction": step_figures["clip_fraction"], "gradient_norm": norm.item()}
    with torch.no_grad():
        new = code_log_probs(policy, codes, states, mask, settings)
        figures["kl"] = kl_to_reference(new, code_log_probs(reference, codes, states, mask, settings))
    return figures


def code_log_probs(
    transformer: ResidualTransformer, codes: Tensor, states: Tensor, mask: Tensor, settings: Align
) -> Float[Tensor, "B N T"]:
    """Log-probability of each own code given its past, under the temperature and the guidance it was sampled with."""
    logits = transformer(codes, states, mask).float()
    if settings.guidance is not None:
        null = transformer(codes, *transformer.null_text(*states.shape[::2])).float()
        logits = guide(logits, null, settings.guidance)
    targets = transformer.targets(codes)[..., None]
    return (logits / settings.temperature).log_softmax(-1).gather(-1, targets)[..., 0]
