"""Twelve parametric sound events, clearly different in spectrum and rhythm, each instance varied by its generator.

A sound is a function `(generator, seconds, sample_rate) -> wav [S]` in `SOUNDS`; pitch, rate, phase and timbre are
drawn from the generator. Rhythms are regular inside a clip. `event` brings all of them to one loudness (the loudest
50 ms at RMS 0.2) and asserts that they are finite: a single NaN would poison a corpus without a sound.

Shapes: S samples.
"""

from collections.abc import Callable

import numpy as np

Sound = Callable[[np.random.Generator, float, int], np.ndarray]
LOUDNESS = 0.2  # RMS of the loudest 50 ms
PEAK = 0.95


def event(name: str, seconds: float, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    """One instance of the sound `name`, float32 [S]. Raises ValueError for an unknown name."""
    if name not in SOUNDS:
        raise ValueError(f"no sound event {name!r}; there are {', '.join(SOUNDS)}")
    wav = SOUNDS[name](generator, seconds, sample_rate)
    wav = wav - wav.mean()
    fade = np.minimum(1.0, np.arange(len(wav)) / (0.004 * sample_rate))
    wav = wav * fade * fade[::-1]
    window = max(1, min(len(wav), round(0.05 * sample_rate)))
    energy = np.cumsum(np.concatenate([[0.0], wav**2]))
    loudest = np.sqrt(max((energy[window:] - energy[:-window]).max() / window, 1e-12))
    wav = wav * min(LOUDNESS / loudest, PEAK / max(np.abs(wav).max(), 1e-9))
    assert np.isfinite(wav).all(), f"the sound {name!r} is not finite"
    return wav.astype(np.float32)


def dog(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """Barks: a harmonic call whose pitch falls, with a throaty formant and a little breath."""
    pitch, length = generator.uniform(280, 480), generator.uniform(0.15, 0.2)
    formant = generator.uniform(850, 1250)
    t = _times(length, rate)
    phase = 2 * np.pi * pitch * (t + 0.04 * np.sin(np.pi * t / length) - 0.18 * t**2 / length)
    order = np.arange(1, 11)[:, None]
    weight = np.exp(-(((order * pitch - formant) / 700) ** 2)) + 0.25 / order
    bark = (weight * np.sin(order * phase)).sum(0)
    bark += 0.35 * np.abs(bark).max() * _noise(generator, len(t), rate, 600, 3000)
    bark *= np.minimum(1, t / 0.012) * np.maximum(0, 1 - t / length) ** 0.7
    return _repeat(seconds, rate, _beats(generator, seconds, (2.2, 3.2)), lambda index: bark)


def rain(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """A steady bright hiss, made of a noise bed and hundreds of tiny hits."""
    count = round(seconds * rate)
    hits = (generator.random(count) < generator.uniform(150, 400) / rate) * generator.exponential(5.0, count)
    return _shape(generator.standard_normal(count) + hits, rate, generator.uniform(1200, 2400), 7500)


def alarm(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """An electronic beeper: a square tone of fixed pitch, half of the time off."""
    pitch, beats = generator.uniform(900, 1500), generator.uniform(3.2, 5.0)
    t = _times(seconds, rate)
    tone = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in (1, 3, 5))
    cycle = (t * beats + generator.random()) % 1.0
    return tone * np.clip(np.minimum(cycle, 0.5 - cycle) * 60, 0, 1)


def siren(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """A vehicle's siren: one loud tone that sweeps up and down without a pause."""
    centre, depth, turns = generator.uniform(650, 950), generator.uniform(0.45, 0.65), generator.uniform(0.8, 1.5)
    t = _times(seconds, rate)
    pitch = centre * 2 ** (depth * np.sin(2 * np.pi * (turns * t + generator.random())))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    return np.sin(phase) + 0.45 * np.sin(2 * phase) + 0.25 * np.sin(3 * phase)


def bell(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """Strikes with inharmonic partials that ring on, the high ones for a shorter time."""
    pitch, ring = generator.uniform(450, 800), generator.uniform(0.3, 0.5)
    ratio = np.array([0.5, 1.0, 1.19, 1.56, 2.0, 2.66, 3.01, 4.1, 5.4])[:, None]
    weight = np.array([0.5, 0.9, 0.7, 0.5, 0.8, 0.4, 0.35, 0.3, 0.2])[:, None]
    t = _times(min(seconds, 1.2), rate)
    strike = (weight * np.sin(2 * np.pi * pitch * ratio * t) * np.exp(-t / (ring / ratio**0.6))).sum(0)
    strike *= np.minimum(1, t / 0.002) * np.minimum(1, (t[-1] - t) / 0.02)
    return _repeat(seconds, rate, _beats(generator, seconds, (1.5, 2.2)), lambda index: strike)


def engine(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """A running motor: a rough buzz of many harmonics, uneven cylinders, slight hunting, and a rattle above 300 Hz."""
    pitch = generator.uniform(85, 130)
    t = _times(seconds, rate)
    wobble = 1 + 0.03 * np.sin(2 * np.pi * (generator.uniform(1.5, 4) * t + generator.random()))
    cycles = np.cumsum(pitch * wobble) / rate
    order = np.arange(1, 31)[:, None]
    table_phase = 2 * np.pi * order * np.arange(2048) / 2048
    weight = order**-0.35 * generator.uniform(0.5, 1.0, order.shape)
    table = (weight * np.sin(table_phase + generator.uniform(0, 2 * np.pi, order.shape))).sum(0)
    buzz = table[(cycles * 2048).astype(int) % 2048] * (1 + 0.35 * np.sin(np.pi * cycles))
    return buzz + 0.3 * buzz.std() * _noise(generator, len(t), rate, 300, 2500)


def bird(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """Chirps: short whistles around 4 kHz, every one gliding up and back down."""
    pitch, rise, length = generator.uniform(3000, 4200), generator.uniform(1.25, 1.6), generator.uniform(0.09, 0.13)
    t = _times(length, rate)
    glide = pitch * rise ** np.sin(np.pi * t / length)
    chirp = np.sin(2 * np.pi * np.cumsum(glide) / rate) * np.sin(np.pi * t / length)
    return _repeat(seconds, rate, _beats(generator, seconds, (3.5, 5.5)), lambda index: chirp)


def clock(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """Tick and tock: dry clicks in turn, with nothing between them."""
    t = _times(0.05, rate)

    def click(pitch: float) -> np.ndarray:
        ring = np.sin(2 * np.pi * pitch * t) + 0.6 * np.sin(2 * np.pi * 1.73 * pitch * t)
        return (ring + 1.2 * _noise(generator, len(t), rate, 1500, 7000)) * np.exp(-t / 0.009)

    clicks = click(generator.uniform(2400, 3200)), 0.8 * click(generator.uniform(1500, 2000))
    return _repeat(seconds, rate, _beats(generator, seconds, (3.0, 4.5)), lambda index: clicks[index % 2])


def thunder(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """A crack and a rumble below 200 Hz that rolls and dies away."""
    t = _times(seconds, rate)
    rumble = _noise(generator, len(t), rate, 25, generator.uniform(120, 220))
    crack = _noise(generator, len(t), rate, 100, 2500) * np.exp(-t / 0.07)
    roll = 1 + 0.6 * np.sin(2 * np.pi * (generator.uniform(2.0, 4.0) * t + generator.random()))
    return (
        (rumble * roll + generator.uniform(0.3, 0.7) * crack) * np.exp(-t / (0.6 * seconds)) * np.minimum(1, t / 0.02)
    )


def drops(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """Water dripping: hollow blips, every one with a pitch that shoots up."""
    pitch = generator.uniform(500, 900)
    t = _times(0.14, rate)
    release = np.exp(-t / generator.uniform(0.035, 0.05)) * np.minimum(1, (t[-1] - t) / 0.02)

    def blip(index: int) -> np.ndarray:
        glide = pitch * generator.uniform(0.9, 1.1) * (1 + 1.3 * np.minimum(1, t / 0.09) ** 1.5)
        return np.sin(2 * np.pi * np.cumsum(glide) / rate) * np.minimum(1, t / 0.004) * release

    return _repeat(seconds, rate, _beats(generator, seconds, (2.5, 4.0)), blip)


def waves(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """The sea: noise that swells and sinks slowly, brightest at the top of the swell."""
    t = _times(seconds, rate)
    swell = np.sin(np.pi * (t / generator.uniform(0.9, 1.4) + generator.random())) ** 2
    low = _noise(generator, len(t), rate, 150, 900)
    high = _noise(generator, len(t), rate, 700, 4500)
    return low * (0.12 + swell) + 0.9 * high * swell**2


def knock(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """Knuckles on a wooden door: dull hits in groups of three."""
    t = _times(0.1, rate)
    pitch, tempo = generator.uniform(160, 260), generator.uniform(6.0, 7.5)
    modes = sum(w * np.sin(2 * np.pi * pitch * k * t) for k, w in ((1, 1.0), (1.6, 0.7), (2.9, 0.4)))
    hit = modes * np.exp(-t / 0.022) + 0.7 * _noise(generator, len(t), rate, 200, 1600) * np.exp(-t / 0.006)
    groups = np.arange(0, seconds, 3 / tempo + generator.uniform(0.2, 0.3))
    onsets = (generator.uniform(0.02, 0.12) + groups[:, None] + np.arange(3) / tempo).ravel()
    return _repeat(seconds, rate, onsets, lambda index: hit * (1.0, 0.9, 1.0)[index % 3])


SOUNDS: dict[str, Sound] = {
    "dog": dog,
    "rain": rain,
    "alarm": alarm,
    "siren": siren,
    "bell": bell,
    "engine": engine,
    "bird": bird,
    "clock": clock,
    "thunder": thunder,
    "drops": drops,
    "waves": waves,
    "knock": knock,
}


def _times(seconds: float, rate: int) -> np.ndarray:
    return np.arange(round(seconds * rate)) / rate


def _beats(generator: np.random.Generator, seconds: float, tempo: tuple[float, float]) -> np.ndarray:
    """Onsets in seconds at one tempo (beats per second) drawn from the range, nearly exact."""
    step = 1 / generator.uniform(*tempo)
    onsets = np.arange(generator.uniform(0.02, 0.6 * step), seconds, step)
    return onsets + generator.uniform(-0.004, 0.004, len(onsets))


def _repeat(seconds: float, rate: int, onsets: np.ndarray, grain: Callable[[int], np.ndarray]) -> np.ndarray:
    """Grains added at their onsets; what does not fit is cut."""
    wav = np.zeros(round(seconds * rate))
    for index, onset in enumerate(onsets):
        start = max(0, round(onset * rate))
        piece = grain(index)[: max(0, len(wav) - start)]
        wav[start : start + len(piece)] += piece
    return wav


def _noise(generator: np.random.Generator, count: int, rate: int, low: float, high: float) -> np.ndarray:
    """Gaussian noise between `low` and `high` Hz with soft edges, RMS 1."""
    return _shape(generator.standard_normal(count), rate, low, high)


def _shape(wav: np.ndarray, rate: int, low: float, high: float) -> np.ndarray:
    """Band-pass by gains on the spectrum (about 12 dB per octave outside the band), then RMS 1."""
    size = -(-len(wav) // 512) * 512  # lengths with small prime factors transform fast
    hz = np.maximum(np.fft.rfftfreq(size, 1 / rate), 1.0)
    gain = 1 / (1 + (low / hz) ** 4) ** 0.5 / (1 + (hz / high) ** 4) ** 0.5
    out = np.fft.irfft(np.fft.rfft(wav, size) * gain, size)[: len(wav)]
    return out / max(np.sqrt((out**2).mean()), 1e-9)
