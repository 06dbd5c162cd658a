"""Training a codec: it learns, repeats itself bit by bit, resumes exactly, and its figures mean what they say."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from siren.config import Audio, Network, Training, load
from siren.networks import codec as codecs
from siren.networks.codec import quantizer as q
from siren.train.codec import (
    Recipe,
    SpectralDistance,
    count_usage,
    quality,
    random_crops,
    reconstruction_losses,
    si_sdr,
    train_codec,
)
from siren.train.loop import Checkpoint
from tests.tables import write_shards
from tests.train import killing

RATE = 8000
ARCHITECTURE = {
    "window": 256,
    "hop": 64,
    "mel_bands": 32,
    "width": 32,
    "latent": 16,
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "num_codebooks": 3,
    "codebook_size": 32,
    "code_dim": 4,
}
TRAINING = Training(
    steps=60,
    batch_size=4,
    learning_rate=3e-3,
    warmup_steps=5,
    final_lr_ratio=0.1,
    weight_decay=0.01,
    clip_norm=5.0,
    log_every=10,
    checkpoint_every=20,
)
RECIPE = Recipe(crop_seconds=0.256, fit_crops=8)


def make(seed: int = 0) -> codecs.Codec:
    torch.manual_seed(seed)
    return codecs.build(Network("spectral", "unused", ARCHITECTURE, None), Audio(RATE, 0.5))


def tones(count: int, samples: int = 4000, seed: int = 0) -> np.ndarray:
    """int16 [N, S]: tones of random pitch, each fading."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    pitch, decay = generator.uniform(200, 2000, (count, 1)), generator.uniform(1, 8, (count, 1))
    return (np.sin(2 * np.pi * pitch * time) * np.exp(-decay * time) * 12000).astype(np.int16)


def trained(seed: int = 0, training: Training = TRAINING, checkpoint: Checkpoint | None = None, log=None):
    codec = make()
    train_codec(codec, tones(16), training, seed, log or (lambda step, metrics: None), "cpu", checkpoint, RECIPE)
    return codec


