"""The names of CLAP's weights in its two libraries: transformers' are the ones saved, laion_clap's are translated.

The towers are the same, so the translation is a table of renamings and one split: laion_clap keeps query, key and
value of the audio tower in one matrix. Left out on laion_clap's side, because no embedding depends on them: its own
front end, the classification head of HTS-AT, and the two MLPs that only its training used.
"""

import re

import torch

BUFFERS = ("position_ids", "token_type_ids", "relative_position_index")  # derived from the size, absent in some files
LAION_ONLY = ("spectrogram_extractor", "logmel_extractor", "tscam_conv", "audio_branch.head", "_transform.")
LAION_BUFFERS = ("relative_position_index", "attn_mask", "position_ids", "token_type_ids")

RENAMINGS = (  # laion_clap, transformers: read to the right in `to_transformers`, to the left in `to_laion`
    (r"^text_branch\.", "text_model."),
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"^(text|audio)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(text|audio)_projection\.2\.", r"\1_projection.linear2."),
    (r"(audio_encoder)\.bn0\.", r"\1.batch_norm."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.output.dense."),
    (r"(blocks\.\d+)\.attn\.", r"\1.attention.self."),
    (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
QKV = ("query", "key", "value")


def to_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a laion_clap model under transformers' names; `module.` of its checkpoints is dropped."""
    out = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if any(part in name for part in LAION_ONLY) or name.endswith(LAION_BUFFERS):
            continue
        for theirs, ours in RENAMINGS:
            name = re.sub(theirs, ours, name)
        if ".attention.self.qkv." in name:
            for part, piece in zip(QKV, tensor.chunk(3), strict=True):
                out[name.replace(".qkv.", f".{part}.")] = piece.contiguous()
        else:
            out[name] = tensor
    return out


def to_laion(state: dict[str, torch.Tensor], template: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back: for each weight of `template` (a laion_clap state) that has one, its value in `state`."""
    out = {}
    for name in template:
        renamed = name
        for theirs, ours in RENAMINGS:
            renamed = re.sub(theirs, ours, renamed)
        parts = [renamed.replace(".qkv.", f".{part}.") for part in QKV] if ".qkv." in renamed else [renamed]
        if all(part in state for part in parts):
            out[name] = torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
    return out


def check(state: dict[str, torch.Tensor], needed: dict[str, torch.Tensor], what: str) -> None:
    """Raise ValueError unless `state` has exactly the weights of `needed`, in their shapes; buffers are optional."""
    names = {name for name in state if not name.endswith(BUFFERS)}
    missing, extra = sorted(needed.keys() - names), sorted(names - needed.keys())
    if missing or extra:
        raise ValueError(
            f"{what} do not fit the architecture: {len(missing)} missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(extra)} unknown ({', '.join(extra[:3]) or 'none'})"
        )
    for name in sorted(needed):
        if state[name].shape != needed[name].shape:
            raise ValueError(
                f"{what} do not fit the architecture: {name} is {list(state[name].shape)}, "
                f"not {list(needed[name].shape)}"
            )
