"""The paper's claims about its arms (Tables 3 to 5), tried on the corpus at hand: train, measure, judge, over seeds.
Those about alignment are in `siren.evaluate.alignment`; judging and reporting are the same.

Each (arm, seed) is trained like stage 1, measured on held-out clips, and sampled and judged where there are judges.
What is finished stays in a folder of its own and is never repeated: a run that was killed continues, in the middle of
a transformer if need be. A claim names pairs of arms, the better first. Its verdict rests on the differences between
the two arms of a pair, seed by seed, with a 95 % t interval over seeds: the claim `holds` where the interval lies on
the claimed side of 0 for every pair, `does not hold` where it lies on the other side for one, and is `not separable
at this scale` otherwise. The interval speaks of seeds (initialisation, order of data, sampling) on one corpus. Where a
result has a measure prompt by prompt, the differences of each prompt are averaged over seeds, and the interval is the
bootstrap's over prompts.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from siren.atomic import write_text
from siren.config import Model, Stage1, to_dict
from siren.encode.tokens import Tokens
from siren.evaluate import analyze, charts
from siren.evaluate.bootstrap import LEVEL, Interval, difference
from siren.evaluate.goals import number, percent, signed
from siren.evaluate.records import read_curve
from siren.generate.bundle import load_transformer, save_transformer
from siren.hashing import digest, item_seed
from siren.model import arms
from siren.model.codebooks import CodecTables
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.progress import track
from siren.train.loop import Checkpoint, Curve
from siren.train.stage1 import train_stage1


def _share(value: float) -> str:
    return percent(min(max(value, 0.0), 1.0))  # the t interval over seeds knows no bounds, a share does


HOLDS, FAILS, OPEN = "holds", "does not hold", "not separable at this scale"
MEASURES = {  # name → direction in which it is better, and how it is shown
    "fd": (-1, "FD", number),
    "fad": (-1, "FAD", number),
    "is": (+1, "IS", number),
    "kl": (-1, "KL", number),
    "event_accuracy": (+1, "event named", _share),
    "both_heard": (+1, "both events heard", _share),
    "imagebind": (+1, "ImageBind", number),
    "clap": (+1, "CLAP", number),
    "loss_mean": (-1, "loss mean", number),
    "loss_ratio": (-1, "loss ratio", number),
    "sample_seconds": (-1, "seconds a clip", number),
}
HEARD = ("fd", "fad", "is", "kl", "event_accuracy", "both_heard", "imagebind", "clap")  # what is taken of every arm
QUALITY = ("fd", "fad", "event_accuracy", "both_heard", "loss_mean")
RESAMPLES = 10_000
TITLE = "The paper's claims, tried here"
Result = Mapping[str, Any]  # arm, seed, parameters, seconds, the measures; some of them by prompt, in `prompts`
# (the arm's model, seed, its folder) → what a result says of clips that are kept there for people to hear
Listen = Callable[[Callable[[], Siren], int, Path], dict[str, Any]]


@dataclass(frozen=True)
class Claim:
    """What the paper says; the first of `measures` that was taken gives the verdict, the others are shown beside it."""

    table: str
    text: str
    pairs: tuple[tuple[str, str], ...]
    measures: tuple[str, ...]


CLAIMS = (
    Claim(
        "1",
        "isolated transformers beat parallel heads and the delay pattern",
        (("siren", "independent"), ("siren", "delay")),
        QUALITY,
    ),
    Claim("3", "isolated transformers beat a single one of the same total size", (("siren", "single"),), QUALITY),
    Claim("3", "a single transformer gets better with size", (("single", "single-small"),), QUALITY),
    Claim(
        "4",
        "accumulated conditions beat the code below alone, and that beats none",
        (("siren", "previous"), ("previous", "isolated")),
        QUALITY,
    ),
    Claim(
        "5",
        "the loss ratio falls from independent heads to collaboration",
        (("siren", "independent"),),
        ("loss_ratio",),
    ),
    Claim(
        "5",
        "the loss mean falls from independent heads to the code below, to accumulated codes, to collaboration",
        (("ar", "independent"), ("single", "ar"), ("siren", "single")),
        ("loss_mean",),
    ),
    Claim(
        "6",
        "two codes for a transformer are better than more",
        (("siren", "single"), ("siren", "m2"), ("siren", "m4")),
        QUALITY,
    ),
    Claim("6", "two codes for a transformer are better than one", (("siren", "m6"), ("siren", "m12")), QUALITY),
    Claim(
        "6",
        "the loss ratio falls with the number of codes for a transformer",
        (("siren", "m4"), ("m4", "m2"), ("siren", "m2"), ("m2", "single")),
        ("loss_ratio",),
    ),
)


def tried(num_codebooks: int) -> tuple[Claim, ...]:
    """The claims as far as this codec can have their arms: Table 6 divides its codebooks by 2, 3, 4, 6 and 12.

    One code for each transformer is the arm with as many of them as there are codebooks, so `m6` is that of a codec of
    6 only. A claim none of whose pairs there can be is left out.
    """

    def there(name: str) -> bool:
        arm = arms.find(name).transformers
        return arms.fits(name, num_codebooks) and (name != "m6" or num_codebooks == arm)

    fitting = [replace(c, pairs=tuple(pair for pair in c.pairs if all(map(there, pair)))) for c in CLAIMS]
    return tuple(claim for claim in fitting if claim.pairs)


def needed(num_codebooks: int) -> list[str]:
    """The arms that the claims compare."""
    return list(dict.fromkeys(arm for claim in tried(num_codebooks) for pair in claim.pairs for arm in pair))


@dataclass(frozen=True)
class World:
    """What every arm is trained on and measured with. `hear` gives the measures of sound; None where no judge is.

    `made_with` and `heard_with` name all inputs that a result depends on beside the settings: a result is found again
    by them.
    """

    reference: Model
    stage1: Stage1
    tables: CodecTables
    tokens: Tokens
    validation: Tokens
    made_with: Mapping[str, str]
    crop_frames: int
    device: str
    hear: Callable[[str, Siren, int], dict[str, float]] | None = None
    heard_with: Mapping[str, Any] = field(default_factory=dict)
    wanted: Sequence[str] = ()  # of the measures: a result that lacks one is heard again, without training
    listen: Listen | None = None


def measure(name: str, seed: int, world: World, place: Path) -> dict[str, Any]:
    """Train and measure one arm at one seed, or read what an earlier run found. Resumes from `place` after a kill."""
    model, folder, _ = prepare(name, seed, world, place)

    def make() -> dict[str, Any]:
        begin = time.monotonic()
        siren = train(name, seed, world, place)
        found = analyze.convergence(
            charts.codebook_losses([read_curve(folder / f"{k}.csv") for k in range(len(siren))])
        )
        assert found is not None
        measures = {"loss_mean": found["mean"], "loss_ratio": found["ratio"]}
        if world.hear is not None:
            measures |= world.hear(name, siren.to(world.device).eval(), seed)
        row = {"arm": name, "seed": seed, "parameters": arms.parameters(model, _widths(world)), **measures}
        return row | {"seconds": round(time.monotonic() - begin, 1)}  # of this run: less where it continued another

    row = kept(result_file(name, seed, world, place), make, world.wanted)
    return row | (world.listen(lambda: train(name, seed, world, place), seed, folder) if world.listen else {})


def result_file(name: str, seed: int, world: World, place: Path) -> Path:
    """Where the measures of an arm are kept; the file is there once it has been measured."""
    return prepare(name, seed, world, place)[1] / f"result-{digest(dict(world.heard_with))}.json"


def kept(result: Path, make: Callable[[], dict[str, Any]], wanted: Sequence[str] = ()) -> dict[str, Any]:
    """What `make` gives; or, where it is in the file already with all that is `wanted`, what it gave then.

    What was found before stays: of an arm that is only measured again, the seconds are still those of its training.
    """
    before = dict(json.loads(result.read_text())) if result.is_file() else None
    if before is not None and all(name in before for name in wanted):
        return before
    row = make() | (before or {})
    write_text(result, json.dumps(row, indent=1) + "\n")
    return row


def prepare(name: str, seed: int, world: World, place: Path) -> tuple[Model, Path, dict[str, Any]]:
    """An arm's settings, the folder that its transformers are kept in, and all that they depend on."""
    model = arms.settings(name, world.reference, _widths(world))
    recipe = {"model": to_dict(model), "stage1": to_dict(world.stage1), "seed": seed, "inputs": dict(world.made_with)}
    recipe["crop_frames"] = world.crop_frames
    return model, place / f"{name}-{seed}-{digest(recipe)}", recipe


