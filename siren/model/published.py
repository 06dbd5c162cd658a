"""The authors' stage-1 checkpoints (arXiv 2510.04577, published code): their settings and tensors as ours, and back.

They compute what `ResidualTransformer` computes, so all this is names: ours follow from the modules, `published_state`
renames them, and whatever the authors' format demands (its keys, its shapes) is read off a transformer without memory.
Every transformer ("expert") holds the projectors of all codebooks and the codec's frozen tables.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from siren.config import Model, require
from siren.model.codebooks import CodecTables
from siren.model.transformer import ResidualTransformer

NUM_CODEBOOKS, NUM_TRANSFORMERS, CODEBOOK_SIZE = 12, 6, 1024  # the format has these and no others

STACKS = {  # ours holds in one tensor what theirs numbers
    "codebooks.rows": "codebooks.layers.{}.codebook.weight",
    "codebooks.weight": "codebooks.layers.{}.dac_out.weight",
    "codebooks.bias": "codebooks.layers.{}.dac_out.bias",
    "codebooks.projector": "codebooks.layers.{}.projector.weight",
    "codebooks.projector_bias": "codebooks.layers.{}.projector.bias",
    "heads": "heads.{}.weight",
}
FROZEN = tuple(STACKS)[:3]
RENAMINGS = (  # ours, theirs
    (r"^temporal_norm\.", "spatial_norm."),
    (r"^decoder_norm\.", "factorized_norm."),
    (r"^decoder\.", "factorized_blocks."),
    (r"^temporal\.", "spatial_blocks."),
    (r"\.block\.attention_norm\.", ".self_norm."),
    (r"\.block\.attention\.", ".self_attention."),
    (r"\.block\.", "."),
)


@dataclass(frozen=True)
class PublishedConfig:
    """Their config.json, key by key."""

    dim: int
    n_heads: int
    n_kv_heads: int
    spatial_layers: int
    factorized_layers: int
    prompt_dim: int
    num_codebooks: int
    num_experts: int
    codebook_size: int
    dac_code_dim: int
    dac_feature_dim: int
    max_seq_len: int
    max_prompt_len: int
    ffn_multiple_of: int
    ffn_multiplier: float | None
    norm_eps: float
    dropout: float
    initializer_range: float

    def __post_init__(self) -> None:
        k, m = self.num_codebooks, self.num_experts
        require(m > 0 and k % m == 0, f"num_codebooks {k} cannot be shared out evenly among num_experts {m}")
        fixed = {"num_codebooks": NUM_CODEBOOKS, "num_experts": NUM_TRANSFORMERS, "codebook_size": CODEBOOK_SIZE}
        for key, right in fixed.items():
            require(getattr(self, key) == right, f"{key} is {getattr(self, key)}; the published format has {right}")
        may_be_zero = ("dropout", "ffn_multiplier")
        for key, value in vars(self).items():
            require(key in may_be_zero or value > 0, f"{key} is {value}; it must be positive")
        require(self.ffn_multiplier is None or self.ffn_multiplier > 0, f"ffn_multiplier is {self.ffn_multiplier}")
        require(self.dim % self.n_heads == 0, f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        require(
            self.n_heads % self.n_kv_heads == 0,
            f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}",
        )
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it lies in [0, 1)")

    def model(self) -> Model:
        """The same settings under our names."""
        return Model(
            transformers=tuple(range(self.num_experts)),
            dim=self.dim,
            num_heads=self.n_heads,
            num_kv_heads=self.n_kv_heads,
            main_layers=self.spatial_layers,
            decoder_layers=self.factorized_layers,
            max_frames=self.max_seq_len,
            max_text=self.max_prompt_len,
            ffn_multiple_of=self.ffn_multiple_of,
            ffn_multiplier=self.ffn_multiplier,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            init_std=self.initializer_range,
            normalise_codes=False,
            residual_start="prompt",
        )

    def transformer(self, index: int, device: str = "cpu") -> ResidualTransformer:
        """Transformer `index` with random weights and empty tables; on `meta` it takes no memory."""
        shape = (self.num_codebooks, self.codebook_size, self.dac_code_dim)
        with torch.device(device):
            tables = CodecTables(
                torch.zeros(shape),
                torch.zeros(self.num_codebooks, self.dac_feature_dim, self.dac_code_dim),
                torch.zeros(self.num_codebooks, self.dac_feature_dim),
            )
            return ResidualTransformer(self.model(), tables, self.prompt_dim, index)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a transformer's file, by their name. All transformers have the same."""
        state = published_state(self.transformer(0, "meta").state_dict())
        return {name: tuple(tensor.shape) for name, tensor in state.items()}


