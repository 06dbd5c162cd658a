"""One isolated transformer of the collaboration (paper section 4.1, Eq. 2-6).

It owns N consecutive codebooks, `first` … `first + N - 1`, and holds everything it needs: its embeddings of all K
codebooks, a temporal path F over frames, a residual decoder R inside a frame, and one head per owned codebook.

    x[0] = start, x[t] = Σ_k E_k[t-1]                         temporal input
    h = norm(F(x, text))                                       every block sees its input plus the positions again
    z[t] = [h[t], b[t], b[t] + E_first[t], …]                  b = start of R + Σ_{k<first} E_k  (Eq. 5)
    logits of codebook first + j at frame t: head_j(norm(R(z[t])))[j + 1]

R's start is the projected mean text state (`prompt`, as the authors published) or a learned vector (`learned`, Eq. 5).

The paper's other arms (Tables 3 to 6; named in `siren.model.arms`) are settings of the same class:

    residual_condition previous   z[t] = [h[t], start + E_{first-1}, start + E_first, …]: the code below, not their sum
    residual_condition none       no R: logits of codebook k at frame t are head_k(h[t])            (Eq. 3, AudioGen)
    codebook_pattern delay        none, and codebook k runs k steps behind: head_k(h[t + k])         (MusicGen)
    one transformer               owns all codebooks, with any of these
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siren.config import Model
from siren.model.blocks import Block, CrossBlock, KeyValueCache, RMSNorm, feed_forward_width, positions
from siren.model.codebooks import Codebooks, CodecTables, undelay
from siren.shapes import Bool, Float, Int


@dataclass
class Text:
    """Text states as the transformer uses them: one (keys, values) pair per temporal block, the mask, R's start."""

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Bool[Tensor, "B 1 1 L"]
    start: Float[Tensor, "B D"] | None  # None where there is no R


