"""A prompt longer than the text encoder reads: cut, as the published encoders do it, but not in silence."""

import dataclasses

import pytest
import torch

from siren.generate.bundle import Bundle

LONG = "rain on " * 60


def test_what_is_not_read_is_said_once_with_both_lengths(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    reader, most = bundle.model[0].config, bundle.clap.arch.max_tokens
    monkeypatch.setattr(bundle.model[0], "config", dataclasses.replace(reader, max_text=most))
    tokens = bundle.clap.num_tokens([LONG, "rain"])
    assert tokens[0] > most > tokens[1]
    for _ in range(2):
        bundle.read(["rain", LONG])
    said = capsys.readouterr().err
    assert said.count("tokens") == 1
    assert f"has {tokens[0]} tokens; only the first {most} of them are read" in said
    assert bundle.cut(LONG) == {"prompt_tokens": tokens[0], "prompt_tokens_read": most}
    assert bundle.cut("rain") == {}


def test_the_end_beyond_the_limit_changes_nothing(bundle: Bundle) -> None:
    clap = bundle.clap
    states, other = (clap.text_states([text])[0] for text in (LONG, LONG + " a dog barks"))
    assert torch.equal(states, other)
    assert clap.num_tokens(["rain on"]) == [int(clap.text_states(["rain on"])[1].sum())]
