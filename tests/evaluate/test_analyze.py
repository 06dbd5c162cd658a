"""The properties of residual codes: known geometry in, known cosines, usage and probes out."""

import numpy as np
import pytest

from siren.evaluate import analyze, paper, probes
from siren.evaluate.analyze import Clips


def clips(codes: np.ndarray, labels: list[str | None] | None = None, num_frames: np.ndarray | None = None) -> Clips:
    count, _, frames = codes.shape
    return Clips(codes, np.full(count, frames) if num_frames is None else num_frames, labels or [None] * count)


def test_cosines_of_three_codebooks_with_known_angles() -> None:
    # One code each: along x, along x + y (45 degrees), along -x: cosines 0.7071, -1, -0.7071.
    latents = np.array([[[1.0, 0]], [[2.0, 2.0]], [[-3.0, 0]]])
    measured = analyze.frame_cosines(latents, clips(np.zeros((2, 3, 4), int)))
    root = 2**-0.5
    np.testing.assert_allclose(measured["pairs"], [[1, root, -1], [root, 1, -root], [-1, -root, 1]], atol=1e-12)
    assert measured["intervals"]["1"]["mean"] == pytest.approx(0)  # of 0.7071 and -0.7071
    assert measured["intervals"]["2"]["mean"] == pytest.approx(-1)


def test_cosines_follow_the_codes_of_each_frame() -> None:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(3, 7, 5))
    codes = rng.integers(0, 7, (4, 3, 6))
    features = np.stack([latents[k][codes[:, k]] for k in range(3)], axis=1)  # [N, K, T, D]
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    expected = (unit[:, 0] * unit[:, 2]).sum(-1).mean()
    assert analyze.frame_cosines(latents, clips(codes))["pairs"][0][2] == pytest.approx(expected)


def test_pooled_features_are_means_over_frames_that_are_not_padding() -> None:
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(2, 5, 3)).astype(np.float32)
    codes = rng.integers(0, 5, (3, 2, 8)).astype(np.uint16)
    lengths = np.array([8, 3, 1])
    pooled = analyze.pool(latents, clips(codes, num_frames=lengths))
    for n, length in enumerate(lengths):
        expected = [latents[k][codes[n, k, :length]].mean(axis=0) for k in range(2)]
        np.testing.assert_allclose(pooled[n], expected, atol=1e-6)


def test_padding_changes_neither_cosines_nor_usage() -> None:
    rng = np.random.default_rng(2)
    latents, codes = rng.normal(size=(2, 6, 4)), rng.integers(0, 5, (3, 2, 6))
    padded = np.concatenate([codes, np.full((3, 2, 5), 5)], axis=2)
    whole, cut = clips(codes), clips(padded, num_frames=np.full(3, 6))
    assert analyze.frame_cosines(latents, whole) == analyze.frame_cosines(latents, cut)
    assert analyze.usage(whole, 6) == analyze.usage(cut, 6)


def test_a_constant_moved_from_one_codebook_to_another_turns_raw_cosines_and_not_centred_ones() -> None:
    rng = np.random.default_rng(21)
    latents, shift = rng.normal(size=(2, 12, 8)), 3 * rng.normal(size=8)
    moved = latents + np.stack([shift, -shift])[:, None]  # the sum over codebooks, and so the sound, is the same
    first, second = (analyze.analyze(x, probing(22, 90), probing(23, 40), {})["cosine"] for x in (latents, moved))
    assert second["per_frame"]["all"]["mean"] < first["per_frame"]["all"]["mean"] - 0.5
    assert second["centred"]["all"]["mean"] == pytest.approx(first["centred"]["all"]["mean"], abs=1e-4)


def test_histograms_are_shares() -> None:
    rng = np.random.default_rng(3)
    measured = analyze.frame_cosines(rng.normal(size=(4, 9, 5)), clips(rng.integers(0, 9, (5, 4, 7))))
    for row in measured["intervals"].values():
        assert sum(row["histogram"]) == pytest.approx(1)
    assert set(measured["intervals"]) == {"1", "2", "3"}


def test_random_directions_in_many_dimensions_are_nearly_orthogonal() -> None:
    rng = np.random.default_rng(4)
    measured = analyze.frame_cosines(rng.normal(size=(3, 50, 400)), clips(rng.integers(0, 50, (20, 3, 30))))
    assert measured["all"]["near_orthogonal"] > 0.99
    assert abs(measured["all"]["mean"]) < 0.02


