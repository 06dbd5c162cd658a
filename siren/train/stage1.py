"""Stage 1: one isolated transformer, teacher forcing, mean cross entropy of its own codebooks (paper Eq. 6).

Everything random in a step comes from a generator seeded with (seed, step): which rows, which crops, which batches lose
their text, dropout. A run that resumes at step n therefore does exactly what one that was never stopped does, and the
checkpoint needs neither generator state nor data position.

Rows are drawn by epochs, each a fresh order of the corpus, shuffled on two levels: shards are permuted and taken
`shuffle_shards` at a time, and the rows of those are permuted together. A batch then reads few shards, and one epoch
still mixes sources that lie side by side. The order depends on (seed, epoch) and the corpus alone; where all shards fit
into one window, as in a small corpus, it is a permutation of all rows.

A batch of `batch_size` is one optimiser step, however it is split: into `accumulate` parts one after the other, and
each of those over the processes that train together. Random numbers are drawn for the whole batch, so a part gets what
it would have got in a batch of one part, but for dropout.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from siren.config import Stage1
from siren.encode.tokens import Tokens
from siren.hashing import item_seed
from siren.model.transformer import ResidualTransformer, cross_entropy
from siren.progress import track
from siren.train.distributed import ALONE, Ranks
from siren.train.loop import Checkpoint, Log, Watch, adamw, learning_rate, set_learning_rate
from siren.train.similarity import pool, similarity_loss


@dataclass
class Batch:
    """codes [B, K, T], its valid frames [B, T], text states [B, L, P], mask [B, L]; on the training device."""

    codes: Tensor
    valid: Tensor
    states: Tensor
    mask: Tensor


class Batches:
    """Batches of crops by step number. Stateless: `batches(step)` is the same whenever it is asked."""

    def __init__(
        self,
        tokens: Tokens,
        crop_frames: int,
        batch_size: int,
        seed: int,
        shuffle_captions: bool = False,
        shuffle_shards: int = 1,
    ):
        if len(tokens) < batch_size:
            raise ValueError(f"{len(tokens)} pairs cannot fill a batch of {batch_size}; lower train.stage1 batch_size")
        self.tokens, self.crop_frames, self.batch_size, self.seed = tokens, crop_frames, batch_size, seed
        self.shuffle_shards = shuffle_shards
        self.partner = np.arange(len(tokens))
        if shuffle_captions:
            self.partner = np.random.default_rng(item_seed(seed, "shuffled captions")).permutation(len(tokens))
        self.order: tuple[int, np.ndarray] = (-1, self.partner)

    def rows(self, step: int) -> np.ndarray:
        per_epoch = len(self.tokens) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        if self.order[0] != epoch:
            self.order = (epoch, np.concatenate(list(self._windows(epoch))))
        return self.order[1][position * self.batch_size : (position + 1) * self.batch_size]

    def _windows(self, epoch: int) -> Iterator[np.ndarray]:
        """The rows of one epoch, window by window."""
        sizes = np.array(self.tokens.shard_rows or [len(self.tokens)], np.int64)
        starts: np.ndarray = np.cumsum(sizes) - sizes
        shards = np.random.default_rng(item_seed(self.seed, "shards", epoch)).permutation(len(sizes))
        rng = np.random.default_rng(item_seed(self.seed, "epoch", epoch))
        for begin in range(0, len(shards), self.shuffle_shards):
            window = sorted(shards[begin : begin + self.shuffle_shards].tolist())
            yield rng.permutation(np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in window]))

    def __call__(self, step: int, device: str = "cpu", part: int = 0, parts: int = 1) -> Batch:
        """The batch of a step, or one of its equal parts."""
        rows = self.rows(step)
        rng = np.random.default_rng(item_seed(self.seed, "crops", step))
        offsets = [self.tokens.crop_offsets[int(row)] for row in rows]
        starts = [int(o[int(rng.integers(len(o)))]) for o in offsets]
        mine = share(len(rows), part, parts)
        return read_batch(self.tokens, rows[mine], starts[mine], self.crop_frames, device, self.partner[rows[mine]])


def share(total: int, part: int, parts: int) -> slice:
    """Part number `part` of `total` items, of `parts` as equal as can be."""
    return slice(part * total // parts, (part + 1) * total // parts)


def read_batch(
    tokens: Tokens, rows: np.ndarray, starts: list[int], frames: int, device: str, texts: np.ndarray | None = None
) -> Batch:
    """Crops of these rows with their texts, or with those of the rows `texts`."""
    left = np.maximum(np.asarray(tokens.num_frames)[rows] - np.array(starts), 1)
    arrays = (tokens.crops(rows, starts, frames), np.arange(frames) < left[:, None])
    # From pinned memory the copy to a GPU does not wait for what the GPU is doing.
    tensors = [torch.from_numpy(a) for a in (*arrays, *tokens.text_batch(rows if texts is None else texts))]
    if torch.device(device).type == "cuda":
        tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    return Batch(*tensors)


class Objective(nn.Module):
    """What a step differentiates, as one module: so that it is compiled, and its gradients averaged, as a whole."""

    def __init__(self, transformer: ResidualTransformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, codes: Tensor, states: Tensor, mask: Tensor, heard: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cross entropy of each owned codebook [N], and the states of the temporal path [B, T, D]."""
        hidden, logits = self.transformer.hidden_and_logits(codes, states, mask, heard)
        return cross_entropy(logits, self.transformer.targets(codes)), hidden


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
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Train in place → final figures.

    Raises FloatingPointError on a loss or gradient that is not finite, and ValueError at once for a crop or a text that
    the model has no table for, or a batch that cannot be split as the settings and the processes ask.

    Logged: loss, learning rate, gradient norm; loss of each owned codebook in training and validation (nats); in
    validation also what the text gains; figures of L_rr on every batch that it was applied to.
    With `ema` the averaged weights are validated, and they are what `transformer` holds at the end.
    """
    training, model, label = settings.training, transformer.config, f"stage1 {transformer.index}"
    if training.batch_size % (settings.accumulate * ranks.world):
        raise ValueError(
            f"a batch of {training.batch_size} cannot be split into {settings.accumulate} (accumulate) times "
            f"{ranks.world} (processes) equal parts; change train.stage1.training.batch_size"
        )
    longest = max(tokens.longest_text, validation.longest_text)
    for name, needed, most in (("max_frames", crop_frames, model.max_frames), ("max_text", longest, model.max_text)):
        if needed > most:
            raise ValueError(f"model.{name} is {most}, the longest of these pairs needs {needed}; raise it")
    transformer.to(device).train()
    optimiser = adamw(transformer, training)
    average = AveragedModel(transformer, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)) if settings.ema else None
    state = nn.ModuleDict({"transformer": transformer} | ({"average": average} if average else {}))
    result: Any = average.module if average else transformer
    first_step = checkpoint.restore(state, optimiser) if checkpoint else 0
    batches = Batches(
        tokens, crop_frames, training.batch_size, seed, settings.shuffle_captions, settings.shuffle_shards
    )
    objective = Objective(transformer)
    if settings.compile:
        objective.compile()
    gradients = Step(ranks.wrap(objective), transformer, batches, settings, seed, device, ranks)
    figures: dict[str, float] = {}
    watch = Watch(label, device, checkpoint)
    for step in track(range(first_step, training.steps), label, training.steps, first_step, "step"):
        optimiser.zero_grad(set_to_none=True)
        losses, similarity = gradients(step)
        norm = torch.nn.utils.clip_grad_norm_(transformer.parameters(), training.clip_norm or math.inf)
        last = step + 1 == training.steps
        logs = step % training.log_every == 0 or last or bool(similarity)
        saves = checkpoint is not None and not last and (step + 1) % training.checkpoint_every == 0
        watch(step, losses.mean(), norm, now=logs or saves or last)
        set_learning_rate(optimiser, learning_rate(step, training))
        optimiser.step()
        if average:
            average.update_parameters(transformer)
        if logs:
            losses = ranks.mean(losses)
            figures = {
                "loss": losses.mean().item(),
                "learning_rate": learning_rate(step, training),
                "gradient_norm": norm.item(),
            }
            figures |= _named("loss", transformer, losses) | similarity
            if step % settings.validate_every == 0 or last:
                figures |= validate(result, validation, crop_frames, settings, device, ranks)
            log(step, figures)
        if saves and ranks.rank == 0:
            assert checkpoint is not None
            checkpoint.save(step + 1, state, optimiser)
    if average:
        transformer.load_state_dict(result.state_dict())
    transformer.eval()
    return figures or validate(transformer, validation, crop_frames, settings, device, ranks)


@dataclass
class Step:
    """Forward and backward of one optimiser step, by its number: gradients are left in the transformer."""

    objective: nn.Module
    transformer: ResidualTransformer
    batches: Batches
    settings: Stage1
    seed: int
    device: str
    ranks: Ranks

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of each owned codebook on this process's share, and figures of L_rr where it was applied."""
        settings, world = self.settings, self.ranks.world
        parts, total = settings.accumulate, torch.zeros(())
        figures: dict[str, float] = {}
        dropped = settings.text_dropout > 0 and text_is_dropped(self.seed, step, settings.text_dropout)
        size, frames = self.batches.batch_size, self.batches.crop_frames
        heard = _heard(self.seed, step, size, frames, settings.history_dropout)
        for turn in range(parts):
            part = turn * world + self.ranks.rank
            torch.manual_seed(item_seed(self.seed, "dropout", step, *([part] if part else [])))
            batch = self.batches(step, self.device, part, parts * world)
            mine = None if heard is None else heard[share(size, part, parts * world)].to(self.device)
            with self.ranks.alone(self.objective, skip=turn + 1 < parts):
                losses, similarity, found = self._losses(batch, mine, dropped)
                ((losses.mean() + similarity) / parts).backward()
            total = total.to(losses) + losses.detach() / parts
            figures = {name: figures.get(name, 0.0) + value / parts for name, value in found.items()}
        return total, figures

    def _losses(self, batch: Batch, heard: Tensor | None, dropped: bool) -> tuple[Tensor, Tensor, dict[str, float]]:
        settings, states, mask = self.settings, batch.states, batch.mask
        if dropped:
            states, mask = self.transformer.null_text(len(batch.codes), states.shape[-1])
        with autocast(settings, self.device):
            losses, hidden = self.objective(batch.codes, states, mask, heard)
        if not (dropped and settings.similarity_weight):
            return losses, losses.new_zeros(()), {}
        audio = pool(hidden, batch.valid, settings.similarity_pooling)
        text = pool(batch.states, batch.mask, settings.similarity_pooling)
        loss, figures = similarity_loss(self.ranks.gather(audio), self.ranks.gather(text))
        # Every process holds the loss of all pairs but the gradient of its own clips: averaging must not divide that.
        return losses, settings.similarity_weight * self.ranks.world * loss, figures


