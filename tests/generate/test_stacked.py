"""The stacked sampler against the plain one."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from siren.generate.plain import Plain
from siren.generate.sampler import frames, prepare, sample
from siren.generate.stacked import Run, Stacked
from siren.model.arms import ARMS
from siren.randomness import uniforms
from tests.model import builders
from tests.model.builders import WHOLE

ROOT = Path(__file__).parents[2]
STACKABLE = [name for name, arm in ARMS.items() if arm.pattern == "parallel"]


def compare(model, sampling=WHOLE, size=3, num_frames=20, prefix=None):
    _, states, mask = builders.batch(size=3)
    states, mask, seeds = states[:size], mask[:size], list(range(5, 5 + size))
    found = []
    for sampler in (Plain(model), Stacked(model)):
        run = frames(sampler, states, mask, seeds, num_frames, sampling, prefix)
        codes, log_probs = zip(*((c.clone(), p.clone()) for c, p in run), strict=True)
        found.append((torch.stack(codes, -1), torch.stack(log_probs, -1)))
    (plain, its), (stacked, own) = found
    assert torch.equal(plain, stacked)
    torch.testing.assert_close(its, own, atol=5e-5, rtol=0)
    return stacked


@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("name", STACKABLE)
def test_it_gives_the_codes_of_the_plain_sampler_in_every_arm(name, guidance):
    model = builders.arm(name, num_codebooks=12 if name in ("m4", "m12") else 6)
    assert isinstance(prepare(model), Stacked)
    compare(model, dataclasses.replace(WHOLE, guidance=guidance))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("changes", [{"residual_start": "learned"}, {"num_kv_heads": 4}, {"decoder_layers": 1}])
def test_and_for_other_batches_and_shapes(size, changes):
    compare(builders.model(3, **changes), dataclasses.replace(WHOLE, top_k=5, top_p=0.9, temperature=0.8), size)


def test_delayed_codebooks_keep_the_plain_sampler():
    model = builders.arm("delay")
    assert isinstance(prepare(model), Plain)
    with pytest.raises(ValueError, match=r"delayed codebooks are sampled by siren\.generate\.plain"):
        Stacked(model)


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("sampler", [Plain, Stacked])
def test_a_clip_goes_on_from_its_beginning_as_if_it_had_not_stopped(sampler, guidance):
    """Given the first frames of a clip and the numbers of the others, the others come."""
    model, sampling = builders.model(3), dataclasses.replace(WHOLE, guidance=guidance)
    _, states, mask = builders.batch()
    whole = sample(model, states, mask, [1, 2, 3], 15, sampling).codes
    rest = frames(sampler(model), states, mask, [1, 2, 3], 15, sampling, prefix=whole[..., :6], first=6)
    assert torch.equal(torch.stack([codes.clone() for codes, _ in rest], -1), whole[..., 6:])


def test_a_delayed_clip_goes_on_too():
    model = builders.arm("delay")
    _, states, mask = builders.batch()
    whole = sample(model, states, mask, [1, 2, 3], 12, WHOLE).codes
    rest = list(frames(Plain(model), states, mask, [1, 2, 3], 12, WHOLE, prefix=whole[..., :5], first=5))
    assert torch.equal(torch.stack([codes for codes, _ in rest], -1), whole[..., 5:])


def test_rows_at_different_frames_are_what_they_are_alone():
    """What a server needs: a clip ends, another begins in its place, and its neighbour hears nothing of it."""
    model = builders.model(3)
    _, states, mask = builders.batch()
    alone = [sample(model, states[i : i + 1], mask[i : i + 1], [i], 8, WHOLE).codes[0] for i in range(3)]
    numbers = [uniforms([i], 8, 6)[0] for i in range(3)]
    run, made = Run(Stacked(model), 2, 8, states.shape[1], WHOLE, ragged=True), {0: [], 1: [], 2: []}
    rows, at = [0, 1], [0, 0]
    with torch.inference_mode():
        run.read(states[:2], mask[:2])
        for step in range(12):
            if step == 4:  # the first row's clip is cut off for the third one
                run.read(states[2:], mask[2:], slice(0, 1))
                rows[0], at[0] = 2, 0
            if at[1] == 8:  # the second has ended; its row idles, begun anew
                run.read(states[1:2], mask[1:2], slice(1, 2))
                at[1] = 0
            codes, _ = run.frame(torch.stack([numbers[item][t] for item, t in zip(rows, at, strict=True)]))
            for row, item in enumerate(rows):
                made[item].append(codes[row])
            at = [t + 1 for t in at]
    assert torch.equal(torch.stack(made[0], -1), alone[0][:, :4])
    assert torch.equal(torch.stack(made[1][:8], -1), alone[1])
    assert torch.equal(torch.stack(made[2], -1), alone[2])


def test_memory_is_known_before_the_start_and_stays_the_same():
    model = builders.model(3)
    _, states, mask = builders.batch()
    stacked = Stacked(model)
    told = stacked.memory(rows=3, num_frames=20, text_length=5)
    run = Run(stacked, 3, 20, 5, WHOLE)
    run.read(states, mask)
    held = run.caches + run.inside + run.text
    assert told["caches"] + told["text"] == sum(t.nbytes for t in held)
    assert told["stacked weights"] >= sum(p.nbytes for n, p in model.named_parameters() if "temporal.0.block" in n)
    places, numbers = [t.data_ptr() for t in held], uniforms([1, 2, 3], 20, 6)
    with torch.inference_mode():
        for t in range(20):
            run.frame(numbers[:, t])
    assert [t.data_ptr() for t in run.caches + run.inside + run.text] == places
    with pytest.raises(AssertionError, match="more frames than the run was made for"):
        run.frame(numbers[:, 0])


def test_where_shapes_stay_caches_are_kept_for_the_next_batch_of_their_size():
    """As on a GPU, where their graphs are kept with them; an iterator that is still used has them to itself."""
    model = builders.model(3)
    stacked = Stacked(model, compiler="eager")
    stacked.compiler = None  # the same without compiling
    _, states, mask = builders.batch()

    def start(seeds, num_frames):
        return frames(stacked, states, mask, seeds, num_frames, WHOLE)

    def codes(run):
        return torch.stack([code.clone() for code, _ in run], -1)

    first = codes(start([1, 2, 3], 9))
    assert torch.equal(first, sample(model, states, mask, [1, 2, 3], 9, WHOLE).codes)
    (run,) = stacked.kept.values()
    told = stacked.memory(3, 9, stacked.config.max_text)
    assert sum(t.nbytes for t in run.caches + run.inside + run.text) == told["caches"] + told["text"]
    slow = start([4, 5, 6], 7)
    begun = [next(slow)[0]]
    assert not stacked.kept
    assert torch.equal(codes(start([1, 2, 3], 9)), first)
    (other,) = stacked.kept.values()
    assert other is not run
    assert torch.equal(
        torch.stack(begun + [code for code, _ in slow], -1), sample(model, states, mask, [4, 5, 6], 7, WHOLE).codes
    )
    assert list(stacked.kept.values()) == [run]
    assert torch.equal(codes(start([1, 2, 3], 9)), first)
    assert list(stacked.kept.values()) == [run]


COMPILED = """
import torch
from siren.config import Sampling
from siren.generate.sampler import sample
from siren.generate.stacked import Stacked
from tests.model import builders

