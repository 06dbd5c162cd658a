"""A release in the authors' format: in and out without a changed byte, and every broken rule by its name."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from siren.config import Audio, Network
from siren.generate.bundle import load_model, load_transformer, save_transformer
from siren.generate.published import export_release, import_release, read
from siren.networks import clap as claps
from siren.networks import codec as codecs
from tests.model import builders, published

AUDIO = Audio(16000, 1.6)
CODEC = {"encoder_dim": 2, "rates": [2, 4], "decoder_dim": 8, "num_codebooks": 12, "codebook_size": 1024, "code_dim": 4}
CONFIG = published.TINY | {"dac_feature_dim": 8}


@pytest.fixture(scope="module")
def codec() -> Any:
    torch.manual_seed(0)
    return codecs.build(Network("transformers", "unused", CODEC, None), AUDIO).eval()


@pytest.fixture(scope="module")
def experts(codec: Any) -> list[dict[str, torch.Tensor]]:
    """Random transformers over the tables of `codec`."""
    return published.states(CONFIG, tables=codec.tables())


@pytest.fixture
def release(experts: list[dict[str, torch.Tensor]], tmp_path: Path) -> Path:
    return published.write(tmp_path / "release", experts, CONFIG)


def edited(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "manifest.json") -> Path:
    """The release with a changed JSON file."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def replaced(folder: Path, index: int, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The release with changed weights, and their hash in the manifest."""
    path = folder / f"expert_{2 * index}.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    digest = sha256(path.read_bytes()).hexdigest()
    return edited(folder, lambda manifest: manifest["experts"][index].update(sha256=digest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_import_and_export_change_no_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    release = published.write(tmp_path / "release", published.states(CONFIG, dtype=dtype), CONFIG)
    folders = import_release(release, tmp_path / "models")
    manifest = export_release(folders, tmp_path / "again")
    assert manifest.read_text() == json.dumps(json.loads((release / "manifest.json").read_text()), indent=1) + "\n"
    for path in release.glob("*.safetensors"):
        before, after = load_file(path), load_file(manifest.with_name(path.name))
        assert before.keys() == after.keys()
        for name in before:
            assert before[name].dtype == after[name].dtype == dtype
            assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)), name
    assert read(tmp_path / "again").config == read(release).config
    once_more = import_release(tmp_path / "again", tmp_path / "models-again")
    for first, second in zip(folders, once_more, strict=True):
        assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.real
