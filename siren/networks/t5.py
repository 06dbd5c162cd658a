"""A text-audio alignment model around a frozen T5, with the protocol of the reward (`embed_text`, `embed_audio`).

T5 reads and does not hear, and no published T5 was aligned to sound. So its ears are another network's audio tower, and
one linear map in closed form (ridge regression on pairs of clip and caption) takes what that hears to what T5 reads.
Nothing is trained, and the same pairs give the same model. Text embeddings are means over tokens, centred on the
pairs' mean, because means of T5 states have a large part in common. Weights are read from safetensors only.
Shapes: B batch · S samples · E width of the audio tower · P width of T5.
"""

from typing import Any

import torch
from torch import Tensor, nn

from siren.shapes import Float


class T5Alignment(nn.Module):
    """`name`: a hub name or a folder of a T5 with its tokeniser. `ears`: a network with `embed_audio`.

    Raises ValueError where no such T5 can be read.
    """

    def __init__(self, name: str, ears: Any):
        super().__init__()
        from transformers import AutoTokenizer, T5EncoderModel

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.t5 = T5EncoderModel.from_pretrained(name, use_safetensors=True).eval().requires_grad_(False)
        except OSError as error:
            why = str(error).splitlines()[0]
            raise ValueError(
                f"no T5 can be read from {name!r} ({why}); align.t5 takes a folder or a hub name"
            ) from None
        self.ears, self.centre, self.map = ears, torch.zeros(()), torch.zeros(())

    @torch.no_grad()
    def fit(self, audio: Float[Tensor, "B E"], captions: list[str], ridge: float = 1e-3) -> "T5Alignment":
        """Align to these pairs, the audio as `ears` embeds it; `ridge` is a share of the audio's mean power.

        Raises ValueError for fewer than two pairs.
        """
        if len(captions) < 2 or len(audio) != len(captions):
            raise ValueError(f"{len(audio)} clips and {len(captions)} captions; at least two pairs are needed")
        texts = self._read(captions)
        self.centre = texts.mean(0)
        heard = nn.functional.pad(audio, (0, 1), value=1.0).double()
        power = heard.T @ heard
        power += ridge * power.diagonal().mean() * torch.eye(len(power), dtype=power.dtype, device=power.device)
        target = nn.functional.normalize(texts - self.centre, dim=-1).double()
        self.map = torch.linalg.solve(power, heard.T @ target).to(audio.dtype)
        return self

    @torch.no_grad()
    def embed_text(self, captions: list[str]) -> Float[Tensor, "B P"]:
        """Captions on the unit sphere."""
        return nn.functional.normalize(self._read(captions) - self.centre, dim=-1)

    @torch.no_grad()
    def embed_audio(self, wav: Float[Tensor, "B S"]) -> Float[Tensor, "B P"]:
        """Waveforms, as `ears` takes them, on the same sphere. Raises ValueError before `fit`."""
        if self.map.ndim == 0:
            raise ValueError("this T5 is not aligned to sound yet; call `fit` with pairs of clip and caption")
        heard = nn.functional.pad(self.ears.embed_audio(wav), (0, 1), value=1.0)
        return nn.functional.normalize(heard @ self.map, dim=-1)

    def _read(self, captions: list[str]) -> Tensor:
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(self.t5.device)
        states = self.t5(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        weights = tokens["attention_mask"][..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)
