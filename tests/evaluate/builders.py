"""A small world for the report: events that are tones, and networks that know them by their pitch."""

from collections import namedtuple
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siren.config import Evaluation as Settings
from siren.evaluate import analyze
from siren.evaluate.analyze import Clips
from siren.evaluate.evaluate import Evaluation, evaluate
from siren.evaluate.records import Curve
from siren.evaluate.report import Report

RATE, SAMPLES = 16000, 8000
EVENTS = {"alarm": 900, "bell": 1400, "bird": 3200, "dog": 500, "engine": 150, "siren": 2200}
Output = namedtuple("Output", ["features", "logits"])


def sound(labels: list[str], relation: str | None, rng: np.random.Generator) -> np.ndarray:
    """A fading tone for each event, in sequence for "then". [SAMPLES]"""
    parts = len(labels) if relation == "then" else 1
    wav = np.zeros(SAMPLES, np.float32)
    length = SAMPLES // parts
    for i, label in enumerate(labels):
        time = np.arange(length) / RATE
        tone = np.sin(2 * np.pi * EVENTS[label] * rng.uniform(0.97, 1.03) * time) * np.exp(-3 * time)
        start = i * length if relation == "then" else 0
        wav[start : start + length] += 0.4 * tone.astype(np.float32)
    return wav + 0.002 * rng.normal(size=SAMPLES).astype(np.float32)


def prompts(per_event: int = 3) -> list[dict[str, Any]]:
    names = list(EVENTS)
    rows = [
        {"caption": f"the sound of a {n}", "labels": [n], "relation": "one"} for n in names for _ in range(per_event)
    ]
    for i, first in enumerate(names):
        second = names[(i + 2) % len(names)]
        for relation in ("while", "then"):
            rows.append({"caption": f"{first} {relation} {second}", "labels": [first, second], "relation": relation})
    return [{"id": f"test-{i:03d}", **row} for i, row in enumerate(rows)]


def _spectra(wav: Tensor) -> Tensor:
    """Power at each event's pitch. [B, S] → [B, C]"""
    power = torch.fft.rfft(wav, 4096).abs().square()
    centres = [round(hertz * 4096 / RATE) for hertz in EVENTS.values()]
    return torch.stack([power[:, max(0, c - 20) : c + 20].sum(1) for c in centres], 1)


class Judge:
    kind, name, labels, sample_rate = "cnn14", "cnn14-test", list(EVENTS), RATE

    def __call__(self, wav: Tensor) -> Output:
        return Output(_spectra(wav).clamp_min(1e-6).log(), self.logits(wav))

    def logits(self, wav: Tensor) -> Tensor:
        power = _spectra(wav)
        return 8 * power / power.sum(1, keepdim=True).clamp_min(1e-6) - 2


class Vggish:
    name, sample_rate = "vggish-test", RATE

    def __call__(self, wav: Tensor) -> Tensor:
        return torch.stack([_spectra(half) for half in wav.chunk(2, dim=1)], 1).clamp_min(1e-6).log()


class Pair:
    """CLAP and ImageBind alike: a caption is the set of events that it names."""

    sample_rate = RATE

    def __init__(self, name: str) -> None:
        self.name = name

    def embed_text(self, captions: list[str]) -> Tensor:
        rows = torch.tensor([[float(name in caption.split()) for name in EVENTS] for caption in captions])
        return torch.nn.functional.normalize(rows, dim=1)

    def embed_audio(self, wav: Tensor) -> Tensor:
        return torch.nn.functional.normalize(_spectra(wav).sqrt(), dim=1)


def arms(rows: list[dict[str, Any]], seed: int = 0) -> dict[str, np.ndarray]:
    """Untrained: noise. Stage 1: a wrong event now and then. Aligned: less often. Codec: the real clip, softer."""
    rng = np.random.default_rng(seed)

    def made(wrong: float) -> np.ndarray:
        names = list(EVENTS)
        clips = []
        for row in rows:
            labels = [names[rng.integers(len(names))] if rng.random() < wrong else label for label in row["labels"]]
            clips.append(sound(labels, row["relation"], rng))
        return np.stack(clips)

    noise = (0.1 * rng.normal(size=(len(rows), SAMPLES))).astype(np.float32)
    return {"untrained": noise, "stage1": made(0.3), "aligned": made(0.1), "codec": 0.8 * made(0.0)}


