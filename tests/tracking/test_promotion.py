"""The gate: a challenger becomes champion when it is whole, measured, and not worse beyond the champion's interval."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from siren.tracking import promotion, registry, store
from siren.tracking.promotion import Check, compare, licence_check, read_metrics, rollback_check
from tests.tracking import builders


def metrics(folder: Path, **changes: Any) -> dict[str, Any]:
    builders.write_metrics(folder, **changes)
    return read_metrics(folder / "reports" / "metrics.json")


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], str]]:
    """A registry that answers every request with this status and error code of MLflow → its URI."""
    says: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(says["status"])
            self.end_headers()
            self.wfile.write(json.dumps({"error_code": says["code"], "message": "no"}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    def answer(status: int, code: str) -> str:
        says.update(status=status, code=code)
        return f"http://127.0.0.1:{server.server_port}"

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield answer
        server.shutdown()


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


def allowed(folder: Path, network: str, policy: list[str] | None = None) -> Check:
    path = folder / "licences.json"
    path.write_text(json.dumps({"data": [], "networks": {"codec": network}, "policy": ["CC0", "CC-BY"]}))
    return licence_check(path, policy)


@pytest.mark.parametrize(
    "licence",
    [
        *("Apache-2.0", "apache-2.0", "Apache 2.0", "Apache License 2.0", "Apache License, Version 2.0"),
        *("MIT", "mit", "MIT License", "BSD", "BSD-3-Clause", "BSD 2-Clause License", "ISC", "ISC License"),
        *("CC0-1.0", "CC BY 4.0", "CC-BY-3.0"),
    ],
)
def test_the_name_of_a_software_licence_is_as_free_as_any_policy_asks(tmp_path: Path, licence: str) -> None:
    assert allowed(tmp_path, licence).passed


@pytest.mark.parametrize(
    "licence",
    [
        "CC BY-NC 4.0 (weights); code MIT",
        "Apache-2.0 with the non-commercial addendum",
        "MIT for Descript's weights; others: see their source",
        "CC0-1.0 for LAION's checkpoint files, Apache-2.0 for its models on the hub",
        "MIT-like",
        "not MIT",
        "CC BY-NC 4.0",
        "unknown",
        "",
    ],
)
def test_a_sentence_with_a_free_licence_in_it_is_none(tmp_path: Path, licence: str) -> None:
    check = allowed(tmp_path, licence)
    assert not check.passed
    assert f"not among CC0, CC-BY: codec: {licence}" in check.reason
    assert allowed(tmp_path, licence, ["CC0", licence]).passed  # who knows better names the very text


def moves(*given: tuple[str, str | None, str]) -> list[dict[str, Any]]:
    return [
        {"at": f"2026-01-0{day}T00:00:00Z", "by": "kim", "what": what, "from": old, "to": new, "why": "it hums"}
        for day, (what, old, new) in enumerate(given, 1)
    ]


def test_a_version_that_was_rolled_back_needs_somebody_to_take_it_back_on_purpose() -> None:
    turned = [("promoted", None, "1"), ("promoted", "1", "2"), ("rolled back", "2", "1")]
    check = rollback_check("siren", "2", moves(*turned))
    assert not check.passed
    assert "rolled back to 1 on 2026-01-03 by kim: it hums" in check.reason
    assert "siren rollback --model siren --to 2" in check.reason
    taken = [*turned, ("rolled back", "1", "2")]
    for number, history in (("3", turned), ("1", turned), ("2", turned[:2]), ("2", taken)):
        assert rollback_check("siren", number, moves(*history)).passed
    assert rollback_check("siren", "2", moves(*taken, ("promoted", "2", "3"))).passed
    assert not rollback_check("siren", "2", moves(*taken, ("rolled back", "2", "1"))).passed
    assert rollback_check("siren", "1", []).passed


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "TEMPORARILY_UNAVAILABLE"),
        (500, "INTERNAL_ERROR"),
        (403, "PERMISSION_DENIED"),
        (429, "REQUEST_LIMIT_EXCEEDED"),
        (404, "ENDPOINT_NOT_FOUND"),
    ],
)
def test_a_registry_that_does_not_answer_is_not_one_without_a_champion(
    refusing: Callable[[int, str], str], status: int, code: str
) -> None:
    uri = refusing(status, code)
    for ask in (promotion._champion, promotion.history, promotion.judge):
        with pytest.raises(ValueError, match=r"did not answer .*; try again when it does") as told:
            ask("siren", uri)
        assert not isinstance(told.value, registry.NoVersion)


def test_a_server_that_nobody_runs_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="did not answer"):
        promotion._champion("siren", "http://127.0.0.1:9")


@pytest.mark.parametrize(("status", "code"), [(404, "RESOURCE_DOES_NOT_EXIST"), (400, "INVALID_PARAMETER_VALUE")])
def test_a_server_that_knows_no_champion_says_so(refusing: Callable[[int, str], str], status: int, code: str) -> None:
    assert promotion._champion("siren", refusing(status, code)) is None


@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
def test_what_the_store_does_not_have_is_no_version(root: Path) -> None:
    uri = store.find()
    assert promotion._champion("siren", uri) is None  # no model
    store.connect(uri).create_registered_model("siren")
    assert promotion._champion("siren", uri) is None  # no alias
    for address in ("siren/1", "siren@champion", "other/1"):
        with pytest.raises(registry.NoVersion, match=f"no model models:/{address} in the registry"):
            registry.version(f"models:/{address}", uri)
    with pytest.raises(ValueError, match="is no address of a model"):
        registry.version("models:/siren", uri)
