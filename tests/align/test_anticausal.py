"""Alignment end to end on a toy judge: the reward rises, only transformer 0 moves, a resumed run is the same run."""

import dataclasses

import pytest
import torch

from siren.align.anticausal import align, draw_prompts
from siren.config import Align
from siren.train.loop import Checkpoint
from tests.model import builders
from tests.train.test_stage1 import tokens

SETTINGS = Align(
    steps=12,
    prompts_per_step=4,
    group_size=8,
    inner_steps=2,
    learning_rate=2e-2,
    warmup_steps=0,
    clip_low=0.2,
    clip_high=0.28,
    min_advantage=0.3,
    clip_norm=1.0,
    temperature=1.0,
    guidance=None,
    checkpoint_every=5,
)


def decode(codes):
    return codes[:, 0].float() / 16  # "sound": the codes of the first codebook


def likes_high_codes(wavs, captions):
    return wavs.mean(dim=1)


def run(model, reward=likes_high_codes, settings=SETTINGS, checkpoint=None, log=None):
    history = []
    align(model, tokens(), decode, reward, settings, 6, 0, log or (lambda s, m: history.append(m)), checkpoint)
    return history


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_the_reward_rises_and_only_the_first_transformer_moves(guidance):
    model = builders.model(3, init_std=0.05)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = dataclasses.replace(SETTINGS, guidance=guidance, temperature=0.9)
    history = run(model, settings=settings)  # that it ran says that the first ratios were 1
    rewards = [figures["reward"] for figures in history]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    changed = {k.split(".")[1] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"0"}
    assert history[-1]["kl"] > 0


def test_a_negated_reward_goes_down_and_a_constant_one_changes_nothing():
    rewards = [f["reward"] for f in run(builders.model(3, init_std=0.05), lambda w, c: -likes_high_codes(w, c))]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1  # less negative: the codes went down
    model = builders.model(3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    history = run(model, lambda w, c: torch.ones(len(w)))
    assert all(figures["kept"] == 0 for figures in history)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_reward_that_is_not_a_number_stops_the_run():
    with pytest.raises(ValueError, match="rewards are not finite"):
        run(builders.model(3), lambda w, c: torch.full((len(w),), float("nan")))


def test_a_resumed_alignment_is_the_same_alignment(tmp_path):
    whole, killed, resumed = (builders.model(3) for _ in range(3))
    run(whole)

    def die(step, metrics):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(killed, checkpoint=Checkpoint(tmp_path, "a"), log=die)
    assert len(run(resumed, checkpoint=Checkpoint(tmp_path, "a"))) == 7
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_every_label_has_its_turn():
    data = tokens(10)
    data.labels = [[name] for name in "aaaaaaabbc"]
    batch = draw_prompts(data, dataclasses.replace(SETTINGS, prompts_per_step=3, group_size=2), 0, 0, "cpu")
    rows = [int(caption.split()[1]) for caption in batch.captions]
    assert [data.labels[row][0] for row in rows] == ["a", "a", "b", "b", "c", "c"]
    assert len(set(batch.seeds)) == 6
