"""Published CLAPs: by hub name or folder (transformers' layout), or a laion_clap checkpoint file.

Tried here on small models in the same layouts; the published weights themselves have not been run here, because they
need a network. Only models without feature fusion: fusion serves clips longer than ten seconds, and neither training
nor reward ever has one.
"""

import _codecs
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siren.config import ConfigError
from siren.networks.clap import msclap
from siren.networks.clap.architecture import PUBLISHED, Architecture
from siren.networks.clap.names import to_transformers
from siren.networks.clap.protocol import Clap
from siren.networks.text import FILE, Tokenizer

SUFFIXES = (".pt", ".pth", ".bin")
PATCHES = "audio_model.audio_encoder.patch_embed.proj.weight"

# laion_clap's checkpoints hold a few numbers of their training as numpy scalars: plain data, and no code either
NUMPY_SCALARS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.float64(0).__reduce__()[0],
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    _codecs.encode,
]


def load_published(name: str, backend: type[Clap], sample_rate: int) -> Clap:
    """A published CLAP for waveforms at `sample_rate`, e.g. `laion/larger_clap_general`, frozen.

    Raises ValueError for a model with feature fusion, for a checkpoint that holds more than tensors, and where the
    weights do not fit.
    """
    arch, tokenizer, state = _checkpoint(Path(name)) if name.endswith(SUFFIXES) else _hub(name)
    if isinstance(arch, msclap.MsArchitecture) != issubclass(backend, msclap.MsClap):
        raise ConfigError(
            f"{name} holds {'an MS-CLAP' if isinstance(arch, msclap.MsArchitecture) else 'no MS-CLAP'}; "
            f"networks.clap.backend is {backend.backend!r}, and msclap is for those alone"
        )
    clap = backend(arch, tokenizer, sample_rate)
    clap.load_canonical(state)
    return clap.requires_grad_(False).eval()


def _hub(name: str) -> tuple[Architecture, Tokenizer, dict[str, torch.Tensor]]:
    from transformers import ClapFeatureExtractor, ClapModel

    model = ClapModel.from_pretrained(name, dtype=torch.float32)
    refuse_fusion(name, model.config)
    extractor = ClapFeatureExtractor.from_pretrained(name)
    arch = architecture_of(model.config, extractor)
    return arch, Tokenizer.published(name), model.state_dict()


def refuse_fusion(name: str, config: Any) -> None:
    """Raise ValueError for a model with feature fusion."""
    if config.audio_config.enable_fusion:
        raise ValueError(f"{name} uses feature fusion; name one without, such as laion/larger_clap_general")


def architecture_of(config: Any, extractor: Any) -> Architecture:
    """A `ClapConfig` and a `ClapFeatureExtractor` as our `Architecture`."""
    text, audio = config.text_config, config.audio_config
    patch = audio.patch_size if isinstance(audio.patch_size, int) else audio.patch_size[0]
    if [patch, patch] != list(audio.patch_stride):
        raise ValueError(f"patch_stride {list(audio.patch_stride)} differs from patch_size {patch}: not supported")
    return Architecture(
        sample_rate=extractor.sampling_rate,
        max_seconds=float(extractor.max_length_s),
        n_fft=extractor.fft_window_size,
        hop=extractor.hop_length,
        mel_bands=audio.num_mel_bins,
        fmin=float(extractor.frequency_min),
        fmax=float(extractor.frequency_max),
        spec_size=audio.spec_size,
        patch=patch,
        width=audio.patch_embeds_hidden_size,
        depths=tuple(audio.depths),
        heads=tuple(audio.num_attention_heads),
        window=audio.window_size,
        vocab_size=text.vocab_size,
        text_width=text.hidden_size,
        text_layers=text.num_hidden_layers,
        text_heads=text.num_attention_heads,
        text_ffn=text.intermediate_size,
        max_tokens=min(77, text.max_position_embeddings - 2),
        max_positions=text.max_position_embeddings,
        text_norm_eps=text.layer_norm_eps,
        embed_dim=config.projection_dim,
        dropout=float(text.hidden_dropout_prob),
    )


def _checkpoint(path: Path) -> tuple[Architecture, Tokenizer, dict[str, torch.Tensor]]:
    """A checkpoint of laion_clap's HTSAT, tiny (630k-audioset-best.pt) or base (..._esc_89.98.pt), told by its width,
    or of MS-CLAP, told by its names.

    RoBERTa's tokenizer.json lies beside it, or is asked for by name.
    """
    data = load_tensors(path)
    if msclap.is_msclap(found := data.get("model", data)):
        return msclap.checkpoint(path, found)
    state = to_transformers(data.get("state_dict", data))
    refuse_unknown(path, state)
    tokenizer = Tokenizer.load(path.parent) if (path.parent / FILE).is_file() else Tokenizer.published("roberta-base")
    return PUBLISHED[len(state[PATCHES])], tokenizer, state


def refuse_unknown(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Raise ValueError for a checkpoint that is no CLAP without fusion of a published size."""
    if PATCHES not in state:
        raise ValueError(f"{path} has no {PATCHES}: it is not a laion_clap checkpoint with an HTSAT audio tower")
    if any("fusion" in name for name in state):
        raise ValueError(f"{path} uses feature fusion; take one without, such as 630k-audioset-best.pt")
    if len(state[PATCHES]) not in PUBLISHED:
        raise ValueError(
            f"{path} has an HTSAT of width {len(state[PATCHES])}; known are {', '.join(map(str, PUBLISHED))}"
        )


def load_tensors(path: str | Path) -> dict[str, Any]:
    """A checkpoint file read without unpickling code: safetensors, or torch's own with tensors and plain data only."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}; download them there, or set `weights: null` to train here")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            data: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's own exceptions differ between torch versions
        raise ValueError(
            f"{path} holds more than tensors, and nothing is unpickled here ({error}); convert it to safetensors"
        ) from error
    return data