def train(name: str, seed: int, world: World, place: Path) -> Siren:
    """All transformers of an arm after stage 1; those that an earlier run finished are read."""
    model, folder, recipe = prepare(name, seed, world, place)
    return Siren([trained(model, k, seed, world, folder, recipe | {"transformer": k}) for k in model.transformers])


def _widths(world: World) -> arms.Widths:
    return arms.Widths.of(world.tables, world.tokens.text_width)


def trained(
    model: Model,
    k: int,
    seed: int,
    world: World,
    folder: Path,
    identity: dict[str, Any],
    start: int | None = None,
    watch: Callable[[ResidualTransformer, int], None] | None = None,
) -> ResidualTransformer:
    """Transformer `k` after stage 1, from the folder where it was finished before.

    It begins with weights drawn by its own seed, or by the seed `start`; `watch` is shown it at every logged step.
    """
    done, own = folder / str(k), item_seed(seed, f"stage1@{k}")  # the seed that the stage takes
    if (folder / f"{k}.csv").is_file():  # written last
        return load_transformer(done)
    torch.manual_seed(own if start is None else start)
    transformer = ResidualTransformer(model, world.tables, world.tokens.text_width, k)
    checkpoint = Checkpoint(folder / "checkpoints" / str(k), identity)
    curve = Curve(lambda step, metrics: watch(transformer, step) if watch else None, checkpoint.folder)
    train_stage1(
        transformer,
        world.tokens,
        world.validation,
        world.stage1,
        world.crop_frames,
        own,
        curve,
        checkpoint,
        world.device,
    )
    save_transformer(done, transformer, dict(world.made_with))
    curve.write(folder / f"{k}.csv")
    checkpoint.clear()
    return transformer


