"""The cost of a model: its parameters to the last one, its arithmetic and activations as torch counts them."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from siren.generate.plain import Stream
from siren.model import budget
from siren.model.codebooks import CodecTables
from siren.model.transformer import ResidualTransformer, cross_entropy
from tests.model import builders

PAPER = {"dim": 1024, "num_heads": 16, "num_kv_heads": 16, "ffn_multiple_of": 256, "max_frames": 2048}


def paper(main_layers: int, decoder_layers: int) -> ResidualTransformer:
    dac = CodecTables(torch.zeros(12, 1024, 8), torch.zeros(12, 1024, 8), torch.zeros(12, 1024))
    model = builders.config(6, main_layers=main_layers, decoder_layers=decoder_layers, **PAPER)
    return budget.skeleton(model, dac, 768)


@pytest.mark.parametrize(
    ("layers", "main", "decoder", "total", "trainable"),
    [
        ((14, 2), 231_311_360, 25_694_208, 272_697_344, 272_488_448),
        ((24, 8), 396_533_760, 102_776_832, 515_002_368, 514_793_472),
    ],
)
def test_the_paper_sizes_have_the_published_number_of_parameters(layers, main, decoder, total, trainable):
    transformer = paper(*layers)
    assert budget.parameters(transformer) == {
        "embedding": 12_595_200,
        "codec tables (frozen)": 208_896,
        "main layers": main,
        "decoder layers": decoder,
        "heads": 2_097_152,
        "decoder start": 787_456,
        "start and final norms": 3072,
        "total": total,
    }
    assert sum(p.numel() for p in transformer.parameters()) == trainable
    assert all(tensor.is_meta for tensor in transformer.state_dict().values())


SMALL = [
    (3, 0, {}),
    (3, 2, {"residual_start": "learned", "main_layers": 1}),
    (2, 1, {"num_kv_heads": 1, "decoder_layers": 3, "dim": 24}),
    (6, 3, {"ffn_multiplier": 0.7, "decoder_layers": 1}),
    (1, 0, {"residual_condition": "none", "decoder_layers": 0}),
    (3, 2, {"residual_condition": "previous"}),
]


@pytest.mark.parametrize(("transformers", "index", "changes"), SMALL)
def test_the_formula_counts_the_operations_that_torch_counts(transformers, index, changes):
    model = builders.config(transformers, **changes)
    transformer = ResidualTransformer(model, builders.tables(), builders.TEXT_WIDTH, index)
    codes, states, mask = builders.batch()
    counted = {}
    with sdpa_kernel(SDPBackend.MATH):  # the kernels that torch counts on a CPU
        for name in ("forward", "total"):
            with FlopCounterMode(display=False) as counter:
                losses = cross_entropy(transformer(codes, states, mask), transformer.targets(codes))
                if name == "total":
                    losses.mean().backward()
            counted[name] = counter.get_total_flops()
    expected = budget.training_flops(transformer, batch=3, frames=7, text_length=5)
    assert counted == {name: expected[name] for name in counted}
    assert budget.training_flops(budget.skeleton(model, builders.tables(), 12, index), 3, 7, 5) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("transformers", "index", "changes"), SMALL)
def test_the_estimate_of_activations_is_near_what_autograd_keeps(transformers, index, changes, precision):
    torch.manual_seed(0)
    model = builders.config(transformers, **{"dim": 48, "max_frames": 64, **changes})
    transformer = ResidualTransformer(model, builders.tables(), builders.TEXT_WIDTH, index)
    own = {t.untyped_storage().data_ptr() for t in (*transformer.parameters(), *transformer.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    codes, states, mask = (t.repeat(8, *[1] * (t.ndim - 1)) for t in builders.batch(frames=60))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        cross_entropy(transformer(codes, states, mask), transformer.targets(codes))
    found = sum(size for size, _ in kept.values())
    estimate = budget.activations(transformer, 24, 60, 5, precision, fused_norms=False)
    assert estimate == pytest.approx(found, rel=0.03)
    assert budget.activations(transformer, 24, 60, 5, precision) < estimate


def test_sampling_takes_the_memory_that_the_caches_and_tables_have():
    model = builders.model(3, decoder_layers=3)
    _, states, mask = builders.batch()
    with torch.no_grad():
        streams = [Stream(t, t.read_text(states, mask), 3, 7) for t in model.transformers]
    caches = [cache for s in streams for cache in (*s.frames, *s.inside)]
    found = {
        "weights": sum(t.numel() for t in model.state_dict().values()),
        "embedding tables": sum(s.tables.numel() for s in streams),
        "frame caches": sum(cache.keys.numel() + cache.values.numel() for cache in caches),
        "text caches": sum(t.numel() for s in streams for pair in s.text.keys_values for t in pair),
    }
    expected = budget.sampling_memory(model[0], batch=3, frames=7, text_length=5)
    assert {name: 4 * count for name, count in found.items()} | {"total": 4 * sum(found.values())} == expected
