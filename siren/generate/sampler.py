"""Sampling: texts and seeds to codes, with the fastest sampler that can do the model's arm.

`prepare` makes one of a model: the stacked one where the transformers are alike and nothing is delayed, else the plain
one. Both are iterators over frames, so that a clip can be heard while it is made, and both continue given codes.
All randomness of an item is drawn from its own seed before sampling starts: what else is in the batch changes nothing.
The distribution is the one that `ResidualTransformer.forward` gives under teacher forcing (tested).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from siren.config import Sampling
from siren.generate.choice import Rollout, guide, guided, truncate
from siren.generate.plain import Plain
from siren.generate.stacked import Stacked
from siren.model.siren import Siren
from siren.randomness import uniforms
from siren.shapes import Bool, Float, Int

__all__ = ["Rollout", "Sampler", "frames", "guide", "prepare", "sample", "truncate"]


Sampler = Plain | Stacked  # a model ready to sample; weights that change afterwards are not seen


def prepare(model: Siren, dtype: torch.dtype = torch.float32) -> Sampler:
    """The fastest sampler for this model, with its weights as they are now; a stacked one in `dtype`."""
    return Stacked(model, dtype) if Stacked.fits(model) else Plain(model)


@torch.no_grad()
def sample(
    model: Siren | Sampler,
    states: Float[Tensor, "B L P"],
    mask: Bool[Tensor, "B L"],
    seeds: Sequence[int],
    num_frames: int,
    sampling: Sampling,
) -> Rollout:
    """Codes for each text, with one random stream per seed. Raises ValueError where the model's table is too short.

    With `guidance` g, logits = null + g · (conditioned - null); only a model trained with dropped text has a null.
    """
    sampler = prepare(model) if isinstance(model, Siren) else model
    shape = (len(seeds), sampler.model.num_codebooks, num_frames)
    codes = torch.empty(shape, dtype=torch.long, device=states.device)
    log_probs = torch.empty(shape, device=states.device)
    for t, (code, log_prob) in enumerate(frames(sampler, states, mask, seeds, num_frames, sampling)):
        codes[..., t], log_probs[..., t] = code, log_prob
    return Rollout(codes, log_probs)


def frames(
    sampler: Sampler,
    states: Float[Tensor, "B L P"],
    mask: Bool[Tensor, "B L"],
    seeds: Sequence[int],
    num_frames: int,
    sampling: Sampling,
    prefix: Int[Tensor, "B K t"] | None = None,
    first: int = 0,
) -> Iterator[tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]]:
    """Frames after `prefix` one by one, `num_frames` with it. Raises ValueError as `sample` does, when called.

    The first of them is the item's number `first` in time: its random numbers are those of that place.
    """
    model = sampler.model
    if num_frames > model.max_frames:
        raise ValueError(
            f"{num_frames} frames asked for; this model's positions end at {model.max_frames}. Longer clips need the "
            "sliding window of siren.generate.streaming, which Bundle.sample and `siren generate` use"
        )
    if len(seeds) != states.shape[0]:
        raise ValueError(f"{len(seeds)} seeds for {states.shape[0]} prompts; one each is needed")
    given = 0 if prefix is None else prefix.shape[-1]
    drawn = uniforms(seeds, first + num_frames - given, model.num_codebooks)[:, first:]
    numbers = torch.cat([drawn.new_zeros(len(seeds), given, model.num_codebooks), drawn], dim=1).to(states.device)
    if guided(sampling):
        states, mask = with_null(model, states, mask)
    return _inferred(sampler.frames(states, mask, numbers, sampling, prefix))


def _inferred(run: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same in inference mode, in which the caller between two frames is not."""
    while True:
        with torch.inference_mode():
            frame = next(run, None)
        if frame is None:
            return
        yield frame


def with_null(model: Siren, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The batch followed by its unconditioned twin."""
    null_states, null_mask = torch.zeros_like(states), torch.zeros_like(mask)
    small_states, small_mask = model[0].null_text(states.shape[0], states.shape[-1])
    null_states[:, :1], null_mask[:, :1] = small_states, small_mask
    return torch.cat([states, null_states]), torch.cat([mask, null_mask])
