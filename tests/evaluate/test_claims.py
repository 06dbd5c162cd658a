"""The claims experiment: verdicts from intervals over seeds, and nothing that is finished is done twice."""

import json
from dataclasses import replace

import pytest
import torch

from siren.config import Training
from siren.evaluate import claims
from siren.evaluate.claims import FAILS, HOLDS, OPEN, Claim, World
from siren.model import arms
from tests.model import builders
from tests.train.test_stage1 import SETTINGS, tokens

TRAINING = Training(4, 4, 3e-3, 1, 0.1, 0.05, 1.0, log_every=1, checkpoint_every=1)
STAGE1 = replace(SETTINGS, training=TRAINING, text_dropout=0.0, history_dropout=0.0, validate_every=2)


@pytest.fixture
def world() -> World:
    reference = builders.config(3, dim=32, residual_start="learned", init_std=0.05)
    made_with = {"codec": "c", "text_encoder": "t", "tokens": "k"}
    return World(reference, STAGE1, builders.tables(), tokens(), tokens(6), made_with, 7, "cpu")


def results(measure: str, **values: list[float]) -> list[dict]:
    return [
        {"arm": arm, "seed": seed, "parameters": 1, measure: value}
        for arm, own in values.items()
        for seed, value in enumerate(own)
    ]


