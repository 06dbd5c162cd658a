"""What is said of clips, on logits small enough to read, and the whole evaluation on networks small enough to know."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from siren.config import Evaluation as Settings
from siren.evaluate import judging, metrics
from siren.evaluate.evaluate import evaluate
from siren.networks.judge import Cnn14Output
from siren.networks.store import published_name

NAMES = ["bell", "dog", "rain", "siren"]


def test_an_event_is_named_where_its_logit_is_highest() -> None:
    logits = np.array([[2.0, 1, 0, 0], [-5, -4, -9, -9], [0, 0, 1, 3]])
    assert judging.named(logits, np.array([0, 1, 2])).tolist() == [True, True, False]


def test_both_heard_asks_for_probabilities_and_both_top_two_for_ranks() -> None:
    events = np.array([[0, 2]] * 4)
    logits = np.array([[1.0, -1, 1, -1], [1, 3, 2, -1], [-1, -2, -1, -3], [0, -1, 0, -1]])
    assert judging.both_heard(logits, events).tolist() == [True, True, False, True]
    assert judging.both_top_two(logits, events).tolist() == [True, False, True, True]
    assert judging.both_top_two(logits, events[:, ::-1]).tolist() == [True, False, True, True]


def test_order_asks_both_events_to_be_likelier_in_their_own_half() -> None:
    first = np.array([[2.0, -2, 0, 0], [-2, 2, 0, 0], [2, -2, 0, 0], [1, 0, 0, 0]])
    second = np.array([[-2.0, 2, 0, 0], [2, -2, 0, 0], [3, 2, 0, 0], [1, 1, 0, 0]])
    assert judging.in_order(first, second, np.array([[0, 1]] * 4)).tolist() == [True, False, False, False]
    assert judging.in_order(first, second, np.array([[1, 0]] * 4)).tolist() == [False, True, False, False]


def test_confusions_count_what_was_named_and_silence_apart() -> None:
    logits = np.eye(4)[[0, 0, 1, 3, 3]]
    table = judging.confusions(logits, np.array([0, 0, 0, 3, 3]), NAMES, np.array([False] * 4 + [True]))
    assert table == {"bell": {"bell": 2, "dog": 1}, "siren": {"siren": 1, "silence": 1}}
    assert list(table["bell"]) == ["bell", "dog"], "the most frequent first"


def test_prompts_with_an_event_the_judge_lacks_are_told_apart() -> None:
    prompts = [["dog"], ["Rain", "bell"], ["cat"], ["dog", "cat"], []]
    assert judging.positions(prompts, NAMES) == [[1], [2, 0], None, None, None]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), ones=st.integers(2, 30), twos=st.integers(0, 12))
def test_a_deranged_prompt_shares_no_event_with_the_clip_it_gets(seed: int, ones: int, twos: int) -> None:
    prompts = [[NAMES[i % 4]] for i in range(ones)]
    prompts += [list(pair) for pair in [("bell", "dog"), ("rain", "siren")] * twos]
    order = judging.derange(prompts, seed)
    assert sorted(order) == list(range(len(prompts)))
    for prompt, given_clip in zip(prompts, order, strict=True):
        assert set(prompt).isdisjoint(prompts[given_clip])
        assert len(prompt) == len(prompts[given_clip])
    assert np.array_equal(order, judging.derange(prompts, seed))


def test_a_single_event_cannot_be_deranged() -> None:
    with pytest.raises(ValueError, match="at least two events"):
        judging.derange([["dog"], ["dog"], ["dog"]], seed=0)


# Four tones stand for four events; every toy network measures their power in the Fourier transform.
TONES = np.array([400, 900, 1700, 3000])
SAMPLES = 1600


def power(wav: Tensor) -> Tensor:
    """[B, S] → [B, 4], 1 for a tone at amplitude 0.5 over the whole clip."""
    spectrum = torch.fft.rfft(wav.float()).abs() / wav.shape[1] * 4
    bins = torch.from_numpy(np.round(TONES * wav.shape[1] / 16000).astype(int))
    return spectrum[:, bins]


class ToyCnn14:
    name, sample_rate, labels = "cnn14-toy", 16000, NAMES

    def __call__(self, wav: Tensor) -> Cnn14Output:
        return Cnn14Output(torch.cat([power(wav), power(wav).square()], 1), 20 * (power(wav) - 0.25))

    def logits(self, wav: Tensor) -> Tensor:
        return self(wav).logits


class ToyVggish:
    name, sample_rate = "vggish-toy", 16000

    def __call__(self, wav: Tensor) -> Tensor:
        return torch.stack([power(wav[:, :800]), power(wav[:, 800:])], 1)


class ToyClap:
    """Knows the events by name and by tone."""

    sample_rate = 16000

    def __init__(self, name: str) -> None:
        self.name = name

    def embed_text(self, captions: list[str]) -> Tensor:
        return torch.nn.functional.normalize(torch.tensor([[float(n in c) for n in NAMES] for c in captions]), dim=1)

    def embed_audio(self, wav: Tensor) -> Tensor:
        return torch.nn.functional.normalize(power(wav) + 1e-4, dim=1)


def clip(labels: list[str], relation: str, generator: np.random.Generator) -> np.ndarray:
    t = np.arange(SAMPLES) / 16000
    tones = [0.5 * generator.uniform(0.8, 1) * np.sin(2 * np.pi * TONES[NAMES.index(x)] * t) for x in labels]
    wav = sum(tones) if relation != "then" else np.concatenate([2 * tones[0][:800], 2 * tones[1][800:]])
    return (wav + 0.002 * generator.standard_normal(SAMPLES)).astype(np.float32)


PROMPTS: list[dict[str, Any]] = [
    {"id": f"one-{i}", "caption": f"a {NAMES[i % 4]}", "labels": [NAMES[i % 4]], "relation": "one"} for i in range(24)
] + [
    {"id": f"two-{i}", "caption": f"{a} {relation} {b}", "labels": [a, b], "relation": relation}
    for i, (a, b, relation) in enumerate(
        [("bell", "dog", "while"), ("rain", "siren", "then"), ("siren", "rain", "while"), ("dog", "bell", "then")] * 2
    )
]
SETTINGS = Settings(batch_size=7, bootstrap=100, is_splits=2)


def run(arms: dict[str, np.ndarray], **more: Any) -> Any:
    judges = {"cnn14": ToyCnn14(), "vggish": ToyVggish()}
    return evaluate(arms, PROMPTS, perfect(1), judges, ToyClap("clap-toy"), ToyClap("ib-toy"), SETTINGS, 0, **more)


def perfect(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([clip(p["labels"], p["relation"], generator) for p in PROMPTS])


def noise(seed: int) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal((len(PROMPTS), SAMPLES))).astype(np.float32)


@pytest.fixture(scope="module")
def found() -> Any:
    stage1 = perfect(2)
    stage1[:6] = noise(4)[:6]  # six of the one-event clips are noise
    return run({"untrained": noise(3), "stage1": stage1, "aligned": perfect(5), "codec": perfect(1)})


def value(found: Any, arm: str, metric: str) -> float:
    return found.metrics["arms"][arm][metric]["value"]


def test_perfect_clips_are_heard_rightly_and_noise_is_not(found: Any) -> None:
    for metric in ("event_accuracy", "both_heard", "both_top_two", "order", "order_all"):
        assert value(found, "aligned", metric) == 1.0, metric
    assert value(found, "stage1", "event_accuracy") < 0.95
    assert value(found, "untrained", "event_accuracy") < 0.7
    assert value(found, "untrained", "both_heard") < 0.3


def test_distances_fall_from_noise_to_perfect_and_vanish_for_the_reference_itself(found: Any) -> None:
    for metric in ("fd@cnn14-toy", "fad@vggish-toy", "fd_per_event@cnn14-toy", "fad_per_event@vggish-toy"):
        figures = [value(found, arm, metric) for arm in ("untrained", "stage1", "aligned", "codec")]
        assert figures == sorted(figures, reverse=True), metric
        assert figures[-1] == pytest.approx(0, abs=1e-6)
    assert value(found, "codec", "kl@cnn14-toy") == pytest.approx(0, abs=1e-4)


def test_the_shuffled_control_follows_no_prompt_and_only_paired_or_per_event_figures_see_it(found: Any) -> None:
    arm = found.metrics["arms"]["shuffled"]
    assert arm["event_accuracy"]["value"] == 0.0
    assert arm["clap@clap-toy"]["value"] < value(found, "aligned", "clap@clap-toy") - 0.5
    assert arm["fd_per_event@cnn14-toy"]["value"] > 10 * value(found, "aligned", "fd_per_event@cnn14-toy")
    assert "fd@cnn14-toy" not in arm
    assert any("shuffled: the clips of aligned" in note for note in found.metrics["notes"])


def test_real_clips_are_scored_as_the_ceiling(found: Any) -> None:
    real = found.metrics["arms"]["real"]
    assert real["event_accuracy"]["value"] == 1.0
    assert real["imagebind@ib-toy"]["value"] > 0.99
    assert "fd@cnn14-toy" not in real
    assert "kl@cnn14-toy" not in real


def test_differences_are_paired_by_prompt(found: Any) -> None:
    gain = found.metrics["differences"]["aligned-stage1"]
    assert gain["event_accuracy"]["excludes_zero"]
    accuracy = value(found, "aligned", "event_accuracy") - value(found, "stage1", "event_accuracy")
    assert gain["event_accuracy"]["value"] == pytest.approx(accuracy)
    assert gain["event_accuracy"]["count"] == 24
    assert gain["imagebind@ib-toy"]["low"] > 0
    assert set(found.metrics["differences"]) == {
        "aligned-stage1",
        "stage1-untrained",
        "aligned-shuffled",
        "stage1-shuffled",
    }


def test_there_is_one_row_for_every_arm_and_prompt(found: Any) -> None:
    arms = ["real", "untrained", "stage1", "aligned", "codec", "shuffled"]
    assert [(r["arm"], r["id"]) for r in found.clips] == [(a, p["id"]) for a in arms for p in PROMPTS]
    row = next(r for r in found.clips if (r["arm"], r["id"]) == ("aligned", "two-1"))
    assert row["labels"] == ["rain", "siren"]
    assert row["both_heard"] == row["order"] == 1.0
    assert row["event_accuracy"] is None
    assert row["probabilities"]["rain"] > 0.5
    assert found.metrics["prompts"] == {"all": 32, "one_event": 24, "two_events": 8, "then": 4, "not_judged": 0}


def test_everything_is_plain_data_and_the_same_again(found: Any) -> None:
    text = json.dumps([found.metrics, found.clips], allow_nan=False)
    stage1 = perfect(2)
    stage1[:6] = noise(4)[:6]
    again = run({"untrained": noise(3), "stage1": stage1, "aligned": perfect(5), "codec": perfect(1)})
    assert json.dumps([again.metrics, again.clips], allow_nan=False) == text


def test_event_tables_count_confusions(found: Any) -> None:
    table = found.metrics["events"]["aligned"]
    assert table == {name: {"clips": 6, "accuracy": 1.0, "named": {name: 6}} for name in NAMES}
    assert sum(sum(e["named"].values()) for e in found.metrics["events"]["stage1"].values()) == 24


def test_inception_score_has_an_interval_and_keeps_its_value(found: Any) -> None:
    logits = np.asarray(ToyCnn14()(torch.from_numpy(perfect(5))).logits, np.float64)
    entry = found.metrics["arms"]["aligned"]["is@cnn14-toy"]
    expected = metrics.inception_score(logits, SETTINGS.is_splits)
    assert (entry["value"], entry["std"]) == (
        pytest.approx(expected.mean, abs=1e-6),
        pytest.approx(expected.std, abs=1e-6),
    )
    assert 1 <= entry["low"] < entry["high"]
    assert (entry["count"], entry["splits"]) == (32, expected.splits)


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("laion/clap-htsat-unfused", "laion/clap-htsat-unfused"),
        ("someone/clap-v1.5", "someone/clap-v1.5"),
        ("weights/published/imagebind_huge.pth", "imagebind_huge"),
        ("music_speech_audioset_epoch_15_esc_89.98.pt", "music_speech_audioset_epoch_15_esc_89.98"),
    ],
)
def test_a_network_is_called_after_its_published_weights_in_full(weights: str, name: str) -> None:
    assert published_name(weights) == name


def test_silent_clips_are_flagged_and_name_nothing() -> None:
    clips = perfect(2)
    clips[0] = 0  # argmax would name "bell", which is its prompt
    found = run({"stage1": clips})
    assert found.metrics["arms"]["stage1"]["silent_clips"] == 1
    assert found.metrics["events"]["stage1"]["bell"] == {
        "clips": 6,
        "accuracy": 0.833333,
        "named": {"bell": 5, "silence": 1},
    }
    row = next(r for r in found.clips if (r["arm"], r["id"]) == ("stage1", "one-0"))
    assert (row["silent"], row["named"], row["event_accuracy"]) == (True, None, 0.0)


def test_prompts_that_the_judge_cannot_judge_are_counted_and_scored_otherwise() -> None:
    prompts = [dict(p) for p in PROMPTS]
    prompts[0]["labels"], prompts[1]["labels"], prompts[1]["relation"] = ["cat"], [], None
    judges = {"cnn14": ToyCnn14(), "vggish": ToyVggish()}
    found = evaluate({"stage1": perfect(2)}, prompts, perfect(1), judges, ToyClap("c"), ToyClap("i"), SETTINGS, 0)
    assert found.metrics["prompts"]["not_judged"] == 2
    assert found.metrics["arms"]["stage1"]["event_accuracy"]["count"] == 22
    assert found.metrics["arms"]["stage1"]["clap@c"]["count"] == 32
    assert any("no fd_per_event" in note for note in found.metrics["notes"]), "one prompt alone has a cat"


def test_a_network_at_another_rate_gets_resampled_clips() -> None:
    doubled = np.repeat(perfect(2), 2, axis=1)  # the same sound, as if recorded at 32 kHz
    judges = {"cnn14": ToyCnn14(), "vggish": ToyVggish()}
    found = evaluate(
        {"stage1": doubled},
        PROMPTS,
        np.repeat(perfect(1), 2, axis=1),
        judges,
        ToyClap("c"),
        ToyClap("i"),
        SETTINGS,
        0,
        sample_rate=32000,
        names={"clap": "clap-x"},
    )
    assert found.metrics["arms"]["stage1"]["event_accuracy"]["value"] == 1.0
    assert found.metrics["networks"] == {
        "cnn14": "cnn14-toy",
        "vggish": "vggish-toy",
        "clap": "clap-x",
        "imagebind": "i",
    }


def test_missing_or_broken_clips_are_errors() -> None:
    with pytest.raises(ValueError, match=r"arm 'stage1' holds clips of shape \(31, 1600\); 32 prompts"):
        run({"stage1": perfect(2)[:-1]})
    clips = perfect(2)
    clips[3, 5] = np.nan
    with pytest.raises(ValueError, match="'stage1' has NaN or infinite samples in the clip of prompt 'one-3'"):
        run({"stage1": clips})
    with pytest.raises(ValueError, match="'real' is no name for an arm"):
        run({"real": perfect(2)})
    with pytest.raises(ValueError, match="no test prompts"):
        evaluate({}, [], perfect(1), {"cnn14": ToyCnn14()}, None, None, SETTINGS, 0)
