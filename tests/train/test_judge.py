"""A judge is trained on clips that are heard differently every time, learns them, and is trained the same again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from siren.config import Network, Training
from siren.networks import judge as judges
from siren.train.judge import augment, clip_logits, multi_hot, quality, train_judge
from siren.train.loop import Checkpoint
from tests.train import killing

NAMES = ["high", "low", "noise"]
SETTINGS = Training(
    steps=50,
    batch_size=16,
    learning_rate=4e-3,
    warmup_steps=5,
    final_lr_ratio=0.1,
    weight_decay=0.01,
    clip_norm=1.0,
    log_every=10,
    checkpoint_every=100,
)
ARCHITECTURES = {
    "cnn14": {"width": 1 / 32, "dropout": 0.0, "head_dropout": 0.0},
    "vggish": {"width": 1 / 32, "hidden": 32},
}


def corpus(count: int, seed: int, samples: int = 8000) -> tuple[np.ndarray, list[list[str]]]:
    """Tones and noise, alone or two together. int16 [N, S] and labels."""
    generator = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    wavs, labels = [], []
    for _ in range(count):
        sounds = {
            "high": 0.3 * np.sin(2 * np.pi * generator.uniform(2500, 3500) * t),
            "low": 0.3 * np.sin(2 * np.pi * generator.uniform(200, 400) * t),
            "noise": 0.1 * generator.standard_normal(samples),
        }
        chosen = [str(name) for name in generator.permutation(NAMES)[: 1 + (generator.random() < 0.4)]]
        wavs.append(32767 * np.clip(sum(sounds[name] for name in chosen), -1, 1))
        labels.append(chosen)
    return np.stack(wavs).astype(np.int16), labels


def build(kind: str, seed: int = 0) -> judges.Judge:
    return judges.build(Network(kind, None, ARCHITECTURES[kind], SETTINGS), NAMES, seed)


def trained(kind: str, steps: int, seed: int = 0) -> tuple[judges.Judge, list[dict[str, float]]]:
    judge, logged = build(kind), []
    wavs, labels = corpus(200, seed=1)
    settings = Training(**{**vars(SETTINGS), "steps": steps})
    train_judge(judge, wavs, labels, settings, seed, lambda step, metrics: logged.append({"step": step, **metrics}))
    return judge, logged


@pytest.mark.parametrize("kind", ["cnn14", "vggish"])
def test_a_judge_learns_to_hear_one_event_and_both_of_two(kind: str) -> None:
    judge, logged = trained(kind, steps=50)
    assert [row["step"] for row in logged] == [10, 20, 30, 40, 50]
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert not judge.training
    found = quality(judge, *corpus(60, seed=2))
    assert found["one_event_accuracy"] >= 0.95
    assert found["both_top_two"] >= 0.8
    assert found["one_event_clips"] + found["two_event_clips"] == 60


@pytest.mark.parametrize("kind", ["cnn14", "vggish"])
def test_the_same_seed_gives_the_same_bytes(kind: str) -> None:
    first, second, other = (trained(kind, steps=6, seed=seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", ["cnn14", "vggish"])
def test_a_training_that_was_killed_ends_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    settings = Training(**{**vars(SETTINGS), "steps": 8, "log_every": 1, "checkpoint_every": 3})
    wavs, labels = corpus(60, seed=1)
    whole, killed = build(kind), build(kind)
    train_judge(whole, wavs, labels, settings, 0, lambda *_: None)
    with pytest.raises(killing.Killed):
        train_judge(killed, wavs, labels, settings, 0, killing.at(5), checkpoint=Checkpoint(tmp_path, "a"))
    steps = []
    again = build(kind, seed=9)
    train_judge(again, wavs, labels, settings, 0, lambda s, _: steps.append(s), checkpoint=Checkpoint(tmp_path, "a"))
    assert steps == [4, 5, 6, 7, 8]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_training_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    trained("cnn14", steps=6)
    assert torch.equal(before, torch.get_rng_state())


def test_the_head_trains_the_embedding_and_is_no_part_of_it() -> None:
    judge, _ = trained("vggish", steps=6)
    assert not torch.equal(judge.embeddings[4].weight, build("vggish").embeddings[4].weight)
    assert judge(torch.zeros(1, 16000)).shape[-1] == 128


def test_mixing_joins_labels_of_one_event_clips_only() -> None:
    target = torch.tensor([[[1.0, 0, 0]] * 400 + [[1.0, 1, 0]] * 100, [[0.0, 0, 1]] * 500])
    wav = torch.ones(2, 500, 320)
    mixed, joined = augment(wav, target, torch.Generator().manual_seed(0))
    assert mixed.shape == (500, 320)
    assert torch.isfinite(mixed).all()
    share = (joined[:400].sum(1) == 2).float().mean()
    assert 0.4 < share < 0.6
    assert torch.equal(joined[400:], target[0, 400:]), "a clip of two events is not mixed with a third"
    assert torch.equal(joined[:, :2], target[0, :, :2]), "a clip keeps its own labels"


def test_augmentation_follows_from_its_generator_and_differs_between_clips() -> None:
    wav = torch.randn(2, 4, 1000, generator=torch.Generator().manual_seed(1)).mul(0.1)
    wav = wav[:, :1].expand(2, 4, 1000)
    target = torch.eye(2)[:, None].expand(2, 4, 2)
    one, two = (augment(wav, target, torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.allclose(one[0], one[1])


def test_silent_clips_stay_finite() -> None:
    wav, target = augment(torch.zeros(2, 3, 500), torch.ones(2, 3, 1), torch.Generator().manual_seed(0))
    assert torch.isfinite(wav).all()
    assert torch.equal(target, torch.ones(3, 1))


def test_clips_without_labels_are_not_trained_on() -> None:
    wavs, labels = corpus(40, seed=1)
    junk = np.concatenate([wavs, np.full((5, 8000), 30000, np.int16)])
    judge = build("cnn14")
    train_judge(judge, junk, [*labels, *([[]] * 5)], Training(**{**vars(SETTINGS), "steps": 6}), 0, lambda *_: None)
    same = build("cnn14")
    train_judge(same, wavs, labels, Training(**{**vars(SETTINGS), "steps": 6}), 0, lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(judge.parameters(), same.parameters(), strict=True))
    with pytest.raises(ValueError, match="no clip has a label"):
        train_judge(judge, wavs, [[]] * 40, SETTINGS, 0, lambda *_: None)


def test_a_label_the_judge_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="clip 1 is labelled 'cat'"):
        multi_hot([["low"], ["cat"]], NAMES)
    assert multi_hot([["low", "high"], []], NAMES).tolist() == [[1, 1, 0], [0, 0, 0]]


class Table(torch.nn.Module):
    """A judge whose logits are read off the first samples of a clip."""

    labels, name = NAMES, "table"

    def logits(self, wav: torch.Tensor) -> torch.Tensor:
        return torch.round(wav[:, :3] * 32767)


def test_quality_worked_out_by_hand() -> None:
    wavs = np.array(
        [[5, -1, -1], [5, 1, -1], [-3, -2, -9], [2, 2, -1], [2, -1, 1], [-1, 9, 1], [9, 9, 9]], np.int16
    )  # logits of high, low, noise
    labels = [["high"], ["high"], ["high"], ["high", "low"], ["high", "low"], [], ["cat"]]
    assert quality(Table(), wavs, labels) == {
        "one_event_clips": 3,
        "one_event_accuracy": pytest.approx(2 / 3, abs=1e-6),  # the third names "low"
        "two_event_clips": 2,
        "both_heard": 0.5,
        "both_top_two": 0.5,
        "intruders": pytest.approx(2 / 5),  # "low" in the second clip, "noise" in the fifth
        "unknown_clips": 2,
        "accuracy_high": pytest.approx(2 / 3, abs=1e-6),
    }


def test_no_clips_have_no_quality() -> None:
    headless = judges.build(Network("vggish", None, ARCHITECTURES["vggish"], SETTINGS), [], seed=0)
    for found in (
        quality(Table(), np.zeros((0, 100), np.int16), []),
        quality(headless, np.zeros((2, 100), np.int16), [["high"], ["low"]]),
    ):
        assert (found["one_event_accuracy"], found["both_heard"], found["one_event_clips"]) == (None, None, 0)


def test_logits_come_in_the_order_of_the_clips_whatever_the_batch() -> None:
    wavs = np.arange(30, dtype=np.int16).reshape(10, 3)
    assert np.array_equal(clip_logits(Table(), wavs, batch_size=4), wavs)


def test_a_loss_that_is_not_finite_stops_it_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    judge, place = build("cnn14"), Checkpoint(tmp_path, "same")

    def poison(step: int, metrics: dict[str, float]) -> None:
        if step == 4:
            with torch.no_grad():
                next(judge.parameters()).fill_(float("inf"))

    settings = Training(**{**vars(SETTINGS), "steps": 8, "log_every": 1, "checkpoint_every": 3})
    with pytest.raises(FloatingPointError, match=r"cnn14: the loss is nan at step 4, .*step-00000003.safetensors"):
        train_judge(judge, *corpus(20, seed=1), settings, 0, poison, checkpoint=place)
