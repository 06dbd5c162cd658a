"""The authors' checkpoints of AutoCap: which of their tensors is which of ours.

The names are those of their code; the published weights themselves have not been run here. Two things in their file
are not used: a copy of BART inside the module of field marks, and CLAP, which is loaded by name.
"""

import re
from pathlib import Path

import torch

from siren.config import ConfigError
from siren.networks.autocap.architecture import Architecture
from siren.networks.autocap.model import TIED, AutoCap
from siren.networks.clap import Clap
from siren.networks.clap.names import BUFFERS, check, to_transformers
from siren.networks.clap.published import load_tensors
from siren.networks.text import FILE, Tokenizer

BART = "facebook/bart-base"  # whose tokeniser it has
MARKED = ("visual_caption", None, "title", "description", "subtitle", "labels")  # fields in the order of their marks
RENAMINGS = (  # their names, ours
    (r"^decoder\.", "writer.bart."),
    (r"^enc_to_dec_proj\.", "writer.heard."),
    (r"^audio_position_embedding\.", "writer.positions."),
    (r"^audio_Qfromer_layernorm_embedding\.", "writer.norm."),
    (r"^audio_query_tokens$", "writer.queries"),
    (r"^audio_Qformer\.bert\.embeddings\.LayerNorm\.", "writer.qformer.layernorm."),
    (r"^audio_Qformer\.bert\.encoder\.", "writer.qformer.encoder."),
    (r"^(writer\.qformer\..*attention)\.self\.", r"\1.attention."),
    (r"^audio_qformer_proj\.", "writer.asked."),
    (r"^clap_proj\.", "writer.clap."),
    (r"^clap_layernorm\.", "writer.clap_norm."),
)
TOWER = "encoder.audio_enc."
MARKS = "special_tokens_embed.special_token_embed.weight"
LEFT_OUT = ("special_tokens_embed.", "clap_model.", "audio_clap_resampler.")


def load_published(path: str, arch: Architecture, clap: Clap | None, sample_rate: int) -> AutoCap:
    """An AutoCap of the authors' for waveforms at `sample_rate`, frozen. `arch` is its size.

    BART's tokenizer.json lies beside the file, or is asked for by name. Raises ValueError where the weights do not fit.
    """
    data = load_tensors(path)
    state = to_ours(data.get("state_dict", data.get("model", data)), arch)
    if clap is None and "writer.clap.weight" in state:
        raise ConfigError(
            f"{path} reads a token of CLAP's embedding; name the CLAP in networks.autocap.clap, with clap_token true"
        )
    beside = Path(path).parent
    tokenizer = Tokenizer.load(beside) if (beside / FILE).is_file() else Tokenizer.published(BART)
    made = AutoCap(arch, tokenizer, clap, sample_rate)
    needed = {name: tensor for name, tensor in made.network.state_dict().items() if not name.endswith(BUFFERS)}
    check(state, needed, f"the weights of {path}")
    made.network.load_state_dict(state, strict=False)
    return made.requires_grad_(False).eval()


def to_ours(state: dict[str, torch.Tensor], arch: Architecture) -> dict[str, torch.Tensor]:
    """Their tensors under our names; of the marks, those of the fields that `arch` reads."""
    tower = {name: tensor for name, tensor in state.items() if name.startswith(TOWER)}
    heard = to_transformers({name.replace(TOWER, "audio_branch."): tensor for name, tensor in tower.items()})
    out = {name.replace("audio_model.", "ears.tower."): t for name, t in heard.items() if ".fc1." not in name}
    for name, tensor in state.items():
        if name in tower or name.startswith(LEFT_OUT):
            continue
        for theirs, ours in RENAMINGS:
            name = re.sub(theirs, ours, name)
        if name.removeprefix("writer.") not in TIED:
            out[name] = tensor
    rows = [2 * MARKED.index(name) + end for name in arch.fields for end in (0, 1)]
    out["writer.marks.weight"] = state[MARKS][rows]
    return out
