"""Stage 1: one isolated transformer, teacher forcing, mean cross entropy of its own codebooks (paper Eq. 6).

Everything random in a step comes from a generator seeded with (seed, step): which rows, which crops, which batches lose
their text, dropout. A run that resumes at step n therefore does exactly what one that was never stopped does, and the
checkpoint needs no generator state. Rows are drawn by epochs: each pass is a fresh permutation of the corpus.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siren.config import Stage1
from siren.encode.tokens import Tokens
from siren.model.transformer import ResidualTransformer, cross_entropy
from siren.progress import track
from siren.randomness import item_seed
from siren.train.loop import Checkpoint, Log, adamw, learning_rate, set_learning_rate


@dataclass
class Batch:
    """codes [B, K, T], text states [B, L, P], mask [B, L]; on the training device."""

    codes: Tensor
    states: Tensor
    mask: Tensor


class Batches:
    """Batches of crops by step number. Stateless: `batches(step)` is the same whenever it is asked."""

    def __init__(self, tokens: Tokens, crop_frames: int, batch_size: int, seed: int, shuffle_captions: bool = False):
        if len(tokens) < batch_size:
            raise ValueError(f"{len(tokens)} pairs cannot fill a batch of {batch_size}; lower train.stage1 batch_size")
        self.tokens, self.crop_frames, self.batch_size, self.seed = tokens, crop_frames, batch_size, seed
        self.partner = np.arange(len(tokens))
        if shuffle_captions:
            self.partner = np.random.default_rng(item_seed(seed, "shuffled captions")).permutation(len(tokens))
        self.order: tuple[int, np.ndarray] = (-1, self.partner)

    def rows(self, step: int) -> np.ndarray:
        per_epoch = len(self.tokens) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        if self.order[0] != epoch:
            shuffled = np.random.default_rng(item_seed(self.seed, "epoch", epoch)).permutation(len(self.tokens))
            self.order = (epoch, shuffled)
        return self.order[1][position * self.batch_size : (position + 1) * self.batch_size]

    def __call__(self, step: int, device: str = "cpu") -> Batch:
        rows = self.rows(step)
        rng = np.random.default_rng(item_seed(self.seed, "crops", step))
        codes = np.stack([self._crop(int(row), rng) for row in rows])
        states, mask = self.tokens.text_batch(self.partner[rows])
        return Batch(
            torch.from_numpy(codes.astype(np.int64)).to(device),
            torch.from_numpy(states).to(device),
            torch.from_numpy(mask).to(device),
        )

    def _crop(self, row: int, rng: np.random.Generator) -> np.ndarray:
        offsets = self.tokens.crop_offsets[row]
        start = int(offsets[rng.integers(len(offsets))])
        return self.tokens.codes[row][:, start : start + self.crop_frames]


def train_stage1(
    transformer: ResidualTransformer,
    tokens: Tokens,
    validation: Tokens,
    settings: Stage1,
    crop_frames: int,
    seed: int,
    log: Log,
    checkpoint: Checkpoint | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Train in place → final figures. Raises FloatingPointError on a loss that is not finite.

    Logged: loss, learning rate, gradient norm; loss of each owned codebook in training and validation (nats).
    """
    training = settings.training
    transformer.to(device).train()
    optimiser = adamw(transformer, training)
    batches = Batches(tokens, crop_frames, training.batch_size, seed, settings.shuffle_captions)
    first_step = checkpoint.restore(transformer, optimiser)[0] if checkpoint else 0
    label = f"stage1 {transformer.index}"
    figures: dict[str, float] = {}
    for step in track(range(first_step, training.steps), label, training.steps, first_step, "step"):
        torch.manual_seed(item_seed(seed, "dropout", step))
        batch = batches(step, device)
        if settings.text_dropout and _text_is_dropped(seed, step, settings.text_dropout):
            batch.states, batch.mask = transformer.null_text(len(batch.codes), batch.states.shape[-1])
        heard = _heard(seed, step, batch.codes, settings.history_dropout)
        logits = transformer(batch.codes, batch.states, batch.mask, heard)
        losses = cross_entropy(logits, transformer.targets(batch.codes))
        loss = losses.mean()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"{label}: the loss is {loss.item()} at step {step}; lower the learning rate")
        set_learning_rate(optimiser, learning_rate(step, training))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(transformer.parameters(), training.clip_norm or math.inf)
        optimiser.step()
        last = step + 1 == training.steps
        if step % training.log_every == 0 or last:
            figures = {
                "loss": loss.item(),
                "learning_rate": learning_rate(step, training),
                "gradient_norm": norm.item(),
            }
            figures |= _named("loss", transformer, losses)
            if step % settings.validate_every == 0 or last:
                figures |= validate(transformer, validation, crop_frames, training.batch_size, device)
            log(step, figures)
        if checkpoint and not last and (step + 1) % training.checkpoint_every == 0:
            checkpoint.save(step + 1, transformer, optimiser)
    transformer.eval()
    return figures or validate(transformer, validation, crop_frames, training.batch_size, device)


@torch.inference_mode()
def validate(
    transformer: ResidualTransformer, tokens: Tokens, crop_frames: int, batch_size: int, device: str
) -> dict[str, float]:
    """Cross entropy of each owned codebook over all validation pairs, first valid crop of each; mean, last over first.

    The last two are the paper's Loss Mean and Loss Ratio (Table 5) where the transformer owns all codebooks; those of
    several transformers are in `siren.evaluate.analyze.convergence`.
    """
    transformer.eval()
    total, count = torch.zeros(transformer.group), 0
    for begin in range(0, len(tokens), batch_size):
        rows = np.arange(begin, min(begin + batch_size, len(tokens)))
        offsets = [int(tokens.crop_offsets[r][0]) for r in rows]
        crops = [tokens.codes[r][:, o : o + crop_frames] for r, o in zip(rows, offsets, strict=True)]
        codes = torch.from_numpy(np.stack(crops).astype(np.int64)).to(device)
        states, mask = (torch.from_numpy(a).to(device) for a in tokens.text_batch(rows))
        losses = cross_entropy(transformer(codes, states, mask), transformer.targets(codes))
        total, count = total + losses.cpu() * len(rows), count + len(rows)
    transformer.train()
    losses = total / max(1, count)
    balance = {"val_loss": losses.mean().item(), "val_loss_ratio": (losses[-1] / losses[0]).item()}
    return _named("val_loss", transformer, losses) | balance


def _named(name: str, transformer: ResidualTransformer, losses: Tensor) -> dict[str, float]:
    return {f"{name}_codebook_{transformer.first + j}": value for j, value in enumerate(losses.tolist())}


def _text_is_dropped(seed: int, step: int, share: float) -> bool:
    return bool(np.random.default_rng(item_seed(seed, "text", step)).random() < share)


def _heard(seed: int, step: int, codes: Tensor, share: float) -> Tensor | None:
    """Which frames of the past the transformer may see in this step, bool [B, T]; None where it is all of them.

    A `share` of the clips is blank from a random frame on: what follows has to come from the text and the time. Blank
    single frames would not do, because their neighbours give them away.
    """
    if share == 0:
        return None
    rng = np.random.default_rng(item_seed(seed, "history", step))
    clips, frames = codes.shape[0], codes.shape[2]
    begin = np.where(rng.random(clips) < share, rng.integers(frames, size=clips), frames)
    return torch.from_numpy(np.arange(frames) < begin[:, None]).to(codes.device)
