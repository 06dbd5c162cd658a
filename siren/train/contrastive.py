"""Training a text-audio encoder: symmetric InfoNCE over waveforms and captions.

What is unusual: a caption has several right clips and a clip several right captions, because clips with the same
events in the same relation mean the same, so the target is uniform over all of them instead of the diagonal. And a
batch is not a plain sample: each two-event clip brings a clip with the same events in another order or relation, the
negative that can only be told apart by hearing both events and their order.

The text tower goes first, by itself: wordings of one meaning against wordings of others. Such a step costs a
thirtieth of one with sound, and order, which a thousand of them teach, is what a joint training of this length never
gets to: as long as the audio tower gives "A then B" and "B then A" one place, captions gain nothing by differing.

Everything random in a step comes from (seed, step), so a resumed run needs no state of a generator.

Shapes: N clips · B batch · S samples · E embedding width.
"""

import dataclasses
import string
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from siren.config import Training
from siren.progress import track
from siren.shapes import Float
from siren.shards import FULL_SCALE
from siren.train.loop import Checkpoint, Log, Watch, adamw, learning_rate, set_learning_rate

Key = tuple[str | None, tuple[str, ...]]

TEXT_FIRST = 6  # steps on captions alone, before the first with sound, for each step with sound
WITHIN = 0.5  # weight of the contrast inside each modality
SHIFT_ORDERED = 0.05  # share of a clip by which one that has an order may move
INSERT, REPLACE, DROP = 0.5, 0.04, 0.03  # how often words are put around a caption; share of its words changed


def meaning(labels: Sequence[str], relation: str | None) -> Key:
    """What a clip says, for equality: the events, in their order only where the relation is "then"."""
    return relation, tuple(labels) if relation == "then" else tuple(sorted(labels))