class ResidualTransformer(nn.Module):
    """Transformer `index` of `len(config.transformers)`; see the module for what it computes."""

    frame_positions: Tensor

    def __init__(self, config: Model, tables: CodecTables, text_width: int, index: int):
        super().__init__()
        total, count = tables.num_codebooks, len(config.transformers)
        if total % count:
            raise ValueError(f"{total} codebooks cannot be shared out evenly among {count} transformers")
        self.index, self.group = index, total // count
        self.first = index * self.group
        self.config, self.text_width = config, text_width
        dim = config.dim
        tables = tables.normalised() if config.normalise_codes else tables
        self.codebooks = Codebooks(tables, dim, config.init_std, config.codebook_pattern)
        self.delays = self.codebooks.delays[self.first : self.first + self.group]  # of the owned codebooks
        self.start = nn.Parameter(torch.zeros(dim))
        self.conditioned = config.residual_condition != "none"
        if self.conditioned and config.residual_start == "prompt":
            self.prompt_summary = nn.Linear(text_width, dim)
        elif self.conditioned:
            self.residual_start = nn.Parameter(torch.zeros(dim))
        shape = (dim, config.num_heads, config.num_kv_heads)
        hidden = feed_forward_width(dim, config.ffn_multiple_of, config.ffn_multiplier)
        rest = (hidden, config.norm_eps, config.dropout)
        self.temporal = nn.ModuleList(CrossBlock(*shape, text_width, *rest) for _ in range(config.main_layers))
        self.temporal_norm = RMSNorm(dim, config.norm_eps)
        self.decoder = nn.ModuleList(Block(*shape, *rest) for _ in range(config.decoder_layers))
        if self.conditioned:
            self.decoder_norm = RMSNorm(dim, config.norm_eps)
        self.heads = nn.Parameter(torch.zeros(self.group, tables.codebook_size, dim))
        table = positions(max(config.max_frames, self.group + 1), dim)
        self.register_buffer("frame_positions", table, persistent=False)
        self._initialise(config.init_std)

    def _initialise(self, std: float) -> None:
        """Every matrix and start vector N(0, std), biases 0, norms 1; no scaling by depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        own = dict(self.named_parameters(recurse=False))
        for name in ("start", "heads", "residual_start"):
            if name in own:
                nn.init.normal_(own[name], std=std)

    def read_text(self, states: Float[Tensor, "B L P"], mask: Bool[Tensor, "B L"]) -> Text:
        """Project the text once: keys and values of every block, and the start of the residual decoder.

        Raises ValueError for states of another width, or more of them than the model was made for.
        """
        length, width = states.shape[1:]
        if width != self.text_width:
            raise ValueError(f"text states of width {width}; this model reads those of width {self.text_width}")
        if length > self.config.max_text:
            raise ValueError(
                f"a text of {length} tokens; this model reads at most {self.config.max_text} (model.max_text): "
                "shorten the prompt"
            )
        keys_values = [block.keys_values(states) for block in self._temporal_blocks()]
        start = None
        if self.conditioned and self.config.residual_start == "prompt":
            weights = mask.to(states.dtype)[..., None]
            start = self.prompt_summary((states * weights).sum(1) / weights.sum(1).clamp_min(1.0))
        elif self.conditioned:
            start = self.residual_start.expand(states.shape[0], -1)
        return Text(keys_values, mask[:, None, None], start)

    def _temporal_blocks(self) -> list[CrossBlock]:
        return [block for block in self.temporal if isinstance(block, CrossBlock)]

    def temporal_path(
        self, x: Float[Tensor, "B T D"], text: Text, caches: list[KeyValueCache] | None = None
    ) -> Float[Tensor, "B T D"]:
        """F: hidden state of each frame, from the frames before it."""
        begin = caches[0].length if caches else 0
        place = self.frame_positions[begin : begin + x.shape[1]]
        for i, block in enumerate(self.temporal):
            x = block(x + place, text.keys_values[i], text.mask, caches[i] if caches else None)
        return self.temporal_norm(x)

    def residual_decoder(
        self, z: Float[Tensor, "F n D"], caches: list[KeyValueCache] | None = None, skip: int = 0
    ) -> Float[Tensor, "F m D"]:
        """R: the short causal sequence inside one frame; every frame is an item of the batch (F of them).

        The first `skip` slots are read by the others and give no output, so the last block does not compute theirs.
        """
        begin = caches[0].length if caches else 0
        place = self.frame_positions[begin : begin + z.shape[1]]
        for i, block in enumerate(self.decoder):
            last = i + 1 == len(self.decoder)
            z = block(z + place, caches[i] if caches else None, skip if last else 0)
        return self.decoder_norm(z)

    def forward(
        self, codes: Int[Tensor, "B K T"], states: Float[Tensor, "B L P"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B N T V"]:
        """Logits of the owned codebooks under teacher forcing."""
        return self.hidden_and_logits(codes, states, mask)[1]

    def hidden_and_logits(
        self,
        codes: Int[Tensor, "B K T"],
        states: Float[Tensor, "B L P"],
        mask: Bool[Tensor, "B L"],
        heard: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B N T V"]]:
        """States of the temporal path, and logits; code j of frame t has seen what sampling has seen.

        Frames that are not `heard` are blank in the temporal input (training only, see `Stage1.history_dropout`).
        Raises ValueError for codes, lengths or text states that the model has no table for.
        """
        batch, _, frames = codes.shape
        if frames > self.max_frames:
            raise ValueError(f"{frames} frames; this model's positions end at {self.max_frames} (model.max_frames)")
        text, rows = self.read_text(states, mask), self.codebooks.gather(codes)
        everything, told = self.codebooks.embed(rows, self.first, self.group, self.config.residual_condition)
        if heard is not None:
            extra = everything.shape[1] - frames  # steps that end the delayed codebooks are as blank as the last frame
            heard = torch.cat([heard, heard[:, -1:].expand(-1, extra)], dim=1)
            everything = everything * heard[..., None]
        x = torch.cat([self.start.expand(batch, 1, -1), everything[:, :-1]], dim=1)
        hidden = self.temporal_path(x, text)
        if text.start is None:
            logits = torch.einsum("bsd,nvd->bsnv", hidden, self.heads)
            return hidden[:, :frames], undelay(logits, self.delays, frames).transpose(1, 2)
        slots = [hidden] + [text.start[:, None] + below for below in told]
        z = self.residual_decoder(torch.stack(slots, dim=2).flatten(0, 1), skip=1)  # [B·T, N, D]
        logits = torch.einsum("fnd,nvd->nfv", z, self.heads)
        return hidden, logits.unflatten(1, (batch, frames)).transpose(0, 1)

    @property
    def max_frames(self) -> int:
        """The longest clip that the table of positions allows, in frames."""
        return self.config.max_frames - max(self.codebooks.delays)

    def null_text(self, batch: int, width: int) -> tuple[Tensor, Tensor]:
        """The condition that stands for "no text": one all-zero state. ([B, 1, P], [B, 1])"""
        return self.start.new_zeros(batch, 1, width), torch.ones(batch, 1, dtype=torch.bool, device=self.start.device)

    def targets(self, codes: Int[Tensor, "B K T"]) -> Int[Tensor, "B N T"]:
        return codes[:, self.first : self.first + self.group]


def cross_entropy(logits: Float[Tensor, "B N T V"], targets: Int[Tensor, "B N T"]) -> Float[Tensor, " N"]:
    """Mean cross entropy of each owned codebook, in nats (Eq. 6 sums them; the authors' code, and ours, averages)."""
    logits, targets = logits.transpose(0, 1), targets.transpose(0, 1)  # as they lie in memory, so nothing is copied
    losses = F.cross_entropy(logits.flatten(0, 2).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(dim=(1, 2))
