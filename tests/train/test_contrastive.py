"""Contrastive training: its loss worked out by hand, what a batch holds, that it learns, repeats and resumes."""

import math

import numpy as np
import pytest
import torch

from siren.config import Network, Training
from siren.networks import clap as claps
from siren.networks import imagebind
from siren.train.contrastive import (
    TEXT_FIRST,
    WITHIN,
    Pool,
    augment,
    contrastive_loss,
    meaning,
    perturb,
    train_contrastive,
)
from siren.train.loop import Checkpoint
from siren.train.retrieval import by_meaning, quality
from tests.train import killing

CLAP = {"spec_size": 64, "mel_bands": 32, "patch": 8, "width": 16, "depths": [1], "heads": [2], "max_seconds": 0.4}
CLAP |= {"text_width": 32, "text_layers": 1, "text_ffn": 64, "embed_dim": 32, "n_fft": 512}
IMAGEBIND = {"audio_width": 32, "audio_layers": 1, "audio_stride": 16, "target_frames": 38, "window_seconds": 0.4}
IMAGEBIND |= {"text_width": 32, "text_layers": 1, "embed_dim": 32, "context_length": 24}
TONES = {"low": 300.0, "middle": 900.0, "high": 2700.0}
SAMPLES = 6400


def tone(name: str, samples: int, random: np.random.Generator) -> np.ndarray:
    phase = random.uniform(0, 2 * np.pi)
    return np.sin(2 * np.pi * TONES[name] * np.arange(samples) / 16000 + phase) * random.uniform(0.1, 0.5)


