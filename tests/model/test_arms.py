"""The arms of the paper's tables: what each may see, that they are of one size, and what is refused.

What the logits of codebook k at frame t may depend on, beside the text; f is the first codebook of k's transformer:

    arm                                     codes of other frames               codes of frame t
    siren, single, single-small, m2 … m12   all of every frame before t         all below k
    previous, ar                            all of every frame before t         from f - 1 to k - 1
    isolated, independent                   all of every frame before t         none
    delay                                   (t', k') with t' + k' < t + k       those below k, by the same rule
"""

from pathlib import Path

import pytest
import torch
import yaml

from siren import config
from siren.model import arms
from siren.model.arms import ARMS, Widths
from siren.model.codebooks import delay, delays, undelay
from siren.model.transformer import cross_entropy
from siren.networks import codec as codecs
from tests.model import builders
from tests.test_config import ROOT, compose

FRAMES, SEEN_FROM = 7, 4
TWELVE = ("m4", "m12")  # do not divide six codebooks
PAPER = Widths(num_codebooks=12, codebook_size=1024, latent=1024, text=768)


def build(name, **changes):
    return builders.arm(name, num_codebooks=12 if name in TWELVE else 6, **changes)


def visible(name: str, first: int, k: int, num_codebooks: int) -> torch.Tensor:
    """The table above, for frame SEEN_FROM. bool [T, K]"""
    frame, book = torch.arange(FRAMES)[:, None], torch.arange(num_codebooks)
    if name == "delay":
        return frame + book < SEEN_FROM + k
    lowest = {"previous": first - 1, "ar": first - 1, "isolated": k, "independent": k}.get(name, 0)
    return (frame < SEEN_FROM) | (frame == SEEN_FROM) & (book < k) & (book >= lowest)


@pytest.mark.parametrize("name", ARMS)
def test_logits_take_gradient_from_exactly_what_the_table_says(name):
    siren = build(name)
    codes, states, mask = builders.batch(FRAMES, num_codebooks=siren.num_codebooks)
    for transformer in siren.transformers:
        rows = transformer.codebooks.gather(codes).requires_grad_()
        transformer.codebooks.gather = lambda codes, rows=rows: rows
        logits = transformer(codes, states, mask)
        for j in range(transformer.group):
            (seen,) = torch.autograd.grad(logits[:, j, SEEN_FROM].sum(), rows, retain_graph=True)
            k = transformer.first + j
            assert torch.equal(seen.abs().sum((0, 3)) > 0, visible(name, transformer.first, k, siren.num_codebooks)), k


@pytest.mark.parametrize("name", ARMS)
def test_training_reaches_every_parameter_of_one_transformer_and_none_of_another(name):
    siren = build(name)
    codes, states, mask = builders.batch(FRAMES, num_codebooks=siren.num_codebooks)
    trained, *others = reversed(siren.transformers)
    cross_entropy(trained(codes, states, mask), trained.targets(codes)).mean().backward()
    assert all(p.grad is not None for p in trained.parameters())
    assert all(p.grad is None for other in others for p in other.parameters())


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("residual_start", ["prompt", "learned"])
def test_the_formula_counts_what_was_built(name, residual_start):
    siren = build(name, residual_start=residual_start)
    model, widths = siren[0].config, builders.WIDTHS._replace(num_codebooks=siren.num_codebooks)
    assert arms.parameters(model, widths) == sum(p.numel() for p in siren.parameters())


def paper(scale: str) -> config.Model:
    layers = {"1.6b": (14, 2), "3.1b": (24, 8)}[scale]
    base = yaml.safe_load((ROOT / "conf" / "base.yaml").read_text())
    return config.parse(config.Model, {**base, "main_layers": layers[0], "decoder_layers": layers[1]}, "model")


def test_the_paper_s_sizes_are_the_published_ones():
    assert arms.parameters(paper("1.6b"), PAPER) == 6 * 272_488_448
    assert arms.parameters(paper("3.1b"), PAPER) == 6 * 514_793_472


@pytest.mark.parametrize("scale", ["demo", "1.6b", "3.1b"])
def test_all_arms_have_the_total_size_of_siren_within_two_percent(scale):
    reference = config.load(ROOT / "params.yaml").model if scale == "demo" else paper(scale)
    widths = Widths(6, 256, 96, 96) if scale == "demo" else PAPER
    total = arms.parameters(reference, widths)
    for name in (n for n in ARMS if arms.fits(n, widths.num_codebooks)):
        model = arms.settings(name, reference, widths)
        assert arms.parameters(model, widths) == pytest.approx(ARMS[name].share * total, rel=0.02), name
        shape = model.dim / (model.main_layers + model.decoder_layers)
        shape /= reference.dim / (reference.main_layers + reference.decoder_layers)
        assert 1 / 1.3 <= shape <= 1.3, name
    assert arms.settings("siren", reference, widths) == reference


def widths_of(settings: config.Config) -> Widths:
    with torch.device("meta"):
        codec = codecs.build(settings.networks.codec, settings.audio)
    return Widths.of(codec.tables(), settings.networks.clap.architecture["text_width"])


