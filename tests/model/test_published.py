"""The authors' transformers as ours: every name and shape of their format, and the same logits at any size."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from siren.config import ConfigError
from siren.model.published import (
    PublishedConfig,
    check_shapes,
    published_config,
    published_state,
    tables_of,
    transformer_of,
)
from tests.model import builders, published

SIZES = [
    {},
    {"dim": 24, "n_heads": 6, "n_kv_heads": 1, "spatial_layers": 3, "factorized_layers": 2},
    {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "spatial_layers": 1, "prompt_dim": 20, "dac_feature_dim": 6},
    {"ffn_multiplier": 0.5, "ffn_multiple_of": 3},
    {"ffn_multiplier": 1.3, "norm_eps": 1e-3},
]


@pytest.mark.parametrize("size", SIZES)
def test_any_size_gives_the_logits_that_the_format_describes(size):
    config = published.TINY | size
    g = torch.Generator().manual_seed(2)
    codes = torch.randint(1024, (2, 12, 9), generator=g)
    prompt, mask = torch.randn(2, 5, config["prompt_dim"], generator=g), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    for index, state in enumerate(published.states(config)):
        transformer = transformer_of(PublishedConfig(**config), state, index)
        with torch.no_grad():
            found = transformer(codes, prompt, mask)
        expected = published.logits(state, config, 2 * index, codes, prompt, mask)
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_format_has_these_tensors_and_the_way_back_is_exact(size):
    config = PublishedConfig(**published.TINY | size)
    assert config.shapes() == published.shapes(vars(config))
    state = published.states(vars(config))[3]
    transformer = transformer_of(config, state, 3)
    back = published_state(transformer.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert published_config(transformer) == config


@pytest.mark.parametrize(("size", "tensors"), [((14, 2), 261), ((24, 8), 427)])
def test_the_paper_sizes_have_as_many_tensors_as_the_format_says(size, tensors):
    paper = {
        "dim": 1024,
        "n_heads": 16,
        "n_kv_heads": 16,
        "prompt_dim": 768,
        "dac_code_dim": 8,
        "dac_feature_dim": 1024,
    }
    layers = {"spatial_layers": size[0], "factorized_layers": size[1], "ffn_multiple_of": 256}
    shapes = PublishedConfig(**published.TINY | paper | layers).shapes()
    assert len(shapes) == tensors
    assert shapes["spatial_blocks.0.feed_forward.down.weight"] == (1024, 2816)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_experts", 5, "num_codebooks 12 cannot be shared out evenly among num_experts 5"),
        ("num_experts", 4, "num_experts is 4; the published format has 6"),
        ("num_codebooks", 18, "num_codebooks is 18; the published format has 12"),
        ("codebook_size", 512, "codebook_size is 512; the published format has 1024"),
        ("n_heads", 5, "dim 16 is not a multiple of n_heads 5"),
        ("n_kv_heads", 3, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ("dropout", 1.0, "dropout is 1.0; it lies in"),
        ("spatial_layers", 0, "spatial_layers is 0; it must be positive"),
        ("ffn_multiplier", -1.0, "ffn_multiplier is -1.0"),
    ],
)
def test_settings_that_the_format_does_not_have_are_named(key, value, message):
    with pytest.raises(ConfigError, match=message):
        PublishedConfig(**published.TINY | {key: value})


def test_tensors_too_few_too_many_or_misshapen_are_named():
    config = PublishedConfig(**published.TINY)
    right = config.shapes()
    check_shapes(config, right, "it")
    with pytest.raises(ValueError, match=r"it lacks 2 tensors: heads\.0\.weight, sos"):
        check_shapes(config, {k: v for k, v in right.items() if k not in ("sos", "heads.0.weight")}, "it")
    with pytest.raises(ValueError, match=r"it has, beyond what its config asks for, 1 tensors: heads\.2\.weight"):
        check_shapes(config, right | {"heads.2.weight": (1024, 16)}, "it")
    with pytest.raises(ValueError, match=r"it: sos is \[16\]; its config asks for \[1, 1, 16\]"):
        check_shapes(config, right | {"sos": (16,)}, "it")


def test_a_model_that_the_format_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="residual_start 'learned'; the published format knows only 'prompt'"):
        published_config(builders.model(3, residual_start="learned")[0])
    with pytest.raises(ValueError, match="normalise_codes: true"):
        published_config(builders.model(3, normalise_codes=True)[0])
    with pytest.raises(ConfigError, match="num_codebooks is 6; the published format has 12"):
        published_config(builders.model(3)[0])


@pytest.mark.real
def test_the_published_forward_is_reproduced(shared):
    """The authors' weights and inputs give the authors' logits (float32), and so does the description in tests."""
    folder = shared / "reference-checkpoint"
    data, settings = load_file(folder / "expected.safetensors"), json.loads((folder / "config.json").read_text())
    codes, prompt, mask = data["codes"].long(), data["prompt"], data["prompt_mask"].bool()
    valid, everything = data["sequence_mask"].bool(), torch.ones_like(mask)
    for index in range(6):
        state = load_file(folder / f"expert_{2 * index}.safetensors")
        transformer = transformer_of(PublishedConfig(**settings), state, index)
        with torch.no_grad():
            logits, masked = transformer(codes, prompt, everything), transformer(codes, prompt, mask)
        torch.testing.assert_close(logits, data[f"logits_nomask_{2 * index}"], atol=1e-4, rtol=0)
        described = published.logits(state, settings, 2 * index, codes, prompt, everything)
        torch.testing.assert_close(described, data[f"logits_nomask_{2 * index}"], atol=1e-4, rtol=0)
        for b in range(2):  # right-padded sequences: causal frames before the padding do not see it
            expected = data[f"logits_{2 * index}"][b][:, valid[b]]
            torch.testing.assert_close(masked[b][:, valid[b]], expected, atol=1e-4, rtol=0)
    assert math.prod(tables_of(state).rows.shape) == 12 * 1024 * 8
