"""Two folders and a manifest: the figures, what is refused, and that nothing is heard twice or taken for another."""

import csv
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from torch import Tensor, nn

from siren import cli
from siren.config import Network as Settings
from siren.evaluate import features, folders, metrics
from siren.evaluate.features import Listener, Preparation, find_networks
from siren.evaluate.measure import Request, measure, rows
from siren.networks import judge, store
from tests.evaluate import builders

CALLS: Counter[str] = Counter()
RATE = 16000
LABELS = list(builders.EVENTS)


class Toy(nn.Module):
    """A network of the builders behind a saved folder; counts how often it is asked."""

    def __init__(self, kind: str, scale: float) -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.tensor(scale))
        self.inner: Any = {"cnn14": builders.Judge, "vggish": builders.Vggish}.get(kind, lambda: builders.Pair(kind))()

    def __call__(self, wav: Tensor) -> Any:
        CALLS[self.kind] += 1
        return self.inner(wav)

    def embed_audio(self, wav: Tensor) -> Tensor:
        CALLS[self.kind] += 1
        return self.inner.embed_audio(wav)

    def embed_text(self, captions: list[str]) -> Tensor:
        CALLS[f"{self.kind} text"] += 1
        return self.inner.embed_text(captions)


def save_toy(folder: Path, kind: str, scale: float = 1.0) -> None:
    judged = kind in features.JUDGES
    config: dict[str, Any] = {"labels": LABELS, "architecture": {"name": f"{kind}-toy"}} if judged else {}
    store.save(folder, Toy(kind, scale), kind, config | {"sample_rate": RATE}, {"licence": "CC0"})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 prompts, real clips, a system's clips, and toy networks of every kind."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(24):
        label = LABELS[i % len(LABELS)]
        for folder in ("real", "made"):
            path = tmp_path / folder / f"clip-{i:02d}.{'flac' if folder == 'real' else 'wav'}"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, builders.sound([label], "one", rng), RATE, subtype="PCM_16")
        lines.append({"file": f"sub/clip-{i:02d}.flac", "caption": f"a {label}", "labels": label})
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    for folder, kind in {
        "judge/panns": "cnn14",
        "judge/vggish": "vggish",
        "clap": "clap",
        "reward": "imagebind",
    }.items():
        save_toy(tmp_path / "models" / folder, kind)
    monkeypatch.setattr(features, "OPENERS", dict.fromkeys(features.OPENERS, _open))
    CALLS.clear()
    return tmp_path


def _open(folder: Path, device: str) -> Toy:
    CALLS["opened"] += 1
    return Toy(store.read_sidecar(folder)["kind"], 1.0)


def request(project: Path, **changes: Any) -> Request:
    parts = {
        "generated": project / "made",
        "reference": project / "real",
        "manifest": project / "manifest.csv",
        "networks": project / "models",
        "cache": project / "cache",
        "resamples": 40,
        "batch_size": 5,
    }
    return Request(**{**parts, **changes})


def test_the_figures_are_those_of_the_metrics_on_what_the_networks_hear(project: Path) -> None:
    found = measure(request(project, preparation=Preparation(min_seconds=0))).record
    wavs = {f: np.stack([soundfile.read(p)[0] for p in sorted((project / f).iterdir())]) for f in ("real", "made")}
    heard = {f: torch.from_numpy((w - w.mean(1, keepdims=True)).astype(np.float32)) for f, w in wavs.items()}
    x, y = (builders.Judge()(heard[f]) for f in ("real", "made"))
    u, v = (builders.Vggish()(heard[f]).double().numpy() for f in ("real", "made"))
    figures = found["figures"]
    expected = {
        "fd@cnn14-toy": metrics.frechet_distance(x.features.numpy(), y.features.numpy()),
        "kl@cnn14-toy": metrics.kl_softmax(x.logits.numpy(), y.logits.numpy()).mean(),
        "is@cnn14-toy": metrics.inception_score(y.logits.numpy()).mean,
        "fad@vggish-toy": metrics.fad(u, v),
    }
    for name, value in expected.items():
        assert figures[name]["value"] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"], name
    assert figures["event_accuracy@cnn14-toy"]["count"] == 24
    clap = next(k for k in figures if k.startswith("clap@"))
    assert clap == f"clap@clap-{store.read_sidecar(project / 'models/clap')['sha256'][:8]}"
    assert 0 < figures[clap]["value"] <= 1
    assert {"fd", "kad", "kl", "is", "fad", "clap", "imagebind", "event_accuracy"} == {k.split("@")[0] for k in figures}
    assert [row[0].split()[0] for row in rows(found)] == list(figures)
    assert {row[0].split("@")[0] for row in rows(found) if row[0].endswith("↓")} == {"fd", "kad", "kl", "fad"}
    assert any("no FAD-infinity" in note for note in found["notes"])
    json.dumps(found)