def published_config(transformer: ResidualTransformer) -> PublishedConfig:
    """The settings of one of ours under their names. Raises ValueError where their format cannot hold it."""
    model, codebooks = transformer.config, transformer.codebooks
    if model.residual_start != "prompt":
        raise ValueError(
            f"this model has residual_start {model.residual_start!r}; the published format knows only 'prompt', the "
            "projected mean of the text"
        )
    if model.normalise_codes:
        raise ValueError("this model has normalise_codes: true; the published format holds the codec's own tables only")
    num_codebooks, codebook_size, code_dim = codebooks.rows.shape
    return PublishedConfig(
        dim=model.dim,
        n_heads=model.num_heads,
        n_kv_heads=model.num_kv_heads,
        spatial_layers=model.main_layers,
        factorized_layers=model.decoder_layers,
        prompt_dim=transformer.text_width,
        num_codebooks=num_codebooks,
        num_experts=len(model.transformers),
        codebook_size=codebook_size,
        dac_code_dim=code_dim,
        dac_feature_dim=codebooks.weight.shape[1],
        max_seq_len=model.max_frames,
        max_prompt_len=model.max_text,
        ffn_multiple_of=model.ffn_multiple_of,
        ffn_multiplier=model.ffn_multiplier,
        norm_eps=model.norm_eps,
        dropout=model.dropout,
        initializer_range=model.init_std,
    )


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of ours under their names; no value changes."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in STACKS:
            theirs |= {STACKS[name].format(j): part for j, part in enumerate(tensor)}
        elif name == "start":
            theirs["sos"] = tensor[None, None]
        else:
            theirs[_renamed(name)] = tensor
    return theirs


def transformer_of(config: PublishedConfig, state: Mapping[str, Tensor], index: int) -> ResidualTransformer:
    """The transformer of one of their states, in evaluation mode. Raises ValueError where the tensors do not fit."""
    check_shapes(config, {name: tuple(tensor.shape) for name, tensor in state.items()}, f"transformer {index}")
    transformer = config.transformer(index)
    ours: dict[str, Tensor] = {}
    for name, like in transformer.state_dict().items():
        if name in STACKS:
            ours[name] = torch.stack([state[STACKS[name].format(j)] for j in range(len(like))])
        else:
            ours[name] = state["sos"][0, 0] if name == "start" else state[_renamed(name)]
    transformer.load_state_dict(ours)
    return transformer.eval()


def tables_of(state: Mapping[str, Tensor]) -> CodecTables:
    """The frozen tables of the codec that one of their states holds."""
    rows, weight, bias = (
        torch.stack([state[STACKS[name].format(k)] for k in range(NUM_CODEBOOKS)]).float() for name in FROZEN
    )
    return CodecTables(rows, weight, bias)


def check_shapes(config: PublishedConfig, found: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise ValueError unless `found` has exactly the tensors that `config` asks for; `what` has them, for messages."""
    needed = config.shapes()
    missing, extra = sorted(needed.keys() - found.keys()), sorted(found.keys() - needed.keys())
    for names, problem in ((missing, "lacks"), (extra, "has, beyond what its config asks for,")):
        if names:
            raise ValueError(f"{what} {problem} {len(names)} tensors: {', '.join(names[:3])}{', …' * (len(names) > 3)}")
    for name, shape in sorted(needed.items()):
        if found[name] != shape:
            raise ValueError(f"{what}: {name} is {list(found[name])}; its config asks for {list(shape)}")


def _renamed(name: str) -> str:
    for ours, theirs in RENAMINGS:
        name = re.sub(ours, theirs, name)
    return name
