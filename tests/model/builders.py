"""Small models for tests."""

from siren.config import Model, Sampling
from siren.model import arms
from siren.model.codebooks import CodecTables
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer

import torch  # isort: skip

TEXT_WIDTH = 12
WHOLE = Sampling(temperature=1.0, top_k=None, top_p=None, guidance=None)  # the distribution, nothing cut off


def tables(num_codebooks: int = 6, size: int = 16, code_dim: int = 4, latent: int = 10, seed: int = 0) -> CodecTables:
    g = torch.Generator().manual_seed(seed)
    return CodecTables(
        torch.randn(num_codebooks, size, code_dim, generator=g),
        torch.randn(num_codebooks, latent, code_dim, generator=g),
        torch.randn(num_codebooks, latent, generator=g),
    )


def config(num_transformers: int = 3, **changes: object) -> Model:
    settings: dict = {
        "transformers": tuple(range(num_transformers)),
        "dim": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "main_layers": 2,
        "decoder_layers": 2,
        "max_frames": 24,
        "max_text": 8,
        "ffn_multiple_of": 8,
        "norm_eps": 1e-5,
        "dropout": 0.0,
        "init_std": 0.3,
        "normalise_codes": False,
        "residual_start": "prompt",
    }
    return Model(**{**settings, **changes})


def model(num_transformers: int = 3, seed: int = 0, num_codebooks: int = 6, **changes: object) -> Siren:
    torch.manual_seed(seed)
    cfg, t = config(num_transformers, **changes), tables(num_codebooks)
    return Siren([ResidualTransformer(cfg, t, TEXT_WIDTH, i) for i in cfg.transformers]).eval()


WIDTHS = arms.Widths.of(tables(), TEXT_WIDTH)


def arm(name: str, seed: int = 0, num_codebooks: int = 6, **changes: object) -> Siren:
    """An arm of the paper's tables, as wide and deep as `config()`."""
    torch.manual_seed(seed)
    cfg, t = arms.arrange(name, config(**changes)), tables(num_codebooks)
    return Siren([ResidualTransformer(cfg, t, TEXT_WIDTH, i) for i in cfg.transformers]).eval()


def batch(frames: int = 7, size: int = 3, num_codebooks: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(16, (size, num_codebooks, frames), generator=g)
    states = torch.randn(size, 5, TEXT_WIDTH, generator=g)
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 4])[:size, None]
    return codes, states, mask
