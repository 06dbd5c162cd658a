"""Anti-causal alignment (paper section 4.2, Algorithm 3): transformer 0 learns what the others prefer to follow.

One step: the whole collaboration samples G clips for each of P prompts; the codec and the reward turn each clip into
one number; transformer 0, whose codes were the actions, is moved by the clipped objective for μ inner iterations; the
next step samples from the moved policy. All other transformers, the codec and the reward are frozen. What the paper
compares this with is the same loop: more transformers, or the last ones (`causal`), or DPO on the best and the worst
clip of each group.

The sampler is the one users get. Its log-probabilities are the old policy's, so the ratio of the first inner iteration
must be 1: anything else means that sampling and training disagree, and stops the run. Where users sample with
guidance the policy is the guided distribution, on both sides of the ratio: one that is moved without it is pushed past
its optimum by the guidance that comes on top. So it is with truncation; a code that the moved policy would cut off has
the ratio 0. Divergences from stage 1 are those of the distributions before truncation.

With several processes each samples its share of the rollouts, all get all of them, and each differentiates its share
of those that were kept, so pruning leaves no process idle.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from siren.align import objective
from siren.align.monitor import Clock, stops, summary
from siren.align.rewards import Reward, check
from siren.align.rollouts import Decode, Prompts, draw_prompts, judge, roll_out
from siren.config import Align, Sampling
from siren.encode.tokens import Tokens
from siren.generate.sampler import Rollout, guide, truncate
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.progress import notice, track
from siren.shapes import Float
from siren.train.distributed import ALONE, Ranks
from siren.train.loop import Checkpoint, Log, set_learning_rate
from siren.train.stage1 import share

Look = Callable[[int], dict[str, float]]  # what held-out prompts say of the model as it is; `held_out_fad` is needed


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
    ranks: Ranks = ALONE,
    look: Look | None = None,
) -> list[int]:
    """Align transformers of `model` in place → which ones.

    Logged at every step: reward and its spread, the shares of rollouts kept, clipped, failed and in groups of equal
    rewards, KL to stage 1, entropy and diversity of the policy, what `look` found, and seconds of each part.
    Raises ValueError for a reward that fails too often, RuntimeError where it breaks down or the first ratio is not 1,
    FloatingPointError for a gradient that is not finite. The last checkpoint is from before the step that failed.
    """
    policies = learners(model, settings)
    references, trained = copy.deepcopy(policies), nn.ModuleList(policies)
    optimiser = torch.optim.AdamW(
        trained.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    for each in (model, *references):
        each.eval()  # dropout off on both sides of the ratio
    every = settings.watch.every
    stage1 = look(0) if look and every else {}  # before a checkpoint is restored: regressions are from stage 1
    first_step = checkpoint.restore(trained, optimiser) if checkpoint else 0
    step = first_step
    for step in track(range(first_step, settings.steps), "align", settings.steps, first_step, "step"):
        looked = look(step) if look and every and step and step % every == 0 else stage1 if step == 0 else {}
        clock = Clock(device)
        batch = draw_prompts(prompts, settings, seed, step, device)
        rollout = roll_out(model, batch, settings.sampling, num_frames, ranks)
        clock.stop("rollout")
        rewards = judge(rollout.codes, batch.captions, decode, reward, settings, step, ranks)
        failed = check(rewards, batch.captions, settings.max_failed)
        clock.stop("reward")
        set_learning_rate(optimiser, settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps)))
        groups = rewards.view(-1, settings.group_size)
        figures = update(policies, references, optimiser, rollout, batch, groups, settings, ranks)
        clock.stop("update")
        own = owned(policies)
        figures |= {"failed": failed, "entropy": -rollout.log_probs[:, own].mean().item()}
        figures["diversity"] = objective.diversity(rollout.codes[:, own].unflatten(0, groups.shape))
        log(step, summary(groups) | figures | looked | clock.seconds)
        if stop := stops(settings, figures, looked, stage1, device, ranks):
            notice(f"align: stopped after step {step}: {stop}")
            break
        if checkpoint and (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps and not ranks.rank:
            checkpoint.save(step + 1, trained, optimiser)
    if look and every:
        log(step + 1, look(step + 1))
    return [policy.index for policy in policies]


def learners(model: Siren, settings: Align) -> list[ResidualTransformer]:
    """The transformers whose codes are the actions: the first ones, or for the causal direction the last."""
    count, total = settings.transformers, len(model)
    first = 0 if settings.direction == "anti-causal" else total - count
    return [model[k] for k in range(first, first + count)]


def owned(policies: Sequence[ResidualTransformer]) -> slice:
    """Their codebooks, which lie side by side."""
    return slice(policies[0].first, policies[-1].first + policies[-1].group)


def update(
    policies: Sequence[ResidualTransformer],
    references: Sequence[ResidualTransformer],
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    batch: Prompts,
    rewards: Float[Tensor, "P G"],
    settings: Align,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """μ inner iterations on one batch of rollouts → figures of the last one."""
    device, rl = rollout.codes.device, settings.method == "rl"
    advantage = objective.advantages(rewards, settings.advantage_scale).flatten().to(device)
    units = objective.kept(advantage, settings.min_advantage).nonzero() if rl else objective.best_and_worst(rewards)
    told = "clip_fraction" if rl else "margin"
    figures = {"kept": units.numel() / rewards.numel(), told: 0.0, "gradient_norm": 0.0, "ratio_off": 0.0}
    if not len(units):
        return figures  # every group had equal rewards: nothing to learn from this step, and no KL was measured
    rows = units[share(len(units), ranks.rank, ranks.world)].flatten().to(device)
    chunks = rows.split(settings.batch_size or len(rows)) if len(rows) else ()
    weights = [len(chunk) / units.numel() for chunk in chunks]  # of each in a mean over all that are kept
    whole = replace(settings.sampling, top_k=None, top_p=None)
    own, parameters = owned(policies), [p for policy in policies for p in policy.parameters()]

    def likelihoods(of: Sequence[ResidualTransformer], chunk: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        return code_log_probs(of, rollout.codes[chunk], batch.states[chunk], batch.mask[chunk], sampling)

    with torch.no_grad():
        anchors = [likelihoods(references, chunk, whole)[0] for chunk in chunks]
    for inner in range(settings.inner_steps):
        optimiser.zero_grad(set_to_none=True)
        seen = torch.zeros((), dtype=torch.float64, device=device)
        for chunk, anchor, weight in zip(chunks, anchors, weights, strict=True):
            new, distribution = likelihoods(policies, chunk, settings.sampling)
            old = rollout.log_probs[chunk][:, own]
            if inner == 0:
                figures["ratio_off"] = max(figures["ratio_off"], check_ratio(new, old, settings))
            loss, figure = loss_of(new, old, anchor, distribution, advantage[chunk], len(rewards), settings)
            loss.backward()
            seen += weight * figure
        for p in parameters if ranks.world > 1 else ():  # a process that had nothing to differentiate adds zeros
            p.grad = ranks.total(torch.zeros_like(p) if p.grad is None else p.grad)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm or math.inf).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"align: the gradient norm is {norm}; lower align.learning_rate, and go on")
        optimiser.step()
        figures |= {told: ranks.total(seen).item(), "gradient_norm": norm}
    kl = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad():
        for chunk, anchor, weight in zip(chunks, anchors, weights, strict=True):
            kl += weight * objective.kl_to_reference(likelihoods(policies, chunk, whole)[0], anchor)
    return figures | {"kl": ranks.total(kl).item()}


def loss_of(
    new: Float[Tensor, "B N T"],
    old: Float[Tensor, "B N T"],
    anchor: Float[Tensor, "B N T"],
    distribution: Float[Tensor, "B N T V"],
    advantage: Float[Tensor, " B"],
    groups: int,
    settings: Align,
) -> tuple[Float[Tensor, ""], float]:
    """What these rollouts, some of those of a step's `groups`, add to the loss; and their share clipped, or margin."""
    if settings.method == "dpo":
        return objective.dpo_loss(new, anchor, groups, settings.dpo.beta, settings.dpo.winner_weight)
    rollouts = groups * settings.group_size
    loss, clipped = objective.policy_loss(new, old, advantage, rollouts, settings.clip_low, settings.clip_high)
    if settings.kl_weight:
        loss = loss + settings.kl_weight * objective.over_rollouts(objective.k3(new, anchor), rollouts)
    if settings.entropy_weight:
        loss = loss - settings.entropy_weight * objective.over_rollouts(objective.entropy(distribution), rollouts)
    return loss, clipped


