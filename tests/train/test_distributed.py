"""Two processes at the global batch of one take its steps; and the launcher says what went wrong."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from siren.train import distributed
from siren.train.stage1 import text_is_dropped, train_stage1
from tests.train.test_stage1 import SETTINGS as PLAIN
from tests.train.test_stage1 import TRAINING, tokens, transformer

ROOT = Path(__file__).resolve().parents[2]
ON = dataclasses.replace(PLAIN, similarity_weight=3.0, ema=0.5, training=dataclasses.replace(TRAINING, steps=7))
SETTINGS = {1: ON, 2: dataclasses.replace(ON, accumulate=2, similarity_weight=0.0)}  # pairs are those of one part


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_take_the_steps_of_one(accumulate, tmp_path):
    settings = SETTINGS[accumulate]
    assert sum(text_is_dropped(0, step, settings.text_dropout) for step in range(7)) >= 2
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, "-m", "tests.train.parallel", tmp_path, str(accumulate)], cwd=ROOT, check=True)
    world, together = json.loads((tmp_path / "history.json").read_text())
    assert world == 2
    alone, model = [], transformer()
    one = dataclasses.replace(settings, accumulate=1)
    train_stage1(model, tokens(), tokens(6), one, 7, 0, lambda step, metrics: alone.append(metrics))
    assert [list(metrics) for metrics in together] == [list(metrics) for metrics in alone]
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-4, atol=2e-5)
    for name, value in load_file(tmp_path / "weights.safetensors").items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=2e-5, rtol=1e-3)
    assert [path.name for path in tmp_path.glob("checkpoints/*/*.json")] == ["step-00000005.json"]


@pytest.mark.slow
def test_the_command_line_starts_as_many_processes_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("SIREN_PROCESSES", "2")
    monkeypatch.chdir(ROOT)
    assert distributed.launch(["stage1", "--help"])
    with pytest.raises(RuntimeError, match=r"`siren stage1 --no-such-flag` in 2 processes ended with code 1"):
        distributed.launch(["stage1", "--no-such-flag"])


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SIREN_PROCESSES", raising=False)
    assert not distributed.launch(["stage1", "0"])
    with distributed.join() as ranks:
        assert ranks == distributed.Ranks(0, 1)
        values = torch.arange(3.0)
        assert ranks.mean(values) is values
        assert ranks.gather(values) is values
    monkeypatch.setenv("SIREN_PROCESSES", "many")
    with pytest.raises(ValueError, match="SIREN_PROCESSES is 'many'; it must be a number of processes"):
        distributed.launch(["stage1", "0"])
