"""One isolated transformer: what it may see, read off gradients; and the published forward, to the digit."""

import pytest
import torch

from siren.model import blocks
from siren.model.codebooks import Codebooks
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer, cross_entropy
from tests.model import builders


@pytest.mark.parametrize("residual_start", ["prompt", "learned"])
@pytest.mark.parametrize("num_transformers", [1, 2, 3, 6])
def test_logits_take_no_gradient_from_what_sampling_has_not_seen(num_transformers, residual_start):
    siren = builders.model(num_transformers, residual_start=residual_start)
    codes, states, mask = builders.batch()
    for transformer in siren.transformers:
        rows = transformer.codebooks.gather(codes).requires_grad_()
        transformer.codebooks.gather = lambda codes, rows=rows: rows
        logits = transformer(codes, states, mask)
        for j in range(transformer.group):
            (seen,) = torch.autograd.grad(logits[:, j, 4].sum(), rows, retain_graph=True)
            used = seen.abs().sum(dim=(0, 3)) > 0  # [T, K]
            own = transformer.first + j
            expected = torch.zeros_like(used)
            expected[:4] = True
            expected[4, :own] = True
            assert torch.equal(used, expected)


def test_training_one_transformer_leaves_every_other_without_gradient():
    siren = builders.model(3)
    codes, states, mask = builders.batch()
    cross_entropy(siren[1](codes, states, mask), siren[1].targets(codes)).mean().backward()
    assert all(p.grad is not None for p in siren[1].parameters())
    assert all(p.grad is None for i in (0, 2) for p in siren[i].parameters())


def test_padding_of_the_text_changes_nothing():
    transformer = builders.model(2)[1]
    codes, states, mask = builders.batch()
    garbage = torch.where(mask[..., None], states, torch.full_like(states, 1e3))
    torch.testing.assert_close(transformer(codes, states, mask), transformer(codes, garbage, mask))


def test_the_folded_embedding_equals_the_chain_it_replaces():
    tables = builders.tables()
    codebooks = Codebooks(tables, 16, 0.3)
    codes, _, _ = builders.batch()
    chain = [
        tables.latents()[k][codes[:, k]] @ codebooks.projector[k].T + codebooks.projector_bias[k] for k in range(6)
    ]
    everything, accumulated = codebooks.embed(codebooks.gather(codes), 2, 2)
    torch.testing.assert_close(everything, sum(chain))
    torch.testing.assert_close(accumulated[0], chain[0] + chain[1])
    torch.testing.assert_close(accumulated[1], chain[0] + chain[1] + chain[2])
    for k in range(6):
        torch.testing.assert_close(codebooks.tables()[k][codes[:, k]], chain[k])


def test_normalised_tables_have_unit_root_mean_square():
    latents = builders.tables().normalised().latents()
    torch.testing.assert_close(latents.square().mean(dim=(1, 2)), torch.ones(6))


def test_codebooks_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ValueError, match="6 codebooks cannot be shared out evenly among 4"):
        ResidualTransformer(builders.config(4), builders.tables(), builders.TEXT_WIDTH, 0)


def test_a_collaboration_refuses_gaps_and_other_codecs():
    whole = builders.model(3)
    with pytest.raises(ValueError, match=r"transformers \[0, 2\]"):
        Siren([whole[0], whole[2]])
    stranger = ResidualTransformer(builders.config(3), builders.tables(seed=9), builders.TEXT_WIDTH, 2)
    with pytest.raises(ValueError, match="another codec"):
        Siren([whole[0], whole[1], stranger])


def test_cross_entropy_of_uniform_logits_is_the_log_of_the_vocabulary():
    loss = cross_entropy(torch.zeros(2, 2, 3, 16), torch.zeros(2, 2, 3, dtype=torch.long))
    torch.testing.assert_close(loss, torch.full((2,), 16.0).log())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.full((1, 6, 4), 16)}, "code 16; the codec's codes are 0 to 15"),
        ({"codes": torch.full((1, 6, 4), -1)}, "code -1; the codec's codes are 0 to 15"),
        ({"codes": torch.zeros(1, 5, 4, dtype=torch.long)}, "codes of 5 codebooks; this model was made for 6"),
        ({"codes": torch.zeros(1, 6, 25, dtype=torch.long)}, r"25 frames; .* end at 24 \(model.max_frames\)"),
        ({"states": torch.zeros(1, 3, 13)}, "text states of width 13; this model reads those of width 12"),
        ({"states": torch.zeros(1, 9, 12)}, "a text of 9 tokens; this model reads at most 8"),
    ],
)
def test_input_that_the_model_has_no_table_for_is_named(change, message):
    given = {"codes": torch.zeros(1, 6, 4, dtype=torch.long), "states": torch.zeros(1, 3, 12)} | change
    mask = torch.ones(given["states"].shape[:2], dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        builders.model(3)[1](given["codes"], given["states"], mask)


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 4}, {"residual_start": "learned"}])
def test_the_ways_of_a_compiled_model_are_those_of_an_eager_one(monkeypatch, changes):
    """Logits and gradients, with both other ways taken: few heads, so that folding the text costs less."""
    codes, states, mask = builders.batch(frames=20)
    taken = []
    for name in ("_attend_to_few", "_folded"):
        owner = blocks if name == "_attend_to_few" else blocks.CrossAttention
        way = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, way=way, name=name: taken.append(name) or way(*a))
    found = []
    for compiling in (False, True):
        transformer = builders.model(2, dim=32, **changes)[1]
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        logits = transformer(codes, states, mask)
        cross_entropy(logits, transformer.targets(codes)).mean().backward()
        found.append([logits, *(p.grad for p in transformer.parameters())])
        assert set(taken) == ({"_attend_to_few", "_folded"} if compiling else set())
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