def corpus(count: int = 60) -> tuple[np.ndarray, list[list[str]], list[list[str]], list[str | None]]:
    random = np.random.default_rng(0)
    wavs, captions, labels, relations = [], [], [], []
    for index in range(count):
        names = list(random.permutation(list(TONES))[:2]) if index % 2 else [list(TONES)[index // 2 % 3]]
        names = [str(name) for name in names]
        if len(names) == 1:
            wav, caption = tone(names[0], SAMPLES, random), [f"a {names[0]} tone", f"{names[0]} sound"]
        else:
            wav = np.concatenate([tone(name, SAMPLES // 2, random) for name in names])
            caption = [f"a {names[0]} tone then a {names[1]} tone"]
        wavs.append(np.round(wav * 32767).astype(np.int16))
        captions.append(caption)
        labels.append(names)
        relations.append("then" if len(names) == 2 else "one")
    return np.stack(wavs), captions, labels, relations


def build(kind: str, seed: int = 0, **other):
    torch.manual_seed(seed)
    words = [wording for wordings in corpus()[1] for wording in wordings]
    if kind == "clap":
        return claps.build(Network("transformers", "unused", CLAP | other, None), words, 16000)
    return imagebind.build(Network("imagebind", "unused", IMAGEBIND, None), words, 16000)


def settings(steps: int, **changes) -> Training:
    values = {"steps": steps, "batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 2, "final_lr_ratio": 0.1}
    values |= {"weight_decay": 0.01, "clip_norm": 1.0, "log_every": 5, "checkpoint_every": 4}
    return Training(**(values | changes))


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_loss_is_the_one_worked_out_by_hand() -> None:
    """Two rows that mean the same and one that does not, at right angles, scale 1.

    Between: row a has logits (1, 1, 0), target (1/2, 1/2, 0): -(1/2 + 1/2) + ln(2e + 1) = ln(2e + 1) - 1. Row c has
    logits (0, 0, 1), target its own: ln(2 + e) - 1. Inside, without itself: row a has logits (1, 0), target (1, 0):
    ln(e + 1) - 1; row c has no right answer and is left out.
    """
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    loss, hit = contrastive_loss(points, points, torch.tensor(1.0), same)
    between = (2 * (math.log(2 * math.e + 1) - 1) + math.log(2 + math.e) - 1) / 3
    within = math.log(math.e + 1) - 1
    assert loss.item() == pytest.approx(between + WITHIN * within, abs=1e-6)
    assert hit.item() == 1.0


def test_a_batch_where_nothing_means_the_same_has_a_finite_loss_and_gradient() -> None:
    text = torch.randn(4, 3, requires_grad=True)
    loss, _ = contrastive_loss(text, torch.randn(4, 3), torch.tensor(10.0), torch.eye(4, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss)
    assert text.grad is not None
    assert torch.isfinite(text.grad).all()


def test_order_matters_only_for_then() -> None:
    assert meaning(["dog", "rain"], "while") == meaning(["rain", "dog"], "while")
    assert meaning(["dog", "rain"], "then") != meaning(["rain", "dog"], "then")
    assert meaning(["dog", "rain"], "then") != meaning(["dog", "rain"], "while")


def test_a_batch_brings_hard_negatives_of_its_two_event_clips() -> None:
    _, captions, labels, relations = corpus()
    pool = Pool(captions, labels, relations)
    rows = pool.batch(32, np.random.default_rng(0))
    assert len(rows) == 32
    keys = {pool.keys[row] for row in rows}
    both = [key for key in keys if len(key[1]) == 2 and ("then", key[1][::-1]) in keys]
    assert len(both) >= 4


def test_a_paraphrase_keeps_the_meaning() -> None:
    _, captions, labels, relations = corpus()
    pool, random = Pool(captions, labels, relations), np.random.default_rng(0)
    found = {pool.caption(0, random) for _ in range(50)}
    assert found == {"a low tone", "low sound"}


def test_words_are_disturbed_but_rarely_lost() -> None:
    random = np.random.default_rng(0)
    texts = [perturb("a dog barks then rain falls", random) for _ in range(300)]
    kept = np.mean([" then " in f" {text} " for text in texts])
    assert 0.85 < kept < 1
    assert 0.2 < np.mean([text == "a dog barks then rain falls" for text in texts]) < 0.6
    assert all(texts)


def test_augmentation_never_breaks_an_order() -> None:
    wav = np.zeros((2, SAMPLES), np.int16)
    wav[:, :100] = 20000  # a click at the beginning
    for seed in range(20):
        ordered, free = augment(wav, ["then", "one"], np.random.default_rng(seed))
        assert ordered.shape == free.shape == (SAMPLES,)
        assert ordered[SAMPLES // 5 :].abs().max() < 0.1
    assert len({int(augment(wav, ["one", "one"], np.random.default_rng(s))[1].argmax()) // 500 for s in range(20)}) > 5


@pytest.mark.parametrize("kind", ["clap", "imagebind"])
def test_it_learns_a_tiny_corpus(kind: str) -> None:
    wavs, captions, labels, relations = corpus()
    model, points = build(kind), []
    before = quality(model.eval(), wavs, [c[0] for c in captions], labels, relations)
    train_contrastive(
        model, wavs, captions, labels, relations, settings(150), 0, lambda step, values: points.append((step, values))
    )
    assert not model.training
    after = quality(model, wavs, [c[0] for c in captions], labels, relations)
    with_sound = [values["loss"] for _, values in points if "loss" in values]
    assert points[-1][0] == 150 * (1 + TEXT_FIRST) - 1
    assert with_sound[-1] < 0.7 * with_sound[0]
    assert after["zero_shot_accuracy"] > max(0.9, before["zero_shot_accuracy"])
    assert after["prompt_accuracy"] > 0.9
    assert after["text_to_audio_r1"] > 0.6


@pytest.mark.slow
def test_captions_that_differ_in_order_only_are_told_apart() -> None:
    model = build("clap", text_layers=2)
    train_contrastive(model, *corpus(), settings(300), 0, lambda *_: None)
    pairs = [("low", "high"), ("middle", "low"), ("high", "middle")]
    ordered, reverse = (
        model.embed_text([f"a {pair[a]} tone then a {pair[b]} tone" for pair in pairs]) for a, b in ((0, 1), (1, 0))
    )
    assert (ordered * reverse).sum(1).max() < 0.7


@pytest.mark.parametrize("kind", ["clap", "imagebind"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(kind: str) -> None:
    data, weights = corpus(), []
    for seed in (0, 0, 1):
        model = build(kind)
        train_contrastive(model, *data, settings(4), seed, lambda *_: None)
        weights.append(state(model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.parametrize("killed", [5, TEXT_FIRST * 8 + 2])  # on captions alone, and with sound
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, killed) -> None:
    data = corpus()
    whole, resumed = build("clap"), build("clap")
    train_contrastive(whole, *data, settings(8), 0, lambda *_: None)
    with pytest.raises(killing.Killed):
        train_contrastive(resumed, *data, settings(8), 0, killing.at(killed), checkpoint=Checkpoint(tmp_path, "same"))
    steps: list[int] = []
    fresh = build("clap", seed=5)
    checkpoint = Checkpoint(tmp_path, "same")
    train_contrastive(fresh, *data, settings(8), 0, lambda step, _: steps.append(step), checkpoint=checkpoint)
    assert steps[0] == killed  # from the step before, where the checkpoint was
    there = state(whole)
    assert all(torch.equal(there[name], tensor) for name, tensor in state(fresh).items())


def test_the_global_generator_is_left_alone() -> None:
    model = build("clap")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train_contrastive(model, *corpus(), settings(3), 0, lambda *_: None)
    assert torch.equal(torch.rand(1), expected)


def test_bad_corpora_are_refused() -> None:
    wavs, captions, labels, relations = corpus(6)
    model = build("clap")
    with pytest.raises(ValueError, match="5 waveforms and 6"):
        train_contrastive(model, wavs[:5], captions, labels, relations, settings(3), 0, lambda *_: None)
    with pytest.raises(ValueError, match="clip 2 has no caption"):
        Pool([*captions[:2], [], *captions[3:]], labels, relations)
    with pytest.raises(ValueError, match="equally many"):
        Pool(captions[:3], labels, relations)


class Known:
    """A model that hears perfectly: its embeddings are given."""

    def __init__(self, text: dict[str, torch.Tensor], audio: torch.Tensor) -> None:
        self.text, self.audio, self.logit_scale = text, audio, torch.tensor(1.0)

    def embed_text(self, captions: list[str]) -> torch.Tensor:
        return torch.stack([self.text[caption] for caption in captions])

    def embed_audio(self, wav: torch.Tensor) -> torch.Tensor:
        return self.audio[(wav[:, 0] * 32767).round().long()]


def test_the_figures_are_those_counted_by_hand() -> None:
    """Four clips on four axes; the captions of the last two are swapped, so order is wrong and the rest is right."""
    axes = torch.eye(4)
    captions = ["dog", "rain", "dog then rain", "rain then dog"]
    text = dict(zip(captions, axes[[0, 1, 3, 2]], strict=True))
    labels, relations = [["dog"], ["rain"], ["dog", "rain"], ["rain", "dog"]], ["one", "one", "then", "then"]
    wavs = np.arange(4, dtype=np.int16)[:, None]
    figures = quality(Known(text, axes), wavs, captions, labels, relations)
    assert figures["clips"] == 4
    assert figures["text_to_audio_r1"] == figures["audio_to_text_r1"] == 0.5
    assert figures["text_to_audio_r10"] == 1
    assert figures["zero_shot_accuracy"] == figures["prompt_accuracy"] == 1
    assert figures["order_accuracy"] == 0
    assert figures["order_pairs"] == 2
    assert "relation_accuracy" not in figures


def test_a_clip_of_the_same_meaning_counts_as_found() -> None:
    axes = torch.eye(2)
    wavs = np.arange(2, dtype=np.int16)[:, None]
    swapped = Known({"a dog": axes[1], "dog barks": axes[0]}, axes)
    figures = quality(swapped, wavs, ["a dog", "dog barks"], [["dog"], ["dog"]], ["one", "one"])
    assert figures["text_to_audio_r1"] == 1
    assert "zero_shot_accuracy" not in figures  # one event: nothing to choose from


def test_wordings_are_gathered_by_meaning() -> None:
    found = by_meaning([["a"], ["b", "c"], ["d"]], [["x", "y"], ["y", "x"], ["y", "x"]], ["while", "while", "then"])
    assert found == {("while", ("x", "y")): ["a", "b", "c"], ("then", ("y", "x")): ["d"]}


def test_a_loss_that_is_not_finite_stops_it_and_names_the_last_good_checkpoint(tmp_path) -> None:
    model, place = build("clap"), Checkpoint(tmp_path, "same")

    def poison(step: int, values: dict[str, float]) -> None:
        if step == 5:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match=r"contrastive: the loss is nan at step 6, .*step-00000004.safe"):
        train_contrastive(model, *corpus(), settings(8, log_every=1), 0, poison, checkpoint=place)
