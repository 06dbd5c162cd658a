"""AutoCap (arXiv 2406.19388, section 3): what a frozen HTS-AT hears, through a Q-Former, and metadata, into BART.

What BART's encoder reads: CLAP's embedding of the clip as one token, the beginning, the queries, the fields of metadata
between marks of their own, the end. It is put together in one function for training and for captioning: the authors'
code has CLAP's token after the encoder in training and before it afterwards, which their paper does not say.

An empty field still has its marks, so a network that was trained with fields missing at random knows what that means.

Shapes: B batch · S samples · T moments · A tower width · E embedding width · L tokens · W width of BART.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from siren.networks.autocap.architecture import FIELDS, Architecture
from siren.networks.clap import Clap
from siren.networks.clap.features import LogMel, windows
from siren.networks.clap.hf import htsat
from siren.networks.resample import resample
from siren.networks.text import Tokenizer
from siren.shapes import Bool, Float, Int

Metadata = Mapping[str, str]  # field → text, of those that are known
IGNORED = -100  # a target that is padding
SEPARATOR = " \n "  # between fields
INITIAL_STD = 0.02
WORDS = "bart.model.shared.weight"  # BART's one table of words, and its other names, which are not saved
TIED = ("bart.model.encoder.embed_tokens.weight", "bart.model.decoder.embed_tokens.weight", "bart.lm_head.weight")


class Ears(nn.Module):
    """The frozen HTS-AT."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.features, self.tower = LogMel(arch.tower), htsat(arch.tower)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Ears":
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, wav: Float[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B T A"]:
        """Clips at the tower's rate, full scale 1.0; of one that is longer than its window, the first part is heard."""
        cut = windows(wav, self.arch.tower.max_samples)[:, 0]
        states = self.tower(input_features=self.features(cut)).last_hidden_state  # [B, A, bands, T]
        return states.mean(dim=2).transpose(1, 2).repeat_interleave(self.arch.stretch, dim=1)


class Writer(nn.Module):
    """The trained part: from what was heard and what is known to words."""

    def __init__(self, arch: Architecture, tokenizer: Tokenizer, embed_dim: int | None) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        self.arch, self.tokenizer = arch, tokenizer
        self.bart: Any = bart(arch, tokenizer)
        self.heard = nn.Linear(arch.tower.audio_width, arch.width)
        self.positions = nn.Embedding(arch.positions, arch.width)
        self.norm = nn.LayerNorm(arch.width)
        self.queries = nn.Parameter(INITIAL_STD * torch.randn(1, arch.queries, arch.query_width))
        self.qformer: Any = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=arch.query_width,
                num_hidden_layers=arch.query_layers,
                num_attention_heads=arch.query_heads,
                intermediate_size=arch.query_ffn,
                encoder_hidden_size=arch.width,
                cross_attention_frequency=1,
                hidden_dropout_prob=arch.dropout,
                attention_probs_dropout_prob=arch.dropout,
            )
        )
        self.asked = nn.Linear(arch.query_width, arch.width)
        self.marks = nn.Embedding(2 * len(arch.fields), arch.width)  # of each field: its beginning, its end
        self.dropout = nn.Dropout(arch.feature_dropout)
        if embed_dim is not None:
            self.clap, self.clap_norm = nn.Linear(embed_dim, arch.width), nn.LayerNorm(arch.width)
        self.start_from_language()
        self.register_state_dict_post_hook(_without_tied)
        self.register_load_state_dict_pre_hook(_with_tied)

    @torch.no_grad()
    def start_from_language(self) -> None:
        """Marks from BART's beginning and end of text, and the moments' positions from BART's own."""
        words, positions = self.bart.model.encoder.embed_tokens.weight, self.bart.model.encoder.embed_positions.weight
        self.marks.weight[0::2], self.marks.weight[1::2] = words[self.tokenizer.bos_id], words[self.tokenizer.eos_id]
        count = min(len(positions), self.arch.positions)
        self.positions.weight[:count] = positions[:count]

    def freeze_language(self, frozen: bool) -> None:
        """BART, embeddings included, is kept as it is in the first stage of training and moves in the second."""
        self.bart.requires_grad_(not frozen)

    def encode(
        self,
        moments: Float[torch.Tensor, "B T A"],
        embedding: Float[torch.Tensor, "B E"] | None,
        metadata: Sequence[Metadata],
    ) -> tuple[Float[torch.Tensor, "B L W"], Bool[torch.Tensor, "B L"]]:
        """What BART's decoder attends to, and which of it is not padding. In training and afterwards the same."""
        batch, device = len(moments), moments.device
        heard = self.dropout(self.heard(moments))
        heard = self.norm(heard + self.positions.weight[: heard.shape[1]])
        queries = self.qformer(
            query_embeds=self.queries.expand(batch, -1, -1), encoder_hidden_states=heard, return_dict=True
        ).last_hidden_state
        known, mask = self._metadata(metadata)
        start = self._words(torch.full((batch, 1), self.tokenizer.bos_id, device=device))
        read = [start, self.asked(queries), self.dropout(known)]
        if embedding is not None:
            read.insert(0, self.clap_norm(self.clap(embedding))[:, None])
        inputs = torch.cat(read, dim=1)
        whole = torch.ones(batch, inputs.shape[1] - mask.shape[1], dtype=torch.bool, device=device)
        mask = torch.cat([whole, mask], dim=1)
        states: torch.Tensor = self.bart.model.encoder(
            inputs_embeds=inputs, attention_mask=mask.long(), return_dict=True
        ).last_hidden_state
        return states, mask

    def denoise(self, noisy: list[str]) -> tuple[Float[torch.Tensor, "B L W"], Bool[torch.Tensor, "B L"]]:
        """BART alone, as it is trained on text: what its decoder attends to when it reads these captions."""
        device = self.queries.device
        ids, mask = (part.to(device) for part in self.tokenizer(noisy, self.arch.max_caption))
        states = self.bart.model.encoder(input_ids=ids, attention_mask=mask.long(), return_dict=True).last_hidden_state
        return states, mask

    def loss(
        self,
        states: Float[torch.Tensor, "B L W"],
        mask: Bool[torch.Tensor, "B L"],
        captions: list[str],
        smoothing: float,
    ) -> Float[torch.Tensor, ""]:
        """Cross entropy of the captions' tokens, in nats, with label smoothing."""
        ids, real = (part.to(states.device) for part in self.tokenizer(captions, self.arch.max_caption))
        targets = ids.masked_fill(~real, IGNORED)
        start = torch.full_like(ids[:, :1], self.tokenizer.eos_id)  # BART's decoder begins with the end of a text
        logits = self.bart(
            encoder_outputs=(states,),
            attention_mask=mask.long(),
            decoder_input_ids=torch.cat([start, ids[:, :-1]], dim=1),
            use_cache=False,
        ).logits
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
        )

    @torch.no_grad()
    def write(
        self, states: Float[torch.Tensor, "B L W"], mask: Bool[torch.Tensor, "B L"], beams: int
    ) -> list[tuple[str, bool]]:
        """The likeliest caption that a search of so many beams finds, and whether it came to its end."""
        from transformers import GenerationConfig
        from transformers.modeling_outputs import BaseModelOutput

        tokenizer = self.tokenizer
        ids = self.bart.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask.long(),
            generation_config=GenerationConfig(
                num_beams=beams,
                do_sample=False,
                max_new_tokens=self.arch.max_caption,
                decoder_start_token_id=tokenizer.eos_id,
                bos_token_id=tokenizer.bos_id,
                eos_token_id=tokenizer.eos_id,
                pad_token_id=tokenizer.pad_id,
            ),
        )[:, 1:].cpu()
        return [(tokenizer.decode(row.tolist()), bool((row == tokenizer.eos_id).any())) for row in ids]

    def _words(self, ids: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L W"]:
        words: torch.Tensor = self.bart.model.encoder.embed_tokens(ids)
        return words

    def _metadata(self, metadata: Sequence[Metadata]) -> tuple[Float[torch.Tensor, "B L W"], Bool[torch.Tensor, "B L"]]:
        """Fields between their marks, and the end; padded on the right."""
        device = self.queries.device
        rows = [self.tokens(known) for known in metadata]
        length, marks = max(map(len, rows)), self.arch.vocab_size
        ids = torch.full((len(rows), length), self.tokenizer.pad_id)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
        ids, mask = ids.to(device), mask.to(device)
        special = ids >= marks
        words = self._words(ids.masked_fill(special, self.tokenizer.pad_id))
        return torch.where(special[..., None], self.marks((ids - marks).clamp_min(0)), words), mask

    def tokens(self, known: Metadata) -> list[int]:
        """Ids of the fields in the order of `FIELDS`; marks count from `vocab_size` on. Ends with the end of text.

        What does not fit into `max_metadata` is cut off the end, as the published model does.
        """
        ids: list[int] = []
        for name in sorted(self.arch.fields, key=FIELDS.index):
            mark = self.arch.vocab_size + 2 * self.arch.fields.index(name)
            between = self.tokenizer.ids(SEPARATOR) if ids else []
            ids += [*between, mark, *self.tokenizer.ids(f" {known.get(name, '')} "), mark + 1]
        return [*ids[: self.arch.max_metadata], self.tokenizer.eos_id]


def _without_tied(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    for name in TIED:
        del state[prefix + name]


def _with_tied(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    if prefix + WORDS in state:
        state |= {prefix + name: state[prefix + WORDS] for name in TIED}


class AutoCap(nn.Module):
    """The whole: captions for clips at `sample_rate`. `network` is what is saved; the frozen CLAP is another one."""

    def __init__(self, arch: Architecture, tokenizer: Tokenizer, clap: Clap | None, sample_rate: int) -> None:
        super().__init__()
        if tokenizer.vocab_size > arch.vocab_size:
            raise ValueError(
                f"the tokeniser has {tokenizer.vocab_size} tokens, BART {arch.vocab_size}: they do not fit"
            )
        self.arch, self.tokenizer, self.sample_rate = arch, tokenizer, sample_rate
        writer = Writer(arch, tokenizer, None if clap is None else clap.embed_dim)
        self.network = nn.ModuleDict({"ears": Ears(arch), "writer": writer})
        self.clap = None if clap is None else clap.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "AutoCap":
        """CLAP is frozen: it stays in evaluation mode, else its batch norm would follow what it hears."""
        super().train(mode)
        if self.clap is not None:
            self.clap.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.writer.queries.device

    @property
    def num_samples(self) -> int:
        """How many samples at `sample_rate` are heard of a clip: the tower's window."""
        return round(self.arch.tower.max_seconds * self.sample_rate)

    @property
    def ears(self) -> Ears:
        found: Ears = self.network["ears"]  # type: ignore[assignment]
        return found

    @property
    def writer(self) -> Writer:
        found: Writer = self.network["writer"]  # type: ignore[assignment]
        return found

    @torch.no_grad()
    def hear(
        self, wav: Float[torch.Tensor, "B S"]
    ) -> tuple[Float[torch.Tensor, "B T A"], Float[torch.Tensor, "B E"] | None]:
        """What is heard of clips at `sample_rate`, full scale 1.0: moments and, where it has a CLAP, its embedding."""
        moments = self.ears(resample(wav, self.sample_rate, self.arch.tower.sample_rate))
        return moments, None if self.clap is None else self.clap.embed_audio(wav)

    @torch.no_grad()
    def captions(
        self, wav: Float[torch.Tensor, "B S"], metadata: Sequence[Metadata], beams: int
    ) -> list[tuple[str, bool]]:
        """A caption of each clip, and whether it came to its end within `max_caption` tokens."""
        if len(wav) != len(metadata):
            raise ValueError(f"{len(wav)} clips and {len(metadata)} mappings of metadata; give one, if empty, for each")
        return self.writer.write(*self.writer.encode(*self.hear(wav), metadata), beams)


def bart(arch: Architecture, tokenizer: Tokenizer) -> nn.Module:
    """An untrained BART of this size; its random start is torch's generator's."""
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=arch.vocab_size,
            max_position_embeddings=arch.max_positions,
            d_model=arch.width,
            encoder_layers=arch.encoder_layers,
            decoder_layers=arch.decoder_layers,
            encoder_attention_heads=arch.heads,
            decoder_attention_heads=arch.heads,
            encoder_ffn_dim=arch.ffn,
            decoder_ffn_dim=arch.ffn,
            dropout=arch.dropout,
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            decoder_start_token_id=tokenizer.eos_id,
            forced_eos_token_id=None,
        )
    )
