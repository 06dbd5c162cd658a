"""The fast sampler: all M temporal paths of a frame as one batched computation, then the decoders, code by code.

A step of a frame is a few hundred small operations whose start costs more than their arithmetic, so what counts is
their number and the bytes of weights that they read. What differs from `siren.generate.plain`, with the same codes:

    weights      stacked on a leading axis, [M, in, out]: one product serves all transformers
    norms        their weights are multiplied into the matrix that follows; on a CPU x / |x| takes three operations
    tables       codebook → out-projection → projector of all M in one row: one lookup for each code, [V, M·D]
    decoder      a group's first two slots (temporal state, what is below it) go through together, so its weights are
                 read once less; start and position of a slot are one vector, made once
    text         keys and values once for each clip
    caches       allocated before the first frame; nothing grows after that

On a GPU a frame is one replayed CUDA graph for every `SPAN` frames of cache, in bf16 if asked. There every position is
a number on the device, as it is for rows that stand at different frames (`ragged`), which the tests use on a CPU; a
step branches on no tensor's value and waits for none. Caches and graphs are kept for the next batch of the same size.

`torch.compile` of a step (`compiler`) is one graph for each span, without a break (tested); it is not the default,
because every process would wait for it, longer than for most sounds. bench/generate.py --compile measures it.
Letters as in `siren.shapes`, and R: rows of the batch, twice the items with guidance. n: tokens of one call.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from siren.config import Sampling
from siren.generate.choice import RowSampling, choose, guided
from siren.model.siren import Siren
from siren.shapes import Bool, Float, Int

SPAN = 128  # entries of the frame caches that a CUDA graph attends to: one graph for each multiple


class Layers:
    """Blocks of one kind, of all transformers: matrices [M, in, out], the norm before each multiplied in."""

    def __init__(self, blocks: list[list], gain: float):
        """`blocks` [layer][transformer]; `gain` of the norm's own output, see `Stacked.normed`."""
        own = [[getattr(b, "block", b) for b in layer] for layer in blocks]
        self.qkv = [_after(gain, [(b.attention_norm, b.attention.qkv) for b in layer]) for layer in own]
        self.output = [_matrix([b.attention.output for b in layer]) for layer in own]
        self.gate_value = [_after(gain, [(b.ffn_norm, b.feed_forward.gate_value) for b in layer]) for layer in own]
        self.down = [_matrix([b.feed_forward.down for b in layer]) for layer in own]

    def tensors(self) -> Iterator[tuple[list[Tensor], int]]:
        for held in vars(self).values():
            yield from ((held, i) for i in range(len(held)))


class Cross(Layers):
    """And the cross-attention that comes first in the blocks of the temporal path."""

    def __init__(self, blocks: list[list], gain: float):
        super().__init__(blocks, gain)
        self.query = [_after(gain, [(b.cross_norm, b.cross_attention.query) for b in layer]) for layer in blocks]
        self.query_bias = [_stack([b.cross_attention.query.bias for b in layer])[:, None] for layer in blocks]
        self.cross_output = [_matrix([b.cross_attention.output for b in layer]) for layer in blocks]
        self.cross_bias = [_stack([b.cross_attention.output.bias for b in layer])[:, None] for layer in blocks]


def _stack(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.detach() for t in tensors])


def _matrix(linears: list) -> Float[Tensor, "M D E"]:
    return _stack([linear.weight.T for linear in linears]).contiguous()


def _after(gain: float, pairs: list[tuple]) -> Float[Tensor, "M D E"]:
    """Linear maps that follow a norm, with its weight."""
    return _stack([linear.weight.T * (norm.weight[:, None] * gain) for norm, linear in pairs]).contiguous()