def test_a_second_measurement_loads_no_network_and_says_the_same(project: Path) -> None:
    first = measure(request(project))
    assert (first.forwards, CALLS["opened"]) == (sum(CALLS.values()) - 4, 4)
    assert CALLS["cnn14"] == 2 * 5, "24 clips of two folders in batches of five"
    CALLS.clear()
    shutil.move(project / "made", project / "elsewhere")
    for path in sorted((project / "elsewhere").iterdir()):
        path.rename(path.with_name(path.name.upper()).with_suffix(".wav").with_stem(path.stem))
    second = measure(request(project, generated=project / "elsewhere"))
    assert (second.forwards, sum(CALLS.values())) == (0, 0), "the folder's name is no part of the key"
    assert second.record == first.record


def test_a_clip_made_anew_under_the_same_name_is_heard_anew(project: Path) -> None:
    first = measure(request(project)).record
    CALLS.clear()
    soundfile.write(project / "made/clip-03.wav", np.zeros(builders.SAMPLES), RATE)
    second = measure(request(project))
    assert {k: v for k, v in CALLS.items() if k != "opened"} == {"cnn14": 1, "vggish": 1, "clap": 1, "imagebind": 1}
    assert second.record["figures"] != first["figures"]
    assert second.record["sounds"]["generated"]["content_sha256"] != first["sounds"]["generated"]["content_sha256"]
    assert second.record["sounds"]["generated"]["silent"] == ["clip-03"]
    assert any("silent: 'clip-03' (1 of 24)" in note for note in second.record["notes"])


def test_features_belong_to_a_network_and_a_preparation(project: Path) -> None:
    measure(request(project))
    CALLS.clear()
    measure(request(project, preparation=Preparation(min_seconds=1.0)))
    assert CALLS["cnn14"] == 10
    CALLS.clear()
    save_toy(project / "models/judge/panns", "cnn14", scale=2.0)
    measure(request(project))
    assert (CALLS["cnn14"], CALLS["vggish"]) == (10, 0)