def run(
    names: Sequence[str], seeds: Sequence[int], world: World, place: Path, beside: Sequence[str] = ()
) -> Iterator[Result]:
    """Every arm at every seed, and first those `beside` them as far as an earlier run finished them: a report of one
    arm would lose the others. Raises ValueError for an arm that there is not or that the codec cannot have, before
    anything is trained."""
    for name in (*names, *beside):
        arms.settings(name, world.reference, _widths(world))
    there = [(s, n) for s in seeds for n in beside if n not in names and result_file(n, s, world, place).is_file()]
    yield from each(there, names, seeds, lambda name, seed: measure(name, seed, world, place))


def each(
    there: Sequence[tuple[int, str]],
    names: Sequence[str],
    seeds: Sequence[int],
    measure: Callable[[str, int], Result],
) -> Iterator[Result]:
    """What is `there` already; then a seed at a time, so that a run cut short compares all arms at the seeds it has."""
    pairs = [*there, *((seed, name) for seed in seeds for name in names)]
    for seed, name in track(pairs, "claims", len(pairs), unit="arm"):
        yield measure(name, seed)


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean with its 95 % t interval; endless for a single value. Raises ValueError for none."""
    if len(values) == 0:
        raise ValueError("an interval over seeds needs at least one")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, -np.inf, np.inf)
    half = float(stdtrit(len(values) - 1, 0.5 + LEVEL / 2) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def judge(claim: Claim, results: Sequence[Result]) -> dict[str, Any] | None:
    """The claim's verdict by each of its measures; None where no pair of results has one of them."""
    rows = []
    for name in claim.measures:
        differences = [_difference(results, name, *pair) for pair in claim.pairs]
        if all(difference is not None for difference in differences):
            pairs = [
                {"better": a, "worse": b, "difference": d.value, "low": d.low, "high": d.high}
                for (a, b), d in zip(claim.pairs, differences, strict=True)
                if d is not None
            ]
            rows.append({"measure": name, "verdict": verdict(MEASURES[name][0], differences), "pairs": pairs})
    if not rows:
        return None
    return {"table": claim.table, "claim": claim.text, "verdict": rows[0]["verdict"], "by": rows}