def evaluation(rows: list[dict[str, Any]], clips: dict[str, np.ndarray], reference: np.ndarray) -> Evaluation:
    settings = Settings(batch_size=16, bootstrap=50, is_splits=2)
    judges = {"cnn14": Judge(), "vggish": Vggish()}
    return evaluate(clips, rows, reference, judges, Pair("clap-test"), Pair("imagebind-test"), settings, 0, RATE)


def curves(transformers: int = 2) -> dict[str, Curve]:
    """As stage 1 and align write them: validation now and then, the rest at every report."""
    steps = list(range(0, 200, 10))
    found: dict[str, Curve] = {}
    for k in range(transformers):
        fall = [2 + k + 3 * float(np.exp(-s / 60)) for s in steps]
        found[f"stage1-{k}"] = {"loss": (steps, fall)}
        for j in (2 * k, 2 * k + 1):
            found[f"stage1-{k}"][f"val_loss_codebook_{j}"] = (steps[::5], [x + 0.1 * j for x in fall[::5]])
    rng = np.random.default_rng(3)
    rewards = [0.5 + 0.004 * i + 0.02 * float(rng.normal()) for i in range(20)]
    found["align"] = {"reward": (list(range(20)), rewards), "kl": (list(range(20)), [0.01 * i for i in range(20)])}
    return found


def analysis(num_codebooks: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    latents = rng.normal(size=(num_codebooks, 16, 12)).astype(np.float32)
    labels = [list(EVENTS)[i % len(EVENTS)] for i in range(120)]
    codes = rng.integers(0, 16, (120, num_codebooks, 20))
    codes[:, 0] = np.array([i % len(EVENTS) for i in range(120)])[:, None] + rng.integers(0, 3, (120, 20))
    clips = Clips(codes, np.full(120, 20), labels)
    losses = {j: ([0, 100], [5.0, 2.0 + 0.3 * j]) for j in range(num_codebooks)}
    return analyze.analyze(latents, clips, clips, losses)


def sweep() -> list[dict[str, Any]]:
    """What thresholds keep of three sources, as the stage `select` writes it."""
    taus = [t / 100 for t in range(10, 81, 2)]
    found = []
    for source, count in (("all", 600), ("bbc", 300), ("clotho", 200), ("freesound", 100)):
        kept = [round(count * (1 - t) ** 2) for t in taus]
        found += [{"tau": t, "source": source, "pairs": n, "hours": n / 360} for t, n in zip(taus, kept, strict=True)]
    return found


def report(**changes: Any) -> Report:
    """A complete report; `changes` replaces parts of it."""
    from siren.evaluate.players import choose

    rows = prompts()
    rng = np.random.default_rng(1)
    reference = np.stack([sound(row["labels"], row["relation"], rng) for row in rows])
    clips = arms(rows)
    evaluated = evaluation(rows, clips, reference)
    ids = [row["id"] for row in rows]
    parts: dict[str, Any] = {
        "scale": "test",
        "sample_rate": RATE,
        "prompts": choose(rows, 6),
        "sounds": {arm: dict(zip(ids, wavs, strict=True)) for arm, wavs in {"real": reference, **clips}.items()},
        "metrics": evaluated.metrics,
        "clips": evaluated.clips,
        "curves": curves(),
        "funnel": [("clips", 1000, "as fetched"), ("segments", 986, "14 put aside"), ("stage 1", 700, "")],
        "quarantine": [
            {"stage": "segment", "reason": "too_short", "count": 2, "item": "clip-7", "detail": "it lasts 0.01 s"}
        ],
        "networks": {"codec": {"mel_distance": 0.41, "untrained": {"mel_distance": 2.5}}},
        "analysis": analysis(),
        "lineage": [("seed", "0"), ("codec", "1a2b")],
        "missing": [],
        "sweep": sweep(),
        "min_score": 0.4,
    }
    return Report(**{**parts, **changes})
