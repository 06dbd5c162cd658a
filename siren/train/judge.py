"""Training a judge on the corpus: a multi-label classifier, so that it can be asked whether it hears both events.

Unusual: every step works on augmented clips only. A clip is rolled in time, may be mixed with another one (its labels
are added), and its level, spectral tilt and noise are drawn anew, so that a judge learns the sound and not the
recording. Labels are sets: rolling a clip of "A then B" changes the order, which no label speaks of.
Shapes: B batch · S samples · N clips · C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from siren.config import Training
from siren.networks.judge import Judge
from siren.progress import track
from siren.train.loop import Checkpoint, Log, Watch, adamw, learning_rate, set_learning_rate

MIX_SHARE = 0.5  # of the pairs drawn in which both clips have one event
MIX_DB, GAIN_DB, NOISE_DB, TILT = 6.0, (-12.0, 6.0), (15.0, 60.0), 0.5


def train_judge(
    model: Judge,
    wavs: np.ndarray,
    labels: Sequence[Sequence[str]],
    settings: Training,
    seed: int,
    log: Log,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> None:
    """Fit `model.logits` to the labels of int16 clips [N, S] at 16 kHz, in place; it is left in evaluation mode.

    Clips without labels are not trained on. With a `checkpoint` it resumes where that one stands and saves every
    `checkpoint_every` steps. Raises ValueError where no clip has a label, and FloatingPointError on a loss or gradient
    that is not finite.
    """
    targets = multi_hot(labels, model.labels)
    known = torch.from_numpy(np.flatnonzero(targets.sum(1)))
    if len(known) == 0:
        raise ValueError("no clip has a label, so no judge can be trained; give the judges `weights`")
    all_targets = torch.from_numpy(targets)
    generator = torch.Generator().manual_seed(seed)
    model.to(device).train()
    optimiser = adamw(model, settings)
    done = checkpoint.restore(model, optimiser, generator) if checkpoint else 0
    steps, watch = range(done, settings.steps), Watch(f"training {model.name}", device, checkpoint)
    for step in track(steps, f"training {model.name}", total=settings.steps, initial=done, unit="step"):
        rows = known[torch.randint(len(known), (2, settings.batch_size), generator=generator)]
        wav = torch.from_numpy(wavs[rows.numpy()]).to(device).float() / 32767  # [2, B, S]
        wav, target = augment(wav, all_targets[rows].to(device), generator)
        with torch.random.fork_rng(devices=[] if device == "cpu" else [torch.device(device)]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # dropout draws from torch's own
            loss = F.binary_cross_entropy_with_logits(model.logits(wav), target)
        set_learning_rate(optimiser, learning_rate(step, settings))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        logs = (step + 1) % settings.log_every == 0 or step + 1 == settings.steps
        saves = checkpoint is not None and (step + 1) % settings.checkpoint_every == 0
        watch(step, loss, norm, now=logs or saves)
        optimiser.step()
        if logs:
            log(step + 1, {"loss": loss.item(), "grad_norm": norm.item(), "lr": learning_rate(step, settings)})
        if checkpoint and saves:
            checkpoint.save(step + 1, model, optimiser, generator)
    model.eval()


def augment(wav: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips and partners [2, B, S] with targets [2, B, C] → clips [B, S] and targets [B, C] to train on."""
    batch, samples = wav.shape[1:]
    device = wav.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=generator)).to(device)

    shift = (uniform(0, 1, 2, batch, 1) * samples).long()
    wav = wav.gather(2, (torch.arange(samples, device=device) + shift) % samples)
    single = (target.sum(2) == 1).all(0)
    mix = (single & (uniform(0, 1, batch) < MIX_SHARE)).float()[:, None]  # [B, 1]
    level = wav.square().mean(2, keepdim=True).sqrt() + 1e-5
    partner = wav[1] * (level[0] / level[1]) * 10 ** (uniform(-MIX_DB, MIX_DB, batch, 1) / 20)
    mixed = wav[0] + mix * partner
    target = torch.maximum(target[0], mix * target[1])
    tilted = mixed + uniform(-TILT, TILT, batch, 1) * F.pad(mixed, (1, -1))
    noise = torch.randn(batch, samples, generator=generator).to(device)
    tilted = tilted + noise * level[0] * 10 ** (-uniform(*NOISE_DB, batch, 1) / 20)
    return tilted * 10 ** (uniform(*GAIN_DB, batch, 1) / 20), target


def multi_hot(labels: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """One row a clip, 1 where it has the label. float32 [N, C]. Raises ValueError for a label the judge lacks."""
    position = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(labels), len(names)), np.float32)
    for row, clip in enumerate(labels):
        for label in clip:
            if label not in position:
                raise ValueError(f"clip {row} is labelled {label!r}, which the judge does not know: {', '.join(names)}")
            targets[row, position[label]] = 1
    return targets


@torch.inference_mode()
def clip_logits(model: Judge, wavs: np.ndarray, batch_size: int = 64, device: str = "cpu") -> np.ndarray:
    """Logits of int16 clips [N, S]. float32 [N, C]"""
    model.to(device).eval()
    starts = track(range(0, len(wavs), batch_size), f"hearing with {model.name}", unit="batch")
    outputs = [model.logits(torch.from_numpy(wavs[i : i + batch_size]).to(device).float() / 32767) for i in starts]
    return torch.cat(outputs).cpu().numpy() if outputs else np.zeros((0, len(model.labels)), np.float32)


def quality(model: Judge, wavs: np.ndarray, labels: Sequence[Sequence[str]], device: str = "cpu") -> dict[str, Any]:
    """How well a judge hears held-out int16 clips [N, S]: shares in [0, 1], null where there is no such clip.

    one_event_accuracy: the highest logit is the event; accuracy_X is that of event X. both_heard: both events have
    probability 0.5 or more; both_top_two: both are the two highest. intruders: mean number of further events that a
    clip is said to hold. unknown_clips have no label or one that the judge lacks (as published weights may) and are
    left out of everything else.
    """
    known = [i for i, clip in enumerate(labels) if clip and set(clip) <= set(model.labels)]
    targets = multi_hot([labels[i] for i in known], model.labels).astype(bool)
    logits = clip_logits(model, wavs[known], device=device)
    rows, count = np.arange(len(known)), targets.sum(1)
    heard = np.asarray(logits >= 0)  # probability 0.5
    one, two = np.asarray(count == 1), np.asarray(count == 2)
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :2]
    top_right = np.take_along_axis(targets, ranked, axis=1)
    named = np.all(top_right[:, :1], axis=1)
    present = [name for i, name in enumerate(model.labels) if targets[one, i].any()]
    of_event = {name: rows[one & targets[:, model.labels.index(name)]] for name in present}
    return {
        "one_event_clips": int(one.sum()),
        "one_event_accuracy": _share(named[one]),
        "two_event_clips": int(two.sum()),
        "both_heard": _share(np.all(heard | ~targets, axis=1)[two]),
        "both_top_two": _share(np.all(top_right, axis=1)[two]),
        "intruders": _share(np.sum(heard & ~targets, axis=1)),
        "unknown_clips": len(labels) - len(known),
        **{f"accuracy_{name}": _share(named[of_event[name]]) for name in present},
    }


def _share(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None
