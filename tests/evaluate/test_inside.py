"""Gradients, task vectors: known directions in, known angles and cosines out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from siren.evaluate import claims, inside
from tests.evaluate.test_claims import STAGE1, world  # noqa: F401
from tests.model import builders


def test_angles_of_heads_are_those_of_their_gradients(world) -> None:  # noqa: F811
    """Against autograd on each loss alone, with `.backward()`."""
    from siren.model.transformer import cross_entropy

    transformer = builders.model(3)[1]
    batch = inside.batches(world)[0]
    found = inside.gradient_angles(transformer, batch)
    assert list(found.averaged) == list(found.whole) == [(2, 3)]
    assert all(p.grad is None for p in transformer.parameters())
    matrices, sides = [p for p in transformer.temporal[-1].parameters() if p.ndim == 2], []
    for j in range(2):
        transformer.zero_grad()
        losses = cross_entropy(transformer(batch.codes, batch.states, batch.mask), transformer.targets(batch.codes))
        losses[j].backward()
        sides.append([p.grad.clone() for p in matrices])
    expected = [
        np.degrees(np.arccos(float(a.mean(0) @ b.mean(0) / a.mean(0).norm() / b.mean(0).norm())))
        for a, b in zip(*sides, strict=True)
    ]
    np.testing.assert_allclose(found.averaged[2, 3], expected, atol=0.05)
    a, b = (torch.cat([g.flatten() for g in side]) for side in sides)
    np.testing.assert_allclose(
        found.whole[2, 3], [np.degrees(np.arccos(float(a @ b / a.norm() / b.norm())))], atol=0.05
    )


def test_task_vectors_are_compared_from_their_common_start() -> None:
    start = {
        "heads": torch.tensor([[5.0, 5.0]]),
        "temporal.0.w": torch.ones(1, 2),
        "temporal_norm.weight": torch.ones(2),
    }
    ends = [
        {
            "heads": start["heads"] + step,
            "temporal.0.w": start["temporal.0.w"] + turn,
            "temporal_norm.weight": torch.ones(2),
        }
        for step, turn in zip(
            torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]), torch.tensor([[1.0, 1.0]] * 3), strict=True
        )
    ]
    found = inside.task_vectors(start, ends)
    assert found["Classifier"] == {"heads": pytest.approx([0.0, -1.0, 0.0])}
    assert found["Backbone"] == {"temporal.0.w": pytest.approx([1.0, 1.0, 1.0])}
    assert set(found) == {"Classifier", "Backbone"}  # no vectors, nothing of the others
    with pytest.raises(ValueError, match=r"'mystery' belongs to none of RVQ decoder"):
        inside.task_vectors({"mystery": torch.ones(2, 2)}, [])


@pytest.mark.slow
def test_everything_inside_is_found_once_and_read_again(world, tmp_path, monkeypatch) -> None:  # noqa: F811
    found = inside.look(world, tmp_path)
    monkeypatch.setattr(claims, "train_stage1", None)
    assert inside.look(world, tmp_path) == found
    pairs = found["gradients"]["siren"]["averaged"]["pairs"]
    assert pairs[0][1] is not None
    assert pairs[1][2] is None  # heads of two transformers share nothing
    assert all(None not in row for row in found["gradients"]["independent"]["averaged"]["pairs"])
    assert list(found["losses"]) == [str(k) for k in range(6)]
    layers = found["task_vectors"]["layers"]
    assert list(layers) == list(inside.GROUPS)
    assert all(len(values) == 3 for own in layers.values() for values in own.values())  # of three transformers
    assert set(inside.draw(found)) == set(inside.TITLES) == set(inside.findings(found))


def test_task_vectors_begin_at_one_initialisation(world, tmp_path, monkeypatch) -> None:  # noqa: F811
    """Steps at a learning rate of almost 0 leave every transformer where it started, which is one place."""
    still = replace(STAGE1, training=replace(STAGE1.training, learning_rate=1e-12))
    starts = []

    def kept(start, ends):
        starts.extend(max(float((end[n] - start[n]).abs().max()) for n in start) for end in ends)
        return {"Classifier": {"heads": [0.0]}}

    monkeypatch.setattr(inside, "task_vectors", kept)
    inside._task_vectors(replace(world, stage1=still), tmp_path)
    assert max(starts) < 1e-9