def test_training_brings_reconstructions_closer_to_held_out_sounds():
    points = []
    codec = trained(log=lambda step, metrics: points.append((step, metrics)))
    held_out = tones(8, seed=1)
    before, after = quality(make(), held_out), quality(codec, held_out)
    assert after["mel_distance"] < 0.6 * before["mel_distance"]
    assert [step for step, _ in points] == [10, 20, 30, 40, 50, 60]
    assert points[-1][1]["loss"] < 0.7 * points[0][1]["loss"]
    assert all(p > 2 for p in after["perplexity"].values())
    assert not codec.training


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        codecs.save(tmp_path / name, trained(seed, dataclasses.replace(TRAINING, steps=20)))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path):
    whole = trained()
    checkpoint = Checkpoint(tmp_path, "this run")
    with pytest.raises(killing.Killed):
        trained(checkpoint=checkpoint, log=killing.at(50))
    resumed = trained(checkpoint=checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_waveforms_of_another_kind_are_refused():
    for wrong in (tones(2).astype(np.float32), tones(1)[0], tones(2)[:0]):
        with pytest.raises(ValueError, match="int16 waveforms"):
            train_codec(make(), wrong, TRAINING, 0, lambda step, metrics: None)
    with pytest.raises(ValueError, match="validation split is empty"):
        quality(make(), tones(2)[:0])


def test_crops_are_parts_of_the_clips_and_short_clips_are_padded():
    wavs = np.arange(1, 41, dtype=np.int16).reshape(2, 20)
    crops = random_crops(wavs, 400, 8, torch.Generator().manual_seed(0)) * 32767
    starts = {round(crop[0].item()) for crop in crops}
    assert starts == set(range(1, 14)) | set(range(21, 34))
    assert torch.allclose(crops.diff(dim=1), torch.ones(400, 7), atol=1e-3)
    padded = random_crops(wavs, 1, 30, torch.Generator().manual_seed(0))
    assert padded.shape == (1, 30)
    assert padded[0, 20:].abs().sum() == 0


def test_spectral_distance_of_twice_the_amplitude_is_ln_2():
    wav = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    losses = SpectralDistance(RATE)(2 * wav, wav)
    assert losses["mel"].item() == pytest.approx(np.log(2), abs=2e-3)  # the floor takes a little
    assert losses["linear"].item() == pytest.approx(1.0, abs=1e-5)
    assert losses["waveform"].item() == pytest.approx(1.0, abs=1e-5)
    assert SpectralDistance(RATE)(wav, wav)["mel"].item() == 0


def test_only_the_energy_distance_asks_for_as_much_noise_as_there_is():
    """Noise imitating noise of amplitude 1: with the repulsion the best gain is about 1, without it a lower one."""
    generator = torch.Generator().manual_seed(0)
    target, first, second = torch.randn(3, 4, RATE, generator=generator) * 0.1
    distance = SpectralDistance(RATE)
    gains = [0.25, 0.5, 0.75, 1.0, 1.3]

    def best(repulsion: float) -> float:
        zero = torch.zeros(())
        outputs = [codecs.CodecOutput(g * first, g * second, zero, None, None, zero, zero) for g in gains]
        losses = [reconstruction_losses(distance, output, target, repulsion) for output in outputs]
        return gains[int(torch.stack([loss["linear"] for loss in losses]).argmin())]

    assert best(1.0) == 1.0
    assert best(0.0) < 1.0


def test_a_sine_of_amplitude_a_reads_a():
    wav = 0.25 * torch.sin(2 * torch.pi * 1000 / RATE * torch.arange(8000)).unsqueeze(0)
    assert SpectralDistance(RATE).amplitudes(wav, 512)[0, 64, 20].item() == pytest.approx(0.25, abs=1e-3)


def test_si_sdr_by_hand():
    """Noise orthogonal to the target with a tenth of its amplitude is 20 dB below; scale does not matter."""
    time = torch.arange(8000) / RATE
    target, noise = torch.sin(2 * torch.pi * 100 * time), torch.sin(2 * torch.pi * 200 * time)
    wavs = torch.stack([target + 0.1 * noise, 3 * (target + 0.1 * noise), noise])
    values = si_sdr(wavs, target.expand(3, -1))
    assert values[0].item() == pytest.approx(20, abs=0.01)
    assert values[1].item() == pytest.approx(20, abs=0.01)
    assert values[2].item() < -60


def test_a_constant_code_has_perplexity_one_and_usage_is_counted():
    usage = torch.zeros(2, 4)
    count_usage(usage, torch.tensor([[[0, 1, 1], [3, 3, 3]], [[2, 2, 1], [3, 3, 3]]]))
    assert usage.tolist() == [[1, 3, 2, 0], [0, 0, 0, 6]]


def test_the_quantiser_takes_the_row_of_the_nearest_direction():
    rows = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-0.1, 0.0]])
    vectors = torch.tensor([[9.0, 1.0], [0.1, 0.2], [-1.0, 0.1]])
    assert q.nearest(vectors, rows).tolist() == [0, 1, 2]


def test_the_gradient_passes_straight_through_the_choice():
    torch.manual_seed(0)
    layer = q.VectorQuantizer(6, 8, 3)
    latent = torch.randn(2, 6, 5, requires_grad=True)
    quantised, *_ = layer(latent)
    quantised.sum().backward()
    as_if_linear = layer.in_proj.weight[:, :, 0].t() @ layer.out_proj.weight[:, :, 0].t() @ torch.ones(6)
    torch.testing.assert_close(latent.grad, as_if_linear.view(1, 6, 1).expand(2, 6, 5))


def test_a_fitted_quantiser_is_far_better_than_a_random_one():
    torch.manual_seed(0)
    mixing = torch.randn(12, 12) * torch.linspace(1, 0.1, 12)
    latent = (torch.randn(8, 64, 12) @ mixing).transpose(1, 2) + 3
    quantizer = q.ResidualQuantizer(12, 4, 32, 4)
    random_error = (quantizer(latent)[0] - latent).square().mean()
    q.fit_quantizer(quantizer, latent, torch.Generator().manual_seed(0))
    quantised, codes, *_ = quantizer(latent)
    assert (quantised - latent).square().mean() < 0.25 * latent.var()
    assert (quantised - latent).square().mean() < 0.2 * random_error
    assert all(len(codes[:, k].unique()) > 24 for k in range(4))


