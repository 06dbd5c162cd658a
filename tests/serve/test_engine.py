"""Continuous batching: what shares a batch, what it costs, and what becomes of those who wait."""

import dataclasses
import queue
import time

import numpy as np
import pytest
import torch

from siren.config import Sampling
from siren.generate.choice import RowSampling, choose
from siren.serve.engine import Clip, Closing, Engine, Full, Job, Lane
from tests.model.builders import WHOLE
from tests.serve.conftest import LIMITS

WAYS = [WHOLE, Sampling(0.7, 5, None, None), Sampling(1.3, None, 0.8, None), Sampling(0.9, 6, 0.9, None)]


class Listener:
    """What a job delivers, as it comes."""

    def __init__(self) -> None:
        self.pieces: queue.SimpleQueue = queue.SimpleQueue()

    def all(self) -> np.ndarray:
        got = []
        while (piece := self.pieces.get(timeout=30)) is not None:
            if isinstance(piece, Exception):
                raise piece
            got.append(piece)
        return np.concatenate(got)


HOP = 32  # of the bundle's codec


def job(prompt: str = "a dog barks", seed: int = 0, frames: float = 20, sampling: Sampling = WHOLE, stream=False):
    heard = Listener()
    return Job(prompt, seed, round(frames * HOP), sampling, heard.pieces.put, stream), heard


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("guidance", [None, 2.5])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_row_draws_as_if_its_settings_were_those_of_all(guidance, fixed):
    g = torch.Generator().manual_seed(0)
    twins = 1 if guidance is None else 2
    for _ in range(20):
        logits = 3 * torch.randn(twins * len(WAYS), 16, generator=g)
        numbers = torch.rand(len(WAYS), generator=g)
        rows = RowSampling(len(WAYS), 16, guidance is not None, torch.device("cpu"), fixed)
        for row, way in enumerate(WAYS):
            rows.put(row, dataclasses.replace(way, guidance=guidance))
        codes, log_probs = choose(logits, numbers, rows)
        for row, way in enumerate(WAYS):
            alone, its = choose(logits, numbers, dataclasses.replace(way, guidance=guidance))
            assert codes[row] == alone[row]
            assert log_probs[row] == its[row]


def finish(lane: Lane, arrivals: dict[int, list[Clip]]) -> dict[Clip, np.ndarray]:
    """Run a lane to its end; clips arrive before the steps that are named."""
    made: dict[Clip, list[np.ndarray]] = {}
    step = 0
    waiting: list[Clip] = []
    while waiting or lane.active or any(at >= step for at in arrivals):
        waiting += arrivals.get(step, [])
        while waiting and lane.active < lane.rows:
            made[waiting[0]] = []
            lane.begin(waiting.pop(0))
        for clip, wav, _ in lane.step():
            if wav is not None:
                made[clip].append(wav)
        step += 1
    return {clip: np.concatenate(wavs) for clip, wavs in made.items()}


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_same_seed_same_sound_whoever_else_is_there(bundle, guidance):
    """Clips of other lengths and settings come and go; one of them is longer than the window of the training."""
    ways = [dataclasses.replace(way, guidance=guidance) for way in WAYS]
    wanted = [(f"rain {n}", n, frames, ways[n % 4], n % 2 == 0) for n, frames in enumerate((20, 9.25, 33.5, 3))]

    def clips() -> list[Clip]:
        return [Clip(job(*asked)[0], bundle) for asked in wanted]

    with torch.inference_mode():
        crowd = clips()
        together = finish(Lane(bundle, 3, guidance is not None, 100), {0: crowd[:2], 4: crowd[2:]})
        for asked, clip, alone in zip(wanted, crowd, clips(), strict=True):
            sound = finish(Lane(bundle, 3, guidance is not None, 100), {0: [alone]})[alone]
            assert np.array_equal(together[clip], sound), asked
            assert len(sound) == asked[2] * HOP
            (other,) = bundle.sample([asked[0]], [asked[1]], asked[2] * HOP / 16000, asked[3])
            assert np.abs(sound - other).max() < 1e-3 * np.abs(other).max()  # -60 dB; the same codes


def test_memory_is_told_before_the_start_and_does_not_grow(bundle):
    told = Lane.memory(bundle, 3, True, 100)
    lane = Lane(bundle, 3, True, 100)
    held = [*lane.run.caches, *lane.run.inside, *lane.run.text, lane.numbers]
    held += [*lane.slider.caches, *lane.slider.inside, *lane.slider.text]
    assert 0.5 * told < sum(t.nbytes for t in held) <= told  # the rest is temporary
    places = [t.data_ptr() for t in held]
    with torch.inference_mode():
        finish(lane, {0: [Clip(job(frames=n, sampling=bundle.sampling)[0], bundle) for n in (5, 45)]})
    again = [*lane.run.caches, *lane.run.inside, *lane.run.text, lane.numbers]
    assert [t.data_ptr() for t in again] == places[: len(again)]
    with pytest.raises(ValueError, match="MiB, 0 are allowed; lower --rows, or raise --memory"):
        Engine(bundle, LIMITS, memory=1000)


