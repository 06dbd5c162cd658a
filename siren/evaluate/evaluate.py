"""Everything the evaluation says about generated clips: metrics with intervals, comparisons, controls, one row a clip.

An arm is one way of making the clips of the test prompts (untrained, stage1, aligned, the codec's reconstructions).
Two more are made here: `real`, the reference clips themselves, whose scores are the ceiling under these networks; and
`shuffled`, the best model's clips handed to prompts with other events, the control for whatever claims to follow the
prompt. A Fréchet distance over all clips cannot see pairing, so it is also taken within each event.
A silent clip is flagged, counts as naming nothing, and stays in every other figure. Nothing is skipped: clips that
are missing or not finite are a ValueError, and prompts whose events the judge does not know are counted.
Shapes: N prompts · S samples · C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siren.config import Evaluation as Settings
from siren.evaluate import bootstrap, judging, metrics
from siren.evaluate.bootstrap import Interval
from siren.evaluate.hearing import Ears, Heard
from siren.evaluate.prompts import Prompts, check, counts, index
from siren.progress import track

BEST_ARMS = ("aligned", "stage1")  # the first that is there is shuffled
COMPARED = (("aligned", "stage1"), ("stage1", "untrained"), ("aligned", "shuffled"), ("stage1", "shuffled"))
SET_RESAMPLES_SHARE = 10  # a Fréchet distance costs a decomposition: one resample for ten that a mean gets


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, Any]  # plain nested data, for JSON
    clips: list[dict[str, Any]]  # one row for each arm and prompt, for the report


def evaluate(
    arms: Mapping[str, np.ndarray],
    prompts: Sequence[dict[str, Any]],
    reference: np.ndarray,
    judges: Mapping[str, Any],
    clap: Any,
    imagebind: Any,
    settings: Settings,
    seed: int,
    sample_rate: int = 16000,
    device: str = "cpu",
    names: Mapping[str, str] | None = None,
) -> Evaluation:
    """Judge every arm's clips, float32 [N, S], row i of which was made for prompts[i].

    prompts: dicts with id, caption, labels (in the order of the events) and relation (one | while | then | None).
    reference: the real clips of the same prompts, [N, S']. judges: {"cnn14": ..., "vggish": ...}. Every metric's key
    names its network, as in fd@cnn14-demo: by `names` if given, else by the network's own name.
    """
    check(arms, reference, prompts)
    listed = index(prompts, judges["cnn14"].labels)
    ears = Ears(judges["cnn14"], judges["vggish"], clap, imagebind, sample_rate, settings.batch_size, device)
    called = network_names({"cnn14": ears.cnn14, "vggish": ears.vggish, "clap": clap, "imagebind": imagebind}, names)
    texts = ears.read([p["caption"] for p in prompts])
    heard = ears.listen({"real": reference, **arms}, halves=np.array([len(p["labels"]) > 1 for p in prompts]))
    notes: list[str] = []
    best = next((arm for arm in BEST_ARMS if arm in arms), None)
    if best is not None:
        try:
            heard["shuffled"] = heard[best][judging.derange([p["labels"] for p in prompts], seed)]
            notes.append(f"shuffled: the clips of {best}, each handed to a prompt with none of its events")
        except ValueError as error:
            notes.append(f"no shuffled control: {error}")
    scores = {arm: paired(h, heard["real"], texts, listed) for arm, h in heard.items()}
    resamples = settings.bootstrap
    figures = {
        arm: {
            **set_metrics(arm, h, heard["real"], listed, called, settings, seed, notes),
            **paired_metrics(scores[arm], called, resamples, seed),
            "silent_clips": int(h.silent.sum()),
        }
        for arm, h in track(heard.items(), "distances and intervals", total=len(heard), unit="arm")
    }
    report = {
        "prompts": counts(listed),
        "networks": called,
        "arms": figures,
        "differences": differences(scores, called, resamples, seed),
        "events": {arm: event_table(h, listed) for arm, h in heard.items()},
        "notes": list(dict.fromkeys(notes)),
    }
    return Evaluation(report, [row for arm in heard for row in clip_rows(arm, heard[arm], scores[arm], listed)])


def network_names(networks: Mapping[str, Any], names: Mapping[str, str] | None) -> dict[str, str]:
    def own(kind: str, network: Any) -> str:
        return str(getattr(network, "name", None) or f"{kind}-{getattr(network, 'backend', type(network).__name__)}")

    return {kind: (names or {}).get(kind) or own(kind, network) for kind, network in networks.items()}


def paired(heard: Heard, real: Heard, texts: Mapping[str, np.ndarray], listed: Prompts) -> dict[str, np.ndarray]:
    """One number a prompt for each metric of `PAIRED`, float64 [N]; NaN where it does not apply."""
    return {name: metric(heard, real, texts, listed) for name, metric in PAIRED.items()}


def _kl(heard: Heard, real: Heard, texts: Mapping[str, np.ndarray], listed: Prompts) -> np.ndarray:
    return np.full(len(heard.silent), np.nan) if heard is real else metrics.kl_softmax(real.logits, heard.logits)


def _event_accuracy(heard: Heard, real: Heard, texts: Mapping[str, np.ndarray], listed: Prompts) -> np.ndarray:
    return np.where(listed.one, judging.named(heard.logits, listed.known[:, 0]) & ~heard.silent, np.nan)


def _both(heard: Heard, listed: Prompts) -> np.ndarray:
    return judging.both_heard(heard.logits, listed.known) & ~heard.silent


def _both_top_two(heard: Heard, real: Heard, texts: Mapping[str, np.ndarray], listed: Prompts) -> np.ndarray:
    return np.where(listed.two, judging.both_top_two(heard.logits, listed.known) & ~heard.silent, np.nan)


def _in_order(heard: Heard, listed: Prompts) -> np.ndarray:
    return judging.in_order(heard.first_half, heard.second_half, listed.known) & ~heard.silent


# A metric of prompts is one function and one entry: (clips, real clips, text embeddings, prompts) → float64 [N], NaN
# where it does not apply. Its line in the report is a row of `siren.evaluate.tables.ROWS`.
Paired = Callable[[Heard, Heard, Mapping[str, np.ndarray], Prompts], np.ndarray]
PAIRED: dict[str, Paired] = {
    "kl": _kl,
    "clap": lambda heard, real, texts, listed: metrics.clap_score(texts["clap"], heard.clap),
    "imagebind": lambda heard, real, texts, listed: metrics.clap_score(texts["imagebind"], heard.imagebind),
    "event_accuracy": _event_accuracy,
    "both_heard": lambda heard, real, texts, listed: np.where(listed.two, _both(heard, listed), np.nan),
    "both_top_two": _both_top_two,
    # among prompts with both events heard, and among all "then" prompts
    "order": lambda h, real, texts, p: np.where(p.then & _both(h, p), _in_order(h, p), np.nan),
    "order_all": lambda h, real, texts, p: np.where(p.then, _in_order(h, p) & _both(h, p), np.nan),
}


def paired_metrics(
    scores: Mapping[str, np.ndarray], called: Mapping[str, str], resamples: int, seed: int
) -> dict[str, Any]:
    """Means with intervals of what `paired` gave, over the prompts to which each applies."""
    result = {}
    for name, values in scores.items():
        applies = values[~np.isnan(values)]
        if len(applies):
            result[_key(name, called)] = _plain(bootstrap.mean(applies, resamples, seed), count=len(applies))
    return result


def set_metrics(
    arm: str,
    heard: Heard,
    real: Heard,
    listed: Prompts,
    called: Mapping[str, str],
    settings: Settings,
    seed: int,
    notes: list[str],
) -> dict[str, Any]:
    """FD, FAD (over all clips and within events) and IS. `real` has only IS: it is the reference of the others."""
    result: dict[str, Any] = {}
    score = metrics.inception_score(heard.logits, settings.is_splits)
    if score.note:
        notes.append(f"IS: {score.note}")
    resamples = max(1, settings.bootstrap // SET_RESAMPLES_SHARE)
    if arm != "shuffled":  # the same set of clips as the arm it was made from
        interval = bootstrap.of_counts(
            lambda counts: metrics.inception_score(np.repeat(heard.logits, counts, axis=0), settings.is_splits).mean,
            len(heard.logits),
            resamples,
            seed,
            least=1.0,  # the score of clips that are all alike
        )
        result[_key("is", called)] = {
            **_plain(interval, count=len(heard.logits)),
            "std": _round(score.std),
            "splits": score.splits,
        }
    if arm == "real":
        return result
    single = np.flatnonzero(listed.group >= 0)
    sets = {
        "fd": (heard.features[:, None], real.features[:, None]),
        "fad": (heard.examples, real.examples),  # all examples of all clips are pooled
    }
    for name, (generated, reference) in sets.items():
        if arm != "shuffled" and len(generated) > 1:
            value = bootstrap.of_counts(_distance(generated, reference), len(generated), resamples, seed)
            result[_key(name, called)] = _plain(value, count=len(generated))
        groups = listed.group[single]
        if len(single) and np.bincount(groups).min() > 1:
            within = _within(generated[single], reference[single], groups)
            value = bootstrap.of_counts(within, len(single), resamples, seed, groups)
            result[_key(f"{name}_per_event", called)] = _plain(value, count=len(single))
        else:
            notes.append(f"no {name}_per_event: every event needs at least two one-event prompts")
    return result


def _distance(generated: np.ndarray, reference: np.ndarray) -> Callable[[np.ndarray], float]:
    """The Fréchet distance as a function of how often each clip is taken. Vectors of each clip [N, E, F], [N, E', F]"""
    x, y = (s.reshape(-1, s.shape[-1]).astype(np.float64) for s in (generated, reference))

    def value(counts: np.ndarray) -> float:
        return metrics.frechet_distance(x, y, *(np.repeat(counts, s.shape[1]) for s in (generated, reference)))

    return value


def _within(generated: np.ndarray, reference: np.ndarray, groups: np.ndarray) -> Callable[[np.ndarray], float]:
    """The mean over events of the distance between the generated and the real clips of that event."""
    members = [groups == event for event in np.unique(groups)]
    distances = [_distance(generated[rows], reference[rows]) for rows in members]
    return lambda counts: float(np.mean([d(counts[rows]) for d, rows in zip(distances, members, strict=True)]))


def differences(
    scores: Mapping[str, Mapping[str, np.ndarray]], called: Mapping[str, str], resamples: int, seed: int
) -> dict[str, Any]:
    """Paired bootstrap of the difference between two arms, prompt by prompt, for every paired metric."""
    result: dict[str, Any] = {}
    for a, b in COMPARED:
        if a not in scores or b not in scores:
            continue
        for name in scores[a]:
            x, y = scores[a][name], scores[b][name]
            both = ~np.isnan(x) & ~np.isnan(y)
            if both.any():
                value = bootstrap.difference(x[both], y[both], resamples, seed)
                entry = {**_plain(value, count=int(both.sum())), "excludes_zero": value.excludes_zero}
                result.setdefault(f"{a}-{b}", {})[_key(name, called)] = entry
    return result


def event_table(heard: Heard, listed: Prompts) -> dict[str, Any]:
    """For each event of the one-event prompts: clips, accuracy, and how often the judge named what."""
    rows = np.flatnonzero(listed.one)
    if len(rows) == 0:
        return {}
    events = listed.events[rows, 0]
    table = judging.confusions(heard.logits[rows], events, listed.names, heard.silent[rows])
    right = judging.named(heard.logits[rows], events) & ~heard.silent[rows]
    return {
        name: {
            "clips": int((events == listed.names.index(name)).sum()),
            "accuracy": _round(right[events == listed.names.index(name)].mean()),
            "named": named,
        }
        for name, named in table.items()
    }


def clip_rows(arm: str, heard: Heard, scores: Mapping[str, np.ndarray], listed: Prompts) -> list[dict[str, Any]]:
    """What is known of each clip of an arm; None where a question does not apply to its prompt."""
    chance = 0.5 * (1 + np.tanh(heard.logits / 2))  # the sigmoid, without overflow
    rows = []
    for i, prompt in enumerate(listed.rows):
        prompted = [k for k in listed.events[i] if k >= 0]
        rows.append(
            {
                "arm": arm,
                **{key: prompt[key] for key in ("id", "caption", "labels", "relation")},
                "silent": bool(heard.silent[i]),
                "named": None if heard.silent[i] else listed.names[int(heard.logits[i].argmax())],
                "probabilities": {listed.names[k]: _round(chance[i, k]) for k in prompted},
                **{name: None if np.isnan(values[i]) else _round(values[i]) for name, values in scores.items()},
            }
        )
    return rows


def _key(metric: str, called: Mapping[str, str]) -> str:
    """fd → fd@cnn14-demo; the questions asked of Cnn14 by name of an event keep their plain names."""
    network = {"fd": "cnn14", "is": "cnn14", "kl": "cnn14", "fad": "vggish", "clap": "clap", "imagebind": "imagebind"}
    kind = network.get(metric.removesuffix("_per_event"))
    return metric if kind is None else f"{metric}@{called[kind]}"


def _plain(interval: Interval, count: int) -> dict[str, Any]:
    return {
        "value": _round(interval.value),
        "low": _round(interval.low),
        "high": _round(interval.high),
        "count": count,
    }


def _round(value: float) -> float:
    return round(float(value), 6)
