"""The arms of the paper's Tables 3 to 6 as settings of the same classes, and the rule that gives them equal size.

An arm says what differs from Siren; everything else (data, optimiser, text, codec) stays. Tables compare arms of equal
total size: M transformers of one arm have together as many trainable parameters as those of another. The paper does
not say how its single transformers were shaped, so the rule is ours: width and depth grow together. The number of
decoder layers, the width of a head and the share of key-value heads stay as in the reference; for each width the
number of main layers that comes nearest to the wanted size follows, and of the pairs with about the reference's ratio
of width to depth (all layers) the nearest in size is taken. Where no multiple of the reference's head width gives one
within 2 % (small models), finer widths are tried, with as many heads as keep their width nearest.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import NamedTuple

from siren.config import Model
from siren.model.blocks import feed_forward_width
from siren.model.codebooks import CodecTables, Condition, Pattern

TOLERANCE = 0.02  # of the total number of trainable parameters
SAME_SHAPE = 1.3  # a ratio of width to depth within this factor of the reference's is about the same


class Widths(NamedTuple):
    """What codec and text encoder fix of the model."""

    num_codebooks: int
    codebook_size: int
    latent: int
    text: int

    @classmethod
    def of(cls, tables: CodecTables, text_width: int) -> "Widths":
        return cls(tables.num_codebooks, tables.codebook_size, tables.weight.shape[1], text_width)


@dataclass(frozen=True)
class Arm:
    """What an arm changes. `transformers` None: as many as the reference has. `share` of the reference's total size."""

    transformers: int | None = None
    condition: Condition = "accumulated"
    pattern: Pattern = "parallel"
    share: float = 1.0


ARMS = {
    "siren": Arm(),  # Table 3 Isolated, Table 4 row 4, Table 5 Collaborative, Table 6 6-2
    "previous": Arm(condition="previous"),  # Table 4 row 3: told the code below only
    "isolated": Arm(condition="none"),  # Table 4 row 2: does not generate, says the paper
    "independent": Arm(1, "none"),  # AudioGen: Table 1, Table 4 row 1, Table 5 Indpdt.
    "ar": Arm(1, "previous"),  # Table 5 AR
    "single": Arm(1),  # Table 3 Base Single, Table 5 Accumu. AR, Table 6 1-12
    "single-small": Arm(1, share=1 / 3),  # Table 3 Small Single: 530M against 1.6B
    "delay": Arm(1, "none", "delay"),  # Table 1 DelayPattern (MusicGen)
    "m2": Arm(2),  # Table 6, by the number of transformers
    "m3": Arm(3),
    "m4": Arm(4),
    "m6": Arm(6),
    "m12": Arm(12),  # does not generate, says the paper
}
SIZES = ("dim", "num_heads", "num_kv_heads", "main_layers", "decoder_layers")  # what the rule decides


def find(name: str) -> Arm:
    """The arm of this name. Raises ValueError with the nearest where there is none."""
    if name not in ARMS:
        near = difflib.get_close_matches(name, ARMS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(ARMS)}"
        raise ValueError(f"there is no arm {name!r}; {hint}")
    return ARMS[name]


def fits(name: str, num_codebooks: int) -> bool:
    """Whether this many codebooks can be shared out evenly among the arm's transformers."""
    return num_codebooks % (find(name).transformers or 1) == 0