def test_the_interval_over_seeds_is_student_s() -> None:
    """[1, 2, 3]: mean 2, deviation 1, t(2) = 4.303, so half = 4.303 / sqrt(3) = 2.484."""
    found = claims.over_seeds([1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert not claims.over_seeds([5.0]).excludes_zero
    with pytest.raises(ValueError, match="at least one"):
        claims.over_seeds([])


@pytest.mark.parametrize(
    ("single", "verdict"),
    [([1.5, 1.6, 1.55], HOLDS), ([0.5, 0.6, 0.55], FAILS), ([0.5, 1.6, 1.0], OPEN)],
)
def test_a_claim_holds_where_the_whole_interval_is_on_its_side(single: list[float], verdict: str) -> None:
    claim = Claim("3", "", (("siren", "single"),), ("loss_mean",))
    found = claims.judge(claim, results("loss_mean", siren=[1.0, 1.1, 1.05], single=single))
    assert found is not None
    assert found["verdict"] == verdict


def test_more_is_better_for_accuracy() -> None:
    claim = Claim("3", "", (("siren", "single"),), ("event_accuracy",))
    found = claims.judge(claim, results("event_accuracy", siren=[0.9, 0.91, 0.92], single=[0.5, 0.51, 0.52]))
    assert found is not None
    assert found["verdict"] == HOLDS


def test_a_chain_holds_only_as_a_whole_and_breaks_with_any_pair() -> None:
    chain = Claim("4", "", (("a", "b"), ("b", "c")), ("loss_mean",))
    values = {"a": [1.0, 1.01, 1.02], "b": [2.0, 2.01, 2.02]}
    for c, verdict in (([3.0, 3.01, 3.02], HOLDS), ([1.9, 2.5, 1.8], OPEN), ([1.5, 1.51, 1.52], FAILS)):
        found = claims.judge(chain, results("loss_mean", **values, c=c))
        assert found is not None
        assert found["verdict"] == verdict


def test_only_seeds_that_both_arms_have_are_compared() -> None:
    claim = Claim("3", "", (("siren", "single"),), ("fd", "loss_mean"))
    found = claims.judge(claim, results("loss_mean", siren=[1.0, 1.0, 9.0], single=[2.0, 2.1]))
    assert found is not None
    assert [row["measure"] for row in found["by"]] == ["loss_mean"]  # fd was not taken
    assert found["by"][0]["pairs"][0]["difference"] == pytest.approx(-1.05)
    assert claims.judge(claim, results("loss_mean", siren=[1.0])) is None


def test_a_killed_run_continues_and_a_finished_one_is_read(world, tmp_path, monkeypatch) -> None:
    names, trained, train = ("siren", "single"), [], claims.train_stage1

    def counted(transformer, *rest, **more):
        trained.append((len(transformer.config.transformers), transformer.index))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(transformer, *rest, **more)

    monkeypatch.setattr(claims, "train_stage1", counted)
    with pytest.raises(KeyboardInterrupt):
        list(claims.run(names, [0], world, tmp_path / "killed"))
    rows = list(claims.run(names, [0], world, tmp_path / "killed"))
    assert trained == [(3, 0), (3, 1), (3, 2), (3, 2), (1, 0)]
    assert list(claims.run(names, [0], world, tmp_path / "killed")) == rows
    assert len(trained) == 5
    whole = list(claims.run(names, [0], world, tmp_path / "whole"))
    losses = [(row["loss_mean"], row["loss_ratio"]) for row in rows]
    assert losses == [(row["loss_mean"], row["loss_ratio"]) for row in whole]
    other = replace(world, made_with={**world.made_with, "tokens": "others"})
    assert len(list(claims.run(("single",), [0], other, tmp_path / "killed"))) == 1
    assert len(trained) == 10  # other tokens are another result


def test_judges_that_come_later_do_not_train_again(world, tmp_path, monkeypatch) -> None:
    list(claims.run(["single"], [1], world, tmp_path))
    monkeypatch.setattr(claims, "train_stage1", None)
    heard = replace(world, hear=lambda name, model, seed: {"fd": 7.0 + len(model)}, heard_with={"judge": "j"})
    (row,) = claims.run(["single"], [1], heard, tmp_path)
    assert (row["fd"], row["arm"], row["seed"]) == (8.0, "single", 1)


def test_a_run_of_one_arm_reports_the_others_that_are_finished(world, tmp_path) -> None:
    (siren,) = claims.run(["siren"], [0], world, tmp_path)
    rows = list(claims.run(["single"], [0, 1], world, tmp_path, beside=("siren", "single", "independent")))
    assert rows[0] == siren
    assert [(row["arm"], row["seed"]) for row in rows[1:]] == [("single", 0), ("single", 1)]


def test_impossible_arms_are_refused_before_anything_is_trained(world, tmp_path) -> None:
    with pytest.raises(ValueError, match="there is no arm 'solo'"):
        list(claims.run(["siren", "solo"], [0], world, tmp_path))
    with pytest.raises(ValueError, match="6 codebooks cannot be shared"):
        list(claims.run(["siren", "m4"], [0], world, tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_report_says_each_verdict_and_is_plain_json() -> None:
    rows = results("loss_ratio", siren=[1.0, 1.1, 1.0], independent=[2.0, 2.1, 2.05])
    found = claims.report(rows, {"scale": "test", "steps": 4})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [(c["table"], c["verdict"]) for c in found["claims"]] == [("5", HOLDS)]
    page = claims.markdown(found)
    assert "| 5 | the loss ratio falls" in page
    assert "**holds**" in page
    assert "scale test, steps 4" in page
    assert claims.report(rows[:1], {})["arms"]["siren"]["loss_ratio"] == {"value": 1.0, "low": None, "high": None}


def test_every_claim_is_made_of_arms_that_there_are() -> None:
    assert {arm for claim in claims.CLAIMS for pair in claim.pairs for arm in pair} == set(arms.ARMS) - {"m3"}
    assert all(measure in claims.MEASURES for claim in claims.CLAIMS for measure in claim.measures)


@pytest.mark.parametrize(("codebooks", "apart", "missing"), [(6, "m6", {"m4", "m12"}), (12, "m12", {"m6"})])
def test_only_arms_that_the_codec_can_have_are_needed(codebooks: int, apart: str, missing: set[str]) -> None:
    needed = claims.needed(codebooks)
    assert set(needed) == set(arms.ARMS) - {"m3"} - missing
    assert len(needed) == len(set(needed))
    assert ("siren", apart) in [pair for claim in claims.tried(codebooks) for pair in claim.pairs]


def test_a_result_that_lacks_a_measure_is_heard_again_and_keeps_what_it_had(world, tmp_path, monkeypatch) -> None:
    def heard(**measures):
        return replace(world, hear=lambda name, model, seed: measures, heard_with={"judge": "j"}, wanted=list(measures))

    (old,) = claims.run(["single"], [1], heard(fd=7.0), tmp_path)
    monkeypatch.setattr(claims, "train_stage1", None)
    (new,) = claims.run(["single"], [1], heard(fd=8.0, kl=2.0), tmp_path)
    assert new == old | {"kl": 2.0}
    again = replace(heard(fd=9.0, kl=3.0), hear=None)
    assert list(claims.run(["single"], [1], again, tmp_path)) == [new]


def test_clips_of_a_finished_arm_are_made_from_what_was_kept(world, tmp_path, monkeypatch) -> None:
    (before,) = claims.run(["single"], [1], world, tmp_path)
    monkeypatch.setattr(claims, "train_stage1", None)  # nothing is trained for them
    made = []

    def listen(model, seed, folder):
        made.append((len(model()), seed, folder.name.split("-")[:2]))
        return {"clips": f"{folder.name}/clips"}

    (row,) = claims.run(["single"], [1], replace(world, listen=listen), tmp_path)
    assert made == [(1, 1, ["single", "1"])]
    assert row == before | {"clips": row["clips"]}
    assert claims.report([row], {})["results"][0]["clips"] == row["clips"]
    assert list(claims.run(["single"], [1], world, tmp_path)) == [before]  # a result is not changed by them


def test_a_transformer_of_the_experiment_is_the_one_that_the_stage_trains(world, tmp_path) -> None:
    """The seeds are those of the stage, so that `siren` at the run's seed is the pipeline's own model."""
    from siren.hashing import item_seed
    from siren.model.transformer import ResidualTransformer
    from siren.train.stage1 import train_stage1

    list(claims.run(["siren"], [5], world, tmp_path))
    seed = item_seed(5, "stage1@1")
    torch.manual_seed(seed)
    own = ResidualTransformer(world.reference, world.tables, builders.TEXT_WIDTH, 1)
    train_stage1(own, world.tokens, world.validation, STAGE1, 7, seed, lambda step, m: None)
    (folder,) = tmp_path.iterdir()
    kept = claims.load_transformer(folder / "1")
    assert all(torch.equal(kept.state_dict()[name], value) for name, value in own.state_dict().items())
