"""The judges: equal to the published networks, saved and loaded whole, and clear about what does not fit."""

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from siren.config import ConfigError, Network
from siren.networks import judge as judges
from siren.networks.judge.cnn14 import Cnn14, Cnn14Config
from siren.networks.judge.vggish import EXAMPLE_SAMPLES, Vggish, VggishConfig

# resampy, which torchvggish imports and the parity does not use, asks setuptools for its version.
pytestmark = pytest.mark.filterwarnings("ignore:pkg_resources is deprecated")
LABELS = ["dog", "rain", "bell"]
TINY = {"name": "cnn14-tiny", "width": 1 / 16}
TINY_VGGISH = {"name": "vggish-tiny", "width": 1 / 32, "hidden": 32}


def network(backend: str, architecture: dict | None = None, weights: str | None = "nowhere") -> Network:
    return Network(backend=backend, weights=weights, architecture=architecture or {}, training=None)


def noise(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def without_init(package: str, module: str) -> ModuleType:
    """Import a module of a package whose own __init__ calls out (panns_inference runs wget there)."""
    spec = importlib.util.find_spec(package)
    shell = ModuleType(package)
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = shell
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def panns() -> nn.Module:
    """The PANNs project's own Cnn14 for 16 kHz, with random weights and random running statistics."""
    models = without_init("panns_inference", "models")
    torch.manual_seed(1)
    theirs = models.Cnn14(16000, 512, 160, 64, 50, 8000, classes_num=527).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    theirs.bn0.running_mean.fill_(-40)
    theirs.bn0.running_var.fill_(200)
    return theirs


@pytest.fixture(scope="module")
def panns_file(panns: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("panns") / "Cnn14_16k_mAP=0.438.pth"
    torch.save({"iteration": 600000, "model": panns.state_dict()}, path)
    yield path
    path.unlink()


def test_cnn14_of_width_one_equals_the_panns_network_loaded_from_its_file(panns: nn.Module, panns_file: Path) -> None:
    ours = judges.published(network("cnn14", weights=str(panns_file)))
    wav = noise(1, 17000)
    with torch.inference_mode():
        theirs, mine = panns(wav), ours(wav)
        mel = panns.logmel_extractor(panns.spectrogram_extractor(wav))
        torch.testing.assert_close(ours.log_mel(wav), mel, atol=2e-3, rtol=1e-4)  # dB
    told = judges.extra(str(panns_file))
    assert told["weights"] == panns_file.name
    assert len(told["weights_sha256"]) == 64
    assert told["licence"] == "CC-BY-4.0"
    assert mine.features.shape == (1, 2048)
    assert len(ours.labels) == 527
    torch.testing.assert_close(mine.features, theirs["embedding"], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(mine.logits.sigmoid(), theirs["clipwise_output"], atol=1e-5, rtol=1e-4)


def test_published_cnn14_takes_its_label_names_from_audiosets_list(panns_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "class_labels_indices.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "mid", "display_name"])
        rows.writerows([i, f"/m/{i}", f"Sound, {i}"] for i in range(527))
    ours = judges.published(network("cnn14", {"labels_file": str(path)}, str(panns_file)))
    assert ours.labels[3] == "Sound, 3"
    path.write_text("index,mid,display_name\n0,/m/0,Speech\n")
    with pytest.raises(ValueError, match="names 1 classes, the weights have 527"):
        judges.published(network("cnn14", {"labels_file": str(path)}, str(panns_file)))


def test_weights_of_the_32_khz_variant_are_refused(tmp_path: Path) -> None:
    save_file(
        {"logmel_extractor.melW": torch.zeros(513, 64), "fc_audioset.weight": torch.zeros(527, 2048)},
        tmp_path / "wrong.safetensors",
    )
    with pytest.raises(ValueError, match="Cnn14_16k_mAP"):
        judges.published(network("cnn14", weights=str(tmp_path / "wrong.safetensors")))


def test_vggish_equals_torchvggish_loaded_from_its_file(tmp_path: Path) -> None:
    torchvggish = importlib.import_module("torchvggish.torchvggish")
    vggish_input = importlib.import_module("torchvggish.vggish_input")
    torch.manual_seed(2)
    theirs = torchvggish.VGG(torchvggish.make_layers(), postprocess=None).eval()
    save_file(theirs.state_dict(), tmp_path / "vggish.safetensors")
    ours = judges.published(network("vggish", weights=str(tmp_path / "vggish.safetensors")))
    theirs.embeddings = theirs.embeddings[:-1]  # FAD leaves the last ReLU out
    wav = noise(1, 33000)
    examples = vggish_input.waveform_to_examples(wav[0].double().numpy(), 16000).detach()
    torch.testing.assert_close(ours.examples(wav)[0], examples[:, 0], atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        mine = ours(wav)
        assert mine.shape == (1, 2, 128)
        torch.testing.assert_close(mine[0], theirs(examples), atol=1e-5, rtol=1e-3)
    assert (mine < 0).any(), "no ReLU after the embedding"
    with pytest.raises(ValueError, match="no classification head"):
        ours.logits(wav)


def test_vggish_cuts_ten_seconds_into_ten_examples_and_drops_the_rest() -> None:
    published = Vggish(VggishConfig(width=1 / 32, hidden=8))
    assert published.examples(torch.zeros(1, 160000)).shape == (1, 10, 96, 64)
    overlapping = Vggish(VggishConfig(width=1 / 32, hidden=8, example_hop_seconds=0.31))
    assert overlapping.examples(torch.zeros(1, 25600)).shape[1] == 3
    wav = noise(1, 25600)
    cut = overlapping.examples(wav)
    torch.testing.assert_close(cut[:, 1], overlapping.examples(wav[:, 31 * 160 :])[:, 0])


def test_clips_shorter_than_a_network_needs_are_zero_padded() -> None:
    vggish = Vggish(VggishConfig(width=1 / 32, hidden=8)).eval()
    cnn14 = Cnn14(Cnn14Config(width=1 / 64), LABELS).eval()
    wav = noise(2, 800)
    padded = torch.nn.functional.pad(wav, (0, EXAMPLE_SAMPLES - 800))
    torch.testing.assert_close(vggish(wav), vggish(padded))
    assert cnn14(wav).logits.shape == (2, 3)


@pytest.mark.parametrize(("backend", "architecture"), [("cnn14", TINY), ("vggish", TINY_VGGISH)])
def test_a_clips_result_does_not_depend_on_its_batch(backend: str, architecture: dict) -> None:
    judge = judges.build(network(backend, architecture), LABELS, seed=3).eval()
    wav = noise(5, 25600)
    with torch.inference_mode():
        together, alone = judge.logits(wav), torch.cat([judge.logits(w[None]) for w in wav])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("backend", "architecture"), [("cnn14", TINY), ("vggish", TINY_VGGISH)])
def test_saved_and_loaded_is_the_same_judge(backend: str, architecture: dict, tmp_path: Path) -> None:
    judge = judges.build(network(backend, architecture), LABELS, seed=3).eval()
    judges.save(tmp_path, judge, {"recipe": "none"})
    again = judges.load(tmp_path)
    assert (again.labels, again.name, again.kind) == (LABELS, architecture["name"], backend)
    assert not again.training
    wav = noise(2, 25600)
    assert torch.equal(judge.logits(wav), again.logits(wav))
    assert judges.obtain(network(backend, weights=str(tmp_path))).name == judge.name
    other = {"cnn14": "vggish", "vggish": "cnn14"}[backend]
    with pytest.raises(ValueError, match=f"holds a {backend}; the settings ask for {other}"):
        judges.obtain(network(other, weights=str(tmp_path)))


def test_weights_follow_from_the_seed_and_leave_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = (judges.build(network("cnn14", TINY), LABELS, seed=seed).fc1.weight for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_demo_widths_stay_small() -> None:
    for judge in (
        judges.build(network("cnn14", {"width": 0.0625}), ["event"] * 12, seed=0),
        judges.build(network("vggish", {"width": 0.125, "hidden": 256}), ["event"] * 12, seed=0),
    ):
        assert 4 * sum(p.numel() for p in judge.parameters()) < 3e6


def test_what_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown judge backend 'cnn10'"):
        judges.build(network("cnn10"), LABELS, seed=0)
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        judges.build(network("cnn14", {"widht": 0.5}), LABELS, seed=0)
    with pytest.raises(ConfigError, match="width is 2"):
        judges.build(network("vggish", {"width": 2}), LABELS, seed=0)
    with pytest.raises(ValueError, match="set weights to null"):
        judges.obtain(network("cnn14", weights=str(tmp_path / "missing")))
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="does not fit vggish"):
        judges.published(network("vggish", {"width": 1 / 32, "hidden": 8}, str(tmp_path / "odd.safetensors")))