def test_usage_of_one_code_and_of_all_codes_equally() -> None:
    codes = np.stack([np.zeros((2, 8), int), np.tile(np.arange(8), (2, 1))], axis=1)
    measured = analyze.usage(clips(codes), 16)
    assert measured["perplexity"] == pytest.approx([1, 8])
    assert measured["used"] == pytest.approx([1 / 16, 8 / 16])


def probing(seed: int, count: int, classes: int = 4) -> Clips:
    """Codebook 0 says which class it is, codebook 1 is noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    informative = (labels[:, None] * 3 + rng.integers(0, 3, (count, 10))) % 12
    codes = np.stack([informative, rng.integers(0, 12, (count, 10))], axis=1)
    return clips(codes, [f"event {label}" for label in labels])


def test_probe_reads_the_event_off_the_codebook_that_carries_it() -> None:
    latents = np.random.default_rng(5).normal(size=(2, 12, 8))
    train, test = probing(6, 300), probing(7, 200)
    measured = analyze.analyze(latents, train, test, {})["probe"]
    assert measured["accuracy"][0] > 0.95
    low, high = measured["interval"][1]
    assert low < 0.25 + 0.1
    assert high > 0.25 - 0.1
    assert measured["accuracy"][1] < 0.4
    assert measured["trend"] == pytest.approx(-1)


def test_the_paper_s_probe_of_two_layers_reads_what_a_linear_one_cannot() -> None:
    """Two events on opposite corners of a square: no line parts them."""
    rng = np.random.default_rng(22)
    corners = rng.integers(0, 2, (400, 2))
    features, targets = (2 * corners - 1) + 0.1 * rng.normal(size=(400, 2)), corners[:, 0] ^ corners[:, 1]
    sides = features[:300], targets[:300], features[300:], 2
    right = {f.__name__: (f(*sides).argmax(1) == targets[300:]).mean() for f in (probes.two_layers, analyze.logistic)}
    assert right["two_layers"] > 0.97
    assert right["logistic"] < 0.8


def test_a_map_keeps_events_together_that_a_codebook_tells_apart() -> None:
    rng = np.random.default_rng(23)
    labels: list[str | None] = [f"event {i % 3}" for i in range(60)]
    centres = rng.normal(size=(3, 8))
    pooled = np.stack([centres[np.arange(60) % 3], np.zeros((60, 8))], axis=1) + 0.05 * rng.normal(size=(60, 2, 8))
    found = analyze.maps(pooled, [*labels[:59], None])
    assert found is not None
    assert found["labels"] == labels[:59]
    same = np.equal.outer(np.arange(59) % 3, np.arange(59) % 3)
    spread = []
    for places in map(np.array, found["points"]):
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
        spread.append(apart[same].mean() / apart[~same].mean())
    assert spread[0] < 0.5 < 0.8 < spread[1]
    assert analyze.maps(pooled[:3], labels[:3]) is None


def test_pairs_that_were_not_measured_are_none() -> None:
    found = analyze.distribution({(0, 1): np.array([80.0, 100.0])}, 3, np.linspace(0, 180, 5), 90.0, 15.0, 0.0)
    assert found["pairs"] == [[0.0, 90.0, None], [90.0, 0.0, None], [None, None, 0.0]]
    assert list(found["intervals"]) == ["1"]
    assert found["all"]["near_orthogonal"] == 1.0
    assert found["intervals"]["1"]["histogram"] == [0.0, 0.5, 0.5, 0.0]


def test_clips_of_two_events_are_not_probed_and_unseen_events_are_counted() -> None:
    latents = np.random.default_rng(8).normal(size=(2, 12, 8))
    train, test = probing(9, 120), probing(10, 60)
    labels = [None, "never trained", *list(test.labels)[2:]]
    measured = analyze.analyze(latents, train, Clips(test.codes, test.num_frames, labels), {})["probe"]
    assert (measured["test"], measured["left_out"]) == (58, 1)


def test_logistic_is_exact_on_a_problem_with_a_known_optimum() -> None:
    # Two points of opposite class at -1 and +1 (already white). The difference d of the two class weights minimises
    # log(1 + exp(-d)) + decay * d**2 / 2, so d = 1 / (decay * (1 + exp(d))): solved below by bisection.
    decay, low, high = 0.1, 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 / (1 + np.exp(middle)) > decay * middle else (low, middle)
    logits = analyze.logistic(np.array([[-1.0], [1.0]]), np.array([0, 1]), np.array([[1.0]]), 2, decay)
    assert logits[0, 1] - logits[0, 0] == pytest.approx(low, rel=1e-4)


def test_loss_ratio_is_last_codebook_over_first() -> None:
    measured = analyze.convergence({1: ([0, 10], [5.0, 4.0]), 0: ([0, 10], [5.0, 2.0])})
    assert measured is not None
    assert measured["codebooks"] == [0, 1]
    assert (measured["final"], measured["mean"], measured["ratio"]) == ([2.0, 4.0], 3.0, 2.0)


def test_loss_mean_is_the_smallest_average_of_all_evaluations() -> None:
    measured = analyze.convergence({0: ([0, 10, 20], [5.0, 2.0, 2.5]), 1: ([0, 10, 20], [5.0, 3.0, 3.0])})
    assert measured is not None
    assert (measured["mean"], measured["ratio"], measured["final"]) == (2.5, 1.5, [2.5, 3.0])
    with pytest.raises(ValueError, match="no step in common"):
        analyze.convergence({0: ([0], [1.0]), 1: ([1], [1.0])})


def test_analysis_without_loss_curves_says_so_with_none() -> None:
    latents = np.random.default_rng(11).normal(size=(2, 12, 8))
    analysis = analyze.analyze(latents, probing(12, 60), probing(13, 30), {})
    assert analysis["loss"] is None
    assert "convergence" not in analyze.draw(analysis)


def test_wilson_interval_of_nine_in_ten() -> None:
    # (0.9 + 1.92/10 ± 1.96 * sqrt(0.009 + 0.0096)) / 1.384, worked by hand
    np.testing.assert_allclose(analyze.wilson(0.9, 10), (0.596, 0.982), atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_lies_in_its_interval_whatever_the_rounding(share: float) -> None:
    for count in range(1, 200):
        low, high = analyze.wilson(share, count)
        assert low <= share <= high


def test_rank_correlation_with_ties() -> None:
    assert analyze.rank_correlation([0, 1, 2, 3], [9, 5, 5, 1]) == pytest.approx(-0.9486833)
    assert analyze.rank_correlation([0, 1, 2], [4, 4, 4]) == 0


@pytest.mark.parametrize(
    ("codes", "message"),
    [(np.full((2, 3, 4), 1), "3 codebooks, the codec has 2"), (np.full((2, 2, 4), 9), "code 9.*up to 4")],
)
def test_codes_of_another_codec_are_refused(codes: np.ndarray, message: str) -> None:
    latents = np.ones((2, 5, 3))
    with pytest.raises(ValueError, match=message):
        analyze.analyze(latents, clips(codes), clips(codes), {})


@pytest.mark.parametrize("labelled", ["test", "train", "neither"])
def test_a_corpus_without_single_events_has_everything_but_the_probe(
    labelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = np.random.default_rng(14).normal(size=(2, 12, 8))
    train, test = probing(15, 30), probing(16, 12)
    train = train if labelled == "train" else clips(train.codes)
    test = test if labelled == "test" else clips(test.codes)
    analysis = analyze.analyze(latents, train, test, {})
    assert analysis["probe"] is None
    assert "no probe: " in capsys.readouterr().err
    assert "cosine_per_frame" in analyze.draw(analysis)
    assert set(analyze.draw(analysis)) == set(analyze.findings(analysis))
    assert not any("probe" in name for name in analyze.summary(analysis))
    assert paper._probe(analysis)[0] == paper.NOT_RUN


def test_a_map_of_a_codebook_with_one_code_is_one_place() -> None:
    latents = np.random.default_rng(14).normal(size=(2, 12, 8))
    test = probing(16, 40)
    test.codes[:, 1] = 3
    found = analyze.analyze(latents, probing(15, 90), test, {})["tsne"]["points"]
    assert found[1] == [[0.0, 0.0]] * 40
    assert len({tuple(place) for place in found[0]}) > 10


def test_the_same_input_gives_the_same_analysis() -> None:
    latents = np.random.default_rng(14).normal(size=(2, 12, 8))
    first, second = (analyze.analyze(latents, probing(15, 90), probing(16, 40), {}) for _ in range(2))
    assert first == second