@pytest.mark.parametrize("scale", sorted(p.stem for p in (ROOT / "conf" / "scale").glob("*.yaml")))
def test_the_sizes_in_conf_are_those_of_the_rule(scale, tmp_path):
    settings = config.load(compose(scale, tmp_path))
    wanted = arms.sizes(settings.model, widths_of(settings))
    lines = "\n".join(f"  {name}: {size}" for name, size in wanted.items()).replace("'", "")
    assert settings.arms == wanted, f"arms of conf/scale/{scale}.yaml should be:\n{lines}"


@pytest.mark.parametrize("name", ARMS)
def test_conf_composes_every_arm(name, tmp_path):
    """`-S model=<arm>` is the arm that the library knows by this name, at the demo's codec of six codebooks."""
    path = compose("tiny", tmp_path, f"model={name}")
    if name in TWELVE:
        with pytest.raises(config.ConfigError, match=f"6 codebooks cannot be shared out evenly among {name[1:]} trans"):
            config.load(path)
        return
    settings, reference = config.load(path), config.load(compose("tiny", tmp_path)).model
    assert settings.model == arms.settings(name, reference, widths_of(settings))


def test_every_arm_has_a_file_and_every_file_is_an_arm():
    assert {path.stem for path in Path(ROOT / "conf" / "model").glob("*.yaml")} == set(ARMS)


def test_delayed_codes_come_back():
    codes = torch.randn(2, 5, 4, 3)
    by = delays("delay", 4)
    steps, present = delay(codes, by)
    assert steps.shape == (2, 8, 4, 3)
    assert torch.equal(steps[:, 3, 2], codes[:, 1, 2])
    assert torch.equal(undelay(steps, by, 5), codes)
    assert torch.equal(present, (steps != 0).all(3)[0])
    assert present.sum() == 5 * 4
    assert [row.tolist() for row in (present[0], present[7])] == [[True, False, False, False], [False] * 3 + [True]]
    for pattern in ("parallel", "delay"):
        by = delays(pattern, 4)
        assert torch.equal(undelay(delay(codes, by)[0], by, 5), codes)


def test_an_unknown_arm_names_the_nearest():
    with pytest.raises(ValueError, match=r"there is no arm 'singel'; did you mean 'single'\?"):
        arms.find("singel")
    with pytest.raises(ValueError, match="there is no arm 'x'; there are: siren, previous"):
        arms.find("x")


def test_an_arm_that_the_codec_cannot_have_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"'m4' has 4 transformers, and 6 codebooks .* here fit siren, .*m6$"):
        arms.settings("m4", builders.config(), builders.WIDTHS)


def test_sizes_are_matched_to_siren_only():
    single = arms.arrange("single", builders.config())
    with pytest.raises(ValueError, match="these settings are of another arm"):
        arms.settings("delay", single, builders.WIDTHS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"residual_condition": "none"},
            "decoder_layers is 2 with residual_condition 'none'; .* no residual decoder: 0",
        ),
        ({"decoder_layers": 0}, "decoder_layers is 0 with residual_condition 'accumulated'; at least 1"),
        ({"codebook_pattern": "delay"}, "codebook_pattern is 'delay' with residual_condition 'accumulated'"),
        ({"main_layers": 0}, "main_layers is 0"),
    ],
)
def test_settings_that_contradict_each_other_are_named(changes, message):
    with pytest.raises(config.ConfigError, match=message):
        builders.config(**changes)


@pytest.mark.parametrize("name", ["siren", "delay"])
def test_codes_that_the_codec_lacks_are_named(name):
    transformer = build(name)[0]
    codes, states, mask = builders.batch()
    for value, number in ((16, "16"), (-1, "-1")):
        wrong = codes.clone()
        wrong[1, 2, 3] = value
        with pytest.raises(ValueError, match=f"code {number}; the codec's codes are 0 to 15"):
            transformer(wrong, states, mask)
    with pytest.raises(ValueError, match="codes of 5 codebooks; this model was made for 6"):
        transformer(codes[:, :5], states, mask)


def test_more_frames_than_positions_are_named():
    codes, states, mask = builders.batch(frames=20)
    with pytest.raises(ValueError, match="20 frames; this model's positions end at 19"):
        build("delay")[0](codes, states, mask)


def test_blank_history_hides_the_past_in_every_arm():
    """Where no frame is heard, logits do not depend on the frames before."""
    for name in ("single", "independent", "delay"):
        transformer = build(name)[0]
        codes, states, mask = builders.batch(FRAMES)
        heard = torch.zeros(3, FRAMES, dtype=torch.bool)
        changed = codes.clone()
        changed[:, :, :2] = (changed[:, :, :2] + 1) % 16
        with torch.no_grad():
            one, two = (transformer.hidden_and_logits(c, states, mask, heard)[1][:, :, 2:] for c in (codes, changed))
        torch.testing.assert_close(one, two)
