"""The alignment objective, worked by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siren.align.objective import advantages, kept, kl_to_reference, policy_loss

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
    with pytest.raises(ValueError, match="1 of 4 rewards are not finite"):
        advantages(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


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
    loss, figures = policy_loss(new, old, torch.tensor([advantage]), 1, 0.2, 0.28)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    clipped = figures["clip_fraction"] == 1
    assert (new.grad.abs().item() == 0) == clipped


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