def test_what_is_not_as_listed_is_named(project: Path) -> None:
    made = project / "made"
    shutil.copy(made / "clip-00.wav", made / "extra.wav")
    with pytest.raises(ValueError, match="1 sounds that the manifest does not list: 'extra'"):
        measure(request(project))
    (made / "extra.wav").rename(project / "real/extra.wav")
    assert measure(request(project)).record["sounds"]["reference"]["unlisted"] == 1
    (made / "clip-07.wav").rename(project / "kept.wav")
    with pytest.raises(ValueError, match=r"generated: 1 of 24 clips are missing in .*: 'clip-07'"):
        measure(request(project))
    shutil.copy(project / "kept.wav", made / "clip-07.wave")
    with pytest.raises(ValueError, match=r"clip-07\.wave there: the suffix is none of \.flac, \.mp3"):
        measure(request(project))
    (made / "clip-07.wave").unlink()
    soundfile.write(made / "clip-07.wav", np.zeros(800), 8000)
    with pytest.raises(ValueError, match=r"mixes sample rates: 1 at 8000 Hz \(such as clip-07.wav\), 23 at 16000 Hz"):
        measure(request(project))
    (made / "clip-07.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"clip-07\.wav is not readable as sound"):
        measure(request(project))
    (project / "real/deep").mkdir()
    shutil.copy(project / "real/clip-01.flac", project / "real/deep/clip-01.flac")
    (project / "kept.wav").rename(made / "clip-07.wav")
    with pytest.raises(ValueError, match="have one name"):
        measure(request(project))
    with pytest.raises(ValueError, match="there is no folder"):
        measure(request(project, generated=project / "nowhere"))
    with pytest.raises(ValueError, match="no judge, CLAP or ImageBind"):
        measure(request(project, networks=project / "real"))


def test_clips_that_are_equal_are_counted(project: Path) -> None:
    shutil.copy(project / "made/clip-00.wav", project / "made/clip-04.wav")
    found = measure(request(project)).record
    assert found["sounds"]["generated"]["identical"] == 1
    assert any("byte for byte" in note for note in found["notes"])


def test_a_set_against_itself_is_at_no_distance(project: Path) -> None:
    figures = measure(request(project, generated=project / "real")).record["figures"]
    for name in ("fd@cnn14-toy", "fad@vggish-toy", "kl@cnn14-toy"):
        assert figures[name]["value"] == pytest.approx(0, abs=1e-4), name


def test_further_takes_give_the_curve_of_best_of_n(project: Path) -> None:
    rng = np.random.default_rng(5)
    takes = []
    for number in (2, 3):
        takes.append(project / f"take{number}")
        takes[-1].mkdir()
        for i in range(24):
            wav = builders.sound([LABELS[rng.integers(len(LABELS))]], "one", rng)
            soundfile.write(takes[-1] / f"clip-{i:02d}.wav", wav, RATE)
    found = measure(request(project, takes=tuple(takes))).record
    clap = next(k for k in found["figures"] if k.startswith("clap@"))
    told = found["best_of"][f"chosen by {clap}"]
    values = [point["value"] for point in told[clap]]
    assert [point["n"] for point in told[clap]] == [1, 2, 3]
    assert values[0] < values[1] < values[2], "the network's own choice can only gain by its own score"
    assert values[2] >= found["figures"][clap]["value"]
    assert len(told) == 2, "and what ImageBind says of CLAP's choice"
    assert len(rows(found)) == len(found["figures"]) + 2 * 2 * 3
    assert set(found["sounds"]) == {"generated", "reference", "take 2", "take 3"}


def test_two_claps_are_two_metrics_and_published_ones_bear_their_name(project: Path) -> None:
    config, name = {"sample_rate": RATE}, "music_speech_audioset_epoch_15_esc_89.98"
    extra = {"weights": f"{name}.pt", "weights_sha256": "ab", "licence": "CC0"}
    store.save(project / "models/second", Toy("clap", 2.0), "clap", config, extra)
    found = measure(request(project)).record
    assert len([key for key in found["figures"] if key.startswith("clap@")]) == 2
    assert f"clap@{name}" in found["figures"]
    assert found["networks"][f"clap@{name}"]["weights_sha256"] == "ab"
    save_toy(project / "models/judge/other", "cnn14", scale=3.0)
    with pytest.raises(ValueError, match="have one name"):
        measure(request(project))


def test_the_command_prints_the_figures_and_writes_the_record(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    line = ["siren", "measure", "made", "real", "manifest.csv", "--out", "told/made.json", "--resamples", "20"]
    monkeypatch.setattr(sys, "argv", [*line, "--candidates", "3"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    record = json.loads((project / "told/made.json").read_text())
    assert record["candidates"] == 3
    assert {"resampler", "min_seconds", "seed"} <= set(record["protocol"])
    said = capsys.readouterr()
    assert "fd@cnn14-toy" in said.out
    assert "batches through networks" in said.err
    (project / "made/clip-05.wav").unlink()
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.count("siren: generated: 1 of 24 clips are missing in made: 'clip-05'") == 1


def test_evaluate_with_two_folders_measures_and_without_any_is_the_stage(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def siren(*line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["siren", *line])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    monkeypatch.chdir(project)
    code, error = siren("evaluate", "made", "real")
    assert (code, "there is none in real; give the manifest as a third path" in error) == (1, True)
    shutil.move("manifest.csv", "real/captions.csv")
    assert siren("evaluate", "made", "real", "--out", "a.json", "--resamples", "20")[0] == 0
    assert siren("measure", "made", "real", "real/captions.csv", "--out", "b.json", "--resamples", "20")[0] == 0
    assert json.loads(Path("a.json").read_text()) == json.loads(Path("b.json").read_text())
    shutil.copy("real/captions.csv", "real/others.csv")
    assert "there are captions.csv, others.csv in real" in siren("evaluate", "made", "real")[1]
    assert "siren evaluate with generated, out needs two folders" in siren("evaluate", "made", "--out", "c.json")[1]
    assert "run from the project's root" in siren("evaluate")[1]  # the stage, which wants its params.yaml


def test_of_several_channels_the_first_is_heard_and_the_record_says_so(project: Path) -> None:
    plain = measure(request(project)).record
    for path in (project / "made").glob("*.wav"):
        wav = soundfile.read(path)[0]
        soundfile.write(path, np.stack([wav, -0.3 * wav[::-1]], 1), RATE)
    stereo = measure(request(project)).record
    assert stereo["sounds"]["generated"]["channels"] == [2, 2]
    assert "generated: of 2 channels the first is heard, as audioldm_eval does it" in stereo["notes"]
    assert not any("channels" in note for note in plain["notes"])
    for name, figure in plain["figures"].items():
        assert stereo["figures"][name]["value"] == pytest.approx(figure["value"], rel=1e-6), name


def test_a_broken_line_of_a_manifest_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    for line, message in (("{file: a.wav}", "line 2 is no JSON"), ('["a.wav", "a dog"]', "line 2 is no object")):
        path.write_text(f'{{"file": "b.wav", "caption": "rain"}}\n{line}\n')
        with pytest.raises(ValueError, match=message):
            folders.read_manifest(path)


def test_manifests_of_every_format_are_one(tmp_path: Path) -> None:
    data = [{"file": f"x/{n}.wav", "caption": f"caption {n}", "labels": ["dog", "rain"]} for n in ("b", "a")]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in data))
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("file,caption,label\nx/b.wav,caption b,dog; rain\nx/a.wav,caption a,dog;rain\n")
    read = [folders.read_manifest(tmp_path / f"m.{suffix}") for suffix in ("jsonl", "parquet", "csv")]
    assert read[0] == read[1] == read[2]
    assert read[0][0] == {"id": "a", "caption": "caption a", "labels": ["dog", "rain"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,caption\na.wav,\n", "row 1 has no caption"),
        ("name,caption\na.wav,x\n", "row 1 has no file"),
        ("file,caption\na.wav,x\nb/a.flac,y\n", "'a' more than once"),
        ("file,caption\n", "lists no clips"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        folders.read_manifest(tmp_path / "m.csv")
    with pytest.raises(ValueError, match="no manifest at"):
        folders.read_manifest(tmp_path / "other.csv")


def test_judges_hear_clips_as_audioldm_eval_feeds_them() -> None:
    wav = (0.5 + 0.1 * np.random.default_rng(0).standard_normal(44100)).astype(np.float32)
    heard = Preparation()(wav, 44100, 16000, judged=True)
    assert heard.shape == (32000,), "two seconds at least"
    assert heard[16000:].max() == 0
    assert abs(heard[100:15900].mean()) < 1e-3
    plain = Preparation()(wav, 44100, 16000, judged=False)
    assert plain.shape == (16000,)
    assert plain[100:-100].mean() == pytest.approx(0.5, abs=1e-3)
    other = Preparation(resampler="soxr")(wav, 44100, 16000, judged=False)
    assert 1e-3 < np.abs(other - plain)[100:-100].max() < 0.3, "white noise tells the resamplers apart"
    with pytest.raises(ValueError, match="there are hann, soxr"):
        Preparation(resampler="linear")


def test_real_judges_and_clips_of_every_length(tmp_path: Path) -> None:
    """The project's own Cnn14 and VGGish, on clips that differ in length: each alone gives the same."""
    for role, backend, sizes in (
        ("panns", "cnn14", {"width": 1 / 64}),
        ("vggish", "vggish", {"width": 1 / 32, "hidden": 8}),
    ):
        network = Settings(backend=backend, weights="none", architecture=sizes, training=None)
        judge.save(tmp_path / "models/judge" / role, judge.build(network, LABELS, seed=1))
    rng = np.random.default_rng(1)
    for i, samples in enumerate((40000, 40000, 52000)):
        soundfile.write(tmp_path / f"clip-{i}.wav", 0.1 * rng.standard_normal(samples), RATE)
    sounds = folders.gather(tmp_path, [f"clip-{i}" for i in range(3)], "generated")
    listener = Listener(tmp_path / "cache", Preparation(), batch_size=4)
    for network in find_networks(tmp_path / "models"):
        heard = listener.hear(network, sounds, "generated")
        own = judge.load(network.folder)
        for row in range(3):
            wav = torch.from_numpy(listener.preparation(folders.read(sounds.paths[row]), RATE, RATE, judged=True))[None]
            with torch.inference_mode():
                expected = features.HEARING[network.kind](own, wav)
            for name, value in expected.items():
                np.testing.assert_allclose(heard[name][row], value[0].numpy(), atol=1e-4, rtol=1e-4)
    assert listener.forwards == 4
