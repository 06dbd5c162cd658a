"""From the stage `register` to a sound from another folder, through a registry whose bytes are checked."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from siren import cli
from siren.generate.bundle import Bundle
from siren.hashing import file_sha256
from siren.stages import pipeline
from siren.tracking import promotion, registry, store
from tests.tracking import builders

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated"),  # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),  # of its own classes
]
Siren = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """Models and metrics; tests register them under names of their own."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(database, root)
    builders.write_models(root, builders.settings())
    builders.write_metrics(root)
    return root


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    for name in ("MLFLOW_TRACKING_URI", "SIREN_PIPELINE", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return project


@pytest.fixture
def siren(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Siren:
    """The command line in this process → exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["siren", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def register(name: str) -> registry.Version:
    pipeline.register(builders.settings(name))
    return registry.version(f"models:/{name}@challenger")


def test_a_version_says_what_it_is_and_where_it_comes_from(here: Path) -> None:
    import mlflow

    version = register("told")
    model = mlflow.models.get_model_info(version.uri)
    assert [c.name for c in model.signature.inputs.inputs] == ["prompt", "seed"]
    assert {p.name for p in model.signature.params.params} >= {"seed", "seconds", "temperature", "top_k"}
    folder = registry.fetch(version)
    requirements = (folder.parent / "requirements.txt").read_text()
    assert re.search(r"^torch==[0-9.]+$", requirements, re.MULTILINE)
    assert "http" not in requirements
    assert "@" not in requirements
    assert re.search(r"^numpy==[0-9.]+$", (folder / "environment.txt").read_text(), re.MULTILINE)
    assert "@" not in (folder / "environment.txt").read_text()
    card = (folder / "README.md").read_text()
    assert "| scenes | CC0-1.0 | 2 |" in card
    assert "| event_accuracy |" in card
    run = version.client.get_run(version.client.get_model_version("told", version.number).run_id)
    assert run.info.run_name == "register"
    assert not list(folder.parent.rglob("*.pkl"))


def test_what_dvc_keeps_of_a_registration_depends_on_the_inputs_only(here: Path) -> None:
    listed = []
    for _ in range(2):
        register("repeated")
        listed.append((here / "reports" / "registered.json").read_bytes())
    assert listed[0] == listed[1]
    files = json.loads(listed[0])["files"]
    assert {"codec/model.safetensors", "clap/model.safetensors", "transformers/1/model.safetensors"} <= set(files)


def test_figures_of_other_weights_are_not_registered(here: Path) -> None:
    """Trained again and not evaluated again: what metrics.json says is about the model before."""
    path = here / "models" / "aligned" / "0" / "model.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"metrics\.json was measured on other weights; run: dvc repro evaluate"):
        register("unmeasured")
    path.write_bytes(sound)
    for unknown in ({}, {"stage1": []}):
        builders.write_metrics(here, weights=unknown)
        with pytest.raises(ValueError, match=r"does not say which weights .* dvc repro --force --single-item sample"):
            register("unmeasured")
    builders.write_metrics(here)
    with pytest.raises(registry.NoVersion):
        registry.version("models:/unmeasured/1")


def test_prompts_become_waveforms_and_the_same_seed_the_same_one(here: Path) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(register("served").uri)
    asked = pandas.DataFrame({"prompt": ["a dog barks", "rain falls", "a dog barks"], "seed": [1, 2, 1]})
    first, second, again = model.predict(asked)
    assert first.shape == (1600,)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    (alone,) = model.predict(pandas.DataFrame({"prompt": ["a dog barks"]}), params={"seed": 1, "seconds": 0.05})
    assert alone.shape == (800,)
    with pytest.raises(ValueError, match="row 1 is empty"):
        model.predict(pandas.DataFrame({"prompt": ["rain", " "]}))
    with pytest.raises(ValueError, match=r"the prompt 'rain on .* has 162 tokens; this model reads at most 32"):
        model.predict(pandas.DataFrame({"prompt": ["rain", "rain on " * 40]}))


def test_a_fresh_clone_registers_its_model() -> None:
    """Were the stage's output in git, DVC would find it unchanged in a clone that has no registry."""
    root = Path(__file__).parents[2]
    subprocess.run(["git", "check-ignore", "-q", "reports/registered.json"], cwd=root, check=True)


@pytest.mark.slow
def test_below_the_project_its_store_is_found_by_a_new_process(here: Path, siren: Siren) -> None:
    """In a process of its own, where no earlier call has told MLflow which store there is."""
    register("below")
    assert siren("promote", "--model", "below")[0] == 0
    below = here / "below"
    below.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "siren.cli", "generate", "a dog", "--model", "models:/below@champion"]
    subprocess.run([*command, "--out", "three"], cwd=below, env=environment, check=True)
    assert [path.name for path in below.iterdir()] == ["three"]  # and no store was made here


def test_the_first_model_goes_through_the_gate_and_then_sounds_from_another_folder(
    here: Path, tmp_path: Path, siren: Siren, monkeypatch: pytest.MonkeyPatch
) -> None:
    register("sounding")
    model = ("--model", "models:/sounding@champion")
    code, _, error = siren("generate", "a dog barks", *model)
    assert code == 1
    assert "no model models:/sounding@champion" in error
    assert "Traceback" not in error
    code, out, _ = siren("promote", "--model", "sounding", "--dry-run")
    assert code == 0
    assert "would become the champion" in out
    code, out, _ = siren("promote", "--model", "sounding")
    assert (code, "is the champion now" in out) == (0, True)
    assert "promoted.at" in registry.version("models:/sounding@champion").tags
    assert "is the champion already" in siren("promote", "--model", "sounding")[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.address(here))
    for out_folder in ("one", "two"):
        code, out, _ = siren("generate", "a dog barks", "Rain!", *model, "--out", out_folder, "--samples", "2")
        assert code == 0
        assert len(out.splitlines()) == 4
    path = tmp_path / "one" / "002-rain-0.wav"
    wav, rate = soundfile.read(path)
    assert (len(wav), rate) == (1600, 16000)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert (facts["prompt"], facts["seed"], facts["model"]) == ("Rain!", 0, "models:/sounding/1")
    folder = registry.fetch(registry.version("models:/sounding/1"))
    assert facts["model_sha256"] == file_sha256(folder / "model" / "bundle.json")
    for made in (tmp_path / "one").iterdir():
        assert made.read_bytes() == (tmp_path / "two" / made.name).read_bytes()


def test_a_worse_challenger_is_refused_with_its_reason(here: Path, siren: Siren) -> None:
    register("contested")
    siren("promote", "--model", "contested")
    builders.write_metrics(here, accuracy=0.5)
    register("contested")
    builders.write_metrics(here)
    code, out, error = siren("promote", "--model", "contested")
    assert code == 1
    assert "0.5 is worse than 0.85" in out
    assert "was not promoted: event_accuracy" in error
    assert registry.version("models:/contested@champion").number == "1"


def test_a_rollback_brings_the_champion_before_back_and_every_move_leaves_a_trace(here: Path, siren: Siren) -> None:
    for _ in range(2):
        register("turned")
        assert siren("promote", "--model", "turned")[0] == 0
    assert "models:/turned/1 would be the champion" in siren("rollback", "--model", "turned", "--dry-run")[1]
    assert registry.version("models:/turned@champion").number == "2"
    code, out, _ = siren("rollback", "--model", "turned", "--why", "it hums")
    assert (code, "models:/turned/1 is the champion now" in out) == (0, True)
    assert registry.version("models:/turned@champion").number == "1"
    moves = [(m["what"], m["from"], m["to"], m["why"]) for m in promotion.history("turned")]
    assert moves == [("promoted", None, "1", ""), ("promoted", "1", "2", ""), ("rolled back", "2", "1", "it hums")]
    assert "is the first champion" in siren("rollback", "--model", "turned")[2]
    assert "is the champion already" in siren("rollback", "--model", "turned", "--to", "1")[2]
    code, _, error = siren("promote", "--model", "turned")  # the challenger is still the one that hums
    assert (code, "was rolled back to 1" in error, "it hums" in error) == (1, True, True)
    assert registry.version("models:/turned@champion").number == "1"
    assert siren("rollback", "--model", "turned", "--to", "2")[0] == 0  # on purpose
    assert "is the champion already" in siren("promote", "--model", "turned")[1]


def test_licences_that_are_not_allowed_and_other_prompts_are_refused(here: Path, siren: Siren) -> None:
    listing = here / "outputs" / "samples" / "samples.json"
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps({"prompts": [{"id": "a", "caption": "a dog barks"}]}))
    register("strict")
    assert "not among PD: CC0-1.0" in siren("promote", "--model", "strict", "--licence", "PD")[2]
    assert siren("promote", "--model", "strict", "--licence", "CC0")[0] == 0
    listing.write_text(json.dumps({"prompts": [{"id": "a", "caption": "a cat"}]}))
    register("strict")
    assert "another list of prompts" in siren("promote", "--model", "strict")[2]
    shutil.rmtree(here / "outputs")
    register("strict")
    assert "another list of prompts" in siren("promote", "--model", "strict")[2]


