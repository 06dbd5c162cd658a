"""CLAP as laion_clap's own `CLAP` class: the original code, for who wants its numbers and for checking ours.

Built offline: its hook, which fetches tokenizers and weights, is not imported; the text tower is made from a config
instead of being downloaded; and HTS-AT is made at our size, of which the package knows only three. It computes its
own log-mel, from torchlibrosa. In training it also drops stripes of the spectrogram, as its authors do.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from siren.networks.clap.architecture import Architecture
from siren.networks.clap.hf import text_config
from siren.networks.clap.names import to_laion, to_transformers
from siren.networks.clap.protocol import Clap
from siren.networks.packages import module_of
from siren.networks.text import Tokenizer
from siren.shapes import Bool, Float, Int


class LaionClap(Clap):
    """Needs laion_clap, torchlibrosa, torchvision and h5py."""

    backend = "laion"

    def __init__(self, arch: Architecture, tokenizer: Tokenizer, sample_rate: int) -> None:
        super().__init__(arch, tokenizer, sample_rate)
        self.model: Any = clap_model(arch, tokenizer)

    def _text(
        self, ids: Int[torch.Tensor, "B L"], mask: Bool[torch.Tensor, "B L"]
    ) -> tuple[Float[torch.Tensor, "B L P"], Float[torch.Tensor, "B E"]]:
        output = self.model.text_branch(input_ids=ids, attention_mask=mask.long())
        return output.last_hidden_state, self.model.text_projection(output.pooler_output)

    def _audio(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B E"]:
        pooled = self.model.encode_audio({"waveform": wav}, device=wav.device)["embedding"]
        projected: torch.Tensor = self.model.audio_projection(pooled)
        return projected

    def canonical_state(self) -> dict[str, torch.Tensor]:
        return to_transformers(self.model.state_dict())

    def _named(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return to_laion(state, self.model.state_dict())


def clap_model(arch: Architecture, tokenizer: Tokenizer) -> nn.Module:
    """An untrained laion_clap `CLAP` of this size. Raises ImportError that says what to install."""
    package = module_of("laion_clap", "clap_module.model", "laion-clap")
    audio = {
        "model_type": "HTSAT",
        "model_name": "tiny",
        "sample_rate": arch.sample_rate,
        "clip_samples": arch.max_samples,
        "window_size": arch.n_fft,
        "hop_size": arch.hop,
        "fmin": arch.fmin,
        "fmax": arch.fmax,
        "mel_bins": arch.mel_bands,
    }
    text = {
        "model_type": "roberta",
        "context_length": arch.max_tokens,
        "vocab_size": arch.vocab_size,
        "width": arch.text_width,
        "heads": arch.text_heads,
        "layers": arch.text_layers,
    }
    with _towers(package, arch, tokenizer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")  # the package's own call, still right
        model: Any = package.CLAP(arch.audio_width, audio, text, joint_embed_shape=arch.embed_dim)
    if arch.text_width != 768:  # the width that the package takes every RoBERTa to have
        model.text_projection[0] = nn.Linear(arch.text_width, arch.embed_dim)
    return model


@contextmanager
def _towers(package: Any, arch: Architecture, tokenizer: Tokenizer) -> Iterator[None]:
    """While it holds, the package's two tower makers build this architecture instead of what they know."""
    htsat = module_of("laion_clap", "clap_module.htsat", "laion-clap")

    def audio_tower(config: Any, *_: Any) -> nn.Module:
        tower: nn.Module = htsat.HTSAT_Swin_Transformer(
            spec_size=arch.spec_size,
            patch_size=arch.patch,
            patch_stride=(arch.patch, arch.patch),
            num_classes=config.class_num,
            embed_dim=arch.width,
            depths=list(arch.depths),
            num_heads=list(arch.heads),
            window_size=arch.window,
            drop_rate=arch.dropout,
            drop_path_rate=0.0,
            config=config,
        )
        return tower

    def text_tower(_: str) -> nn.Module:
        from transformers import RobertaConfig, RobertaModel

        return RobertaModel(RobertaConfig(**text_config(arch, tokenizer), type_vocab_size=1))

    kept = package.create_htsat_model, package.RobertaModel
    package.create_htsat_model, package.RobertaModel = audio_tower, SimpleNamespace(from_pretrained=text_tower)
    try:
        yield
    finally:
        package.create_htsat_model, package.RobertaModel = kept
