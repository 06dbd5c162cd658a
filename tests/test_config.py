"""Settings: what is committed is what conf/ composes, and every mistake is named with its remedy."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from siren import config
from siren.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def compose(scale: str, tmp_path: Path, *overrides: str) -> Path:
    from dvc.utils.hydra import compose_and_dump

    path = tmp_path / "params.yaml"
    compose_and_dump(str(path), str(ROOT / "conf"), None, "config", "", [f"scale={scale}", *overrides])
    return path


@pytest.fixture
def params() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def load(params: dict, tmp_path: Path) -> config.Config:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    return config.load(path)


def test_the_committed_params_are_what_conf_composes(tmp_path):
    composed = yaml.safe_load(compose("demo", tmp_path).read_text())
    assert yaml.safe_load((ROOT / "params.yaml").read_text()) == composed, "run `siren params demo` and commit"


@pytest.mark.parametrize("scale", sorted(p.stem for p in (ROOT / "conf" / "scale").glob("*.yaml")))
def test_every_scale_is_valid(scale, tmp_path):
    settings = config.load(compose(scale, tmp_path))
    assert settings.scale == scale


def test_an_unknown_key_names_the_nearest(params, tmp_path):
    params["train"]["stage1"]["training"]["stepz"] = 3
    with pytest.raises(ConfigError, match=r"unknown key 'train.stage1.training.stepz'; did you mean 'steps'\?"):
        load(params, tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("align.group_size", 1, "align.group_size is 1; a group needs at least 2"),
        ("train.stage1.text_dropout", 0.0, "guidance is 2.5 with train.stage1.text_dropout 0"),
        ("train.stage1.accumulate", 3, "accumulate is 3; it must divide training.batch_size, which is 8"),
        ("train.stage1.precision", "fp16", "precision is 'fp16'; it must be one of 'fp32', 'bf16'"),
        ("train.stage1.ema", 1.0, "ema is 1.0; in .0, 1., or null"),
        ("audio.sample_rate", 100, "audio.sample_rate is 100; at least 8000"),
        ("audio.sample_rate", "fast", "audio.sample_rate is 'fast'; it must be of type int"),
        ("audio.sample_rate", True, "audio.sample_rate is True; it must be of type int"),
        ("filter.select.min_score", 2.0, "filter.select.min_score is 2.0; a cosine lies in"),
        ("filter.select.drop_words", ["music", "spe*"], r"drop_words has .'spe\*'.; each is a word"),
        ("filter.select.drop_words", "music", "filter.select.drop_words must be a list"),
        ("filter.select.min_seconds", -1, "min_seconds is -1.0; 0 or more"),
        ("model.num_heads", 5, "model.dim 128 is not a multiple of num_heads 5"),
        ("model.transformers", [0, 2], "model.transformers is .0, 2.; it must count"),
        ("model.residual_start", "sos", "model.residual_start is 'sos'; it must be one of 'prompt', 'learned'"),
        ("evaluate.sample.sampling.temperature", 0.0, "temperature is 0.0; it must be positive"),
        ("train.stage1.training.steps", 0, "train.stage1.training: steps is 0; at least 1"),
        ("collect.fetch.sources", [], "collect.fetch.sources is empty"),
        ("collect.fetch.sources", "scenes", "collect.fetch.sources must be a list"),
        ("train.stage1.training.clip_norm", -1.0, "clip_norm is -1.0; it must be positive"),
        ("train.stage1.training.log_every", 0, "log_every is 0; at least 1"),
        ("align.min_advantage", 2.7, "align.min_advantage is 2.7; in a group of 8 none is 2.65 or more"),
        ("align.learning_rate", -1e-4, "align.learning_rate is -0.0001; it must be positive"),
        ("align.temperature", 0.0, "temperature is 0.0; it must be positive"),
        ("filter.select.val_pairs", 0, "filter.select.val_pairs is 0; at least 1"),
        ("filter.select.rl_prompts", -1, "filter.select.rl_prompts is -1; 0 or more"),
        ("filter.select.rl_prompts", 0, "filter.select.rl_prompts is 0; alignment needs prompts"),
        ("filter.score.crop_seconds", 9.0, "filter.score.crop_seconds is 9.0, more than audio.segment_seconds 1.6"),
        ("evaluate.evaluate.bootstrap", 0, "evaluate.evaluate.bootstrap is 0; at least 1"),
        ("model.num_heads", 0, "model.num_heads is 0; at least 1"),
        ("networks.codec", None, "networks.codec must be a mapping"),
    ],
)
def test_impossible_values_are_named(params, tmp_path, path, value, message):
    *parents, last = path.split(".")
    place = params
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ConfigError, match=message):
        load(params, tmp_path)


def test_guidance_of_the_policy_needs_a_model_that_knows_missing_text(params, tmp_path):
    params["evaluate"]["sample"]["sampling"]["guidance"] = None
    params["train"]["stage1"]["text_dropout"] = 0.0
    with pytest.raises(ConfigError, match=r"align.guidance is \S+ with train.stage1.text_dropout 0"):
        load(params, tmp_path)


def test_a_missing_key_is_named(params, tmp_path):
    del params["audio"]["segment_seconds"]
    with pytest.raises(ConfigError, match=r"missing key 'audio\.segment_seconds'"):
        load(params, tmp_path)


def test_no_params_file_says_where_to_run(tmp_path):
    with pytest.raises(ConfigError, match="run from the project's root"):
        config.load(tmp_path / "params.yaml")


def test_settings_survive_the_way_through_plain_data(params, tmp_path):
    settings = load(params, tmp_path)
    assert config.parse(config.Config, yaml.safe_load(yaml.safe_dump(_lists(config.to_dict(settings)))), "") == settings
    assert config.flatten({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 3  # type: ignore[misc]


def _lists(value):
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value
