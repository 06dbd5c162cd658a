"""What a scale costs, to the published parameter; what is missing, with a remedy for each."""

import dataclasses
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from siren import config, doctor
from tests.test_config import ROOT, compose


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Config:
    """The settings of scale 1.6b, on a machine whose hub cache is empty."""
    monkeypatch.setattr(doctor, "_in_hub_cache", lambda name: False)
    for variable in doctor.SERVERS.values():
        monkeypatch.delenv(variable, raising=False)
    return config.load(compose("1.6b", tmp_path))


def test_the_paper_scale_costs_what_the_paper_says(paper: config.Config, tmp_path: Path) -> None:
    found = doctor.diagnose(paper, tmp_path)
    assert found.parameters["total"] == 272_697_344
    assert found.total_parameters == 1_636_184_064
    training = found.training
    assert (training["batch"], training["frames"], training["steps"]) == (24, 300, 150_000)
    assert (training["precision"], training["memory"]["weights in bf16"]) == ("bf16", 2 * 272_488_448)
    assert training["memory"]["optimiser"] == 8 * 272_488_448
    assert training["flops"] == 6 * 150_000 * training["flops_per_step"]["total"]
    assert found.sampling["frames"] == 500
    assert found.sampling["memory"]["frame caches"] == 4 * 16 * 6 * 2 * 1024 * (500 * 14 + 3 * 2)
    assert json.loads(json.dumps(found.to_dict()))["parameters"] == found.parameters
    said = doctor.text(found)
    assert "  main layers            231,311,360  1,387,868,160\n" in said
    assert "  total                  272,697,344  1,636,184,064\n" in said


def test_what_is_missing_is_named_with_its_remedy(
    paper: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = {check.name: check for check in doctor.diagnose(paper, tmp_path).checks}
    networks = {"codec", "clap", "imagebind", "judge.panns", "judge.panns labels", "judge.vggish"}
    missing = {name for name, check in found.items() if check.status == "missing"}
    assert missing >= networks | {"GPU", "source audiocaps", "source avsync15", "source freesound"}
    assert all(check.remedy for check in found.values() if check.status != "ok")
    assert "hf download descript/dac_16khz" in (found["codec"].remedy or "")
    assert "imagebind_huge.pth" in (found["imagebind"].remedy or "")
    assert found["ffmpeg"].status == "optional"
    assert "days" in found["GPU"].found
    (tmp_path / "weights" / "published").mkdir(parents=True)
    (tmp_path / "weights" / "published" / "imagebind_huge.pth").touch()
    (tmp_path / "sounds" / "avsync15").mkdir(parents=True)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    monkeypatch.setattr(doctor, "_in_hub_cache", lambda name: name == "descript/dac_16khz")
    missing -= {check.name for check in doctor.diagnose(paper, tmp_path).missing}
    videos = {"source audiocaps", "source audioset", "source avsync15", "source vggsound"}
    assert missing == {"imagebind", "codec"} | videos


def test_nothing_is_missing_for_the_demo() -> None:
    found = doctor.diagnose(config.load(ROOT / "params.yaml"), ROOT)
    assert [check for check in found.missing if check.name not in ("MLflow", "Prefect")] == []
    assert found.sampling["batch"] == 128  # guidance doubles it


def test_a_captioner_needs_its_weights_its_clap_and_untrained_a_bart(tmp_path: Path) -> None:
    demo = config.load(Path(__file__).parents[1] / "params.yaml")
    training = demo.networks.codec.training
    autocap = config.AutoCap("a.ckpt", "c.pt", True, "facebook/bart-base", {}, None, training, training, 0.1, 0.5, 0.1)

    def found(chosen: config.AutoCap) -> dict[str, str]:
        asked = dataclasses.replace(demo, networks=dataclasses.replace(demo.networks, autocap=chosen))
        return {check.name: check.status for check in doctor.captioner(asked, tmp_path)}

    (tmp_path / "c.pt").touch()
    assert found(autocap) == {"autocap weights": "missing", "autocap clap": "ok"}
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").touch()
    saved = dataclasses.replace(autocap, weights="saved", clap="weights/none")
    assert found(saved) == {"autocap weights": "ok"}, "a saved network has its CLAP with it"
    untrained = dataclasses.replace(autocap, weights=None)
    assert found(untrained) == {"autocap weights": "ok", "autocap clap": "ok", "autocap bart": "missing"}


@pytest.mark.parametrize(("memory", "status"), [(48e9, "ok"), (12e9, "missing")])
def test_a_gpu_is_measured_against_the_memory_that_is_needed(
    paper: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float, status: str
) -> None:
    gpu = SimpleNamespace(name="NVIDIA L20", total_memory=int(memory))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    check = next(check for check in doctor.diagnose(paper, tmp_path).checks if check.name == "GPU")
    assert (check.status, "12.5 GB are needed" in check.found) == (status, True)


def test_a_disk_that_is_too_small_is_missing(
    paper: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=int(20e9)))
    check = next(check for check in doctor.diagnose(paper, tmp_path).checks if check.name == "disk")
    assert check.status == "missing"
    assert check.found.startswith("20 GB free; at least 53.1 GB are needed")


def test_a_package_that_a_backend_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PACKAGES, "descript", "no_such_package")
    network = dataclasses.replace(config.load(ROOT / "params.yaml").networks.codec, backend="descript")
    (_, check) = doctor.weights("codec", network, ROOT)
    assert (check.name, check.found) == ("codec package", "no_such_package is not installed")


def test_a_server_is_there_when_it_takes_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        assert doctor.server("Prefect", "PREFECT_API_URL").status == "ok"
    gone = doctor.server("Prefect", "PREFECT_API_URL")
    assert (gone.status, gone.remedy) == ("missing", "start it, or unset PREFECT_API_URL to work without")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert doctor.server("MLflow", "MLFLOW_TRACKING_URI").found == "MLFLOW_TRACKING_URI names no server"


def test_sizes_read_well() -> None:
    assert [doctor.size(n) for n in (12, 272_697_344, 4.36e9, 2e12)] == ["12 B", "273 MB", "4.36 GB", "2 TB"]