def test_the_reference_checkpoint_comes_back_file_by_file(shared: Path, tmp_path: Path) -> None:
    folder = shared / "reference-checkpoint"
    folders = import_release(folder, tmp_path / "models")
    data = load_file(folder / "expected.safetensors")
    model = load_model(folders)
    with torch.no_grad():
        found = model[4](data["codes"].long(), data["prompt"], torch.ones(2, 9, dtype=torch.bool))
    torch.testing.assert_close(found, data["logits_nomask_8"], atol=1e-4, rtol=0)
    export_release(folders, tmp_path / "out")
    for path in folder.glob("expert_*.safetensors"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    for name in ("manifest.json", "config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((folder / name).read_text())


def test_a_model_remembers_the_codec_and_text_encoder_that_it_was_checked_against(
    release: Path, codec: Any, tmp_path: Path
) -> None:
    clap = claps.build(Network("transformers", "unused", {"text_width": 12, "text_ffn": 16}, None), ["rain"], 16000)
    (folder, *_) = import_release(release, tmp_path / "models", codec, clap)
    load_transformer(folder, codec.fingerprint(), clap.text_fingerprint())
    with pytest.raises(ValueError, match="was trained with codec"):
        load_transformer(folder, "0" * 64)
    wide = claps.build(Network("transformers", "unused", {"text_width": 16, "text_ffn": 16}, None), ["rain"], 16000)
    with pytest.raises(ValueError, match="reads text states of width 12, this text encoder makes them 16 wide"):
        import_release(release, tmp_path / "other", codec, wide)
    assert not (tmp_path / "other").exists()


def test_the_rounding_of_a_folded_weight_is_no_other_codec_but_any_other_row_is(release: Path, codec: Any) -> None:
    def last_place(state: dict[str, torch.Tensor]) -> None:
        weight = state["codebooks.layers.3.dac_out.weight"]
        weight.copy_(torch.nextafter(weight, weight.new_tensor(torch.inf)))

    for index in range(6):
        replaced(release, index, last_place)
    import_release(release, release.parent / "models", codec)
    for index in range(6):
        replaced(release, index, lambda state: state["codebooks.layers.3.codebook.weight"][7].add_(1e-3))
    with pytest.raises(ValueError, match=r"was trained with codec \w{12} \(12 codebooks of 1024\), this one is"):
        import_release(release, release.parent / "models", codec)


def test_a_codec_of_another_size_is_refused(release: Path) -> None:
    other = codecs.build(Network("transformers", "unused", CODEC | {"num_codebooks": 6}, None), AUDIO)
    with pytest.raises(ValueError, match=r"this one is \w{12} \(6 codebooks of 1024\); name its own"):
        import_release(release, release.parent / "models", other)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../expert_0.safetensors", r"names '\.\./expert_0\.safetensors'; only files below its own folder"),
        ("a/../../expert_0.safetensors", "only files below its own folder"),
        ("/etc/expert_0.safetensors", "names '/etc/expert_0.safetensors'; only files below"),
        ("https://x.org/expert_0.safetensors", "only files below its own folder"),
        ("..\\expert_0.safetensors", "only files below its own folder"),
        ("", "names ''; only files below its own folder"),
        ("expert_0.bin", r"names 'expert_0\.bin', where a \.safetensors file is needed"),
        ("expert_1.safetensors", "names 'expert_1.safetensors', which is not there"),
    ],
)
def test_a_manifest_that_points_elsewhere_is_refused(release: Path, name: str, message: str) -> None:
    shutil.copy(release / "expert_0.safetensors", release.parent / "expert_0.safetensors")
    with pytest.raises(ValueError, match=message):
        read(edited(release, lambda manifest: manifest["experts"][0].update(weights=name)))


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(release: Path) -> None:
    weights = release / "expert_0.safetensors"
    (release / "deep").mkdir()
    weights.rename(release / "deep" / "weights")
    weights.symlink_to(Path("deep") / "weights")
    read(release)
    (release / "deep" / "weights").rename(release.parent / "weights")
    weights.unlink()
    weights.symlink_to(Path("..") / "weights")
    with pytest.raises(ValueError, match=r"expert_0\.safetensors is a link to .*weights, out of its folder"):
        read(release)
    with pytest.raises(ValueError, match=r"names '\.\./config\.json'; only files below"):
        read(edited(release, lambda manifest: manifest.update(config="../config.json")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "format_version 2; this reader knows version 1"),
        (lambda m: m.pop("format_version"), "format_version None; this reader knows version 1"),
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m["experts"][0].pop("sha256"), r"missing key 'experts\[0\]\.sha256'"),
        (lambda m: m["experts"][0].update(sha256="abc"), "sha256 of expert 0 is 'abc'; it has 64"),
        (lambda m: m["experts"][1].update(start_codebook=0), "start_codebook 0 is there 2 times"),
        (lambda m: m["experts"][1].update(start_codebook=3), "start_codebook is 3; it is one of 0, 2, 4"),
        (lambda m: m["experts"].pop(), "no expert for start_codebook 10"),
    ],
)
def test_a_manifest_of_another_form_is_refused(release: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(edited(release, change))


def test_settings_are_read_strictly(release: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: unknown key 'n_head'; did you mean 'n_heads'\?"):
        read(edited(release, lambda config: config.update(n_head=4), "config.json"))


def test_changed_weights_are_refused(release: Path) -> None:
    path = release / "expert_4.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"expert_4\.safetensors has SHA-256 .* the manifest says"):
        read(release)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("sos"), r"expert_4\.safetensors lacks 1 tensors: sos"),
        (lambda s: s.update(more=torch.zeros(1)), r"expert_4\.safetensors has, beyond .*: more"),
        (lambda s: s.update({"heads.1.weight": torch.zeros(1024, 15)}), r"heads\.1\.weight is \[1024, 15\]"),
        (lambda s: s.update({"sos": s["sos"].double()}), r"are of F32, F64; all have to be of one"),
        (
            lambda s: s["codebooks.layers.0.dac_out.bias"].add_(1),
            r"expert_4.* other codec tables \(bias\) than",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    release: Path, change: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_release(replaced(release, 2, change), release.parent / "models")
    assert not (release.parent / "models").exists()


def test_a_file_that_is_no_safetensors_and_a_folder_that_is_no_release_are_named(release: Path, tmp_path: Path) -> None:
    path = release / "expert_0.safetensors"
    path.write_bytes(b"pickle")
    digest = sha256(b"pickle").hexdigest()
    with pytest.raises(ValueError, match=r"expert_0\.safetensors is not a safetensors file"):
        read(edited(release, lambda manifest: manifest["experts"][0].update(sha256=digest)))
    (release / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        read(release)
    with pytest.raises(ValueError, match=r"holds no release: it has no manifest\.json"):
        read(tmp_path)


def test_export_refuses_parts_of_two_models_and_models_of_another_kind(
    release: Path, experts: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folders = import_release(release, tmp_path / "models")
    with pytest.raises(ValueError, match=r"these are transformers \[0, 1\]; a release has all"):
        export_release(folders[:2], tmp_path / "out")
    others = import_release(
        published.write(tmp_path / "other", experts, CONFIG | {"norm_eps": 1e-3}), tmp_path / "others"
    )
    with pytest.raises(ValueError, match=r"others/5 has other settings than .*models/0"):
        export_release([*folders[:5], others[5]], tmp_path / "out")
    for index, transformer in enumerate(builders.model(3).transformers):
        save_transformer(tmp_path / "small" / str(index), transformer, {"codec": "", "text_encoder": ""})
    with pytest.raises(ValueError, match="num_codebooks is 6; the published format has 12"):
        export_release([tmp_path / "small" / str(index) for index in range(3)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