def test_a_codebook_cannot_start_from_fewer_vectors_than_rows():
    with pytest.raises(ValueError, match="3 latent vectors cannot start a codebook of 4 rows"):
        q.spherical_kmeans(torch.randn(3, 2), 4, torch.Generator())


def test_reviving_moves_dead_rows_onto_latents_and_leaves_the_living():
    torch.manual_seed(0)
    quantizer = q.ResidualQuantizer(6, 2, 8, 3)
    before = [layer.codebook.weight.detach().clone() for layer in quantizer.quantizers]
    projected = torch.randn(2, 6, 5)
    dead = torch.zeros(2, 8, dtype=torch.bool)
    dead[1, 3] = True
    assert q.revive(quantizer, projected, dead, torch.Generator().manual_seed(0)) == 1
    assert torch.equal(quantizer.quantizers[0].codebook.weight, before[0])
    changed = (quantizer.quantizers[1].codebook.weight != before[1]).any(1)
    assert changed.tolist() == dead[1].tolist()
    moved = quantizer.quantizers[1].codebook.weight[3]
    assert any(torch.equal(moved, vector) for vector in projected[:, 3:].transpose(1, 2).reshape(-1, 3))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with segments, and the settings of a small codec that is trained in it."""
    import pyarrow as pa

    monkeypatch.setenv("SIREN_EXPORT", "0")
    config = load("params.yaml")
    monkeypatch.chdir(tmp_path)
    pcm = [row.tobytes() for row in tones(20)]
    splits = ["train"] * 16 + ["val"] * 4
    write_shards(tmp_path / "data/segments", "segments", pa.table({"split": splits, "pcm": pcm}), 100)
    network = Network("spectral", None, ARCHITECTURE, dataclasses.replace(TRAINING, steps=20))
    crops = dataclasses.replace(config.filter, score=dataclasses.replace(config.filter.score, crop_seconds=0.5))
    networks = dataclasses.replace(config.networks, codec=network)
    return dataclasses.replace(config, audio=Audio(RATE, 0.5), networks=networks, filter=crops)


def test_the_stage_trains_a_codec_and_reports_it_and_loads_it_as_weights(project, tmp_path):
    from siren.stages import pipeline

    pipeline.codec(project)
    codec = codecs.load(tmp_path / "models/codec")
    report = json.loads((tmp_path / "reports/networks/codec.json").read_text())
    assert report["mel_distance"] < report["untrained"]["mel_distance"]
    assert set(report) == {"mel_distance", "si_sdr", "perplexity", "untrained"}
    assert not list((tmp_path / ".siren/checkpoints/codec").glob("step-*"))

    weights = tmp_path / "weights"
    (tmp_path / "models/codec").rename(weights)
    network = dataclasses.replace(project.networks.codec, weights="weights", training=None)
    pipeline.codec(dataclasses.replace(project, networks=dataclasses.replace(project.networks, codec=network)))
    assert codecs.load(tmp_path / "models/codec").fingerprint() == codec.fingerprint()
    assert json.loads((tmp_path / "reports/networks/codec.json").read_text()) == report
    sidecar = json.loads((tmp_path / "models/codec/config.json").read_text())
    assert sidecar["extra"]["recipe"]["steps"] == 20


def test_a_loss_that_is_not_finite_stops_it_and_names_the_last_good_checkpoint(tmp_path):
    codec, place = make(), Checkpoint(tmp_path, "same")

    def poison(step, metrics):
        if step == 8:
            with torch.no_grad():
                next(codec.parameters()).fill_(float("inf"))

    settings = dataclasses.replace(TRAINING, steps=20, log_every=1, checkpoint_every=5)
    with pytest.raises(
        FloatingPointError, match=r"codec: the loss is nan at step 8, .* is .*step-00000005.safetensors"
    ):
        train_codec(codec, tones(8), settings, 0, poison, checkpoint=place, recipe=RECIPE)
