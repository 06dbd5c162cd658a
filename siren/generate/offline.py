"""Many prompts at once, from token shards: what the `sample` stage and experiments use."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from siren.config import Sample
from siren.encode.tokens import Tokens
from siren.generate.sampler import prepare, sample
from siren.model.siren import Siren
from siren.progress import track


@torch.no_grad()
def sample_tokens(
    model: Siren, codec: Any, prompts: Tokens, seeds: Sequence[int], num_frames: int, settings: Sample, label: str = ""
) -> np.ndarray:
    """A clip for each prompt, float32 [N, S]; the text states are those of the shards."""
    device = model[0].start.device
    sampler = prepare(model.eval())
    starts = range(0, len(prompts), settings.batch_size)
    wavs = []
    for begin in track(starts, f"sample {label}".strip(), len(starts), unit="batch"):
        rows = np.arange(begin, min(begin + settings.batch_size, len(prompts)))
        states, mask = (torch.from_numpy(a).to(device) for a in prompts.text_batch(rows))
        rollout = sample(sampler, states, mask, [seeds[row] for row in rows.tolist()], num_frames, settings.sampling)
        wavs.append(codec.decode(rollout.codes).cpu().numpy())
    return np.concatenate(wavs)


@torch.no_grad()
def best_by_clap(clap: Any, candidates: Sequence[np.ndarray], captions: Sequence[str], batch_size: int) -> np.ndarray:
    """For each prompt the clip whose CLAP cosine with it is highest: candidates [C][N, S] → [N, S] (paper, Table 1)."""
    scores = np.stack([cosines(clap, wavs, captions, batch_size) for wavs in candidates])
    best = scores.argmax(axis=0)
    return np.stack([candidates[c][row] for row, c in enumerate(best)])


def cosines(clap: Any, wavs: np.ndarray, captions: Sequence[str], batch_size: int) -> np.ndarray:
    """CLAP cosine of each clip with its caption. [N, S] → [N]"""
    parts = []
    for begin in range(0, len(wavs), batch_size):
        sounds = clap.embed_audio(torch.from_numpy(wavs[begin : begin + batch_size]).to(_place(clap)))
        texts = clap.embed_text(list(captions[begin : begin + batch_size]))
        parts.append((sounds * texts).sum(-1).cpu().numpy())
    return np.concatenate(parts)


def _place(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