def test_lineage_leads_from_a_model_to_its_data_and_back(here: Path, tmp_path: Path, siren: Siren) -> None:
    (here / "dvc.lock").write_text("stages:\n  tokenize:\n    outs: [{path: data/tokens, md5: 0123.dir}]\n")
    number = register("traced").number
    code, out, _ = siren("lineage", "models:/traced@challenger", "--state", str(tmp_path / "state"))
    assert code == 0
    assert re.search(r"data/tokens\W+0123\.dir", out)
    assert re.search(r"run +register [0-9a-f]{32}", out)
    assert (tmp_path / "state" / "dvc.lock").read_bytes() == (here / "dvc.lock").read_bytes()
    out = siren("lineage", "data/tokens/", "--model", "traced")[1]
    assert re.search(rf"models:/traced/{number}\W+\(challenger\).*0123\.dir\W+yes", out)
    assert "'data/nothing' is no output in dvc.lock" in siren("lineage", "data/nothing")[2]
    (here / "dvc.lock").unlink()


def test_a_version_made_in_a_temporary_copy_keeps_the_state_of_the_copy(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `dvc exp run --temp` makes one: in the project's registry, from another lock than lies in the project."""
    copy = here / ".dvc" / "tmp" / "exps" / "tmpabc"
    copy.mkdir(parents=True)
    for name in ("models", "data", "reports"):
        (copy / name).symlink_to(here / name)
    for folder, digest in ((here, "0123.dir"), (copy, "4567.dir")):
        (folder / "dvc.yaml").write_text("stages: {}\n")
        (folder / "dvc.lock").write_text(f"stages:\n  tokenize:\n    outs: [{{path: data/tokens, md5: {digest}}}]\n")
    monkeypatch.chdir(copy)
    version = register("copied-state")
    assert version.tags["data.data/tokens"] == "4567.dir"
    assert version.tags["dvc.lock"] == file_sha256(copy / "dvc.lock")
    assert (registry.fetch(version) / "dvc.lock").read_bytes() == (copy / "dvc.lock").read_bytes()
    assert not (copy / store.DATABASE).exists()
    for name in ("dvc.yaml", "dvc.lock"):
        (here / name).unlink()
    shutil.rmtree(here / ".dvc")


def test_a_model_whose_bytes_changed_does_not_load_and_is_not_promoted(here: Path, siren: Siren) -> None:
    import mlflow

    version = register("damaged")
    folder = registry.fetch(version)
    weights = folder / "model" / "codec" / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"codec/model\.safetensors"):
        registry.fetch(version)
    with pytest.raises(ValueError, match=r"codec/model\.safetensors"):
        mlflow.pyfunc.load_model(version.uri)
    code, out, error = siren("promote", "--model", "damaged")
    assert code == 1
    assert "differs" in out
    assert "was not promoted: sha256" in error
    weights.write_bytes(sound)
    registry.fetch(version)
    with open(folder / "metrics.json", "a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=r"are not those that were registered \(artifacts/metrics\.json\)"):
        registry.fetch(version)


def test_a_checkpoint_of_the_authors_becomes_a_version_that_sounds_but_not_the_champion(
    here: Path, tmp_path: Path, siren: Siren, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "released"
    shutil.copy(builders.ROOT / "params.yaml", here)
    builders.write_release(folder)
    given = ("import-checkpoint", str(folder / "release"), "--out", str(folder / "models"))
    networks = ("--codec", str(folder / "codec"), "--clap", str(folder / "clap"))
    assert "was trained with codec" in siren(*given)[2]  # by default that of the pipeline
    assert "reads text states of width 12" in siren(*given, "--codec", "none")[2]
    assert "name the clap (--clap)" in siren(*given, *networks[:2], "--clap", "none", "--register", "imported")[2]
    code, out, _ = siren(*given, *networks, "--register", "imported")
    assert code == 0
    assert out.splitlines()[-1] == "models:/imported/1, alias challenger; not evaluated"
    assert (
        "has not been evaluated" in (registry.fetch(registry.version("models:/imported/1")) / "README.md").read_text()
    )
    sound = ("--out", str(folder / "sounds"), "--seconds", "0.01")
    assert siren("generate", "rain", "--model", "models:/imported/1", *sound)[0] == 0
    code, _, error = siren("promote", "--model", "imported")
    assert (code, "was not promoted" in error) == (1, True)
    assert siren("export-checkpoint", "models:/imported/1", str(folder / "again"))[0] == 0
    for path in (folder / "release").glob("*.safetensors"):
        assert (folder / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_folder_is_a_model_too(here: Path, tmp_path: Path, siren: Siren) -> None:
    folder = registry.fetch(register("copied"))
    shutil.copytree(folder / "model", tmp_path / "bundle")
    code, _, _ = siren("generate", "rain", "--model", str(tmp_path / "bundle"), "--out", str(tmp_path / "sounds"))
    assert code == 0
    assert Bundle.load(tmp_path / "bundle").sample_rate == 16000
    code, _, error = siren("generate", "rain", "--model", str(tmp_path / "nowhere"))
    assert (code, "no folder" in error) == (1, True)
    code, _, error = siren("generate", "rain", "--model", str(tmp_path))
    assert (code, "is not a model" in error) == (1, True)


def test_addresses_that_lead_nowhere_say_so(
    here: Path, tmp_path: Path, siren: Siren, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no model models:/nothing@champion" in siren("generate", "x", "--model", "models:/nothing@champion")[2]
    assert "is no address of a model" in siren("generate", "x", "--model", "models:/nothing")[2]
    assert "no model models:/nothing@challenger" in siren("promote", "--model", "nothing")[2]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "__file__", str(tmp_path / "a" / "b" / "store.py"))
    assert "no model registry found" in siren("generate", "x")[2]
