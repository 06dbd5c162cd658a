"""Two processes that share the rollouts of a step make the step of one."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from siren.align.anticausal import align
from siren.align.rollouts import draw_prompts, roll_out
from siren.train.distributed import Ranks
from tests.align.test_anticausal import SETTINGS as PLAIN
from tests.align.test_anticausal import apart, decode, likes_high_codes
from tests.model import builders
from tests.train.test_stage1 import tokens

ROOT = Path(__file__).resolve().parents[2]
SHORT = replace(PLAIN, steps=3, learning_rate=2e-3)
# One prompt and DPO: there is a single pair, so one of the processes has nothing to differentiate.
SETTINGS = {"rl": SHORT, "dpo": replace(SHORT, method="dpo", prompts_per_step=1)}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rl", "dpo"])
def test_two_processes_take_the_steps_of_one(method, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, "-m", "tests.align.parallel", tmp_path, method], cwd=ROOT, check=True)
    world, together = json.loads((tmp_path / "history.json").read_text())
    assert world == 2
    alone, model = [], builders.model(3)
    align(model, tokens(), decode, likes_high_codes, SETTINGS[method], 6, 0, lambda step, m: alone.append(m))
    for found, expected in zip(together, alone, strict=True):
        assert list(found) == list(expected)
        for name in set(found) - {"ratio_off"} - {name for name in found if name.startswith("seconds")}:
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=2e-5), name
    start = builders.model(3).state_dict()
    assert apart(load_file(tmp_path / "weights.safetensors"), model.state_dict(), start) < 0.02


def test_rollouts_that_cannot_be_shared_equally_are_refused():
    batch = draw_prompts(tokens(), PLAIN, 0, 0, "cpu")
    with pytest.raises(ValueError, match=r"32 rollouts \(.*\) cannot be shared by 3 processes"):
        roll_out(builders.model(3), batch, PLAIN.sampling, 6, Ranks(0, 3))
