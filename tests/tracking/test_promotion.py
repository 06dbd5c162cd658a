"""The gate: a challenger becomes champion when it is whole, measured, and not worse beyond the champion's interval."""

import json
from pathlib import Path
from typing import Any

import pytest

from siren.tracking.promotion import Check, compare, read_metrics
from tests.tracking import builders


def metrics(folder: Path, **changes: Any) -> dict[str, Any]:
    builders.write_metrics(folder, **changes)
    return read_metrics(folder / "reports" / "metrics.json")


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.reason for check in checks if check.passed is False}


def test_a_first_model_needs_the_required_metrics_and_no_more(tmp_path: Path) -> None:
    assert failed(compare(metrics(tmp_path), None)) == {}
    assert set(failed(compare(metrics(tmp_path, arms={}), None))) == {"event_accuracy", "fad"}


def test_a_metric_that_is_not_a_number_is_a_missing_one(tmp_path: Path) -> None:
    assert set(failed(compare(metrics(tmp_path, fad=float("nan")), None))) == {"fad"}


def test_worse_within_the_interval_passes_and_beyond_it_does_not(tmp_path: Path) -> None:
    champion = metrics(tmp_path)  # accuracy 0.9 [0.85, 0.95], FAD 2.0 [1.5, 2.5]
    assert failed(compare(metrics(tmp_path, accuracy=0.86, fad=2.4), champion)) == {}
    assert failed(compare(metrics(tmp_path, accuracy=0.84), champion)) == {
        "event_accuracy": "0.84 is worse than 0.85, the end of the champion's interval"
    }
    assert set(failed(compare(metrics(tmp_path, fad=2.6), champion))) == {"fad"}
    assert failed(compare(metrics(tmp_path, accuracy=1.0, fad=0.1), champion)) == {}


def test_other_prompts_and_other_networks_are_not_comparable(tmp_path: Path) -> None:
    champion = metrics(tmp_path)
    assert (
        "other prompts" in failed(compare(metrics(tmp_path, prompts={"all": 10, "one_event": 5}), champion))["prompts"]
    )
    arm = json.loads((tmp_path / "reports" / "metrics.json").read_text())["arms"]["aligned"]
    arm["fad@vggish"] = arm.pop("fad@vggish-demo")
    assert "another network" in failed(compare(metrics(tmp_path, arms={"aligned": arm}), champion))["fad"]


def test_event_accuracy_is_not_asked_of_prompts_without_a_known_event(tmp_path: Path) -> None:
    arm = {"fad@vggish": {"value": 2.0, "low": 1.0, "high": 3.0}}
    assert failed(compare(metrics(tmp_path, arms={"stage1": arm}, prompts={"all": 10, "one_event": 0}), None)) == {}


@pytest.mark.parametrize("arm", ["aligned", "stage1"])
def test_the_figures_are_those_of_the_model_that_is_registered(tmp_path: Path, arm: str) -> None:
    arms = {arm: {"fad@x": {"value": 1.0}}, "untrained": {"fad@x": {"value": 9.0}}}
    assert metrics(tmp_path, arms=arms)["figures"]["fad"]["value"] == 1.0
