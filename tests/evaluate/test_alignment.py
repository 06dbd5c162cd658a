"""The claims about alignment: verdicts over prompts, every arm from one start, and nothing is done twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from siren.align import anticausal
from siren.evaluate import alignment, claims
from siren.evaluate.claims import FAILS, HOLDS, OPEN, Claim
from tests.align.test_anticausal import changed, decode, likes_high_codes
from tests.model import builders
from tests.train.test_stage1 import tokens


def row(arm: str, seed: int, scores: list[float]) -> dict:
    return {"arm": arm, "seed": seed, "parameters": 1, "clap": float(np.mean(scores)), "prompts": {"clap": scores}}


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, HOLDS), (-0.1, FAILS), (0.0, OPEN)])
def test_an_interval_over_prompts_decides_where_prompts_are_known(gain, verdict):
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 2, 50))
    rows = [row("stage1", seed, (0.5 + noise[0, seed]).tolist()) for seed in (0, 1)]
    rows += [row("anti-causal", seed, (0.5 + gain + noise[1, seed]).tolist()) for seed in (0, 1)]
    rows.append(row("anti-causal", 2, [9.0] * 50))  # stage 1 has no seed 2
    found = claims.judge(Claim("7", "", (("anti-causal", "stage1"),), ("clap",)), rows)
    assert found is not None
    assert found["verdict"] == verdict
    pair = found["by"][0]["pairs"][0]
    by_prompt = gain + (noise[1] - noise[0]).mean(0)
    assert pair["difference"] == pytest.approx(by_prompt.mean())
    assert pair["high"] - pair["low"] == pytest.approx(2 * 1.96 * by_prompt.std() / 50**0.5, rel=0.1)


@pytest.fixture
def world():
    start = builders.model(3)
    calls = []

    def fresh():
        model = builders.model(3)
        model.load_state_dict(start.state_dict())
        return model

    def align(model, settings, seed, log, checkpoint):
        calls.append((settings.direction, settings.method, seed))
        return anticausal.align(model, tokens(), decode, likes_high_codes, settings, 6, seed, log, checkpoint)

    def hear(name, model, seed):
        codes = torch.stack(
            [(value - start.state_dict()[key]).abs().max() for key, value in model.state_dict().items()]
        )
        return {"imagebind": float(codes.max()), "prompts": {"imagebind": [float(codes.max())] * 4}}

    made = alignment.World(changed(steps=2), fresh, align, hear, {"stage1": "s"}, {"judge": "j"})
    return made, calls


def test_every_arm_starts_from_stage_1_and_nothing_is_done_twice(world, tmp_path):
    world, calls = world
    rows = list(alignment.run(alignment.NEEDED, [0, 1], world, tmp_path))
    assert [r["arm"] for r in rows] == [*alignment.NEEDED, *alignment.NEEDED]
    assert calls == [
        (d, m, s)
        for s in (0, 1)
        for d, m in (("anti-causal", "rl"), ("causal", "rl"), ("anti-causal", "dpo"), ("anti-causal", "rl"))
    ]
    assert all(len(r["reward"][1]) == 2 for r in rows if r["arm"] != "stage1")  # a curve, for Figure 5
    assert "reward" not in rows[0]
    moved = {(r["arm"], r["seed"]): r["imagebind"] for r in rows}
    assert moved["stage1", 0] == moved["stage1", 1] == 0
    assert all(value > 0 for (arm, _), value in moved.items() if arm != "stage1")
    assert rows[0]["parameters"] == 0 < rows[1]["parameters"]
    assert list(alignment.run(alignment.NEEDED, [0, 1], world, tmp_path)) == rows
    heard_again = alignment.World(*(vars(world) | {"heard_with": {"judge": "other"}}).values())
    again = list(alignment.run(["anti-causal"], [0], heard_again, tmp_path))
    assert again[0]["imagebind"] == rows[1]["imagebind"]  # the weights that were kept
    assert len(calls) == 8
    found = claims.report(rows, {"scale": "test"}, alignment.CLAIMS, "About alignment")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "prompts" not in found["results"][0]
    page = claims.markdown(found)
    assert page.startswith("# About alignment\n")
    assert "| Fig. 5 | alignment raises the held-out reward | ImageBind | anti-causal - stage1: +" in page


def test_an_arm_that_there_is_not_is_refused_before_anything_is_trained(world, tmp_path):
    with pytest.raises(ValueError, match="there is no arm 'ppo' of the alignment; there are stage1"):
        alignment.run(["stage1", "ppo"], [0], world[0], tmp_path)
    assert not world[1]
    named = {arm for claim in alignment.CLAIMS for pair in claim.pairs for arm in pair}
    assert named == set(alignment.NEEDED) <= set(alignment.ARMS)
    assert {m for claim in alignment.CLAIMS for m in claim.measures} <= set(claims.MEASURES)


def test_the_second_row_of_table_7_moves_two_transformers(world, tmp_path):
    (two,) = alignment.run(["anti-causal-2"], [0], world[0], tmp_path)
    (one,) = alignment.run(["anti-causal"], [0], world[0], tmp_path)
    assert two["parameters"] == 2 * one["parameters"]


def test_clips_are_those_of_the_weights_that_alignment_kept(world, tmp_path):
    world, calls = world
    list(alignment.run(["stage1", "causal"], [0], world, tmp_path))
    heard = {}

    def listen(model, seed, folder):
        heard[folder.name.rsplit("-", 2)[0]] = model().state_dict()
        return {"clips": folder.name}

    made = len(calls)
    rows = list(alignment.run(["stage1", "causal"], [0], replace(world, listen=listen), tmp_path))
    assert len(calls) == made  # nothing is aligned for them
    assert all(folder.startswith("align-") for folder in (row["clips"] for row in rows))
    start, causal = heard["align-stage1"], heard["align-causal"]
    assert any(not torch.equal(causal[name], value) for name, value in start.items())