def test_a_long_clip_is_decoded_in_pieces_and_sounds_as_if_it_were_not(bundle, monkeypatch):
    """Its codec would take memory without end."""
    lengths, decode = [], bundle.codec.decode
    monkeypatch.setattr(
        bundle.codec, "decode", lambda codes, first=0: lengths.append(codes.shape[-1]) or decode(codes, first)
    )
    (whole,) = bundle.sample(["rain"], [3], 0.2)
    assert lengths == [100]
    monkeypatch.setattr("siren.generate.bundle.DECODED_SECONDS", 0.05)
    lengths.clear()
    (pieces,) = bundle.sample(["rain"], [3], 0.2)
    assert max(lengths) <= 25 + 2 * bundle.codec.context
    assert pieces.shape == whole.shape
    assert np.abs(pieces - whole).max() < 1e-3 * np.abs(whole).max()


def test_a_long_clip_of_the_service_is_decoded_in_pieces_and_delivered_as_one(bundle, engine, monkeypatch):
    engine.start()
    whole = engine_sound(engine)
    lengths, decode = [], bundle.codec.decode
    monkeypatch.setattr(
        bundle.codec, "decode", lambda codes, first=0: lengths.append(codes.shape[-1]) or decode(codes, first)
    )
    monkeypatch.setattr("siren.serve.engine.DECODED_SECONDS", 0.05)
    pieces = engine_sound(engine)
    assert len(lengths) == 4
    assert max(lengths) <= 25 + 2 * bundle.codec.context
    assert np.abs(pieces - whole).max() < 1e-3 * np.abs(whole).max()


def engine_sound(engine: Engine) -> np.ndarray:
    wanted, heard = job(frames=100)
    engine.submit(wanted)
    sound = heard.pieces.get(timeout=30)
    assert heard.pieces.get(timeout=30) is None  # one piece, and the end
    assert sound.shape == (100 * HOP,)
    return sound


def test_what_cannot_be_made_is_refused_before_it_waits(engine, bundle):
    for prompt, seconds, said in [
        (" ", None, "the prompt is empty"),
        ("x" * 201, None, "201 characters, 200 are allowed"),
        ("a dog " * 30, None, "tokens, this model reads at most"),
        ("rain", 0.6, "0.6 seconds asked for, 0.2 are allowed"),
    ]:
        with pytest.raises(ValueError, match=said):
            engine.check(prompt, seconds, WHOLE)
    assert engine.check("rain", None, WHOLE) == 20 * HOP
    assert engine.check("rain", 0.1001, WHOLE) == 1602
    assert engine.check("rain", 1e-300, WHOLE) == 1
    unguided = Engine(_without_guidance(bundle), LIMITS)
    with pytest.raises(ValueError, match="registered without guidance"):
        unguided.check("rain", None, dataclasses.replace(WHOLE, guidance=3.0))


def _without_guidance(bundle):
    sampling = dataclasses.replace(bundle.sampling, guidance=None)
    return type(bundle)(bundle.model, bundle.codec, bundle.clap, sampling, bundle.seconds, "cpu")


def test_the_queue_has_an_end_and_says_when_to_come_back(engine):
    jobs = [job(seed=n, frames=60) for n in range(12)]
    for wanted, _ in jobs[: LIMITS.queue]:
        engine.submit(wanted)
    with pytest.raises(Full, match="4 clips are waiting"):
        engine.submit(jobs[-1][0])
    engine.start()
    assert all(len(heard.all()) == 60 * 32 for _, heard in jobs[: LIMITS.queue])
    for wanted, _ in jobs[4:8]:
        engine.submit(wanted)
    with pytest.raises(Full) as full:
        _fill(engine)
    assert full.value.seconds > 0


def _fill(engine: Engine) -> None:
    while True:
        engine.submit(job(frames=100)[0])


def test_who_goes_away_frees_the_row(engine):
    engine.start()
    first = [job(seed=n, frames=100, stream=True) for n in range(3)]
    for wanted, _ in first:
        engine.submit(wanted)
    until(lambda: engine.active == 3)
    waits, heard = job(seed=9, frames=5)
    engine.submit(waits)
    first[1][0].cancelled = True
    assert len(heard.all()) == 5 * 32
    assert engine.metrics.cancelled._value.get() == 1
    assert len(first[0][1].all()) == 100 * 32


def test_a_stop_finishes_what_is_made_and_refuses_what_waits(engine):
    engine.start()
    jobs = [job(seed=n, frames=100) for n in range(5)]
    for wanted, _ in jobs[:3]:
        engine.submit(wanted)
    until(lambda: engine.active == 3)
    for wanted, _ in jobs[3:]:
        engine.submit(wanted)
    engine.drain()
    with pytest.raises(Closing):
        engine.submit(job()[0])
    assert [len(heard.all()) for _, heard in jobs[:3]] == [100 * 32] * 3
    for _, heard in jobs[3:]:
        with pytest.raises(Closing):
            heard.all()
    until(lambda: not engine.alive)


def test_a_batch_that_fails_takes_only_its_own_clips_with_it(engine, monkeypatch):
    engine.start()
    lane = engine.lanes[False]
    monkeypatch.setattr(lane.run, "frame", lambda numbers: 1 / 0)
    wanted, heard = job()
    engine.submit(wanted)
    with pytest.raises(ZeroDivisionError):
        heard.all()
    again, heard = job()
    engine.submit(again)
    assert len(heard.all()) == 20 * 32
    assert engine.lanes[False] is not lane


def test_a_model_that_does_not_run_is_found_out_at_the_start(bundle, monkeypatch):
    made = Engine(bundle, LIMITS)
    monkeypatch.setattr(Lane, "step", lambda lane: 1 / 0)
    with pytest.raises(RuntimeError, match="the model does not run: division by zero"):
        made.start()