def backend(graph, inputs):
    graphs.append(graph)
    return graph

graphs, model, sampling = [], builders.model(2), Sampling(0.9, 5, 0.9, 2.0)
_, states, mask = builders.batch()
compiled = sample(Stacked(model, compiler=backend), states, mask, [1, 2, 3], 12, sampling).codes
assert torch.equal(compiled, sample(model, states, mask, [1, 2, 3], 12, sampling).codes)
print(len(graphs))
"""


@pytest.mark.slow
def test_a_step_compiles_to_one_graph_without_a_break_at_whatever_frame():
    """In a process of its own: here shapes are checked as functions are called, which no compiler looks through."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_bf16_is_the_same_distribution_within_its_rounding():
    model = builders.model(3)
    _, states, mask = builders.batch()
    rollout = sample(Stacked(model, torch.bfloat16), states, mask, [1, 2, 3], 12, WHOLE)
    for transformer in model.transformers:
        with torch.no_grad():
            full = transformer(rollout.codes, states, mask).log_softmax(-1)
        own = slice(transformer.first, transformer.first + transformer.group)
        exact = full.gather(-1, rollout.codes[:, own, :, None])[..., 0]
        assert (rollout.log_probs[:, own] - exact).abs().max() < 0.1


def test_weights_that_change_are_seen_by_the_next_preparation_only():
    model = builders.model(2)
    _, states, mask = builders.batch()
    before = Stacked(model)
    first = sample(before, states, mask, [1, 2, 3], 6, WHOLE).codes
    with torch.no_grad():
        model[0].heads.mul_(-1)
    assert torch.equal(sample(before, states, mask, [1, 2, 3], 6, WHOLE).codes, first)
    assert not torch.equal(sample(model, states, mask, [1, 2, 3], 6, WHOLE).codes, first)
    compare(model)
