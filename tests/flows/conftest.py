"""A DVC project of three trivial stages, named as ours are."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.servers import environment, prefect, start  # noqa: F401

PIPELINE = """\
stages:
  fetch:
    cmd: echo fetching && date +%s%N >> runs-fetch && echo 1 > a
    outs: [a]
  segment:
    cmd: python segment.py
    deps: [a, segment.py]
    outs: [b]
  caption:
    cmd: cat b > c
    deps: [b]
    outs: [c]
"""
SEGMENT = """\
from pathlib import Path

Path("b").write_text(Path("a").read_text())
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh repository with `dvc.yaml`, committed."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "segment.py").write_text(SEGMENT)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", *identity, "commit", "-q", "-m", "start"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template as the working directory of the test."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return folder
