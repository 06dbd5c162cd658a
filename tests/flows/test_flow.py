"""The flow `siren` in Prefect, on a pipeline of three trivial stages: retries, order, names."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.testing.utilities import prefect_test_harness

from flows import collect as collect_phase
from flows.siren import siren
from flows.stage import Policy, StageFailed

pytestmark = [
    pytest.mark.slow,  # it starts a server
    # DVC's own use of a library that it depends on.
    pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning"),
]


FLAKY = """\
from pathlib import Path

tries = Path("tries")
tries.write_text((tries.read_text() if tries.exists() else "") + "x")
assert tries.read_text() == "xxx", "not yet"
Path("b").write_text("third time")
"""


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


def runs() -> tuple[list[FlowRun], list[TaskRun]]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(), client.read_task_runs()


def test_a_run_is_retried_until_the_stage_works_and_then_the_rest_follows(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_phase, "POLICY", Policy(retry_delays_seconds=(0, 0)))
    (project / "segment.py").write_text(FLAKY)
    siren(stages=["fetch", "segment", "caption"])
    assert (project / "c").read_text() == "third time"
    assert len((project / "runs-fetch").read_text().split()) == 1
    flow_runs, task_runs = runs()
    assert {r.name.split()[0] for r in flow_runs} == {"params.yaml", "collect", "filter"}
    tries = {r.name.split()[0]: r.run_count for r in task_runs}
    assert (tries["fetch"], tries["segment"], tries["caption"]) == (1, 3, 1)
    assert all(r.state is not None and r.state.is_completed() for r in [*flow_runs, *task_runs])


def test_a_stage_that_keeps_failing_fails_the_run_and_nothing_after_it_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_phase, "POLICY", Policy(retry_delays_seconds=()))
    monkeypatch.setenv("SIREN_ON_FAILURE", 'echo "$SIREN_STATE: $SIREN_MESSAGE" > told')
    (project / "segment.py").write_text("raise SystemExit('broken for good')")
    with pytest.raises(StageFailed, match="broken for good"):
        siren(phases=["collect", "filter"])
    assert (project / "a").exists()
    assert not (project / "c").exists()
    told = (project / "told").read_text()
    assert told.startswith("Failed: ")
    assert "broken for good" in told
    with get_client(sync_client=True) as client:
        (left,) = [a for a in client.read_artifacts() if a.key == "siren-failure"]
    assert "broken for good" in str(left.data)


def test_a_run_that_ends_well_leaves_its_figures_and_links(project: Path) -> None:
    arm = {"fad@vggish": {"value": 2.0, "low": 1.5, "high": 2.5}}
    (project / "reports").mkdir()
    (project / "reports" / "metrics.json").write_text(json.dumps({"prompts": {"all": 3}, "arms": {"aligned": arm}}))
    (project / "reports" / "index.html").write_text("<p>")
    siren(stages=["fetch"])
    with get_client(sync_client=True) as client:
        artifacts = sorted(client.read_artifacts(), key=lambda a: str(a.created))  # the server is one for all tests
    left = {a.key: str(a.data) for a in artifacts}
    assert "| fad@vggish |  |  | 2 [1.5, 2.5] |" in left["siren-metrics"]
    assert "reports/index.html" in left["siren-links"]
