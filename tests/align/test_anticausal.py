"""Alignment end to end on a toy judge: the reward rises, only its transformers move, a resumed run is the same run."""

import dataclasses

import pytest
import torch

from siren.align import rewards, rollouts
from siren.align.anticausal import align
from siren.align.rollouts import draw_prompts
from siren.config import Align, ConfigError, Dpo, Rewards, Watch
from siren.train.loop import Checkpoint, Curve
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
    top_k=None,
    top_p=None,
    guidance=None,
    direction="anti-causal",
    transformers=1,
    method="rl",
    dpo=Dpo(beta=0.1, winner_weight=1.0),
    rewards=Rewards(imagebind=1.0, clap=0.0, t5=0.0, agreement=0.0),
    t5=None,
    advantage_scale="group",
    kl_weight=0.0,
    entropy_weight=0.0,
    max_failed=0.1,
    ratio_tolerance=1e-5,
    batch_size=None,
    watch=Watch(every=None, prompts=4, sounds=1, max_kl=None, max_fad_rise=None),
    checkpoint_every=5,
)
WATCHED = dataclasses.replace(SETTINGS.watch, every=4)


def changed(**changes):
    return dataclasses.replace(SETTINGS, **changes)


def decode(codes):
    return codes[:, [0, -1]].float().flatten(1) / 16  # "sound": the codes of the first and of the last codebook


