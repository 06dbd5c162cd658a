"""The sampler against the full forward, and its randomness."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siren.generate.sampler import sample, truncate
from siren.hashing import item_seed
from siren.model.arms import ARMS
from siren.randomness import draw, uniforms
from tests.model import builders
from tests.model.builders import WHOLE


@pytest.mark.parametrize("num_transformers", [1, 2, 3, 6])
@pytest.mark.parametrize("residual_start", ["prompt", "learned"])
def test_cached_sampling_has_the_probabilities_of_the_full_forward(num_transformers, residual_start):
    _check_probabilities(builders.model(num_transformers, residual_start=residual_start))


@pytest.mark.parametrize("name", ARMS)
def test_so_it_has_in_every_arm(name):
    _check_probabilities(builders.arm(name, num_codebooks=12 if name in ("m4", "m12") else 6))


def _check_probabilities(siren):
    _, states, mask = builders.batch()
    rollout = sample(siren, states, mask, [1, 2, 3], 9, WHOLE)
    assert (rollout.log_probs < 0).all()  # every code was drawn: none is left as it was before sampling
    for transformer in siren.transformers:
        with torch.no_grad():
            full = transformer(rollout.codes, states, mask).log_softmax(-1)
        own = slice(transformer.first, transformer.first + transformer.group)
        expected = full.gather(-1, rollout.codes[:, own, :, None])[..., 0]
        torch.testing.assert_close(rollout.log_probs[:, own], expected, atol=1e-5, rtol=0)


def test_an_item_sounds_the_same_in_any_batch_and_begins_the_same_at_any_length():
    siren = builders.model(3)
    _, states, mask = builders.batch()
    together = sample(siren, states, mask, [5, 6, 7], 8, WHOLE).codes
    alone = sample(siren, states[1:2], mask[1:2], [6], 8, WHOLE).codes
    longer = sample(siren, states[1:2], mask[1:2], [6], 12, WHOLE).codes
    assert torch.equal(together[1:2], alone)
    assert torch.equal(longer[..., :8], alone)
    assert not torch.equal(sample(siren, states[1:2], mask[1:2], [60], 8, WHOLE).codes, alone)


def test_guidance_of_one_is_no_guidance_and_more_moves_the_codes():
    siren = builders.model(2)
    _, states, mask = builders.batch()
    plain = sample(siren, states, mask, [1, 2, 3], 8, WHOLE).codes
    one = sample(siren, states, mask, [1, 2, 3], 8, dataclasses.replace(WHOLE, guidance=1.0)).codes
    strong = sample(siren, states, mask, [1, 2, 3], 8, dataclasses.replace(WHOLE, guidance=5.0)).codes
    assert torch.equal(plain, one)
    assert not torch.equal(plain, strong)


@pytest.mark.parametrize("residual_start", ["prompt", "learned"])
def test_without_its_text_the_model_hears_nothing_of_it_anywhere(residual_start):
    """Guidance 0 is the null condition alone: no prompt may reach cross-attention or the residual decoder's start."""
    siren, null = builders.model(3, residual_start=residual_start), dataclasses.replace(WHOLE, guidance=0.0)
    _, states, mask = builders.batch()
    codes = sample(siren, states, mask, [1, 2, 3], 8, null).codes
    assert torch.equal(codes, sample(siren, 3 - 2 * states, mask.roll(1, 0), [1, 2, 3], 8, null).codes)
    short = siren[0].null_text(3, builders.TEXT_WIDTH)  # what training puts in the text's place, unpadded
    assert torch.equal(codes, sample(siren, *short, [1, 2, 3], 8, WHOLE).codes)


def test_guided_logits_are_the_formula_and_truncated_afterwards():
    siren, settings = builders.model(1), dataclasses.replace(WHOLE, guidance=3.0, top_k=4)
    _, states, mask = builders.batch()
    rollout = sample(siren, states, mask, [1, 2, 3], 5, settings)
    with torch.no_grad():
        told = siren[0](rollout.codes, states, mask)
        null = siren[0](rollout.codes, *siren[0].null_text(3, builders.TEXT_WIDTH))
    logits = (null + 3.0 * (told - null)).transpose(1, 2).flatten(0, 2)
    expected = truncate(logits, settings).log_softmax(-1).unflatten(0, (3, 5, 6)).transpose(1, 2)
    found = expected.gather(-1, rollout.codes[..., None])[..., 0]
    torch.testing.assert_close(rollout.log_probs, found, atol=1e-4, rtol=0)


def test_a_delayed_clip_needs_positions_for_its_last_codebook():
    siren = builders.arm("delay")
    _, states, mask = builders.batch()
    with pytest.raises(ValueError, match="20 frames asked for; this model's positions end at 19"):
        sample(siren, states, mask, [1, 2, 3], 20, WHOLE)
    assert sample(siren, states, mask, [1, 2, 3], 19, WHOLE).codes.shape == (3, 6, 19)


def test_impossible_requests_are_refused_with_the_numbers():
    siren = builders.model(2)
    _, states, mask = builders.batch()
    with pytest.raises(ValueError, match="25 frames asked for; this model's positions end at 24"):
        sample(siren, states, mask, [1, 2, 3], 25, WHOLE)
    with pytest.raises(ValueError, match="2 seeds for 3 prompts"):
        sample(siren, states, mask, [1, 2], 4, WHOLE)


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    kept = truncate(logits, dataclasses.replace(WHOLE, top_k=2)).isfinite()[0].tolist()
    assert kept == [True, True, False, False]
    kept = truncate(logits, dataclasses.replace(WHOLE, top_p=0.81)).isfinite()[0].tolist()
    assert kept == [True, True, True, False]  # 0.5 + 0.3 is not yet 0.81
    kept = truncate(logits, dataclasses.replace(WHOLE, top_p=0.01)).isfinite()[0].tolist()
    assert kept == [True, False, False, False]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0, 0.999999))
def test_draw_never_takes_an_impossible_code(weights, number):
    row = torch.tensor(weights)
    if row.sum() == 0:
        row[0] = 1.0
    code = draw((row / row.sum())[None], torch.tensor([number]))
    assert row[code] > 0


def test_draw_follows_the_probabilities():
    row = torch.tensor([0.2, 0.0, 0.5, 0.3])
    numbers = (torch.arange(1000) + 0.5) / 1000
    counts = draw(row.expand(1000, 4), numbers).bincount(minlength=4)
    assert counts.tolist() == [200, 0, 500, 300]


def test_streams_of_items_are_their_own():
    assert item_seed(0, "a", 1) != item_seed(0, "a", 2) != item_seed(1, "a", 2)
    both = uniforms([3, 4], 5, 2)
    assert torch.equal(both[1], uniforms([4], 5, 2)[0])
