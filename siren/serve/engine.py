"""Continuous batching: one thread owns the model, and requests share its batch row by row.

A batch of `rows` clips is computed frame by frame whatever is asked for; a clip takes a row when one is free and gives
it back at its end, while its neighbours go on (`Run`, ragged). The size of the batch never changes, so its memory is
that of the start, and the numbers of a row are the same whoever sits beside it: same seed, same sound. Rows with
guidance need a twin without text, so there are two lanes, each with a batch of its own; a lane that nobody uses costs
memory and no time.

Unusual: a row has sampling settings of its own (`RowSampling`). Clips longer than the training's slide their window
alone, with one pass over what is kept of it. Delayed codebooks have no ragged batch and are refused at the start.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from siren import progress
from siren.config import Sampling
from siren.generate import streaming
from siren.generate.bundle import DECODED_SECONDS, Bundle
from siren.generate.choice import RowSampling, guided
from siren.generate.sampler import with_null
from siren.generate.stacked import Run, Stacked
from siren.randomness import uniforms
from siren.serve.metrics import Metrics

IDLE_SECONDS = 0.2  # between looks at whether the engine was told to stop, while there is nothing to do


@dataclass(frozen=True)
class Limits:
    """What a service takes on. Beyond it a request is refused, with the remedy."""

    rows: int = 8  # clips that are made at once
    queue: int = 64  # clips that wait
    seconds: float = 30.0  # of a clip
    prompt_characters: int = 1000
    body_bytes: int = 16384

    def __post_init__(self) -> None:
        for name in ("rows", "queue", "seconds", "prompt_characters", "body_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a service needs more than 0")


class Full(Exception):
    """The queue is full; `seconds` until there may be room."""

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting} clips are waiting already")
        self.seconds = seconds


class Closing(Exception):
    """The service ends and begins nothing new."""

    def __init__(self) -> None:
        super().__init__("the service is stopping")


Delivery = np.ndarray | Exception | None  # a piece of sound, why there is none, or the end


@dataclass(eq=False)
class Job:
    """One clip that is asked for. `deliver` is called by the engine's thread: pieces [S], then None or an exception."""

    prompt: str
    seed: int
    num_samples: int
    sampling: Sampling
    deliver: Callable[[Delivery], None]
    stream: bool = False  # pieces as soon as they can be heard, or the whole clip as one
    cancelled: bool = False  # set it from any thread: nothing more is made, and the row is free
    asked: float = field(default_factory=time.monotonic)