def verdict(direction: int, differences: Sequence[Interval | None]) -> str:
    """Of a claim, from the intervals of (better - worse) of all its pairs."""
    sides = [int(np.sign(d.value)) * direction if d and d.excludes_zero else 0 for d in differences]
    return FAILS if -1 in sides else OPEN if 0 in sides else HOLDS


def _difference(results: Sequence[Result], measure: str, better: str, worse: str) -> Interval | None:
    """`better` minus `worse` over the seeds that have both."""
    prompts = {(r["arm"], r["seed"]): r["prompts"][measure] for r in results if measure in r.get("prompts", {})}
    seeds = sorted(seed for arm, seed in prompts if arm == better and (worse, seed) in prompts)
    if seeds:
        a, b = (np.mean([prompts[arm, s] for s in seeds], axis=0) for arm in (better, worse))
        return difference(a, b, RESAMPLES, seed=0)
    values = {(r["arm"], r["seed"]): r[measure] for r in results if measure in r}
    seeds = sorted(seed for arm, seed in values if arm == better and (worse, seed) in values)
    return over_seeds([values[better, s] - values[worse, s] for s in seeds]) if seeds else None


def report(
    results: Sequence[Result], about: Mapping[str, Any], claims: Sequence[Claim] = CLAIMS, title: str = TITLE
) -> dict[str, Any]:
    """Everything as plain data: what it was measured on, each arm over seeds, each claim, and every single result."""
    summary = {}
    for name in dict.fromkeys(r["arm"] for r in results):
        own = [r for r in results if r["arm"] == name]
        taken = [m for m in MEASURES if all(m in r for r in own)]
        intervals = {m: over_seeds([r[m] for r in own]) for m in taken}
        summary[name] = {
            "seeds": [r["seed"] for r in own],
            "parameters": own[0]["parameters"],
            **{m: _plain(interval) for m, interval in intervals.items()},
        }
    judged = [_finite(found) for claim in claims if (found := judge(claim, results)) is not None]
    rows = [{key: value for key, value in r.items() if key != "prompts"} for r in results]  # those are long
    return {"title": title, "about": dict(about), "claims": judged, "arms": summary, "results": rows}


def _plain(interval: Interval) -> dict[str, float | None]:
    return dict(_finite(interval._asdict()))


def _finite(data: Any) -> Any:
    """JSON has no infinity: an endless interval has null for its ends."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not np.isfinite(data) else data


def markdown(found: Mapping[str, Any]) -> str:
    """The report as two tables."""
    about = ", ".join(f"{key} {value}" for key, value in found["about"].items())
    taken = [m for m in MEASURES if any(m in arm for arm in found["arms"].values())]
    lines = [
        f"# {found['title']}",
        "",
        f"Measured with: {about}. Means over seeds, 95 % t intervals; where a difference is known prompt by prompt, "
        "its interval is the bootstrap's over prompts.",
        "",
        "| Table | claim | by | difference, better minus worse | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for claim in found["claims"]:
        for i, row in enumerate(claim["by"]):
            text = "; ".join(f"{p['better']} - {p['worse']}: {_signed_interval(p)}" for p in row["pairs"])
            head = f"{claim['table']} | {claim['claim']}" if i == 0 else " | "
            said = f"**{row['verdict']}**" if i == 0 else row["verdict"]
            lines.append(f"| {head} | {MEASURES[row['measure']][1]} | {text} | {said} |")
    lines += [
        "",
        "| arm | parameters | seeds | " + " | ".join(MEASURES[m][1] for m in taken) + " |",
        "| --- | --- | --- |" + " --- |" * len(taken),
    ]
    for name, arm in found["arms"].items():
        cells = [_interval(arm[m], MEASURES[m][2]) if m in arm else "–" for m in taken]
        lines.append(f"| {name} | {arm['parameters']:,} | {len(arm['seeds'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(entry: Mapping[str, float | None], show: Callable[[float], str]) -> str:
    assert entry["value"] is not None
    if entry["low"] is None or entry["high"] is None:
        return show(entry["value"])
    return f"{show(entry['value'])} [{show(entry['low'])}, {show(entry['high'])}]"


def _signed_interval(pair: Mapping[str, Any]) -> str:
    return _interval({"value": pair["difference"], "low": pair["low"], "high": pair["high"]}, signed)
