"""The training benchmark compares equals, and runs."""

import re

import pytest
import torch

from bench import train


def test_the_plain_form_is_our_function_and_its_gradients_are_ours():
    rows, difference = train.build(train.SIZES["tiny"])
    assert 0 < difference <= 1e-5  # two ways of rounding, one function
    assert [row.name for row in rows] == ["plain", "ours", "musicgen"]


def test_a_plain_form_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(train, "sinusoids", torch.zeros_like)
    with pytest.raises(ValueError, match=r"ours and plain differ by .* they are one function"):
        train.build(train.SIZES["tiny"])


def test_a_quick_run_prints_each_row_beside_the_plain_form(capsys):
    threads = torch.get_num_threads()
    train.main(["--quick", "--sizes", "tiny", "--rounds", "2"])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^(\w+) .* ms   (.*) x plain$", printed, re.MULTILINE))
    assert list(rows) == ["plain", "ours", "musicgen"]
    assert rows["plain"] == "1.00 / 1.00 / 1.00"
    low, middle, high = map(float, rows["ours"].split(" / "))
    assert 0 < low <= middle <= high
