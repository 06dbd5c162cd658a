"""ImageBind as a reward: the cosine of a caption and a sound (paper, Eq. 8).

The network is the package's own `ImageBindModel`, its names and its code, without what is not sound or text: the
other modalities are made with nothing in them and dropped. Its heads normalise and then multiply by a logit scale
(20 for audio, learned for text), which would make a product of two embeddings anything but a cosine: undone here.

Licence of the package's code and of the published weights: CC BY-NC-SA 4.0, non-commercial. The `clap` entry of
`REWARDS` is the choice where that does not do.

Shapes: B batch · S samples · W windows · F mel bands · T frames · L text length · E embedding width.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from siren.networks.imagebind.architecture import Architecture
from siren.networks.imagebind.fbank import Fbank, windows
from siren.networks.packages import module_of
from siren.networks.resample import resample
from siren.networks.text import Tokenizer
from siren.shapes import Float, Int

LICENCE = "CC BY-NC-SA 4.0 (non-commercial): the code of imagebind-packaged, and Meta's published weights"
DISTRIBUTION = "imagebind-packaged==0.1.2"
KEPT = ("audio", "text")
UNUSED = ("vision", "depth", "thermal", "imu")


class ImageBind(nn.Module):
    """`sample_rate` is that of the waveforms it is given. `tokenizer` is None where CLIP's vocabulary is used."""

    backend = "imagebind"

    def __init__(self, arch: Architecture, tokenizer: Tokenizer | None, sample_rate: int) -> None:
        super().__init__()
        if (tokenizer is None) != (arch.tokens == "clip"):
            raise ValueError(f"tokens is {arch.tokens!r}: a tokeniser goes with 'corpus', and only with it")
        if tokenizer is not None and tokenizer.vocab_size > arch.vocab_size:
            raise ValueError(f"the tokeniser has {tokenizer.vocab_size} tokens, the text tower {arch.vocab_size}")
        self.arch, self.tokenizer = arch, tokenizer
        self.sample_rate, self.embed_dim = sample_rate, arch.embed_dim
        self.features = Fbank(arch.sample_rate, arch.mel_bins, arch.target_frames)
        self.model: Any = imagebind_model(arch)
        self._clip_tokens: Any = clip_tokenizer(arch.context_length) if tokenizer is None else None

    @property
    def logit_scale(self) -> torch.Tensor:
        """What cosines are multiplied with in the contrastive loss: the package's learned one, of text. []"""
        scale: torch.Tensor = self.model.modality_postprocessors["text"][1].log_logit_scale
        return scale.exp().clamp(max=100.0)

    def embed_text(self, captions: list[str]) -> Float[torch.Tensor, "B E"]:
        """Captions on the unit sphere."""
        ids = self._tokens(captions).to(self.logit_scale.device)
        return nn.functional.normalize(self.model({"text": ids})["text"], dim=-1)

    def embed_audio(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B E"]:
        """Waveforms at `sample_rate`, full scale 1.0, on the unit sphere; the mean of the windows of a long clip."""
        if wav.ndim != 2:
            raise ValueError(f"waveforms must be [B, S], not of shape {list(wav.shape)}")
        arch = self.arch
        cut = windows(resample(wav, self.sample_rate, arch.sample_rate), arch.window_samples, arch.windows)
        batch, count, samples = cut.shape
        bands = self.features(cut.reshape(batch * count, samples))
        embedding = nn.functional.normalize(self.model({"audio": bands})["audio"], dim=-1)
        return nn.functional.normalize(embedding.reshape(batch, count, -1).mean(dim=1), dim=-1)

    def _tokens(self, captions: list[str]) -> Int[torch.Tensor, "B L"]:
        """Ids padded to the context length; the end token is the highest id, which is how the package finds it."""
        if isinstance(captions, str) or not captions:
            raise ValueError(f"captions must be a list of at least one string, not {captions!r}")
        length, end = self.arch.context_length, self.arch.vocab_size
        if self.tokenizer is None:
            ids = torch.stack([self._clip_tokens(caption) for caption in captions])
            # the package cuts the end token off a long caption and would then read out anywhere
            ids[:, -1] = torch.where(ids.amax(dim=1) < end, end, ids[:, -1])
            return ids
        ids, mask = self.tokenizer(captions, length)
        ids = torch.where(ids == self.tokenizer.eos_id, end, ids).masked_fill(~mask, 0)
        return nn.functional.pad(ids, (0, length - ids.shape[1]))


def imagebind_model(arch: Architecture) -> nn.Module:
    """An untrained `ImageBindModel` of this size with audio and text only; its names are the published ones."""
    package = module_of("imagebind", "models.imagebind_model", DISTRIBUTION)
    nothing = {
        f"{name}_{part}": size
        for name in UNUSED
        for part, size in (("embed_dim", 8), ("num_blocks", 0), ("num_heads", 1))
    }
    model: Any = package.ImageBindModel(
        out_embed_dim=arch.embed_dim,
        audio_kernel_size=arch.audio_kernel,
        audio_stride=arch.audio_stride,
        audio_embed_dim=arch.audio_width,
        audio_num_blocks=arch.audio_layers,
        audio_num_heads=arch.audio_heads,
        audio_num_mel_bins=arch.mel_bins,
        audio_target_len=arch.target_frames,
        audio_drop_path=arch.audio_drop_path,
        text_embed_dim=arch.text_width,
        text_num_blocks=arch.text_layers,
        text_num_heads=arch.text_heads,
        **nothing,
    )
    model.modality_preprocessors["text"] = package.TextPreprocessor(
        vocab_size=arch.vocab_size + 1,
        context_length=arch.context_length,
        embed_dim=arch.text_width,
        causal_masking=True,
    )
    for part in (
        model.modality_preprocessors,
        model.modality_trunks,
        model.modality_heads,
        model.modality_postprocessors,
    ):
        for name in UNUSED:
            del part[name]
    return model


def clip_tokenizer(context_length: int) -> Any:
    """CLIP's BPE, whose vocabulary is in the package: a callable caption → ids [context_length]."""
    package = module_of("imagebind", "models.multimodal_preprocessors", DISTRIBUTION)
    spec = importlib.util.find_spec("imagebind")
    assert spec is not None  # the import above worked
    assert spec.submodule_search_locations
    vocabulary = Path(next(iter(spec.submodule_search_locations))) / "bpe" / "bpe_simple_vocab_16e6.txt.gz"
    return package.SimpleTokenizer(str(vocabulary), context_length)


def load_weights_into(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Take weights under the package's names; those of other modalities are left out.

    Raises ValueError naming what is missing or misshapen.
    """
    needed = model.state_dict()
    kept = {k: v for k, v in state.items() if k.split(".")[1:2] and k.split(".")[1] in KEPT}
    wrong = [k for k in sorted(needed.keys() | kept.keys()) if k not in kept or k not in needed]
    wrong += [k for k in sorted(needed.keys() & kept.keys()) if needed[k].shape != kept[k].shape]
    if wrong:
        raise ValueError(
            f"the ImageBind weights do not fit the architecture: {len(wrong)} tensors are missing, unknown or of "
            f"another shape, such as {', '.join(wrong[:3])}"
        )
    model.load_state_dict(kept)
