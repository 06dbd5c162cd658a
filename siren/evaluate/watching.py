"""Whether alignment still improves the sound, or only the reward: a look at held-out prompts while it runs.

The reward network can be pleased by what no ear would be pleased by. Signs of that, all of which a run logs: the
reward rises and the independent score (CLAP, which alignment does not see) stays or falls; FAD to real clips rises;
the KL to stage 1 grows without end; the policy loses entropy and its rollouts diversity. `align.watch` says how often
to look and when to stop: KL above 0.1 to 0.2 nats per code is a usual limit, and so is a rise of FAD by a tenth.
Nothing stops by default. At scale `demo` nothing is looked at either, because evaluation follows within the minute.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from siren.config import Align, Sample
from siren.encode.tokens import Tokens
from siren.evaluate import metrics
from siren.evaluate.hearing import Ears
from siren.generate.offline import sample_tokens
from siren.hashing import item_seed
from siren.model.siren import Siren

Keep = Callable[[str, np.ndarray, int], None]  # a sound, by name and step


def spread(total: int, wanted: int) -> list[int]:
    """`wanted` rows of `total`, evenly spaced; all where there are no more."""
    return np.linspace(0, total - 1, min(wanted, total)).round().astype(int).tolist()


def watcher(
    model: Siren,
    codec: Any,
    prompts: Tokens,
    real: np.ndarray,
    ears: Ears,
    settings: Align,
    num_frames: int,
    seed: int,
    keep: Keep,
) -> Callable[[int], dict[str, float]]:
    """A function of the step: clips of `prompts` by `model` as it then is, always from the same seeds, and what the
    networks hear in them. The real clips [N, S] of the prompts are what FD and FAD are measured to.

    Clips are drawn as rollouts are, so that the figures speak of the policy that is moved.
    """
    seeds = [item_seed(seed, "held-out", name) for name in prompts.ids]
    halves = np.zeros(len(prompts), bool)
    texts, reference = ears.read(list(prompts.captions)), ears.listen({"real": real}, halves)["real"]
    drawn = Sample(settings.sampling, ears.batch_size, candidates=1, report_clips=0)

    def look(step: int) -> dict[str, float]:
        wavs = sample_tokens(model, codec, prompts, seeds, num_frames, drawn, f"held-out at {step}")
        heard = ears.listen({"held-out": wavs}, halves)["held-out"]
        for caption, wav in zip(prompts.captions, wavs[: settings.watch.sounds], strict=False):
            keep(f"held-out/{caption}", wav, step)
        return {
            "held_out_imagebind": float(metrics.clap_score(texts["imagebind"], heard.imagebind).mean()),
            "held_out_clap": float(metrics.clap_score(texts["clap"], heard.clap).mean()),
            "held_out_fd": metrics.frechet_distance(reference.features, heard.features),
            "held_out_fad": metrics.fad(reference.examples, heard.examples),
        }

    return look