def parameters(model: Model, widths: Widths) -> int:
    """Trainable parameters of all transformers together, without building one."""
    num_codebooks, size, dim = widths.num_codebooks, widths.codebook_size, model.dim
    hidden = feed_forward_width(dim, model.ffn_multiple_of, model.ffn_multiplier)
    qkv = dim + 2 * model.num_kv_heads * (dim // model.num_heads)
    block = 2 * dim + dim * qkv + dim * dim + 3 * dim * hidden
    cross = dim + 2 * (dim * dim + dim) + 2 * dim * (widths.text + 1)
    start = dim * widths.text + dim if model.residual_start == "prompt" else dim
    one = model.main_layers * (cross + block) + 2 * dim  # temporal path, its norm and its first input
    one += (model.decoder_layers * block + start + dim) if model.decoder_layers else 0
    one += num_codebooks * (widths.latent + 1) * dim + num_codebooks // len(model.transformers) * size * dim
    one += num_codebooks * dim if model.codebook_pattern == "delay" else 0
    return len(model.transformers) * one


def arrange(name: str, reference: Model) -> Model:
    """The arm's arrangement at the reference's width and depth. Raises ValueError for an arm that there is not."""
    arm = find(name)
    return dataclasses.replace(
        reference,
        transformers=tuple(range(arm.transformers or len(reference.transformers))),
        residual_condition=arm.condition,
        codebook_pattern=arm.pattern,
        decoder_layers=0 if arm.condition == "none" else reference.decoder_layers,
    )


def settings(name: str, reference: Model, widths: Widths) -> Model:
    """The settings of an arm that match those of Siren at some scale in size; see the module for the rule.

    Raises ValueError for an arm that there is not, one that the codec's codebooks cannot be shared out for, and where
    no shape comes within 2 %.
    """
    wanted = arrange(name, reference)
    if arrange("siren", reference) != reference or len(reference.transformers) == 1:
        raise ValueError("sizes are matched to those of Siren itself, and these settings are of another arm; use them")
    if not fits(name, widths.num_codebooks):
        raise ValueError(
            f"arm {name!r} has {len(wanted.transformers)} transformers, and {widths.num_codebooks} codebooks cannot be "
            f"shared out evenly among them; here fit {', '.join(n for n in ARMS if fits(n, widths.num_codebooks))}"
        )
    if wanted == reference:
        return reference
    total = find(name).share * parameters(reference, widths)

    def mismatch(model: Model) -> float:
        return abs(parameters(model, widths) / total - 1)

    def stretch(model: Model) -> float:
        return max(_ratio(model) / _ratio(reference), _ratio(reference) / _ratio(model))

    step, best = reference.dim // reference.num_heads, wanted
    while step % 2 == 0:  # sinusoidal positions need an even width
        shapes = [_deepened(_widened(wanted, reference, d), total, widths) for d in _widths(reference, step)]
        best = min((m for m in shapes if stretch(m) <= SAME_SHAPE), key=mismatch, default=best)
        if mismatch(best) <= TOLERANCE:
            return best
        step //= 2
    raise ValueError(
        f"no shape like the reference's gives arm {name!r} {total:,.0f} parameters within {TOLERANCE:.0%}; "
        f"nearest: {parameters(best, widths):,}"
    )


def sizes(reference: Model, widths: Widths) -> dict[str, dict[str, int]]:
    """The section `arms` of a scale, which `conf/model` takes its sizes from.

    An arm that does not fit the codec has the reference's: its settings can be composed and are then refused with the
    reason (`Config`), where a missing entry would only be a key that is not found.
    """
    other = [name for name, arm in ARMS.items() if arm.transformers or arm.condition == "none"]  # than the reference's
    made = {n: settings(n, reference, widths) if fits(n, widths.num_codebooks) else reference for n in other}
    return {name: {key: getattr(model, key) for key in SIZES} for name, model in made.items()}


def _ratio(model: Model) -> float:
    return model.dim / (model.main_layers + model.decoder_layers)


def _widths(reference: Model, step: int) -> range:
    """Widths from a quarter of the reference's to four times it."""
    return range(step * max(1, reference.dim // 4 // step), 4 * reference.dim + 1, step)


def _widened(model: Model, reference: Model, dim: int) -> Model:
    """The model at another width, with heads about as wide as the reference's."""
    head, sharing = reference.dim / reference.num_heads, reference.num_heads // reference.num_kv_heads
    counts = [n for n in range(sharing, dim + 1, sharing) if dim % n == 0]
    heads = min(counts, key=lambda n: abs(math.log(dim / n / head)))
    return dataclasses.replace(model, dim=dim, num_heads=heads, num_kv_heads=heads // sharing)


def _deepened(model: Model, total: float, widths: Widths) -> Model:
    """The model with the number of main layers that brings it nearest to `total` parameters: they grow linearly."""
    one, two = (parameters(dataclasses.replace(model, main_layers=n), widths) for n in (1, 2))
    return dataclasses.replace(model, main_layers=max(1, 1 + round((total - one) / (two - one))))
