"""The flow `siren` in Prefect, on a pipeline of three trivial stages: retries, order, names."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.testing.utilities import prefect_test_harness

from flows import collect as collect_phase
from flows import stage as stages
from flows import train as train_phase
from flows.siren import siren
from flows.stage import Policy, StageFailed
from tests.processes import eventually

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


SIDE_BY_SIDE = """\
stages:
  fetch:
    cmd: echo 1 > a
    outs: [a]
  codec:
    cmd: touch codec-began && until [ -e clap-began ]; do sleep 0.05; done && echo $OMP_NUM_THREADS > b
    deps: [a]
    outs: [b]
  clap:
    cmd: touch clap-began && until [ -e codec-began ]; do sleep 0.05; done && {clap}
    deps: [a]
    outs: [c]
  imagebind:
    cmd: cat b c > d
    deps: [b, c]
    outs: [d]
"""


def test_stages_that_need_nothing_of_each_other_run_at_once_where_that_is_asked_for(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "BUSY_POLL_SECONDS", 0.2)
    monkeypatch.setattr(train_phase, "POLICY", Policy(retry_delays_seconds=(), timeout_hours=120 / 3600))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (project / "dvc.yaml").write_text(SIDE_BY_SIDE.format(clap="echo 2 > c"))
    siren(jobs=2)  # neither of the two ends before the other has begun
    assert (project / "d").read_text() == f"{max(1, (os.cpu_count() or 1) // 2)}\n2\n"
    assert set(yaml.safe_load((project / "dvc.lock").read_text())["stages"]) == {"fetch", "codec", "clap", "imagebind"}


def test_a_stage_that_fails_beside_another_costs_that_one_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "BUSY_POLL_SECONDS", 0.2)
    monkeypatch.setattr(train_phase, "POLICY", Policy(retry_delays_seconds=(), timeout_hours=120 / 3600))
    (project / "dvc.yaml").write_text(SIDE_BY_SIDE.format(clap="exit 3"))
    with pytest.raises(StageFailed, match="clap ended with code"):
        siren(jobs=2)
    assert (project / "b").exists()
    assert not (project / "d").exists()


def test_a_cancelled_run_takes_all_stages_at_work_with_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_cancelled", threading.Event())  # what it sets is not for the tests after it
    waiting = "touch {0}-began && while [ ! -e never ]; do sleep 0.05; done && touch {1}"
    pipeline = {"codec": {"cmd": waiting.format("codec", "b")}, "clap": {"cmd": waiting.format("clap", "c")}}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": pipeline}))

    def interrupt() -> None:  # the signal is the main thread's
        eventually(lambda: len(list(project.glob("*-began"))) == 2, "both stages are at work", 60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        siren(jobs=2)
    assert not stages._at_work
    (project / "never").touch()
    time.sleep(0.5)
    assert not (project / "b").exists()
    assert not (project / "c").exists()


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