class Clip:
    """A job in its row."""

    def __init__(self, job: Job, bundle: Bundle):
        self.job, self.begun, self.heard = job, time.monotonic(), False
        self.states, self.mask = bundle.read([job.prompt])
        if guided(job.sampling):
            self.states, self.mask = with_null(bundle.model, self.states, self.mask)
        self.past: deque[torch.Tensor] = deque(maxlen=bundle.window.context)
        self.num_frames = -(-job.num_samples // bundle.codec.hop)
        chunk = bundle.chunk(streaming.CHUNK_SECONDS if job.stream else DECODED_SECONDS, self.num_frames)
        self.decoder = streaming.Decoder(bundle.codec, job.num_samples, chunk)
        self.pieces: list[np.ndarray] = []  # decoded and not delivered

    @property
    def whole(self) -> bool:
        return self.decoder.count == self.num_frames

    def push(self, code: torch.Tensor) -> np.ndarray | None:
        """Take the next frame; the sound to deliver, which is none before the end unless the clip is streamed."""
        self.past.append(code)
        if (wav := self.decoder.push(code)) is not None:
            self.pieces.append(wav[0].cpu().numpy())
        if not self.pieces or not (self.job.stream or self.whole):
            return None
        sound, self.pieces = np.concatenate(self.pieces), []
        return sound


class Sound(Iterator[np.ndarray]):
    """The pieces of a clip as they are made. `close` frees the row, also before the first piece."""

    def __init__(self) -> None:
        self.pieces: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self.job: Job | None = None

    def __next__(self) -> np.ndarray:
        piece = self.pieces.get()
        if piece is None:
            raise StopIteration
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        if self.job is not None:
            self.job.cancelled = True


class Lane:
    """A batch of `rows` places; with `guided` it computes twice as many rows, the second half without text."""

    def __init__(self, bundle: Bundle, rows: int, guided: bool, longest: int):
        assert isinstance(bundle.sampler, Stacked)
        self.bundle, self.rows, stacked = bundle, rows, bundle.sampler
        device, size, text = stacked.tables.device, stacked.tables.shape[1], bundle.model[0].config.max_text
        self.window, self.twins = bundle.window, 2 if guided else 1
        self.sampling = RowSampling(rows, size, guided, device, fixed=stacked.fused)
        self.run = Run(stacked, self.twins * rows, self.window.length, text, self.sampling, ragged=True)
        self.slider = Run(stacked, self.twins, self.window.length, text, self.sampling, ragged=True)
        self.clips: list[Clip | None] = [None] * rows
        self.numbers = torch.zeros(rows, longest, bundle.model.num_codebooks, device=device)
        self.at = torch.zeros(rows, dtype=torch.long, device=device)  # frame of each row in its whole clip
        self.moving = torch.zeros(rows, dtype=torch.long, device=device)  # 1 where a clip is made
        self.every_row = torch.arange(rows, device=device)

    @staticmethod
    def memory(bundle: Bundle, rows: int, guided: bool, longest: int) -> int:
        """Bytes that a lane holds from its start to its end, without the weights that lanes share."""
        assert isinstance(bundle.sampler, Stacked)
        twins, text = 2 if guided else 1, bundle.model[0].config.max_text
        told = bundle.sampler.memory(twins * (rows + 1), bundle.window.length, text)
        return told["total"] - told["stacked weights"] + 4 * rows * longest * bundle.model.num_codebooks

    @property
    def active(self) -> int:
        return sum(clip is not None for clip in self.clips)

    def _places(self, row: int) -> list[int]:
        return [row + twin * self.rows for twin in range(self.twins)]

    def begin(self, clip: Clip) -> None:
        """Give a clip a free row. Its errors are raised before anything of the lane has changed."""
        job, row = clip.job, self.clips.index(None)
        self.numbers[row, : clip.num_frames] = uniforms([job.seed], clip.num_frames, self.numbers.shape[2])[0]
        for twin, place in enumerate(self._places(row)):
            one = slice(twin, twin + 1)
            self.run.read(clip.states[one], clip.mask[one], slice(place, place + 1))
        self.sampling.put(row, job.sampling)
        self.at[row], self.moving[row], self.clips[row] = 0, 1, clip

    def end(self, row: int) -> None:
        """Free a row; it idles at frame 0."""
        self.clips[row], self.moving[row] = None, 0
        self.sampling.put(row, None)
        self._rest()

    def step(self) -> list[tuple[Clip, np.ndarray | None, bool]]:
        """The next frame of every row: each clip with the sound that became ready, and whether it was its last."""
        for row, clip in enumerate(self.clips):
            if clip is not None and self.run.filled[row] == self.window.length:
                self._slide(row, clip)
        codes = self.run.frame(self.numbers[self.every_row, self.at])[0].clone()  # a graph overwrites its results
        self.at += 1
        self._rest()
        made = []
        for row, clip in enumerate(self.clips):
            if clip is None:
                continue
            made.append((clip, clip.push(codes[row : row + 1]), clip.whole))
            if clip.whole:
                self.end(row)
        return made

    def _rest(self) -> None:
        """Rows without a clip stay at frame 0: the caches have no end for them, and the others read no further."""
        self.at *= self.moving
        self.run.lengths *= self.moving.repeat(self.twins)
        for row, clip in enumerate(self.clips):
            if clip is None:
                for place in self._places(row):
                    self.run.filled[place] = 0

    def _slide(self, row: int, clip: Clip) -> None:
        """Begin a new window with the last part of a full one, as `streaming.codes` does."""
        kept, places = torch.stack(list(clip.past), dim=-1), self._places(row)
        self.slider.read(clip.states, clip.mask)
        self.slider.follow(kept.repeat(self.twins, 1, 1))
        length = kept.shape[-1]
        for mine, new in zip(self.run.caches, self.slider.caches, strict=True):
            mine[:, places, :, :length] = new[:, :, :, :length]
        self.run.next_input[:, places] = self.slider.next_input
        self.run.lengths[places] = length
        for place in places:
            self.run.filled[place] = length


class Engine:
    """The queue and the thread. `start` before the first `submit`; `drain` ends it well, `close` at once."""

    def __init__(self, bundle: Bundle, limits: Limits, metrics: Metrics | None = None, memory: int | None = None):
        """Raises ValueError for a model that cannot be batched so, or that needs more than `memory` bytes for it."""
        if not isinstance(bundle.sampler, Stacked):
            raise ValueError("this model's codebooks are delayed, which cannot be served; `siren generate` samples it")
        self.bundle, self.limits, self.metrics = bundle, limits, metrics or Metrics()
        self.longest = -(-bundle.num_samples(limits.seconds) // bundle.codec.hop)  # frames
        self.kinds = (False, True) if guided(bundle.sampling) else (False,)  # other models know no missing text
        weights = bundle.sampler.memory(1, 1, 1)["stacked weights"]  # shared by the lanes
        self.memory = weights + sum(Lane.memory(bundle, limits.rows, kind, self.longest) for kind in self.kinds)
        if memory is not None and self.memory > memory:
            raise ValueError(
                f"{limits.rows} rows of up to {limits.seconds:g} s take {self.memory / 2**20:,.0f} MiB, "
                f"{memory / 2**20:,.0f} are allowed; lower --rows, or raise --memory"
            )
        self.lanes = {kind: self._lane(kind) for kind in self.kinds}
        self.waiting: deque[Job] = deque()
        self.changed = threading.Condition()
        self.draining = self.closed = self.ready = False
        self.warm = threading.Event()
        self.failure: Exception | None = None
        self.pace = 0.0  # seconds of a frame of the batch, decayed mean
        self.thread = threading.Thread(target=self._work, name="siren-engine", daemon=True)

    def _lane(self, kind: bool) -> Lane:
        return Lane(self.bundle, self.limits.rows, kind, self.longest)

    @property
    def active(self) -> int:
        """Rows that make sound."""
        return sum(lane.active for lane in self.lanes.values())

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def start(self) -> None:
        """Returns once the model has made a clip; raises what kept it from doing so."""
        self.thread.start()
        self.warm.wait()
        if self.failure is not None:
            raise RuntimeError(f"the model does not run: {self.failure}") from self.failure

    def drain(self) -> None:
        """Finish what is being made, refuse what waits. Takes no lock: a signal handler may call it."""
        self.draining = True

    def close(self, seconds: float = 10.0) -> None:
        """End the thread; what is still being made is refused."""
        self.draining = self.closed = True
        if self.alive:
            self.thread.join(seconds)

    def check(self, prompt: str, seconds: float | None, sampling: Sampling) -> int:
        """Samples of such a clip. Raises ValueError, with the remedy, for one that this model does not make."""
        if not prompt.strip():
            raise ValueError("the prompt is empty; say what should be heard")
        if len(prompt) > self.limits.prompt_characters:
            raise ValueError(
                f"the prompt has {len(prompt)} characters, {self.limits.prompt_characters} are allowed; shorten it"
            )
        clap, most = self.bundle.clap, min(self.bundle.model[0].config.max_text, self.bundle.clap.arch.max_tokens)
        [tokens] = clap.num_tokens([prompt])
        if tokens > most:
            raise ValueError(f"the prompt has {tokens} tokens, this model reads at most {most}; shorten it")
        asked = self.bundle.seconds if seconds is None else seconds
        if asked > self.limits.seconds:
            raise ValueError(f"{asked:g} seconds asked for, {self.limits.seconds:g} are allowed; ask for less")
        if guided(sampling) not in self.lanes:
            raise ValueError("this model was registered without guidance; leave it out, or give 1")
        return self.bundle.num_samples(asked)

    def submit(self, job: Job) -> None:
        """Put a checked job into the queue. Raises Full or Closing."""
        with self.changed:
            if self.draining:
                raise Closing
            if len(self.waiting) >= self.limits.queue:
                raise Full(len(self.waiting), self.wait_seconds())
            self.waiting.append(job)
            self.changed.notify()

    def iterate(self, prompt: str, seed: int, seconds: float | None, sampling: Sampling) -> "Sound":
        """A clip in pieces, for a thread that waits for them. Raises as `check` and `submit` do."""
        sound = Sound()
        job = Job(prompt, seed, self.check(prompt, seconds, sampling), sampling, sound.pieces.put, stream=True)
        self.submit(job)
        sound.job = job
        return sound

    def wait_seconds(self) -> float:
        """About how long a new job would wait for a row."""
        frames = sum(job.num_samples for job in list(self.waiting)) / self.bundle.codec.hop
        return frames / self.limits.rows * self.pace

    def _work(self) -> None:
        with torch.inference_mode():
            self._warm_up()
            while not self.closed:
                with self.changed:
                    if not self.waiting and not self.active:
                        if self.draining:
                            break
                        self.changed.wait(IDLE_SECONDS)
                self._admit()
                for kind, lane in list(self.lanes.items()):
                    if lane.active:
                        self._step(kind, lane)
            self.ready, self.draining = False, True
            for clip in [clip for lane in self.lanes.values() for clip in lane.clips if clip is not None]:
                self._finish(clip.job, Closing())
            self._refuse()

    def _warm_up(self) -> None:
        """A clip as long as the window in each lane, heard by nobody: what fails, fails before the first request."""
        try:
            for kind, lane in self.lanes.items():
                sampling = Sampling(1.0, None, None, 2.0 if kind else None)
                num_samples = min(self.longest, lane.window.length) * self.bundle.codec.hop
                lane.begin(Clip(Job("a sound", 0, num_samples, sampling, _drop), self.bundle))
                while lane.active:
                    lane.step()
            self.ready = True
        except Exception as error:
            self.failure, self.closed = error, True
        self.warm.set()

    def _admit(self) -> None:
        if self.draining:
            self._refuse()
        for lane in self.lanes.values():
            for row, clip in enumerate(lane.clips):
                if clip is not None and clip.job.cancelled:
                    lane.end(row)
                    self.metrics.cancelled.inc()
        while (job := self._next()) is not None:
            if job.cancelled:
                self.metrics.cancelled.inc()
            else:
                self._begin(self.lanes[guided(job.sampling)], job)

    def _next(self) -> Job | None:
        """The first job that waits and whose lane has a free row, or that nobody wants any more."""
        with self.changed:
            for job in self.waiting:
                lane = self.lanes[guided(job.sampling)]
                if job.cancelled or lane.active < lane.rows:
                    self.waiting.remove(job)
                    return job
        return None

    def _begin(self, lane: Lane, job: Job) -> None:
        try:
            lane.begin(Clip(job, self.bundle))
            self.metrics.queue_seconds.observe(time.monotonic() - job.asked)
        except Exception as error:  # of this job alone
            self._finish(job, error)

    def _refuse(self) -> None:
        with self.changed:
            refused, self.waiting = list(self.waiting), deque()
        for job in refused:
            self._finish(job, Closing())

    def _step(self, kind: bool, lane: Lane) -> None:
        begun, frames = time.perf_counter(), lane.active
        try:
            made = lane.step()
        except Exception as error:  # the batch is lost; the next one is made anew
            progress.notice(f"a batch of {frames} clips failed: {error}")
            for clip in [clip for clip in lane.clips if clip is not None]:
                self._finish(clip.job, error)
            self.lanes[kind] = self._lane(kind)
            return
        for clip, wav, last in made:
            if wav is not None:
                if not clip.heard:
                    clip.heard = True
                    self.metrics.first_sound_seconds.observe(time.monotonic() - clip.job.asked)
                clip.job.deliver(wav)
            if last:
                self._finish(clip.job, None)
        took = time.perf_counter() - begun
        self.pace = took if not self.pace else 0.95 * self.pace + 0.05 * took
        self.metrics.worked(took, frames, frames * self.bundle.codec.hop / self.bundle.sample_rate)

    def _finish(self, job: Job, end: Exception | None) -> None:
        job.deliver(end)


def _drop(delivery: Delivery) -> None:
    pass
