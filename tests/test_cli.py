"""The command line answers at once, takes its verbs from the stages, and says what is wrong in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from siren import cli, engine
from siren.stages import pipeline

ROOT = Path(__file__).resolve().parents[1]
Siren = Callable[..., tuple[int, str, str]]


@pytest.fixture
def siren(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Siren:
    """The command line in this process → exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["siren", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with our settings."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    return tmp_path


def test_help_imports_nothing_heavy_and_names_every_verb() -> None:
    code = (
        "import sys, json\nsys.argv = ['siren', '--help']\nfrom siren import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, modules = done.stdout.splitlines()
    heavy = {"torch", "numpy", "transformers", "mlflow", "prefect", "dvc", "pandas", "matplotlib"}
    assert not heavy & set(json.loads(modules))
    for verb in (
        *cli.stage_functions(),
        "generate",
        "measure",
        "promote",
        "params",
        "doctor",
        "import-checkpoint",
        "corpus",
        "track",
    ):
        assert any(verb in line for line in text), verb


def test_every_stage_of_the_pipeline_is_a_verb_and_the_other_way_round() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(cli.stage_functions()) == set(stages)
    for name, stage in stages.items():
        command = stage.get("do", stage)["cmd"]
        assert command.split()[:2] == ["siren", name], command


def test_a_stage_gets_the_settings_and_its_argument(
    project: Path, siren: Siren, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stage1(config: object, k: int) -> None:
        """Train one."""
        seen.append((type(config).__name__, k))

    monkeypatch.setitem(pipeline.STAGES, "stage1", stage1)
    assert siren("stage1", "2")[0] == 0
    assert seen == [("Config", 2)]
    assert siren("stage1", "two")[0] == 2
    assert siren("stage1")[0] == 2


def test_a_mistake_in_the_settings_is_one_line(project: Path, siren: Siren, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("segment_seconds:", "segment_secnods:"))
    code, out, error = siren("segment")
    assert (code, out) == (1, "")
    assert error == "siren: unknown key 'audio.segment_secnods'; did you mean 'segment_seconds'?\n"
    monkeypatch.setenv("SIREN_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["siren", "segment"])
    with pytest.raises(ValueError, match="segment_secnods"):
        cli.main()


def test_a_package_that_is_not_installed_is_named_with_the_remedy(
    siren: Siren, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "siren.serve.app", raising=False)
    code, _, error = siren("serve")
    assert code == 1
    assert error == (
        "siren: this needs the package fastapi, which is not installed; `make setup` installs all that siren uses\n"
    )


def test_a_stage_outside_of_a_project_says_where_to_go(
    tmp_path: Path, siren: Siren, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = siren("fetch")
    assert code == 1
    assert "run from the project's root" in error


def test_params_composes_a_scale_with_overrides_and_checks_it(project: Path, siren: Siren) -> None:
    (project / "params.yaml").unlink()
    assert siren("params", "demo", "align.steps=7")[0] == 0
    composed = yaml.safe_load((project / "params.yaml").read_text())
    expected = yaml.safe_load((ROOT / "params.yaml").read_text())
    expected["align"]["steps"] = 7
    assert composed == expected
    before = (project / "params.yaml").read_bytes()
    code, _, error = siren("params", "demo", "align.group_size=1")
    assert (code, "a group needs at least 2 rollouts" in error) == (1, True)
    assert (project / "params.yaml").read_bytes() == before
    assert "did you mean 'demo'?" in siren("params", "dmeo")[2]
    assert sorted(p.name for p in project.iterdir()) == ["conf", "params.yaml"]


def test_doctor_reads_params_or_composes_a_scale_and_leaves_no_file(project: Path, siren: Siren) -> None:
    code, out, _ = siren("doctor", "--scale", "3.1b", "--json")
    found = json.loads(out)
    assert (code, found["scale"], found["total_parameters"]) == (1, "3.1b", 3_090_014_208)
    assert all(check["remedy"] for check in found["checks"] if check["status"] == "missing")
    code, out, _ = siren("doctor")
    assert code == 1  # the weights of the demo are not in this folder
    assert "weights/codec is not there" in out
    assert "did you mean '1.6b'?" in siren("doctor", "--scale", "1.6B")[2]
    assert sorted(p.name for p in project.iterdir()) == ["conf", "params.yaml"]


def test_flush_of_a_project_without_runs_is_no_error(project: Path, siren: Siren) -> None:
    assert siren("track", "flush") == (0, "0 runs are in MLflow\n", "")
    code, _, error = siren("track", "flush", "--redirect", "http://a")
    assert (code, "no run here belongs to the store http://a" in error) == (1, True)


def test_the_corpus_is_shown_as_far_as_it_is_made(project: Path, siren: Siren) -> None:
    settings = yaml.safe_load(Path("params.yaml").read_text())
    options = {"train": 2, "val": 1, "test_one": 1, "test_two": 0, "broken": 2}
    settings["collect"]["fetch"]["sources"] = [{"kind": "scenes", "options": options}]
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    for verb in ("fetch", "segment"):
        assert siren(verb)[0] == 0
    code, out, _ = siren("corpus", "--json")
    found = json.loads(out)
    assert (code, found["funnel"][0]) == (0, {"step": "found in the sources", "items": 6, "hours": 0.0})
    assert found["quarantined"] == [{"stage": "segment", "reason": "empty", "items": 2}]
    assert "CC0-1.0" in siren("corpus")[1]
    code, out, _ = siren("corpus", "show", "scenes-broken-00000-zero-bytes")
    assert "segment: quarantined\n  item: scenes-broken-00000-zero-bytes\n  reason: empty" in out
    code, _, err = siren("corpus", "show", "nothing")
    assert (code, "nothing in data/" in err) == (1, True)


def test_a_worker_that_was_killed_is_one_line(siren: Siren, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIREN_WORKERS", "2")
    monkeypatch.setattr(engine, "_do", killer)
    code, _, err = siren("fetch")
    assert code == 1
    assert err.splitlines()[-1].startswith("siren: a worker process ended at once")
    assert "run the stage again" in err
    assert "Traceback" not in err


def killer(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_brackets_in_tables_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    from siren.cli.tables import print_table

    print_table(["source", "licence [x]"], [["field [wet]", "free, see [/licence.txt]"]])
    shown = capsys.readouterr().out
    assert "field [wet]" in shown
    assert "[/licence.txt]" in shown
    assert "licence [x]" in shown