def code_log_probs(
    transformers: Sequence[ResidualTransformer], codes: Tensor, states: Tensor, mask: Tensor, sampling: Sampling
) -> tuple[Float[Tensor, "B N T"], Float[Tensor, "B N T V"]]:
    """Log-probability of each own code given its past, as `sampling` would draw it, and of all codes in its place."""
    found = []
    for transformer in transformers:
        logits = transformer(codes, states, mask).float()
        if sampling.guidance not in (None, 1.0):
            null = transformer(codes, *transformer.null_text(*states.shape[::2])).float()
            logits = guide(logits, null, sampling.guidance)
        found.append(truncate(logits, sampling).log_softmax(-1))
    distribution = found[0] if len(found) == 1 else torch.cat(found, dim=1)
    return distribution.gather(-1, codes[:, owned(transformers)][..., None])[..., 0], distribution


def check_ratio(new: Float[Tensor, "B N T"], old: Float[Tensor, "B N T"], settings: Align) -> float:
    """How far the first ratio is off 1. Raises RuntimeError where it is more than rounding.

    Rounding of logits reaches the ratio divided by the temperature; guidance g adds g times that of the conditioned
    ones and g - 1 times that of the others. At demo (g = 2, 6,000 codes a step) 1.1e-5 is seen, of 3e-5 allowed.
    """
    guidance = 1.0 if settings.guidance is None else settings.guidance
    allowed = settings.ratio_tolerance * (abs(guidance) + abs(guidance - 1)) / settings.temperature
    off = objective.ratio_off(new, old)
    if not off <= allowed:
        raise RuntimeError(
            f"align: the first ratio is off 1 by {off:.2g}, more than {allowed:.2g}: sampling and training disagree. "
            "Look for dropout, another precision, or a cache; on hardware that rounds more, raise align.ratio_tolerance"
        )
    return off
