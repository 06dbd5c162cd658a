"""Training AutoCap (arXiv 2406.19388, section 3 and appendix): captions from sound and metadata, in stages.

1. `language`: BART alone writes captions from captions with words missing. Only for one that starts from nothing; the
   paper's is published and can write already.
2. `listening`: BART is kept as it is; Q-Former and projections learn to give it what it can read.
3. `finetuning`: BART moves, too. The tower and CLAP never do.

Different from the authors' training: AdamW as everywhere here (betas 0.9, 0.95; weight decay on matrices alone) where
theirs is Adam (0.9, 0.999); and the tower is that of the CLAP in the settings, where theirs had learned captioning.

Fields of metadata are missing at random, so that the network does without what is not known. Everything random in a
step comes from (seed, stage, step), so a resumed run needs no state of a generator.

Shapes: N clips · S samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from siren.config import AutoCap as Settings
from siren.config import Training
from siren.networks.autocap import AutoCap, Metadata
from siren.progress import track
from siren.shards import FULL_SCALE
from siren.train.contrastive import augment
from siren.train.loop import Checkpoint, Log, Watch, adamw, learning_rate, set_learning_rate

STAGES = ("language", "listening", "finetuning")
MISSING = 0.35  # share of words that `language` has to find again


@dataclass(frozen=True)
class Corpus:
    """Clips of people's captions; the arguments of `train_autocap`. Raises ValueError where they do not go together."""

    wavs: np.ndarray
    captions: list[list[str]]
    metadata: Sequence[Metadata]
    relations: Sequence[str | None]

    def __post_init__(self) -> None:
        wavs, captions, metadata, relations = self.wavs, self.captions, self.metadata, self.relations
        if not len(wavs) == len(captions) == len(metadata) == len(relations) > 0:
            raise ValueError(
                f"{len(wavs)} waveforms, {len(captions)} lists of captions, {len(metadata)} mappings of metadata: all "
                "must be equally many, and at least one"
            )


def train_autocap(
    model: AutoCap,
    wavs: np.ndarray,
    captions: list[list[str]],
    metadata: Sequence[Metadata],
    relations: Sequence[str | None],
    settings: Settings,
    seed: int,
    log: Log,
    device: str = "cpu",
    checkpoint: Callable[[str], Checkpoint | None] = lambda stage: None,
) -> None:
    """Train `model` in place on int16 waveforms [N, S]; it ends in evaluation mode.

    `captions` has all wordings of each clip, `relations` what its events are to each other (or None). `checkpoint`
    gives each stage the place of its own; a killed run goes on where it was. Raises FloatingPointError on a loss or
    gradient that is not finite.
    """
    corpus = Corpus(wavs, captions, metadata, relations)
    model.to(device).train()
    stages = [(name, training) for name in STAGES if (training := getattr(settings, name)) is not None]
    places = {name: checkpoint(name) for name, _ in stages}
    before = 0
    for index, (name, training) in enumerate(stages):
        begun = any(place is not None and place.latest() for place in list(places.values())[index + 1 :])
        if not begun:  # else its result is in the checkpoint of a later one
            _stage(model, name, training, corpus, settings, seed, log, places[name], before)
        before += training.steps
    model.writer.freeze_language(False)
    model.eval()


def _stage(
    model: AutoCap,
    name: str,
    training: Training,
    corpus: Corpus,
    settings: Settings,
    seed: int,
    log: Log,
    checkpoint: Checkpoint | None,
    before: int,
) -> None:
    """One stage; its steps are logged after `before` others. At its end there is a checkpoint, for the next to see."""
    writer, device = model.writer, model.device
    writer.requires_grad_(True).freeze_language(name == "listening")
    optimiser = adamw(writer, training)
    first = checkpoint.restore(writer, optimiser) if checkpoint else 0
    watch = Watch(f"autocap {name}", device, checkpoint)
    with torch.random.fork_rng(devices=[]):
        for step in track(range(first, training.steps), f"autocap {name}", training.steps, first, "step"):
            random = np.random.default_rng([seed, STAGES.index(name), step])
            torch.manual_seed(int(random.integers(2**62)))
            rows = random.integers(len(corpus.wavs), size=training.batch_size)
            texts = [corpus.captions[row][random.integers(len(corpus.captions[row]))] for row in rows]
            if name == "language":
                states, mask = writer.denoise([with_gaps(text, random) for text in texts])
            else:
                wav = _heard(corpus.wavs[rows], [corpus.relations[row] for row in rows], settings.augment_share, random)
                known = [missing(corpus.metadata[row], settings.metadata_dropout, random) for row in rows]
                states, mask = writer.encode(*model.hear(wav.to(device)), known)
            loss = writer.loss(states, mask, texts, settings.label_smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(writer.parameters(), training.clip_norm)
            logs = step % training.log_every == 0 or step == training.steps - 1
            saves = checkpoint is not None and (
                (step + 1) % training.checkpoint_every == 0 or step == training.steps - 1
            )
            watch(step, loss, norm, now=logs or saves)
            rate = learning_rate(step, training)
            set_learning_rate(optimiser, rate)
            optimiser.step()
            if logs:
                figures = {"loss": float(loss.detach()), "gradient_norm": float(norm), "learning_rate": rate}
                log(before + step, {f"{name}/{key}": value for key, value in figures.items()})
            if checkpoint and saves:
                checkpoint.save(step + 1, writer, optimiser)


def with_gaps(caption: str, random: np.random.Generator) -> str:
    """The caption without some of its words; at least one is left."""
    words = caption.split()
    kept = [word for word in words if random.random() >= MISSING]
    return " ".join(kept or words[:1])


def missing(known: Metadata, share: float, random: np.random.Generator) -> Metadata:
    """Metadata without some of its fields."""
    return {name: text for name, text in known.items() if random.random() >= share}


def _heard(
    wavs: np.ndarray, relations: Sequence[str | None], share: float, random: np.random.Generator
) -> torch.Tensor:
    """int16 clips as float32, a share of them augmented. [B, S]"""
    wav = torch.from_numpy(wavs.astype(np.float32) / np.float32(FULL_SCALE))
    chosen = np.flatnonzero(random.random(len(wavs)) < share)
    if len(chosen):
        wav[chosen] = augment(wavs[chosen], [relations[int(index)] for index in chosen], random)
    return wav


@torch.no_grad()
def caption_all(
    model: AutoCap, wavs: np.ndarray, metadata: Sequence[Metadata], beams: int, batch_size: int = 64
) -> list[str]:
    """A caption of each int16 clip [N, S], in order."""
    device, found = model.device, []
    for start in track(range(0, len(wavs), batch_size), "autocap captions", unit="batch"):
        stop = start + batch_size
        wav = torch.from_numpy(wavs[start:stop].astype(np.float32) / np.float32(FULL_SCALE)).to(device)
        found += [text for text, _ in model.captions(wav, metadata[start:stop], beams)]
    return found


@torch.no_grad()
def clap_score(model: AutoCap, wavs: np.ndarray, captions: list[str], batch_size: int = 64) -> float | None:
    """Mean cosine of int16 clips [N, S] and these captions by the CLAP that the network reads; None without one."""
    if model.clap is None:
        return None
    device, scores = model.device, []
    for start in range(0, len(wavs), batch_size):
        part = slice(start, start + batch_size)
        wav = torch.from_numpy(wavs[part].astype(np.float32) / np.float32(FULL_SCALE)).to(device)
        scores.append((model.clap.embed_audio(wav) * model.clap.embed_text(captions[part])).sum(-1))
    return float(torch.cat(scores).mean())
