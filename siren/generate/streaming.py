"""Sound while it is made: chunks of a clip as soon as their frames are drawn, of any length, and after given sound.

Codes to sound. The codec is decoded in chunks with `codec.context` frames on either side, as far as the sound of a
frame reaches, so that the chunks together are what decoding the whole clip gives (rounding apart, tested at -60 dB).
A chunk can therefore be heard once the context after it is drawn; at the end of a clip there is none. A clip ends at
the sample that was asked for, within its last frame. A longer one of the same seed begins with its sound, up to the
last `codec.context` frames, which the codec heard without what follows them.

Beyond the training length. Positions are absolute and those past the training length were never trained, so a window
slides: when it is full, the last half of it becomes the beginning of a new one, at positions 0, 1, …, read anew in one
pass with the same prompt. Codes go on without a break, and the codec decodes across the border like anywhere else; the
model forgets what left the window. Given sound to continue is the same: its codec's codes are the first context.
Random numbers are those of the frame's place in the whole clip.

The level of a seam: at the borders of windows, median and 95 % quantile of the step from sample to sample and of the
distance between the spectra before and after are at most 1.2 times those at other ends of frames (tested).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from siren.config import Sampling
from siren.generate.sampler import Sampler, frames
from siren.networks.codec import Codec
from siren.shapes import Bool, Float, Int

CHUNK_SECONDS = 0.5  # of frames before the first sound, and of every chunk after that


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


class Decoder:
    """Codes in, one frame at a time; sound out, `chunk` frames at a time, the first once `chunk` frames are there.

    The clip ends after `num_samples`, within its last frame. `prefix` [B, K, t] is heard by the codec before the first
    frame, and is no part of what comes out.
    """

    def __init__(self, codec: Codec, num_samples: int, chunk: int, prefix: Tensor | None = None):
        self.codec, self.chunk = codec, chunk
        self.num_samples, self.num_frames = num_samples, -(-num_samples // codec.hop)
        self.held = [] if prefix is None else list(prefix.unbind(-1)[-codec.context :])
        self.begin, self.count, self.done = -len(self.held), 0, 0  # held[0] is frame `begin`; sound up to `done` is out
        self.wait = max(1, chunk - codec.context)

    def push(self, code: Int[Tensor, "B K"]) -> Float[Tensor, "B S"] | None:
        """Take the next frame; the sound that has become ready, or None."""
        self.held.append(code)
        self.count += 1
        reach, last = self.codec.context, self.count == self.num_frames
        ready = self.count if last else self.count - reach
        if ready - self.done < self.wait and not last:
            return None
        wav = self.codec.decode(torch.stack(self.held, dim=-1), first=self.begin)
        end = min(ready * self.codec.hop, self.num_samples)
        wav = wav[:, (self.done - self.begin) * self.codec.hop : end - self.begin * self.codec.hop]
        self.done, self.wait = ready, self.chunk
        keep = max(self.begin, ready - reach)
        self.held, self.begin = self.held[keep - self.begin :], keep
        return wav


def decode(
    codec: Codec, stream: Iterator[Int[Tensor, "B K"]], num_samples: int, chunk: int, prefix: Tensor | None = None
) -> Iterator[Float[Tensor, "B S"]]:
    """Waveforms of the frames of `stream`, as `Decoder` gives them; `num_samples` together."""
    decoder = Decoder(codec, num_samples, chunk, prefix)
    for code in stream:
        if (wav := decoder.push(code)) is not None:
            yield wav
