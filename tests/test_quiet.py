"""No library calls home: what is set in code, and what is set for commands that do not pass through our code."""

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from siren import quiet

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, folder: Path, **environment: str) -> Any:
    """What `code` prints as JSON, in a process that has nothing of ours in its environment."""
    own = {k: v for k, v in os.environ.items() if k not in quiet.SETTINGS and not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**own, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_importing_siren_is_enough_and_the_users_value_wins(tmp_path: Path) -> None:
    code = f"import json, os, siren; print(json.dumps({{name: os.environ[name] for name in {[*quiet.SETTINGS]}}}))"
    found = run(code, tmp_path, GX_ANALYTICS_ENABLED="true")
    assert found == {**quiet.SETTINGS, "GX_ANALYTICS_ENABLED": "true"}


def test_prefects_own_commands_in_the_project_send_nothing_and_leave_the_cores_to_stages(tmp_path: Path) -> None:
    """`prefect server start` never imports siren: what holds for it is prefect.toml."""
    code = (
        "import json; from prefect.settings import get_current_settings as now; found = now(); "
        "print(json.dumps([found.server.analytics_enabled, found.worker.query_seconds, "
        "found.server.services.late_runs.loop_seconds, found.server.services.task_run_recorder.batch_size]))"
    )
    home = {"PREFECT_HOME": str(tmp_path / "prefect")}
    assert run(code, ROOT, **home) == [False, 5.0, 60.0, 50]
    assert run(code, tmp_path, **home) == [True, 10.0, 5.0, 1]  # Prefect's own


def test_dvc_asks_nobody_for_a_newer_version() -> None:
    """Unless told so, every `dvc` command starts a process that does, and the next one waits for it."""
    told = configparser.ConfigParser()
    told.read(ROOT / ".dvc" / "config")
    assert {name: told["core"][name] for name in ("analytics", "check_update")} == dict.fromkeys(
        ("analytics", "check_update"), "false"
    )
