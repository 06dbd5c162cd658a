"""The alignment objectives, worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siren.align.objective import (
    advantages,
    best_and_worst,
    diversity,
    dpo_loss,
    entropy,
    k3,
    kept,
    kl_to_reference,
    policy_loss,
    ratio_off,
)

GROUPS = st.lists(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=3)


def test_advantages_by_hand():
    # mean 2, population variance (1 + 0 + 1 + 0) / 4 → std sqrt(1/2)
    result = advantages(torch.tensor([[1.0, 2.0, 3.0, 2.0]]))
    root = 0.5**0.5
    torch.testing.assert_close(result, torch.tensor([[-1 / root, 0.0, 1 / root, 0.0]]))


@given(GROUPS, st.floats(-3, 3, width=16))
def test_advantages_sum_to_zero_and_ignore_an_offset(rewards, offset):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    result = advantages(rewards)
    torch.testing.assert_close(result.sum(dim=1), torch.zeros(len(rewards), dtype=torch.float64), atol=1e-6, rtol=0)
    spread = rewards.std(dim=1, correction=0)
    clear = (spread > 1e-4) | (spread == 0)
    torch.testing.assert_close(advantages(rewards + offset)[clear], result[clear], atol=1e-4, rtol=1e-4)


def test_equal_rewards_say_nothing_and_a_single_rollout_is_refused():
    assert advantages(torch.full((2, 3), 0.7)).abs().max() == 0
    with pytest.raises(ValueError, match="group of one"):
        advantages(torch.zeros(2, 1))


def test_pruning_keeps_large_advantages_of_either_sign():
    assert kept(torch.tensor([-1.2, 0.2, 0.5, -0.49]), 0.5).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 1.0, -1.28),  # the gain is capped at 1 + ε_u
        (1.5, -1.0, 1.5),  # the loss is not
        (0.5, 1.0, -0.5),  # what became less likely keeps its gradient back
        (0.5, -1.0, 0.8),  # pushed down far enough: capped at 1 - ε_d
        (1.1, 1.0, -1.1),
    ],
)
def test_the_clipped_objective_of_one_code(ratio, advantage, expected):
    old = torch.zeros(1, 1, 1)
    new = torch.full((1, 1, 1), ratio).log().requires_grad_()
    loss, share = policy_loss(new, old, torch.tensor([advantage]), 1, 0.2, 0.28)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert (new.grad.abs().item() == 0) == (share == 1)


def test_a_three_code_gradient():
    """At ratio 1 the gradient of the loss with respect to each log-probability is -A / (G · N · T)."""
    new = torch.zeros(2, 1, 3, requires_grad=True)
    loss, _ = policy_loss(new, torch.zeros(2, 1, 3), torch.tensor([1.0, -2.0]), 4, 0.2, 0.28)
    loss.backward()
    torch.testing.assert_close(new.grad[0], torch.full((1, 3), -1.0 / 12))
    torch.testing.assert_close(new.grad[1], torch.full((1, 3), 2.0 / 12))


def test_dropping_a_rollout_does_not_make_the_others_count_more():
    new = torch.zeros(2, 1, 3)
    both, _ = policy_loss(new, new, torch.tensor([1.0, 0.0]), 2, 0.2, 0.28)
    one, _ = policy_loss(new[:1], new[:1], torch.tensor([1.0]), 2, 0.2, 0.28)
    assert both.item() == pytest.approx(one.item())


def test_kl_is_zero_for_itself_and_positive_otherwise():
    same = torch.randn(2, 2, 3)
    assert kl_to_reference(same, same) == 0
    assert kl_to_reference(same, same + torch.randn(2, 2, 3)) > 0


def test_k3_and_entropy_by_hand():
    # policy 1/2, reference 1/4: r = 1/2, r - 1 - log r = -1/2 + log 2
    log = torch.log(torch.tensor([[[0.5]], [[0.25]]]))
    torch.testing.assert_close(k3(log[:1], log[1:]), torch.tensor([[[-0.5]]]) + torch.log(torch.tensor(2.0)))
    even = torch.log(torch.tensor([[[[0.5, 0.5, 0.0]]]])).requires_grad_()
    found = entropy(even)
    torch.testing.assert_close(found, torch.log(torch.tensor([[[2.0]]])))
    found.sum().backward()
    assert torch.isfinite(even.grad).all()  # a code that was cut has none


def test_advantages_over_the_batch_by_hand():
    # means 2 and 5; all four rewards 1, 3, 4, 6: mean 3.5, variance (6.25 + 0.25 + 0.25 + 6.25) / 4 = 3.25
    result = advantages(torch.tensor([[1.0, 3.0], [4.0, 6.0]]), "batch")
    torch.testing.assert_close(result, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]) / 3.25**0.5)
    equal = advantages(torch.tensor([[1.0, 1.0], [4.0, 6.0]]), "batch")
    assert equal[0].tolist() == [0.0, 0.0]


def test_a_reward_that_is_no_number_does_not_count():
    nan = float("nan")
    result = advantages(torch.tensor([[1.0, nan, 3.0, float("inf")], [nan, nan, nan, 2.0]]))
    torch.testing.assert_close(result, torch.tensor([[-1.0, nan, 1.0, nan], [nan, nan, nan, 0.0]]), equal_nan=True)
    assert kept(result.flatten(), 0.0).tolist() == [True, False, True, False, False, False, False, True]


def test_pairs_are_the_best_and_the_worst_of_each_group():
    nan = float("nan")
    rewards = torch.tensor([[0.1, 0.9, 0.5], [0.4, 0.4, 0.4], [nan, 0.2, 0.3], [nan, 0.5, nan], [nan, nan, nan]])
    assert best_and_worst(rewards).tolist() == [[1, 0], [8, 7]]


def test_dpo_by_hand():
    """One code a clip. The winner went from 1/4 to 1/2 and the loser from 1/2 to 1/4: margin log 2 + log 2 = log 4;
    with β = 1/2, σ(log 2) = 2/3, so the loss is log 3/2, and log 2 more for a winner of probability 1/2."""
    new = torch.log(torch.tensor([0.5, 0.25]))[:, None, None].requires_grad_()
    reference = torch.log(torch.tensor([0.25, 0.5]))[:, None, None]
    plain, margin = dpo_loss(new, reference, 1, 0.5, 0.0)
    assert margin == pytest.approx(math.log(4))
    assert plain.item() == pytest.approx(math.log(1.5))
    assert dpo_loss(new, reference, 2, 0.5, 1.0)[0].item() == pytest.approx((math.log(1.5) + math.log(2)) / 2)
    plain.backward()
    assert new.grad.flatten().tolist() == pytest.approx([-0.5 / 3, 0.5 / 3])  # β σ(-β margin), and its opposite


def test_the_ratio_is_off_by_its_worst_code():
    old = torch.zeros(1, 1, 3)
    assert ratio_off(torch.log(torch.tensor([[[1.0, 1.1, 0.8]]])), old) == pytest.approx(0.2)


def test_diversity_counts_pairs_that_differ():
    # one prompt, three clips, two frames of one codebook: the first frame a a b (2 of 3 pairs differ), the second equal
    codes = torch.tensor([[[[1, 5]], [[1, 5]], [[2, 5]]]])
    assert diversity(codes) == pytest.approx((2 / 3 + 0) / 2)
    assert diversity(codes[:, :1].expand(1, 3, 1, 2)) == pytest.approx(0)
