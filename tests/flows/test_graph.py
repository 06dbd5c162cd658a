"""The schedule follows DVC's graph, and every stage has a phase."""

from pathlib import Path

import pytest
import yaml

from flows import graph

# DVC's own use of a library that it depends on.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"fetch": set(), "clap": {"fetch"}, "score": {"clap"}, "tokenize": {"score"}, "stage1@0": {"tokenize"}}


def test_every_stage_of_the_pipeline_has_a_phase_and_every_phase_a_stage() -> None:
    found = graph.read_graph(ROOT)
    assert {graph.phase_of(stage) for stage in found} == set(graph.PHASES)
    named = {stage for stages in graph.PHASES.values() for stage in stages}
    assert {stage.split("@")[0] for stage in found} == named


def test_the_schedule_of_the_pipeline_respects_every_dependency_and_holds_every_stage_once() -> None:
    found = graph.read_graph(ROOT)
    order = [stage for _, stages in graph.schedule(found) for stage in stages]
    assert sorted(order) == sorted(found)
    for stage, dependencies in found.items():
        assert all(order.index(dep) < order.index(stage) for dep in dependencies), stage


def test_the_schedule_stays_in_a_phase_while_it_can() -> None:
    assert [phase for phase, _ in graph.schedule(SMALL)] == ["collect", "train", "filter", "encode", "train"]


def test_stages_that_depend_on_each_other_through_a_stage_that_is_left_out_stay_in_order() -> None:
    assert graph.schedule(SMALL, ["stage1@0", "score"]) == [("filter", ["score"]), ("train", ["stage1@0"])]


def test_the_deployments_of_the_parts_one_after_the_other_are_the_whole_and_lack_nothing() -> None:
    found, done = graph.read_graph(ROOT), set[str]()
    parameters = {
        d["name"]: d.get("parameters", {}) for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    }
    for name in ("data", "train", "align", "evaluate"):
        chosen = graph.select(found, parameters[name]["phases"], parameters[name].get("stages"))
        assert chosen is not None
        done |= set(chosen)
        assert set().union(*(found[stage] for stage in chosen)) <= done, name
    assert done == set(found)


def test_a_template_name_selects_all_its_stages() -> None:
    found = {"stage1@0": set(), "stage1@1": set(), "align": {"stage1@0", "stage1@1"}}
    assert graph.select(found, None, ["stage1"]) == ["stage1@0", "stage1@1"]
    assert graph.select(found, ["align"], ["stage1@1"]) == ["align", "stage1@1"]
    assert graph.select(found, None, None) is None


def test_unknown_names_are_errors_that_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no stage fetsch in dvc.yaml; there are: fetch"):
        graph.schedule(SMALL, ["fetsch"])
    with pytest.raises(ValueError, match=r"no phase coolect; there are: collect"):
        graph.select(SMALL, ["coolect"], None)
    with pytest.raises(ValueError, match=r"'mystery' of dvc.yaml belongs to no phase"):
        graph.schedule({"mystery": set()})


def test_stages_that_need_nothing_of_each_other_share_a_wave() -> None:
    found = graph.read_graph(ROOT)
    names = [name for _, run in graph.schedule(found) for name in run]
    waves = graph.waves(found, names)
    assert [name for wave in waves for name in wave] == names
    assert any({"stage1@0", "stage1@1", "stage1@2"} <= set(wave) for wave in waves)
    for wave in waves:
        assert not any(graph.ancestors(found, name) & set(wave) for name in wave)
