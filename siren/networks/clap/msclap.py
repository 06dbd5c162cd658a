"""MS-CLAP (Elizalde et al., arXiv 2206.04769 and 2309.05767): a second CLAP family, to score what the first one chose.

Two published versions: 2022 (Cnn14 and BERT, 5 s) and 2023 (HTS-AT and GPT-2, 7 s), both at 44.1 kHz. The towers are
transformers' and this project's; the weights of a checkpoint keep transformers' names. What differs from LAION's:
- clips are repeated up to the length and cut, with no zeros; longer ones are cut at random there, and here into evenly
  spread windows, as everywhere in this project;
- 2023 hears 44.1 kHz through a mel matrix laid out for 32 kHz (its audio tower ignores the settings it is given): a
  band said to end at 14 kHz ends at 19.3. The checkpoint holds that matrix, and is held to it;
- GPT-2 pads with "!" and the text embedding is read where the tokens that are not "!" end, so that one "!" in a
  caption moves it by one; done alike here.
One difference: a caption of more tokens than fit still ends in the mark of the end.
The published weights have not been run here; the architectures are checked on random ones, in the published layout.
Shapes: B batch · S samples · L text length · P text width · E embedding width.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from siren.config import ConfigError, require
from siren.networks.clap.architecture import HTSAT_TINY_48K, Architecture
from siren.networks.clap.features import LogMel
from siren.networks.clap.hf import htsat, text_config
from siren.networks.clap.names import to_transformers
from siren.networks.clap.protocol import Clap
from siren.networks.judge.cnn14 import Cnn14, Cnn14Config
from siren.networks.text import FILE, Tokenizer
from siren.shapes import Bool, Float, Int

MARKS = {"gpt2": ("<|endoftext|>", "!", "<|endoftext|>"), "bert": ("[CLS]", "[PAD]", "[SEP]")}
HUB = {"gpt2": "gpt2", "bert": "bert-base-uncased"}
PREFIXES = (
    ("audio_encoder.base.htsat.", "audio_branch."),  # from here LAION's names for the same tower
    ("audio_encoder.base.", "audio_model."),
    ("audio_encoder.projection.", "audio_projection."),
    ("caption_encoder.base.", "text_model."),
    ("caption_encoder.projection.", "text_projection."),
    ("logit_scale", "logit_scale_t"),
)
LEFT_OUT = re.compile(r"\.attn\.(masked_)?bias$|^text_model\.pooler\.")  # GPT-2's causal masks; BERT's unused pooler
MEL = re.compile(r"logmel_extractor\.melW$")


@dataclass(frozen=True)
class MsArchitecture(Architecture):
    """An `Architecture` of which the towers are named; what belongs to the other tower is not used."""

    name: str = "msclap-2023"  # appears in the names of metrics
    audio: str = "htsat"
    text: str = "gpt2"
    mel_rate: int = 32000  # the rate that the mel matrix takes the waveforms to have
    cnn_width: float = 1.0  # of Cnn14; 1 is the published one
    classes: int = 527  # Cnn14's head, which no embedding uses

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.audio in ("htsat", "cnn14"), f"audio is {self.audio!r}; it is htsat or cnn14")
        require(self.text in MARKS, f"text is {self.text!r}; it is {' or '.join(MARKS)}")


MSCLAP_2023 = MsArchitecture(
    **{
        **vars(HTSAT_TINY_48K),
        "sample_rate": 44100,
        "max_seconds": 7.0,
        "hop": 320,
        "vocab_size": 50257,
        "text_ffn": 3072,
        "max_tokens": 77,
        "max_positions": 1024,
        "embed_dim": 1024,
    }
)
MSCLAP_2022 = replace(
    MSCLAP_2023,
    name="msclap-2022",
    audio="cnn14",
    text="bert",
    mel_rate=44100,
    max_seconds=5.0,
    vocab_size=30522,
    max_tokens=100,
    max_positions=512,
    text_norm_eps=1e-12,
)


class Projection(nn.Module):
    """A linear map, plus one more behind a GELU, normalised. [B, in] → [B, out]"""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, outputs, bias=False)
        self.linear2 = nn.Linear(outputs, outputs, bias=False)
        self.layer_norm = nn.LayerNorm(outputs)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear1(x)
        normed: torch.Tensor = self.layer_norm(x + F.dropout(self.linear2(F.gelu(x)), self.dropout, self.training))
        return normed


class MsClap(Clap):
    """Needs transformers only."""

    backend = "msclap"
    sizes = MsArchitecture
    wrap = True
    arch: MsArchitecture

    def __init__(self, arch: Architecture, tokenizer: Tokenizer, sample_rate: int) -> None:
        if not isinstance(arch, MsArchitecture):
            raise ConfigError("networks.clap.backend msclap takes published weights; to train a CLAP take transformers")
        super().__init__(arch, tokenizer, sample_rate)
        self.features = LogMel(replace(arch, sample_rate=arch.mel_rate))
        audio_width = arch.audio_width if arch.audio == "htsat" else round(2048 * arch.cnn_width)
        self.model: Any = nn.ModuleDict(
            {
                "audio_model": _audio_tower(arch),
                "audio_projection": Projection(audio_width, arch.embed_dim, arch.dropout),
                "text_model": _text_tower(arch, tokenizer),
                "text_projection": Projection(arch.text_width, arch.embed_dim, arch.dropout),
            }
        )
        self.model.register_parameter("logit_scale_t", nn.Parameter(torch.tensor(1 / 0.07).log()))

    @classmethod
    def marks(cls, arch: Architecture) -> tuple[str, str, str]:
        assert isinstance(arch, MsArchitecture)
        return MARKS[arch.text]

    def _marked(self, captions: list[str]) -> list[str]:
        return [f"{caption} {MARKS['gpt2'][2]}" for caption in captions] if self.arch.text == "gpt2" else captions

    def _text(
        self, ids: Int[torch.Tensor, "B L"], mask: Bool[torch.Tensor, "B L"]
    ) -> tuple[Float[torch.Tensor, "B L P"], Float[torch.Tensor, "B E"]]:
        states = self.model["text_model"](input_ids=ids, attention_mask=mask.long()).last_hidden_state
        # GPT-2: the last token that is not the padding's; BERT: the first one
        place = (ids != self.tokenizer.pad_id).sum(1) - 1 if self.arch.text == "gpt2" else torch.zeros_like(ids[:, 0])
        return states, self.model["text_projection"](states[torch.arange(len(ids), device=ids.device), place])

    def _audio(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B E"]:
        log_mel, tower = self.features(wav), self.model["audio_model"]
        if isinstance(tower, Cnn14):
            pooled = tower.of_log_mel(log_mel).features
        else:
            pooled = tower(input_features=log_mel).pooler_output
        projected: torch.Tensor = self.model["audio_projection"](pooled)
        return projected


def _audio_tower(arch: MsArchitecture) -> nn.Module:
    if arch.audio == "htsat":
        return htsat(arch)
    return Cnn14(Cnn14Config(width=arch.cnn_width), [str(i) for i in range(arch.classes)])


def _text_tower(arch: MsArchitecture, tokenizer: Tokenizer) -> nn.Module:
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    made: nn.Module
    if arch.text == "gpt2":
        made = GPT2Model(
            GPT2Config(
                vocab_size=arch.vocab_size,
                n_positions=arch.max_positions,
                n_embd=arch.text_width,
                n_layer=arch.text_layers,
                n_head=arch.text_heads,
                n_inner=arch.text_ffn,
                layer_norm_epsilon=arch.text_norm_eps,
                resid_pdrop=arch.dropout,
                embd_pdrop=arch.dropout,
                attn_pdrop=arch.dropout,
                bos_token_id=tokenizer.bos_id,
                eos_token_id=tokenizer.eos_id,
                use_cache=False,
            )
        )
    else:
        made = BertModel(BertConfig(**text_config(arch, tokenizer)), add_pooling_layer=False)
    return made


def is_msclap(state: dict[str, Any]) -> bool:
    return any(name.removeprefix("module.").startswith("caption_encoder.") for name in state)


def canonical(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's weights under our names; its front end is computed here, its causal masks by transformers."""
    out = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        theirs, ours = next(((a, b) for a, b in PREFIXES if name.startswith(a)), ("", ""))
        name = ours + name.removeprefix(theirs)
        if not LEFT_OUT.search(name):
            out[name] = tensor
    return to_transformers(out)


def checkpoint(path: Path, state: dict[str, torch.Tensor]) -> tuple[MsArchitecture, Tokenizer, dict[str, torch.Tensor]]:
    """CLAP_weights_2022.pth or CLAP_weights_2023.pth, told by their towers; the tokeniser beside it, or by name.

    Raises ValueError where the file's mel matrix is not the one that is computed here.
    """
    names = canonical(state)
    arch = MSCLAP_2023 if any(name.startswith("audio_model.audio_encoder.") for name in names) else MSCLAP_2022
    for name, theirs in state.items():
        filters = LogMel(replace(arch, sample_rate=arch.mel_rate)).filters
        if MEL.search(name) and (theirs.shape != filters.shape or not torch.allclose(theirs, filters, atol=1e-5)):
            raise ValueError(f"{path} has a mel matrix of shape {tuple(theirs.shape)} that is not {arch.name}'s")
    marks = MARKS[arch.text]
    beside = (path.parent / FILE).is_file()
    tokenizer = Tokenizer.load(path.parent, marks) if beside else Tokenizer.published(HUB[arch.text], marks)
    return arch, tokenizer, names