def likes_high_codes(codes, wavs, captions):
    return wavs[:, : wavs.shape[1] // 2].mean(dim=1)


def likes_high_last_codes(codes, wavs, captions):
    return wavs[:, wavs.shape[1] // 2 :].mean(dim=1)


def run(model, reward=likes_high_codes, settings=SETTINGS, checkpoint=None, log=None, **more):
    history = []
    log = log or (lambda s, m: history.append(m))
    align(model, tokens(), decode, reward, settings, 6, 0, log, checkpoint, **more)
    return history


def rise(history, by=3):
    found = [figures["reward"] for figures in history]
    return (sum(found[-by:]) - sum(found[:by])) / by


def moved(model, before):
    return {k.split(".")[1] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def apart(weights, others, start):
    """How far two sets of weights are apart, as a share of how far one of them moved. Weight by weight they need not be
    close: Adam makes full steps of gradients that are 0 but for rounding (biases of keys)."""
    norms = [
        torch.cat([(a[k] - b[k]).flatten() for k in start]).norm() for a, b in ((weights, others), (weights, start))
    ]
    return (norms[0] / norms[1]).item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance": 2.0, "temperature": 0.9},
        {"top_k": 12, "top_p": 0.95},
        {"advantage_scale": "batch", "kl_weight": 0.01, "entropy_weight": 0.001},
        {"method": "dpo", "dpo": Dpo(0.5, 0.2)},
        {"batch_size": 10, "method": "dpo", "guidance": 2.0},
    ],
    ids=["plain", "guided", "truncated", "terms", "dpo", "dpo in parts"],
)
def test_the_reward_rises_and_only_the_first_transformer_moves(changes):
    model = builders.model(3, init_std=0.05)
    before = weights(model)
    history = run(model, settings=changed(**changes))  # that it ran says that the first ratios were 1
    assert rise(history) > 0.08
    assert moved(model, before) == {"0"}
    assert max(figures.get("kl", 0) for figures in history) > 0
    assert 0 < history[0]["diversity"] < 1


@pytest.mark.parametrize(
    ("direction", "count", "which"),
    [("anti-causal", 2, {"0", "1"}), ("causal", 1, {"2"}), ("causal", 2, {"1", "2"})],
)
def test_other_directions_move_other_transformers(direction, count, which):
    model = builders.model(3, init_std=0.05)
    before = weights(model)
    reward = likes_high_codes if direction == "anti-causal" else likes_high_last_codes
    assert rise(run(model, reward, changed(direction=direction, transformers=count))) > 0.08
    assert moved(model, before) == which


def test_a_transformer_whose_codes_the_reward_does_not_hear_gains_nothing():
    """The paper's causal direction at its clearest: nothing that the last transformer says is rewarded."""
    history = run(builders.model(3, init_std=0.05), settings=changed(direction="causal"))
    assert abs(rise(history)) < 0.05


def test_a_negated_reward_goes_down_and_a_constant_one_changes_nothing():
    history = run(builders.model(3, init_std=0.05), lambda c, w, t: -likes_high_codes(c, w, t))
    assert rise(history) > 0.1  # less negative: the codes went down
    model = builders.model(3)
    before = weights(model)
    history = run(model, lambda c, w, t: torch.ones(len(w)))
    assert all(figures["kept"] == 0 and figures["equal_groups"] == 1 for figures in history)
    assert not moved(model, before)
    run(model, lambda c, w, t: torch.ones(len(w)), changed(method="dpo"))
    assert not moved(model, before)


def test_a_reward_for_other_prompts_than_the_clip_s_own_is_learned_for_those():
    """Pairs 0, 2, … want high codes and the others low ones. Told the prompts in another order, the reward teaches the
    opposite, and what was meant goes down: it says nothing of the clip and its own prompt."""

    def wants(codes, wavs, captions):
        sign = torch.tensor([1.0 if int(c.split()[1]) % 2 == 0 else -1.0 for c in captions])
        return sign * likes_high_codes(codes, wavs, captions)

    def shuffled(codes, wavs, captions):
        return wants(codes, wavs, [f"a {int(c.split()[1]) + 1}" for c in captions])

    def meant(reward):
        found = []

        def watched(codes, wavs, captions):
            found.append(wants(codes, wavs, captions).mean().item())
            return reward(codes, wavs, captions)

        run(builders.model(3, init_std=0.05), watched, changed(steps=20, prompts_per_step=6))
        return sum(found[-4:]) - sum(found[:4])

    assert meant(wants) > 0.1
    assert meant(shuffled) < -0.1


def test_parts_of_a_step_are_the_step():
    """Decoding, judging and differentiating in parts changes nothing but rounding."""
    whole, parts = builders.model(3), builders.model(3)
    a, b = run(whole, settings=changed(steps=3)), run(parts, settings=changed(steps=3, batch_size=10))
    for one, other in zip(a, b, strict=True):
        for name in set(one) - {n for n in one if n.startswith("seconds") or n == "ratio_off"}:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
    assert apart(whole.state_dict(), parts.state_dict(), builders.model(3).state_dict()) < 0.02


def test_a_reward_that_is_no_number_drops_the_rollout_and_too_many_stop_the_run():
    def fails_at_times(codes, wavs, captions):
        result = likes_high_codes(codes, wavs, captions)
        result[::16] = float("nan")
        return result

    history = run(builders.model(3, init_std=0.05), fails_at_times)
    assert all(figures["failed"] == 2 / 32 for figures in history)
    assert rise(history) > 0.08
    with pytest.raises(
        ValueError, match=r"2 of 32 rewards are not finite, among them nan for '.*align.max_failed = 0.05"
    ):
        run(builders.model(3), fails_at_times, changed(max_failed=0.05))
    with pytest.raises(ValueError, match="32 of 32 rewards are not finite, among them -inf"):
        run(builders.model(3), lambda c, w, t: torch.full((len(w),), -float("inf")))


def test_a_reward_that_breaks_down_names_the_step():
    calls = []

    def breaks(codes, wavs, captions):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the network is gone")
        return likes_high_codes(codes, wavs, captions)

    with pytest.raises(RuntimeError, match="the reward broke down at step 2: OSError: the network is gone"):
        run(builders.model(3), breaks)


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = builders.model(3)
    before = weights(model)
    infinite = changed(kl_weight=float("inf"))
    with pytest.raises(FloatingPointError, match=r"the gradient norm is nan; lower align\.learning_rate"):
        run(model, settings=infinite)
    assert not moved(model, before)


def test_sampling_and_training_that_disagree_stop_the_run(monkeypatch):
    sample = rollouts.sample

    def colder(model, states, mask, seeds, frames, sampling):
        return sample(model, states, mask, seeds, frames, dataclasses.replace(sampling, temperature=0.999))

    monkeypatch.setattr(rollouts, "sample", colder)
    with pytest.raises(RuntimeError, match=r"the first ratio is off 1 by .*, more than 1e-05"):
        run(builders.model(3))


@pytest.mark.parametrize("changes", [{}, {"method": "dpo", "transformers": 2}])
def test_a_resumed_alignment_is_the_same_alignment(changes, tmp_path):
    settings = changed(**changes)
    whole, killed, resumed = (builders.model(3) for _ in range(3))
    run(whole, settings=settings)

    def die(step, metrics):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(killed, settings=settings, checkpoint=Checkpoint(tmp_path, "a"), log=die)
    assert len(run(resumed, settings=settings, checkpoint=Checkpoint(tmp_path, "a"))) == 7
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_times_are_logged_and_not_kept(tmp_path):
    logged = []
    curve = Curve(lambda step, metrics: logged.append(metrics), tmp_path)
    run(builders.model(3), settings=changed(steps=1), log=curve)
    assert {"seconds_rollout", "seconds_reward", "seconds_update"} <= set(logged[0])
    assert set(curve.points[0]) == {name for name in logged[0] if not name.startswith("seconds")}


def looker(fads):
    steps = []

    def look(step):
        steps.append(step)
        return {"held_out_fad": fads.get(step, 1.0)}

    return look, steps


def test_held_out_prompts_are_looked_at_every_n_steps_and_at_the_end():
    look, steps = looker({})
    history = run(builders.model(3), settings=changed(steps=10, watch=WATCHED), look=look)
    assert steps == [0, 4, 8, 10]
    assert ["held_out_fad" in figures for figures in history] == [step in steps for step in range(11)]


def test_a_run_stops_where_its_rules_say(capsys):
    risky = changed(watch=dataclasses.replace(WATCHED, max_fad_rise=0.2))
    look, _ = looker({4: 1.19, 8: 1.21})
    history = run(builders.model(3), settings=risky, look=look)
    assert len(history) == 10  # steps 0 to 8, and the last look
    assert "stopped after step 8: FAD rose by 21.0% over stage 1" in capsys.readouterr().err
    far = changed(watch=dataclasses.replace(SETTINGS.watch, max_kl=0.05))
    history = run(builders.model(3, init_std=0.05), settings=far)
    assert [figures["kl"] > 0.05 for figures in history] == [False] * (len(history) - 1) + [True]


def test_every_label_has_its_turn():
    data = tokens(10)
    data.labels = [[name] for name in "aaaaaaabbc"]
    batch = draw_prompts(data, changed(prompts_per_step=3, group_size=2), 0, 0, "cpu")
    rows = [int(caption.split()[1]) for caption in batch.captions]
    assert [data.labels[row][0] for row in rows] == ["a", "a", "b", "b", "c", "c"]
    assert len(set(batch.seeds)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5, "method": "dpo"}, "align.top_k is 5 .* with method 'dpo'"),
        ({"top_p": 0.9, "kl_weight": 0.1}, "top_p 0.9 with method 'rl' and kl_weight 0.1"),
        ({"method": "dpo", "entropy_weight": 0.1}, "entropy_weight 0.1 with method 'dpo'"),
        ({"rewards": Rewards(0.0, 0.0, 1.0, 0.0)}, "align.t5 null; name a T5"),
        ({"batch_size": 3}, "align.batch_size is 3; even"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        changed(**changes)
    with pytest.raises(ConfigError, match=r"align\.rewards are all 0"):
        Rewards(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match="max_fad_rise needs FAD to be measured"):
        Watch(None, 4, 1, None, 0.1)


def test_rewards_by_hand():
    class Network:
        def embed_audio(self, wavs):
            return torch.tensor([[1.0, 0.0], [0.6, 0.8]])

        def embed_text(self, captions):
            return torch.tensor([[0.0, 1.0], [0.6, 0.8]])

    codes = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 1]]])  # [2 clips, 2 codebooks, 2 frames]
    latents = torch.tensor([[[9.0, 9.0], [9.0, 9.0]], [[1.0, 3.0], [0.0, 2.0]]])  # [2 codebooks, 2 codes, 2]
    parts = {"imagebind": rewards.cosine(Network()), "agreement": rewards.agreement(latents, 1)}
    wavs, captions = torch.zeros(2, 4), ["a", "b"]
    torch.testing.assert_close(parts["imagebind"](codes, wavs, captions), torch.tensor([0.0, 1.0]))
    # clip 0: code 1 twice, (0 + 4) / 2 = 2; clip 1: code 0 then 1, (1 + 9 + 0 + 4) / 4 = 3.5
    torch.testing.assert_close(parts["agreement"](codes, wavs, captions), torch.tensor([-2.0, -3.5]))
    both = rewards.weighted(parts, {"imagebind": 2.0, "agreement": 0.5})
    torch.testing.assert_close(both(codes, wavs, captions), torch.tensor([-1.0, 0.25]))
    with pytest.raises(ValueError, match="needs a second transformer"):
        rewards.agreement(latents, 2)