def train_contrastive(
    model: Any,
    wavs: np.ndarray,
    captions: list[list[str]],
    labels: list[list[str]],
    relations: list[str | None],
    settings: Training,
    seed: int,
    log: Log,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train `model` (a CLAP or a reward) in place on int16 waveforms [N, S]; it ends in evaluation mode.

    `captions` has all wordings of each clip. With a `checkpoint`, a killed run goes on where it was.
    Raises FloatingPointError on a loss or gradient that is not finite.
    """
    pool = Pool(captions, labels, relations)
    if len(wavs) != pool.size:
        raise ValueError(f"{len(wavs)} waveforms and {pool.size} lists of captions do not go together")
    model.to(device).train()
    optimiser, generator = adamw(model, settings), torch.Generator()
    first = checkpoint.restore(model, optimiser, generator) if checkpoint else 0
    alone = TEXT_FIRST * settings.steps
    text_settings = dataclasses.replace(settings, steps=alone)
    watch = Watch("contrastive", device, checkpoint)
    with torch.random.fork_rng(devices=[]):
        for step in track(range(first, alone + settings.steps), "contrastive", alone + settings.steps, first, "step"):
            random = np.random.default_rng([seed, step])
            torch.manual_seed(int(random.integers(2**62)))
            rows = pool.batch(settings.batch_size, random)
            strangers = insertion((step - alone) / settings.steps)
            texts = [perturb(pool.caption(row, random), random, strangers) for row in rows]
            same = torch.tensor([[pool.keys[a] == pool.keys[b] for b in rows] for a in rows], device=device)
            scale, text = model.logit_scale, model.embed_text(texts)
            if step < alone:
                loss, hit = text_loss(text, scale.detach(), same)
                rate = learning_rate(step, text_settings)
            else:
                wav = augment(wavs[rows], [pool.relations[row] for row in rows], random).to(device)
                loss, hit = contrastive_loss(text, model.embed_audio(wav), scale, same)
                rate = learning_rate(step - alone, settings)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            logs = step % settings.log_every == 0 or step == alone + settings.steps - 1
            saves = checkpoint is not None and (step + 1) % settings.checkpoint_every == 0
            watch(step, loss, norm, now=logs or saves)
            set_learning_rate(optimiser, rate)
            optimiser.step()
            if logs:
                values = {"loss": loss, "accuracy": hit, "scale": scale, "gradient_norm": norm}
                prefix = "text_" if step < alone else ""
                figures = {prefix + name: float(value.detach()) for name, value in values.items()}
                log(step, figures | {"learning_rate": rate})
            if checkpoint and saves:
                checkpoint.save(step + 1, model, optimiser, generator)
    model.eval()


def text_loss(
    text: Float[torch.Tensor, "B E"], scale: torch.Tensor, same: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE among captions, each against the others of its meaning; and the share whose nearest is one of these."""
    logits, others = _without_self(scale * text @ text.T), _others(same)
    hit = others.gather(1, logits.argmax(dim=1, keepdim=True)).sum() / others.any(dim=1).sum().clamp_min(1)
    return _cross_entropy(logits, others), hit


def contrastive_loss(
    text: Float[torch.Tensor, "B E"], audio: Float[torch.Tensor, "B E"], scale: torch.Tensor, same: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE between the modalities, both ways, plus `WITHIN` of the same inside each; and the share of captions
    whose nearest clip is a right one. `same` [B, B]: which rows mean the same.

    The part inside a modality is there for order: as long as clips of "A then B" and "B then A" have one embedding,
    captions gain nothing from being told apart, and the other way round. Inside, each tower learns it by itself.
    """
    logits = scale * text @ audio.T
    between = 0.5 * (_cross_entropy(logits, same) + _cross_entropy(logits.T, same))
    within = 0.5 * (
        text_loss(text, scale, same)[0] + _cross_entropy(_without_self(scale * audio @ audio.T), _others(same))
    )
    hit = same.gather(1, logits.argmax(dim=1, keepdim=True)).float().mean()
    return between + WITHIN * within, hit


def _cross_entropy(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean over the rows that have a right answer, the target uniform over a row's right answers."""
    answers = right.sum(dim=1)
    rows = -(logits.log_softmax(dim=1).masked_fill(~right, 0)).sum(dim=1) / answers.clamp_min(1)
    return rows.sum() / (answers > 0).sum().clamp_min(1)


def _others(same: torch.Tensor) -> torch.Tensor:
    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)


def _without_self(logits: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)


class Pool:
    """Clips by their meaning: what a batch, a paraphrase and a hard negative are drawn from."""

    def __init__(self, captions: list[list[str]], labels: list[list[str]], relations: list[str | None]) -> None:
        if not len(captions) == len(labels) == len(relations) > 0:
            raise ValueError(
                f"{len(captions)} captions, {len(labels)} labels and {len(relations)} relations: all must be equally "
                "many, and at least one"
            )
        empty = next((i for i, wordings in enumerate(captions) if not wordings), None)
        if empty is not None:
            raise ValueError(f"clip {empty} has no caption; caption or quarantine it first")
        self.size, self.captions, self.relations = len(captions), captions, relations
        self.keys = [meaning(*pair) for pair in zip(labels, relations, strict=True)]
        self.clips: dict[Key, list[int]] = defaultdict(list)
        for row, key in enumerate(self.keys):
            self.clips[key].append(row)
        by_events: dict[tuple[str, ...], list[Key]] = defaultdict(list)
        for key in self.clips:
            by_events[tuple(sorted(key[1]))].append(key)
        self.contrasts = {
            key: [other for other in by_events[tuple(sorted(key[1]))] if other != key] for key in self.clips
        }

    def batch(self, size: int, random: np.random.Generator) -> list[int]:
        """Rows of random clips; a clip that can be mistaken for others brings a second one of its meaning and two
        with its events in another order or relation.
        """
        rows: list[int] = []
        while len(rows) < size:
            row = int(random.integers(self.size))
            rows.append(row)
            if contrasts := self.contrasts[self.keys[row]]:
                other = contrasts[random.integers(len(contrasts))]
                rows += [self._any(self.keys[row], random), self._any(other, random), self._any(other, random)]
        return rows[:size]

    def _any(self, key: Key, random: np.random.Generator) -> int:
        clips = self.clips[key]
        return clips[random.integers(len(clips))]

    def caption(self, row: int, random: np.random.Generator) -> str:
        """A wording of this clip, or (half of the time) one of another clip that means the same."""
        if random.random() < 0.5:
            clips = self.clips[self.keys[row]]
            row = clips[random.integers(len(clips))]
        wordings = self.captions[row]
        return wordings[random.integers(len(wordings))]


def insertion(progress: float) -> float:
    """How often a caption is put among strange words, at this share of the steps with sound (negative before them).

    Now and then while the text tower learns what order is from where words stand; always as often as at the end,
    `INSERT`, from a tenth of the way on.
    """
    return INSERT * min(1.0, max(0.5, 0.5 + 5 * progress))


def perturb(caption: str, random: np.random.Generator, strangers: float = INSERT) -> str:
    """The caption among words that mean nothing (with probability `strangers`), a word now and then missing.

    Test prompts are worded as no training caption is; what a model has never read should not turn what it has.
    """
    words = [w if random.random() > REPLACE else _nonsense(random) for w in caption.split()]
    words = [w for w in words if random.random() > DROP] or words
    if random.random() < strangers:
        before, after = random.integers(0, 4), random.integers(0, 3)
        words = [_nonsense(random) for _ in range(before)] + words + [_nonsense(random) for _ in range(after)]
        if random.random() < 0.3:
            words.insert(int(random.integers(len(words) + 1)), _nonsense(random))
    return " ".join(words)


def _nonsense(random: np.random.Generator) -> str:
    return "".join(random.choice(list(string.ascii_lowercase), size=random.integers(1, 10)))


def augment(
    wavs: np.ndarray, relations: Sequence[str | None], random: np.random.Generator
) -> Float[torch.Tensor, "B S"]:
    """int16 waveforms at another loudness, moment, brightness and over noise, as float32 within the same clip.

    One event, or two at once, may start anywhere in the loop of the clip; an order must not be broken, so other clips
    move by at most 5 % and are filled with silence.
    """
    batch, samples = wavs.shape
    wav = wavs.astype(np.float32) / np.float32(FULL_SCALE)
    for row, relation in enumerate(relations):
        if relation in ("one", "while"):
            wav[row] = np.roll(wav[row], random.integers(samples))
            continue
        reach = int(SHIFT_ORDERED * samples)
        shift = int(random.integers(-reach, reach + 1))
        wav[row] = np.roll(wav[row], shift)
        wav[row, : max(shift, 0)] = 0
        wav[row, samples + min(shift, 0) :] = 0
    tilt = random.uniform(-0.5, 0.5, (batch, 1)) * (random.random((batch, 1)) < 0.5)
    wav[:, 1:] += tilt.astype(np.float32) * wav[:, :-1]
    gain = 10 ** (random.uniform(-12, 6, (batch, 1)) / 20)
    noise = 10 ** (random.uniform(-80, -40, (batch, 1)) / 20)
    wav = wav * gain.astype(np.float32) + noise.astype(np.float32) * random.standard_normal(
        (batch, samples), np.float32
    )
    return torch.from_numpy(wav)
