"""What trains runs on a machine that has torch, transformers, numpy, soundfile and pyarrow, and nothing of the rest."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from siren import cli, config, tracking
from siren.stages import pipeline
from siren.tracking import export, records, store
from tests.test_config import ROOT, compose

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")

BARE = ("torch", "transformers", "numpy", "soundfile", "pyarrow")
# Only what is allowed is found; everything else is as if it had never been installed.
HEAD = """
import sys
from importlib.machinery import PathFinder
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else super().find_spec(name, path, target)
sys.meta_path[:] = [f for f in sys.meta_path if f.__module__.startswith("_frozen") and f is not PathFinder] + [Bare]
"""


def brought_by(packages: tuple[str, ...]) -> set[str]:
    """These packages and all that they require, without extras."""
    found: set[str] = set()
    queue = [name.lower() for name in packages]
    while queue:
        name = queue.pop().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            needed = map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:  # optional on this platform
            continue
        queue += [r.name.lower() for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def blocked() -> set[str]:
    """Top-level modules of every installed package that a bare machine does not have."""
    allowed = brought_by(BARE)
    owners = metadata.packages_distributions()
    return {name for name, dists in owners.items() if not allowed & {d.lower().replace("_", "-") for d in dists}}


def bare(blocked: set[str], code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("SIREN_EXPORT", None)
    program = f"BLOCKED = {sorted(blocked - {'siren', 'flows'})!r}{HEAD}{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pipeline_s_tools_are_blocked_and_what_trains_is_not(blocked: set[str]) -> None:
    assert blocked >= {
        "dvc",
        "mlflow",
        "prefect",
        "great_expectations",
        "matplotlib",
        "pandas",
        "psutil",
        "soxr",
        "scipy",
    }
    assert not blocked & {"torch", "transformers", "numpy", "soundfile", "pyarrow", "safetensors", "yaml", "typer"}


def test_a_stage_there_leaves_a_record_that_is_imported_into_mlflow_here(
    blocked: set[str], root: Path, tmp_path: Path
) -> None:
    there = tmp_path / "bare"
    there.mkdir()
    code = f"""
from siren import cli, config, tracking
from siren.stages import pipeline
import siren.train.stage1, siren.align.anticausal, siren.generate.bundle
assert list(cli.stage_functions()) == {list(cli.stage_functions())!r}
with tracking.stage("stage1@0", config.load({str(ROOT / "params.yaml")!r}), ("seed",)) as run:
    run.log(1, {{"loss": 2.5}})
    run.summary({{"val_loss": 2.25}})
"""
    bare(blocked, code, there)
    assert not (there / ".siren" / "exporter.log").exists()  # nobody to send to
    (folder,) = records.bring(there, root)
    assert export.flush(root) == 1
    client = store.connect(store.address(root))
    run = client.get_run(records.read_state(folder)["mlflow_run"])
    assert (run.info.run_name, run.info.status) == ("stage1@0", "FINISHED")
    assert run.data.metrics == {"loss": 2.5, "val_loss": 2.25}
    assert run.data.tags["host"] == json.loads((folder / "run.json").read_text())["host"]


def test_the_command_imports_each_run_once_and_names_what_is_wrong(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def siren(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["siren", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    there = tmp_path / "box"
    there.mkdir()
    settings = config.load(ROOT / "params.yaml")
    with monkeypatch.context() as box:
        box.chdir(there)
        with tracking.stage("codec", settings, ("seed",)) as run:
            run.log(1, {"loss": 1.5})
        with pytest.raises(FloatingPointError), tracking.stage("stage1@0", settings, ("seed",)):
            raise FloatingPointError("stage1 0: the loss is nan at step 7")
    for _ in range(2):  # the second time there is nothing new
        assert siren("track", "import", str(there)) == (0, f"2 runs of {there} are in MLflow\n", "")
        client = store.connect(store.address(root))
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = {run.info.run_name: run for run in client.search_runs(experiments)}
        assert {name: run.info.status for name, run in runs.items()} == {"codec": "FINISHED", "stage1@0": "FAILED"}
        assert len(client.search_runs(experiments)) == 2
    assert client.get_metric_history(runs["codec"].info.run_id, "loss")[0].value == 1.5
    code, _, error = siren("track", "import", str(tmp_path / "nowhere"))
    assert (code, "no record of a run in" in error) == (1, True)
    code, _, error = siren("track", "import", ".")
    assert (code, "is a record of this project; `siren track flush` sends it" in error) == (1, True)


CLAP = ("max_seconds=1.6", "spec_size=128", "patch=4", "width=16", "heads=[1, 2, 4]", "text_width=64", "text_ffn=64")
TRAINED = ("networks.codec", "networks.clap", "networks.imagebind", "networks.judge.panns", "networks.judge.vggish")
TRAINED += ("train.stage1",)
TRAINING = ("steps=2", "warmup_steps=1", "batch_size=4")
SMALL = (  # scale small as it is, but for its sizes, on sounds that are made here
    "collect.fetch.sources=[{kind: scenes, options: {train: 24, val: 8, test_one: 12, test_two: 4, seconds: 1.6}}]",
    *(
        "audio.segment_seconds=1.6",
        "filter.score.crop_seconds=1.6",
        "filter.select.val_pairs=8",
        "filter.select.rl_prompts=8",
    ),
    *(f"networks.{name}.architecture.{key}" for name in ("clap", "imagebind") for key in CLAP),
    *("networks.codec.architecture.width=64", "networks.codec.architecture.codebook_size=64"),
    *("networks.judge.panns.architecture.width=0.0625", "networks.judge.vggish.architecture.width=0.125"),
    *(f"{name}.training.{key}" for name in TRAINED for key in TRAINING),
    *("model.dim=64", "model.num_heads=4", "model.num_kv_heads=4", "model.main_layers=1", "model.decoder_layers=1"),
    "train.stage1.precision=fp32",
    *("align.steps=1", "align.warmup_steps=0", "align.prompts_per_step=2", "align.group_size=2"),
)


@pytest.mark.slow
def test_every_training_command_of_scale_small_runs_there(
    blocked: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    compose("small", tmp_path, *SMALL).rename(tmp_path / "params.yaml")
    for stage in (pipeline.fetch, pipeline.segment, pipeline.caption):
        stage(config.load())
    commands = ["codec", "clap", "imagebind", "judge", "score", "select", "tokenize"]
    commands += [*(f"stage1 {k}" for k in range(6)), "align"]
    code = f"""
import sys
from siren import cli
for command in {commands!r}:
    sys.argv = ["siren", *command.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, command
"""
    bare(blocked, code, tmp_path)
    assert (tmp_path / "models" / "aligned" / "0" / "model.safetensors").is_file()
    found = [json.loads((folder / "run.json").read_text()) for folder in records.folders(tmp_path)]
    assert {record["name"] for record in found} >= {command.replace(" ", "@") for command in commands}
    assert {record["status"] for record in found} == {"FINISHED"}