def autocast(settings: Stage1, device: str) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.precision == "bf16")


@torch.inference_mode()
def validate(
    transformer: ResidualTransformer,
    tokens: Tokens,
    crop_frames: int,
    settings: Stage1,
    device: str = "cpu",
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Cross entropy of each owned codebook over all validation pairs, first valid crop of each; and the text's gain.

    val_loss, val_loss_ratio: their mean, and the last over the first. They are the paper's Loss Mean and Loss Ratio
    (Table 5) of a transformer that owns all codebooks; for several see `siren.evaluate.analyze.convergence`.
    val_text_gain: how much higher the loss is when each clip is given another one's text, in nats. Early in a training
    it says whether the text is heeded at all, long before sounds do. Each process takes its share of the batches.
    """
    transformer.eval()
    size = settings.training.batch_size
    sums = torch.zeros(transformer.group + 2, device=device)  # losses, gain, pairs
    for begin in range(ranks.rank * size, len(tokens), ranks.world * size):
        rows = np.arange(begin, min(begin + size, len(tokens)))
        batch = read_batch(tokens, rows, [int(tokens.crop_offsets[int(r)][0]) for r in rows], crop_frames, device)
        targets = transformer.targets(batch.codes)
        with autocast(settings, device):
            losses = cross_entropy(transformer(batch.codes, batch.states, batch.mask), targets)
            others = transformer(batch.codes, batch.states.roll(1, 0), batch.mask.roll(1, 0))
        gain = (cross_entropy(others, targets) - losses).mean()
        sums += len(rows) * torch.cat([losses, torch.stack([gain, torch.ones_like(gain)])])
    transformer.train()
    sums = ranks.mean(sums)
    means = (sums[:-1] / sums[-1].clamp_min(1e-9)).cpu()
    losses = means[:-1]
    balance = {"val_loss": losses.mean().item(), "val_loss_ratio": (losses[-1] / losses[0]).item()}
    return _named("val_loss", transformer, losses) | balance | {"val_text_gain": means[-1].item()}


def _named(name: str, transformer: ResidualTransformer, losses: Tensor) -> dict[str, float]:
    return {f"{name}_codebook_{transformer.first + j}": value for j, value in enumerate(losses.tolist())}


def text_is_dropped(seed: int, step: int, share: float) -> bool:
    """Whether the whole batch of this step is trained without its text."""
    return bool(np.random.default_rng(item_seed(seed, "text", step)).random() < share)


def _heard(seed: int, step: int, clips: int, frames: int, share: float) -> Tensor | None:
    """Which frames of the past the transformer may see in this step, bool [B, T]; None where it is all of them.

    A `share` of the clips is blank from a random frame on: what follows has to come from the text and the time. Blank
    single frames would not do, because their neighbours give them away.
    """
    if share == 0:
        return None
    rng = np.random.default_rng(item_seed(seed, "history", step))
    begin = np.where(rng.random(clips) < share, rng.integers(frames, size=clips), frames)
    return torch.from_numpy(np.arange(frames) < begin[:, None])
