"""One isolated transformer: what it may see, read off gradients; and the published forward, to the digit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from siren.model.codebooks import Codebooks, CodecTables
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


@pytest.mark.real
def test_the_published_forward_is_reproduced(shared):
    """The authors' weights and inputs give the authors' logits (unmasked frames, float32)."""
    folder = shared / "reference-checkpoint"
    data, settings = load_file(folder / "expected.safetensors"), json.loads((folder / "config.json").read_text())
    for index in range(6):
        transformer = _published(load_file(folder / f"expert_{2 * index}.safetensors"), settings, index)
        mask = data["prompt_mask"].bool()
        with torch.no_grad():
            logits = transformer(data["codes"].long(), data["prompt"], torch.ones_like(mask))
            masked = transformer(data["codes"].long(), data["prompt"], mask)
        torch.testing.assert_close(logits, data[f"logits_nomask_{2 * index}"], atol=1e-4, rtol=0)
        valid = data["sequence_mask"].bool()
        for b in range(2):  # right-padded sequences: causal frames before the padding do not see it
            torch.testing.assert_close(
                masked[b][:, valid[b]], data[f"logits_{2 * index}"][b][:, valid[b]], atol=1e-4, rtol=0
            )


def _published(state, settings, index):
    config = builders.config(
        6,
        dim=settings["dim"],
        num_heads=settings["n_heads"],
        num_kv_heads=settings["n_kv_heads"],
        main_layers=settings["spatial_layers"],
        decoder_layers=settings["factorized_layers"],
        max_frames=settings["max_seq_len"],
        ffn_multiple_of=settings["ffn_multiple_of"],
    )

    def stack(name):
        return torch.stack([state[f"codebooks.layers.{j}.{name}"] for j in range(12)])

    tables = CodecTables(stack("codebook.weight"), stack("dac_out.weight"), stack("dac_out.bias"))
    transformer = ResidualTransformer(config, tables, settings["prompt_dim"], index)
    mapped = {
        "start": state["sos"][0, 0],
        "heads": torch.stack([state["heads.0.weight"], state["heads.1.weight"]]),
        "codebooks.projector": stack("projector.weight"),
        "codebooks.projector_bias": stack("projector.bias"),
        "temporal_norm.weight": state["spatial_norm.weight"],
        "decoder_norm.weight": state["factorized_norm.weight"],
    }
    for key, value in state.items():
        kind, _, rest = key.partition(".")
        if kind == "prompt_summary":
            mapped[key] = value
        elif kind == "factorized_blocks":
            mapped[f"decoder.{rest}"] = value
        elif kind == "spatial_blocks":
            number, name = rest.split(".", 1)
            name = name.replace("self_norm", "attention_norm").replace("self_attention", "attention")
            name = name if name.startswith("cross_") else f"block.{name}"
            mapped[f"temporal.{number}.{name}"] = value
    missing, unexpected = transformer.load_state_dict(mapped, strict=False)
    assert sorted(missing) == ["codebooks.bias", "codebooks.rows", "codebooks.weight"]
    assert not unexpected
    return transformer.eval()
