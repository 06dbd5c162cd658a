"""CLAP as transformers' `ClapModel`: the default backend. Offline, and without torchaudio."""

from typing import Any

import torch
from torch import nn

from siren.networks.clap.architecture import Architecture
from siren.networks.clap.features import LogMel
from siren.networks.clap.protocol import Clap
from siren.networks.text import Tokenizer
from siren.shapes import Bool, Float, Int


class TransformersClap(Clap):
    """Needs transformers only."""

    backend = "transformers"

    def __init__(self, arch: Architecture, tokenizer: Tokenizer, sample_rate: int) -> None:
        super().__init__(arch, tokenizer, sample_rate)
        self.features = LogMel(arch)
        self.model: Any = clap_model(arch, tokenizer)

    def _text(
        self, ids: Int[torch.Tensor, "B L"], mask: Bool[torch.Tensor, "B L"]
    ) -> tuple[Float[torch.Tensor, "B L P"], Float[torch.Tensor, "B E"]]:
        output = self.model.text_model(input_ids=ids, attention_mask=mask.long())
        return output.last_hidden_state, self.model.text_projection(output.pooler_output)

    def _audio(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B E"]:
        pooled = self.model.audio_model(input_features=self.features(wav)).pooler_output
        projected: torch.Tensor = self.model.audio_projection(pooled)
        return projected


def clap_model(arch: Architecture, tokenizer: Tokenizer) -> nn.Module:
    """An untrained `ClapModel` of this size; its random start is torch's generator's."""
    from transformers import ClapConfig, ClapModel

    return ClapModel(
        ClapConfig(
            text_config=text_config(arch, tokenizer), audio_config=_audio_config(arch), projection_dim=arch.embed_dim
        )
    )


def text_config(arch: Architecture, tokenizer: Tokenizer) -> dict[str, Any]:
    """The text tower as transformers' configurations of BERT, RoBERTa and CLAP name it."""
    return {
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.text_width,
        "num_hidden_layers": arch.text_layers,
        "num_attention_heads": arch.text_heads,
        "intermediate_size": arch.text_ffn,
        "max_position_embeddings": arch.max_positions,
        "layer_norm_eps": arch.text_norm_eps,
        "hidden_dropout_prob": arch.dropout,
        "attention_probs_dropout_prob": arch.dropout,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
    }


def htsat(arch: Architecture) -> nn.Module:
    """The untrained audio tower alone."""
    from transformers import ClapAudioConfig, ClapAudioModel

    tower: nn.Module = ClapAudioModel(ClapAudioConfig(**_audio_config(arch)))
    return tower


def _audio_config(arch: Architecture) -> dict[str, Any]:
    return {
        "spec_size": arch.spec_size,
        "num_mel_bins": arch.mel_bands,
        "patch_size": arch.patch,
        "patch_stride": [arch.patch, arch.patch],
        "patch_embeds_hidden_size": arch.width,
        "hidden_size": arch.audio_width,
        "depths": list(arch.depths),
        "num_attention_heads": list(arch.heads),
        "window_size": arch.window,
        "hidden_dropout_prob": arch.dropout,
        "attention_probs_dropout_prob": 0.0,
    }
