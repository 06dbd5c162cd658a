"""The sampling benchmark compares equals; and the stacked sampler's launches, which need no clock."""

import pytest
import torch

from bench import generate


def test_a_frame_takes_at_most_a_third_of_the_launches_of_the_loop_at_the_depth_of_the_paper():
    model = generate.build(generate.DEPTH)
    naive, plain, stacked = (
        generate.launches(kind(model)) for kind in (generate.Naive, generate.Plain, generate.Stacked)
    )
    assert stacked * 3 <= plain <= naive
    assert stacked <= 1300  # without a fused norm
    assert generate.launches(generate.Stacked(model), batch=2) <= stacked * 1.1


def test_samplers_that_differ_are_not_compared():
    one, other = (generate.build(generate.SIZES["tiny"], seed) for seed in (0, 1))
    generate.check({"naive": generate.Naive(one), "stacked": generate.Stacked(one)}, 4, "cpu")
    with pytest.raises(ValueError, match="naive and stacked give other codes"):
        generate.check({"naive": generate.Naive(one), "stacked": generate.Stacked(other)}, 4, "cpu")


@pytest.mark.slow
def test_a_quick_run_prints_each_row(capsys):
    threads = torch.get_num_threads()
    generate.main(["--quick", "--sizes", "tiny", "--frames", "12", "--rounds", "2"])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert all(f"\n  {row} " in printed for row in ("naive", "plain", "stacked", "musicgen"))