class Stacked:
    """The weights of a model for sampling: a copy, as they are when it is made. On the model's device, in `dtype`."""

    def __init__(self, model: Siren, dtype: torch.dtype = torch.float32, compiler: str | Callable | None = None):
        """`compiler`: backend of torch.compile for the step of a frame, or None."""
        if not self.fits(model):
            raise ValueError("delayed codebooks are sampled by siren.generate.plain.Plain")
        with torch.no_grad():
            self._copy(model, dtype)
        self.compiler, self.ragged = compiler, self.fused or compiler is not None  # so that shapes stay as they are
        self.kept: dict[tuple, Run] = {}  # if ragged: that of the last batch, while nobody uses it

    @staticmethod
    def fits(model: Siren) -> bool:
        """Whether every code of a step is of the same frame; with delayed codebooks they are not."""
        return max(model[0].codebooks.delays) == 0

    def _copy(self, model: Siren, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        parts = [model[m] for m in range(len(model))]
        first, self.config = parts[0], parts[0].config
        self.M, self.N, self.D = len(parts), first.group, self.config.dim
        self.heads, self.kv_heads = self.config.num_heads, self.config.num_kv_heads
        self.fused = first.start.is_cuda  # there rms_norm is one kernel
        gain = 1.0 if self.fused else self.D**0.5
        self.floor = torch.full((), (self.D * self.config.norm_eps) ** 0.5, device=first.start.device)
        self.temporal = Cross([[t.temporal[i] for t in parts] for i in range(self.config.main_layers)], gain)
        self.decoder = Layers([[t.decoder[i] for t in parts] for i in range(self.config.decoder_layers)], gain)
        self.start = _stack([t.start for t in parts])  # [M, D]
        self.tables = torch.cat([t.codebooks.tables() for t in parts], dim=-1)  # [K, V, M·D]
        self.hidden_gain = _stack([t.temporal_norm.weight for t in parts])[:, None] * gain  # [M, 1, D]
        self.places = first.frame_positions.clone()  # [T, D]
        last = [t.decoder_norm if t.conditioned else t.temporal_norm for t in parts]
        norms = _stack([norm.weight for norm in last])[:, None, :, None] * gain
        self.classifier = (_stack([t.heads for t in parts]).transpose(2, 3) * norms).contiguous()  # [M, N, D, V]
        for layers in (self.temporal, self.decoder):
            for held, i in layers.tensors():
                held[i] = held[i].to(dtype)
        for name in ("start", "tables", "hidden_gain", "places", "classifier"):
            setattr(self, name, getattr(self, name).to(dtype))

    def normed(self, x: Tensor) -> Tensor:
        """x over its root mean square, up to the gain that the weights have: sqrt(D) on a CPU.

        x / sqrt(mean(x²) + eps) = sqrt(D) · x / hypot(|x|, sqrt(D · eps)).
        """
        if self.fused:
            return F.rms_norm(x, (self.D,), None, self.config.norm_eps)
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)

    def frames(
        self,
        states: Float[Tensor, "R L P"],
        mask: Bool[Tensor, "R L"],
        numbers: Float[Tensor, "B T K"],
        sampling: Sampling,
        prefix: Int[Tensor, "B K t"] | None = None,
    ) -> Iterator[tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]]:
        """As `Plain.frames`. On a GPU what is yielded is overwritten by the next frame."""
        key = (states.shape[0], self._capacity(numbers.shape[1]), sampling)
        run = self.kept.pop(key, None)  # taken out, so that two iterators at a time have one each
        if run is None:
            text_length = self.config.max_text if self.ragged else states.shape[1]
            self.kept.clear()  # before the next is made: there is never room for both to be counted on
            run = Run(self, key[0], key[1], text_length, sampling, self.ragged)
        run.read(states, mask)
        given = 0 if prefix is None else prefix.shape[-1]
        if prefix is not None and given:
            run.follow(prefix.repeat(2, 1, 1) if guided(sampling) else prefix)
        try:
            for t in range(given, numbers.shape[1]):
                yield run.frame(numbers[:, t])
        finally:
            if self.ragged:
                self.kept = {key: run}

    def _capacity(self, num_frames: int) -> int:
        """Frames of the caches: on a GPU whole spans, so that clips of other lengths find their graphs again."""
        return min(len(self.places), -(-num_frames // SPAN) * SPAN) if self.ragged else num_frames

    def memory(self, rows: int, num_frames: int, text_length: int) -> dict[str, int]:
        """Bytes that sampling `rows` rows holds from its start to its end, beside the model itself and small change.

        With guidance each clip has two rows. Exact for what is kept; the largest temporary is reported as such.
        """
        size, c = self.tables.element_size(), self.config
        num_frames = self._capacity(num_frames)
        text = 2 * c.main_layers * self.M * rows * text_length * self.D
        kept = 2 * self.kv_heads * (self.D // self.heads) * self.M * rows
        caches = kept * (num_frames * c.main_layers + (self.N + 1) * c.decoder_layers)
        gate = self.temporal.gate_value[0].shape[-1]
        parts = {
            "stacked weights": sum(t.nbytes for t in self._weights()),
            "text": text * size,
            "caches": caches * size,
            "temporaries (largest)": 2 * self.M * rows * gate * size + 8 * rows * self.tables.shape[1] * 4,
        }
        return parts | {"total": sum(parts.values())}

    def _weights(self) -> Iterator[Tensor]:
        for layers in (self.temporal, self.decoder):
            yield from (held[i] for held, i in layers.tensors())
        yield from (self.start, self.tables, self.hidden_gain, self.places, self.classifier)


class Run:
    """One batch while it is sampled: its text, its caches, and where it stands.

    Rows are independent. With `ragged` each stands at a frame of its own (`lengths`), and `read` may be called for
    some rows when a clip ends, to begin another there; without, all are at the same frame and only the filled part of
    a cache is attended to.
    """

    def __init__(
        self,
        stacked: Stacked,
        rows: int,
        num_frames: int,
        text_length: int,
        sampling: Sampling | RowSampling,
        ragged: bool = False,
    ):
        s = self.stacked = stacked
        self.sampling, self.ragged, self.rows = sampling, ragged, rows
        self.head_dim = s.D // s.heads

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=s.dtype, device=s.tables.device)

        layers = range(s.config.main_layers)
        kept = 2 * s.kv_heads  # keys, then values
        self.caches = [empty(s.M, rows, kept, num_frames, self.head_dim) for _ in layers]
        self.inside = [empty(s.M, rows, kept, s.N + 1, self.head_dim) for _ in range(s.config.decoder_layers)]
        self.text = [empty(2, s.M, rows, s.heads, text_length, self.head_dim) for _ in layers]
        self.text_mask: Tensor | None = empty(s.M, rows, 1, 1, text_length)  # 0, or -inf where there is no text
        self.slots = empty(s.M, rows, 2, s.D)  # what a group's first pass through its decoder reads
        self.below = empty(s.M, s.N, rows, s.D)  # start of the decoder and position of slot j + 1
        self.blank = empty(rows, s.M, s.D)
        self.next_input = empty(s.M, rows, 1, s.D)
        self.filled = [0] * rows  # frames of each row, as `lengths` has them on the device
        self.lengths = torch.zeros(rows, dtype=torch.long, device=s.tables.device)
        self.every_row = torch.arange(rows, device=s.tables.device)
        self.places_kept = torch.arange(num_frames, device=s.tables.device)
        self.graphs: dict[int, Callable[[], tuple[Tensor, Tensor]]] = {}
        self.pool: Any = None  # memory for the temporaries of all graphs, of which one runs at a time
        self.numbers = torch.zeros(0, device=s.tables.device)
        self.step: Callable[[Tensor, int], tuple[Tensor, Tensor]] = self._frame
        if s.compiler is not None:
            self.step = torch.compile(self._frame, backend=s.compiler, fullgraph=True, dynamic=False)

    @property
    def length(self) -> int:
        """Frames of the row that has most."""
        return max(self.filled)

    def read(self, states: Float[Tensor, "r L P"], mask: Bool[Tensor, "r L"], rows: slice = slice(None)) -> None:
        """Give these rows their texts (at most as long as was said) and begin them anew."""
        s, length = self.stacked, states.shape[1]
        texts = [s.model[m].read_text(states, mask) for m in range(s.M)]
        for i, held in enumerate(self.text):
            for m, text in enumerate(texts):
                held[0, m, rows, :, :length], held[1, m, rows, :, :length] = text.keys_values[i]
        assert self.text_mask is not None
        self.text_mask[:, rows] = -torch.inf
        self.text_mask[:, rows, ..., :length].masked_fill_(mask[:, None, None], 0)
        if not self.ragged and mask.all() and length == self.text_mask.shape[-1]:
            self.text_mask = None
        for m, text in enumerate(texts):
            if text.start is not None:
                for j in range(s.N):
                    self.below[m, j, rows] = (text.start + s.places[j + 1]).to(s.dtype)
        self.next_input[:, rows] = s.start[:, None, None]
        self.lengths[rows] = 0
        self.filled[rows] = [0] * len(self.filled[rows])

    def follow(self, codes: Int[Tensor, "R K t"]) -> None:
        """Take these codes for the first frames of all rows, which are new: one pass over all of them."""
        s, (_, num_codebooks, given) = self.stacked, codes.shape
        total = sum(s.tables[k][codes[:, k]] for k in range(num_codebooks))  # [R, P, M·D]
        assert isinstance(total, Tensor)
        assert self.length == 0
        after = total.unflatten(-1, (s.M, s.D)).permute(2, 0, 1, 3)
        self._temporal(torch.cat([self.next_input, after[:, :, :-1]], dim=2), 0, given)
        self.next_input.copy_(after[:, :, -1:])
        self.filled, self.lengths[:] = [given] * self.rows, given

    def frame(self, numbers: Float[Tensor, "B K"]) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
        """The next frame of every row: codes and their log-probabilities, drawn at `numbers`."""
        capacity = self.caches[0].shape[3]
        assert self.length < capacity, "the caches are full: more frames than the run was made for"
        span = min(capacity, -(-(self.length + 1) // SPAN) * SPAN) if self.ragged else self.length + 1
        result = self._replayed(span, numbers) if self.stacked.fused else self.step(numbers, span)
        self.filled = [count + 1 for count in self.filled]
        return result

    def _replayed(self, span: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The frame as a CUDA graph, captured at the first use of a span. Not run here: no GPU was at hand."""
        if span not in self.graphs:
            self.numbers = numbers.clone() if not self.graphs else self.numbers
            state = self.lengths.clone(), self.next_input.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # once outside of the capture: libraries allocate at their first call
                self.step(self.numbers, span)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self.pool):
                held = self.step(self.numbers, span)
            self.lengths.copy_(state[0])
            self.next_input.copy_(state[1])

            def replay() -> tuple[Tensor, Tensor]:
                graph.replay()
                return held

            self.graphs[span] = replay
        self.numbers.copy_(numbers)
        return self.graphs[span]()

    def _frame(self, numbers: Tensor, span: int) -> tuple[Tensor, Tensor]:
        s = self.stacked
        begin = 0 if self.ragged else self.length  # ragged: `lengths` says it, on the device
        hidden = s.normed(self._temporal(self.next_input, begin, span))  # [M, R, 1, D]
        conditioned = s.config.decoder_layers > 0
        accumulated = s.config.residual_condition == "accumulated"
        if conditioned:  # slot 0 of every decoder, with its position
            self.slots[:, :, 0] = torch.addcmul(s.places[0], hidden[:, :, 0], s.hidden_gain)
        total, last, codes, log_probs = self.blank, self.blank, [], []
        for k in range(s.M * s.N):
            m, j = divmod(k, s.N)
            told = (total if accumulated else last)[:, m]
            state = self._decode(m, j, told) if conditioned else hidden[m, :, 0]
            code, log_prob = choose(state @ s.classifier[m, j], numbers[:, k], self.sampling)
            codes.append(code)
            log_probs.append(log_prob)
            each = code.repeat(2) if guided(self.sampling) else code
            last = F.embedding(each, s.tables[k]).view(-1, s.M, s.D)
            total = total + last if k else last
        self.next_input.copy_(total.transpose(0, 1)[:, :, None])
        if self.ragged:
            self.lengths += 1
        return torch.stack(codes, dim=1), torch.stack(log_probs, dim=1)

    def _temporal(self, x: Float[Tensor, "M R n D"], begin: int, span: int) -> Float[Tensor, "M R n D"]:
        """The temporal paths over the next n frames, up to the last norm. `span` entries of the caches are read."""
        s, n = self.stacked, x.shape[2]
        mask = None
        if self.ragged and n == 1:
            place = s.places[self.lengths][:, None]
            unseen = self.places_kept[:span] > self.lengths[:, None]
            mask = torch.zeros(unseen.shape, dtype=s.dtype, device=x.device).masked_fill_(unseen, -torch.inf)
            mask = mask[None, :, None, None].expand(s.M, -1, 1, 1, -1).flatten(0, 1)
        else:
            place = s.places[begin : begin + n]
        flat = (s.M, self.rows * n, -1)
        w, text_mask = s.temporal, None if self.text_mask is None else self.text_mask.flatten(0, 1)
        for i, cache in enumerate(self.caches):
            x = (x + place).view(flat)
            q = torch.baddbmm(w.query_bias[i], s.normed(x), w.query[i])
            q = q.view(s.M * self.rows, n, s.heads, self.head_dim).transpose(1, 2)
            keys, values = self.text[i].flatten(1, 2)
            seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=text_mask)
            x = torch.baddbmm(x, seen.transpose(1, 2).reshape(flat), w.cross_output[i]).add_(w.cross_bias[i])
            new = torch.bmm(s.normed(x), w.qkv[i]).view(s.M, self.rows, n, -1, self.head_dim).transpose(2, 3)
            if mask is None:
                cache[:, :, :, begin : begin + n] = new[:, :, s.heads :]
            else:
                cache[:, self.every_row, :, self.lengths] = new[:, :, s.heads :, 0].transpose(0, 1)
            keys, values = cache[:, :, :, :span].flatten(0, 1).split(s.kv_heads, dim=1)
            q = new[:, :, : s.heads].flatten(0, 1)
            seen = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, is_causal=n > 1, enable_gqa=s.kv_heads != s.heads
            )
            x = torch.baddbmm(x, seen.transpose(1, 2).reshape(flat), w.output[i])
            x = _feed_forward(x, s.normed(x), w.gate_value[i], w.down[i], torch.bmm, torch.baddbmm)
            x = x.view(s.M, self.rows, n, s.D)
        return x

    def _decode(self, m: int, j: int, told: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """Decoder m up to its last norm, where code j of its group is read: slots 0 and 1 together, then one by one."""
        s, w, R = self.stacked, self.stacked.decoder, self.rows
        first = j == 0
        if first:
            z = self.slots[m]
            z[:, 1] = told + self.below[m, 0]
        else:
            z = (told + self.below[m, j])[:, None]
        for i, cache in enumerate(self.inside):
            n, final = z.shape[1], i + 1 == len(self.inside)
            if i:
                z = z + s.places[j + 2 - n : j + 2]
            new = s.normed(z).view(R * n, s.D) @ w.qkv[i][m]
            new = new.view(R, n, -1, self.head_dim).transpose(1, 2)
            kept, end = new[:, s.heads :], j + 2
            if s.N > 1:
                cache[m, :, :, end - n : end] = kept
                kept = cache[m, :, :, :end]
            keys, values = kept.split(s.kv_heads, dim=1)
            skip = 1 if first and final else 0  # the last block needs slot 0 as a key only
            seen = F.scaled_dot_product_attention(
                new[:, : s.heads, skip:],
                keys,
                values,
                is_causal=n - skip > 1,
                enable_gqa=s.kv_heads != s.heads,
            )
            z = z[:, skip:].reshape(-1, s.D)
            z = torch.addmm(z, seen.transpose(1, 2).reshape(-1, s.D), w.output[i][m])
            z = _feed_forward(z, s.normed(z), w.gate_value[i][m], w.down[i][m], torch.mm, torch.addmm)
            z = z.view(R, -1, s.D)
        return s.normed(z[:, -1])


def _feed_forward(
    x: Tensor, normed: Tensor, gate_value: Tensor, down: Tensor, product: Callable, added: Callable
) -> Tensor:
    """SwiGLU, added to its input."""
    gate, value = product(normed, gate_value).chunk(2, dim=-1)
    return added(x, F.silu(gate).mul_(value), down)
