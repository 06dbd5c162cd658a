"""Representation-similarity regularisation (arXiv 2309.08773): what it is, and that it is where it belongs."""

import dataclasses

import pytest
import torch

from siren.train.similarity import cosines, pool, similarity_loss
from siren.train.stage1 import Batches, text_is_dropped, train_stage1
from tests.train.test_stage1 import SETTINGS, tokens, transformer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_zero_where_audio_is_text_turned_in_space():
    text = random(6, 5)
    turn, _ = torch.linalg.qr(random(8, 8, seed=1))
    audio = torch.cat([text, torch.zeros(6, 3)], dim=1) @ turn  # another width, the same angles
    assert similarity_loss(audio, text)[0].item() == pytest.approx(0, abs=1e-12)
    assert similarity_loss(audio + 0.1 * random(6, 8, seed=2), text)[0].item() > 1e-4


def test_it_ignores_the_length_of_every_vector():
    audio, text = random(5, 7), random(5, 3, seed=1)
    scaled = audio * torch.tensor([1e-2, 0.5, 1.0, 3.0, 1e3])[:, None]
    torch.testing.assert_close(similarity_loss(audio, text)[0], similarity_loss(scaled, text)[0])


def test_two_clips_by_hand():
    """Cosine 0.6 of the sounds, 0 of the captions: one pair, seen from both sides; the diagonal would halve it."""
    audio, text = torch.tensor([[2.0, 0.0], [0.3, 0.4]]), torch.tensor([[0.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    loss, figures = similarity_loss(audio, text)
    assert loss.item() == pytest.approx((0.6 - 0.0) ** 2)
    with_diagonal = (cosines(audio) - cosines(text)).square().mean()
    assert with_diagonal.item() == pytest.approx(2 * (0.6 - 0.0) ** 2 / 4) == pytest.approx(loss.item() * (2 - 1) / 2)
    assert figures["similarity_audio_mean"] == pytest.approx(0.6)
    assert figures["similarity_text_mean"] == pytest.approx(0.0)


def test_the_correlation_is_of_the_two_sets_of_cosines():
    text = random(6, 5)
    assert similarity_loss(text * 2, text)[1]["similarity_correlation"] == pytest.approx(1.0)
    others = ~torch.eye(6, dtype=torch.bool)
    audio = random(6, 9, seed=3)
    expected = torch.corrcoef(torch.stack([cosines(audio)[others], cosines(text)[others]]))[0, 1].item()
    assert similarity_loss(audio, text)[1]["similarity_correlation"] == pytest.approx(expected, abs=1e-5)


def test_the_gradient_moves_the_audio_alone_towards_the_text():
    audio, text = random(4, 6).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    loss = similarity_loss(audio, text)[0]
    loss.backward()
    assert text.grad is None
    assert similarity_loss(audio - 0.1 * audio.grad, text)[0] < loss


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_padding_never_counts(pooling):
    states, mask = random(2, 4, 3) - 5, torch.tensor([[True, True, False, False], [True] * 4])  # all below zero
    padded = states.clone()
    padded[0, 2:] = 1e6
    pooled = pool(padded, mask, pooling)
    valid = states[0, :2]
    torch.testing.assert_close(pooled[0], valid.amax(0) if pooling == "max" else valid.mean(0))
    torch.testing.assert_close(pooled[1], states[1].amax(0) if pooling == "max" else states[1].mean(0))
    assert (pool(torch.zeros(1, 2, 3), torch.tensor([[True, False]]), pooling) == 0).all()


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="one clip has no pair"):
        similarity_loss(random(1, 4), random(1, 4))


def test_it_touches_the_batches_without_text_and_no_others():
    """Training with and without it is the same bit by bit up to the first such batch, and different after it."""
    seed, share = 3, SETTINGS.text_dropout
    dropped = [step for step in range(SETTINGS.training.steps) if text_is_dropped(seed, step, share)]
    assert 0 < dropped[0] < dropped[-1] < SETTINGS.training.steps - 1
    weights, figures = {0.0: [], 3.0: []}, {0.0: [], 3.0: []}
    for weight in weights:
        model, settings = transformer(), dataclasses.replace(SETTINGS, similarity_weight=weight)

        def keep(step, metrics, model=model, weight=weight):
            weights[weight].append(model.start.detach().clone())
            figures[weight].append(metrics)

        train_stage1(model, tokens(), tokens(6), settings, 7, seed, keep)
    same = [torch.equal(plain, moved) for plain, moved in zip(weights[0.0], weights[3.0], strict=True)]
    assert same == [step < dropped[0] for step in range(len(same))]
    assert [step for step, found in enumerate(figures[3.0]) if "similarity_loss" in found] == dropped
    assert not any("similarity_loss" in found for found in figures[0.0])
    # The text side is that of the captions of the batch, not of the null condition that took their place.
    batch = Batches(tokens(), 7, SETTINGS.training.batch_size, seed)(dropped[0])
    text = cosines(pool(batch.states, batch.mask, "max"))[~torch.eye(len(batch.codes), dtype=torch.bool)]
    assert figures[3.0][dropped[0]]["similarity_text_mean"] == pytest.approx(text.mean().item())
