"""Checkpoints are whole, few and exact; curves survive the death of their writer."""

import json

import pytest
import torch
from torch import nn

from siren.stages import places
from siren.train.loop import Checkpoint, Curve, Watch, differences


class Strided(nn.Module):
    """A weight that is the transpose of what lies in memory, so its moments are strided too."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 5, generator=generator).T)


def train(module: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimiser.zero_grad()
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        (x @ module.weight).square().mean().backward()
        optimiser.step()


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = Strided()
    return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)


def test_strided_moments_are_saved_and_go_on_exactly(tmp_path):
    whole, optimiser = made()
    train(whole, optimiser, range(3))
    assert not optimiser.state[whole.weight]["exp_avg"].is_contiguous()
    Checkpoint(tmp_path, "a").save(3, whole, optimiser)
    train(whole, optimiser, range(3, 6))
    resumed, optimiser = made()
    assert Checkpoint(tmp_path, "a").restore(resumed, optimiser) == 3
    train(resumed, optimiser, range(3, 6))
    assert torch.equal(whole.weight, resumed.weight)


def test_the_last_few_stay_and_what_a_killed_writer_left_does_not(tmp_path):
    checkpoint = Checkpoint(tmp_path, "a", keep=2)
    for step in (1, 2, 3):
        checkpoint.save(step, *made())
        (checkpoint.folder / f".step-0000000{step}.json.99").write_text("half of it")
    checkpoint.save(4, *made())
    names = sorted(path.name for path in checkpoint.folder.iterdir())
    assert names == [f"step-0000000{step}.{kind}" for step in (3, 4) for kind in ("json", "safetensors")]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys):
    checkpoint = Checkpoint(tmp_path, "a", keep=2)
    module, optimiser = made()
    for step in (1, 2):
        train(module, optimiser, range(step))
        checkpoint.save(step, module, optimiser)
    newest = checkpoint.folder / "step-00000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    assert Checkpoint(tmp_path, "a").restore(*made()) == 1
    assert "step-00000002.safetensors cannot be read" in capsys.readouterr().err


def test_tensors_without_a_sidecar_do_not_count(tmp_path):
    checkpoint = Checkpoint(tmp_path, "a")
    checkpoint.save(1, *made())
    (checkpoint.folder / "step-00000001.json").unlink()
    assert checkpoint.latest() is None
    assert checkpoint.restore(*made()) == 0


def test_a_finished_run_leaves_nothing(tmp_path):
    checkpoint = Checkpoint(tmp_path, "a")
    curve = Curve(lambda *_: None, checkpoint.folder)
    curve(0, {"loss": 1.0})
    checkpoint.save(1, *made())
    checkpoint.clear()
    assert list(tmp_path.iterdir()) == []
    assert Checkpoint(tmp_path, "b").restore(*made()) == 0


def test_differences_name_keys_and_cut_what_nobody_reads():
    there, here = {"a": {"b": 1, "c": [1, 2]}, "d": "x" * 500}, {"a": {"b": 1, "c": [1]}, "d": "y" * 500, "e": None}
    lines = differences(there, here)
    assert lines[0] == "a.c: [1, 2] there, [1] here"
    assert lines[1].startswith("d: xxx")
    assert len(lines[1]) < 150
    assert lines[2] == "e: (none) there, None here"
    assert differences("one", "two") == ["identity: one there, two here"]


def test_numbers_that_are_not_finite_stop_the_run_at_the_first(tmp_path):
    good, bad = torch.tensor(1.0), torch.tensor(float("inf"))
    watch = Watch("x", "cuda", Checkpoint(tmp_path, "a"))  # reads nothing until it is told to
    watch(3, good, good, now=True)
    watch(4, good, bad, now=False)
    with pytest.raises(FloatingPointError, match="the loss is 1 at step 4, the gradient norm inf; no checkpoint yet"):
        watch(5, bad, bad, now=True)
    with pytest.raises(FloatingPointError, match="the loss is inf at step 0"):
        Watch("x", "cpu", None)(0, bad, good, now=False)


def test_a_curve_goes_on_after_half_a_line(tmp_path):
    first = Curve(lambda *_: None, tmp_path)
    first(0, {"loss": 2.0})
    first(10, {"loss": 1.0})
    with first.lines.open("a") as file:
        file.write(json.dumps([20, {"loss": 0.5}])[:8])
    second = Curve(lambda *_: None, tmp_path)
    second(10, {"loss": 1.5, "val_loss": 3.0})
    second.write(tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text() == "step,loss,val_loss\n0,2,\n10,1.5,3\n"
    Curve(lambda *_: None, tmp_path).write(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "curve.csv").read_text()


def test_only_dvc_starts_afresh_beside_an_unfinished_run(tmp_path, monkeypatch, capsys):
    """DVC runs a stage because something changed; a person who types it means to go on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    places.checkpoint("codec", seed=0).save(7, *made())
    with pytest.raises(ValueError, match=r"codec/.* at step 7:\n  seed: 0 there, 1 here\nTo go on with it"):
        places.checkpoint("codec", seed=1).restore(*made())
    monkeypatch.setenv("DVC_STAGE", "codec")
    assert places.checkpoint("codec", seed=1).restore(*made()) == 0
    assert "This run starts afresh" in capsys.readouterr().err
    assert places.checkpoint("codec", seed=0).restore(*made()) == 7
