"""Sound while it is made: chunks of a clip as soon as their frames are drawn, of any length, and after given sound.

Codes to sound. The codec is decoded in chunks with `codec.context` frames on either side, as far as the sound of a
frame reaches, so that the chunks together are what decoding the whole clip gives (rounding apart, tested at -60 dB).
A chunk can therefore be heard once the context after it is drawn; at the end of a clip there is none.

Beyond the training length. Positions are absolute and those past the training length were never trained, so a window
slides: when it is full, the last half of it becomes the beginning of a new one, at positions 0, 1, …, read anew in one
pass with the same prompt. Codes go on without a break, and the codec decodes across the border like anywhere else; the
model forgets what left the window. Given sound to continue is the same: its codec's codes are the first context.
Random numbers are those of the frame's place in the whole clip.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from siren.config import Sampling
from siren.generate.sampler import Sampler, frames
from siren.networks.codec import Codec
from siren.shapes import Bool, Float, Int

FIRST_SECONDS = 0.5  # of frames before the first chunk


@dataclass(frozen=True)
class Window:
    """In frames: the length that the model was trained on, and how much of a full window the next one begins with."""

    length: int
    context: int

    @classmethod
    def of(cls, trained: int, longest: int) -> "Window":
        """Half a window of context. `longest` is where the model's positions end."""
        length = max(2, min(trained, longest))
        return cls(length, length // 2)


def codes(
    sampler: Sampler,
    states: Float[Tensor, "B L P"],
    mask: Bool[Tensor, "B L"],
    seeds: Sequence[int],
    num_frames: int,
    sampling: Sampling,
    window: Window,
    prefix: Int[Tensor, "B K t"] | None = None,
) -> Iterator[Int[Tensor, "B K"]]:
    """`num_frames` frames, which follow `prefix` where there is one, each as soon as it is drawn."""
    past = [] if prefix is None else list(prefix.unbind(-1)[-window.context :])
    made = 0
    while made < num_frames:
        end = min(window.length, len(past) + num_frames - made)
        given = torch.stack(past, dim=-1) if past else None
        for code, _ in frames(sampler, states, mask, seeds, end, sampling, given, first=made):
            past.append(code.clone())
            made += 1
            yield past[-1]
        past = past[-window.context :]


def decode(
    codec: Codec, stream: Iterator[Int[Tensor, "B K"]], num_frames: int, chunk: int, prefix: Tensor | None = None
) -> Iterator[Float[Tensor, "B S"]]:
    """Waveforms of the frames of `stream`, `chunk` frames of sound at a time; the first as early as it can be.

    `prefix` [B, K, t] is heard by the codec before the first frame, and is no part of what comes out.
    """
    reach = codec.context
    before = [] if prefix is None else list(prefix.unbind(-1)[-reach:])
    held = list(before)  # codes from frame `begin` on; `done` is the first frame whose sound has not gone out
    begin, done, wait = -len(before), 0, 1
    for count, code in enumerate(stream, 1):
        held.append(code)
        ready = count if count == num_frames else count - reach
        if ready - done < (1 if count == num_frames else wait):
            continue
        # Numbers of frames, of which a decoder's noise is a function, are those of the new sound where there is none before.
        wav = codec.decode(torch.stack(held, dim=-1), first=begin + len(before))
        yield wav[:, (done - begin) * codec.hop : (ready - begin) * codec.hop]
        done, wait = ready, chunk
        keep = max(begin, done - reach)
        held, begin = held[keep - begin :], keep


def stream(
    sampler: Sampler,
    codec: Codec,
    states: Float[Tensor, "B L P"],
    mask: Bool[Tensor, "B L"],
    seeds: Sequence[int],
    num_frames: int,
    sampling: Sampling,
    window: Window,
    prefix: Int[Tensor, "B K t"] | None = None,
    chunk_seconds: float = FIRST_SECONDS,
) -> Iterator[Float[Tensor, "B S"]]:
    """Sound of `num_frames` new frames in chunks, the first of them within half a second of frames."""
    drawn = codes(sampler, states, mask, seeds, num_frames, sampling, window, prefix)
    chunk = max(1, round(chunk_seconds * codec.sample_rate / codec.hop))
    first = max(1, round(FIRST_SECONDS * codec.sample_rate / codec.hop) - codec.context)
    yield from decode(codec, drawn, num_frames, max(first, chunk), prefix)
