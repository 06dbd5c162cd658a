"""A look at held-out prompts: the same model the same figures, another one another FAD; training unharmed."""

import dataclasses

import numpy as np
import pytest
import torch

from siren.evaluate import watching
from siren.evaluate.hearing import Ears
from tests.align.test_anticausal import WATCHED, changed, decode, likes_high_codes
from tests.evaluate.test_judging import NAMES, SAMPLES, ToyClap, ToyCnn14, ToyVggish, clip
from tests.model import builders
from tests.train.test_stage1 import tokens


class Codec:
    def decode(self, codes):
        """A tone at the pitch that the first code asks for, in noise that the others make."""
        wavs = [clip([NAMES[int(c[0, 0]) % 4]], "one", np.random.default_rng(int(c.sum()))) for c in codes]
        return torch.from_numpy(np.stack(wavs))


@pytest.fixture
def look():
    model, kept = builders.model(3), []
    prompts = dataclasses.replace(tokens(8), captions=[f"a {NAMES[i % 4]}" for i in range(8)])
    real = np.stack([clip([NAMES[i % 4]], "one", np.random.default_rng(i)) for i in range(8)])
    ears = Ears(ToyCnn14(), ToyVggish(), ToyClap("clap"), ToyClap("ib"), 16000, 3, "cpu")
    settings = changed(watch=dataclasses.replace(WATCHED, sounds=2))

    def keep(name, wav, step):
        kept.append((name, wav.shape, step))

    return model, watching.watcher(model, Codec(), prompts, real, ears, settings, 6, 0, keep), kept


def test_the_same_model_sounds_the_same_and_another_does_not(look):
    model, look, kept = look
    first = look(0)
    assert set(first) == {f"held_out_{name}" for name in ("imagebind", "clap", "fd", "fad")}
    assert look(4) == first
    assert kept[2:] == [("held-out/a bell", (SAMPLES,), 4), (f"held-out/a {NAMES[1]}", (SAMPLES,), 4)]
    with torch.no_grad():
        model[0].heads.zero_()
        model[0].heads[:, 5] = 9.0  # every clip begins with one of two codes, so with the same tone or none
    assert look(8)["held_out_fad"] != first["held_out_fad"]


def test_looking_changes_nothing_of_the_training():
    """Also not what a global random generator gives: a run that is watched is the run that is not."""
    from siren.align.anticausal import align

    models = [builders.model(3), builders.model(3)]
    for model, seen in zip(models, (None, lambda step: {"held_out_fad": torch.rand(()).item()}), strict=True):
        settings = changed(steps=2, watch=dataclasses.replace(WATCHED, every=1))
        align(model, tokens(), decode, likes_high_codes, settings, 6, 0, lambda step, m: None, look=seen)
    assert all(torch.equal(v, models[1].state_dict()[k]) for k, v in models[0].state_dict().items())


def test_prompts_are_taken_evenly():
    assert watching.spread(9, 3) == [0, 4, 8]
    assert watching.spread(2, 5) == [0, 1]
    part = tokens(10).take([7, 2])
    assert part.ids == ["clip-7", "clip-2"]
    assert np.array_equal(part.codes, tokens(10).codes[[7, 2]])
    assert np.array_equal(part.text_batch([0])[0], tokens(10).text_batch([7])[0])
