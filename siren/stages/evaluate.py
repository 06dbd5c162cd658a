"""Stages of evaluate: clips, figures and the report, the paper's analyses, the registered version."""

import json
from pathlib import Path
from typing import Any

from siren import tracking
from siren.config import Config, Sampling, to_dict
from siren.stages import places, reading
from siren.stages.places import (
    CAPTIONS,
    CLIPS,
    EARS,
    MODELS,
    NETWORKS,
    REPORTS,
    SAMPLES,
    SCORES,
    SEGMENTS,
    SPLITS,
    TOKENS,
)


def sample(config: Config) -> None:
    """Test prompts to sound, for the untrained model, stage 1 and the aligned model: outputs/samples."""
    from siren.encode.tokens import read_tokens
    from siren.generate.bundle import load_model
    from siren.generate.offline import best_by_clap, sample_tokens
    from siren.hashing import item_seed
    from siren.model.siren import Siren
    from siren.networks import clap as claps
    from siren.networks import codec as codecs

    settings = config.evaluate.sample
    with tracking.stage("sample", config, sections=("seed", "evaluate.sample")) as run:
        device = places.device()
        codec = codecs.load(MODELS / "codec", device)
        prompts = read_tokens(TOKENS, "test", codec.fingerprint())
        folders, moved = places.stage1_folders(config), places.aligned_folders(config)
        frames = places.num_frames(config.audio.segment_seconds, codec)
        weights = {"stage1": places.hashes(folders), "aligned": places.hashes(moved)}
        models = {
            "untrained": Siren([_untrained(config, codec, prompts.text_width, k) for k in config.model.transformers]),
            "stage1": load_model(folders, codec.fingerprint()),
            "aligned": load_model(moved, codec.fingerprint()),
        }

        def clips(arm: str, label: str, candidate: int = 0) -> Any:
            # One seed for a prompt in every arm: differences between arms are differences between models.
            seeds = [item_seed(config.seed, "sample", name, candidate) for name in prompts.ids]
            return sample_tokens(models[arm].to(device), codec, prompts, seeds, frames, settings, label)

        arms = {arm: clips(arm, arm) for arm in models}
        if settings.candidates > 1:
            others = [clips("aligned", f"candidate {c}", c) for c in range(1, settings.candidates)]
            clap, batch = claps.load(MODELS / "clap", device), settings.batch_size
            weights["reranked"] = weights["aligned"]
            arms["reranked"] = best_by_clap(clap, [arms["aligned"], *others], prompts.captions, batch)
        _write_samples(config, prompts, arms, weights, codec.sample_rate)
        for arm, wavs in arms.items():
            run.audio(f"{arm}/{prompts.captions[0]}", wavs[0], codec.sample_rate)
        run.summary({"clips": len(prompts) * len(arms)})


def _write_samples(
    config: Config, prompts: Any, arms: dict[str, Any], weights: dict[str, list[str]], sample_rate: int
) -> None:
    """One WAV for each arm and prompt, and the list of them; `weights`: by arm, the SHA-256 of its transformers."""
    from siren.audio import write

    for arm, wavs in arms.items():
        for name, wav in zip(prompts.ids, wavs, strict=True):
            write(SAMPLES / arm / f"{name}.wav", wav, sample_rate)
    settings = config.evaluate.sample
    listing = {"arms": list(arms), "sampling": to_dict(settings.sampling), "candidates": settings.candidates}
    listing["weights"] = weights
    (SAMPLES / "samples.json").write_text(
        json.dumps({**listing, "prompts": reading.prompt_rows(prompts)}, indent=1) + "\n"
    )


def analyze(config: Config) -> None:
    """The paper's properties of codec, tokens and stage 1: reports/analysis."""
    from siren.encode.tokens import read_tokens
    from siren.evaluate import analyze as properties
    from siren.evaluate import charts, figures
    from siren.evaluate.records import Records
    from siren.networks import codec as codecs

    with tracking.stage("analyze", config, sections=("seed",)) as run:
        codec, records = codecs.load(MODELS / "codec"), Records()
        train, test = (read_tokens(TOKENS, split, codec.fingerprint()) for split in ("stage1", "test"))
        curves = _curves([f"stage1-{k}" for k in config.model.transformers], records)
        latents = codec.tables().latents().detach().numpy()
        losses = charts.codebook_losses(curves.values())
        found = properties.analyze(latents, properties.Clips.of(train), properties.Clips.of(test), losses)
        places.write_report("analysis/analysis.json", found | {"missing": [part.text for part in records.missing]})
        for name, figure in properties.draw(found).items():
            (REPORTS / "analysis" / f"{name}.png").write_bytes(figures.to_png(figure))
            run.figure(name, figure)
        run.summary(properties.summary(found))


def evaluate(config: Config) -> None:
    """Samples against real clips: reports/metrics.json, and the report with players, reports/index.html."""
    from siren.evaluate import charts, tables
    from siren.evaluate.evaluate import evaluate as measure
    from siren.evaluate.players import PLAYED, choose
    from siren.networks import clap, codec, imagebind, judge

    with tracking.stage("evaluate", config, sections=("seed", "evaluate.evaluate")) as run:
        device, rate, settings = places.device(), config.audio.sample_rate, config.evaluate.evaluate
        listing = json.loads((SAMPLES / "samples.json").read_text())
        prompts = listing["prompts"]
        ids = [prompt["id"] for prompt in prompts]
        real = reading.recordings(ids)
        arms = {arm: _generated(arm, ids) for arm in listing["arms"]}
        arms["codec"] = _through_codec(codec.load(MODELS / "codec", device), real, settings.batch_size, device)
        judges = {kind: judge.load(MODELS / "judge" / role, device) for kind, role in EARS.items()}
        others = clap.load(MODELS / "clap", device), imagebind.load(MODELS / "imagebind", device)
        measured = measure(
            arms, prompts, real, judges, *others, settings, config.seed, rate, device, places.network_names(config)
        )
        measured.metrics["arms"]["stage1"] |= _balance(config)
        if "weights" in listing:  # of what was measured: `register` asks
            measured.metrics["weights"] = listing["weights"]
        (REPORTS / "metrics.json").write_text(json.dumps(measured.metrics, indent=1, sort_keys=True) + "\n")
        (REPORTS / "confusion.csv").write_text(charts.confusion_csv(measured.clips))
        chosen = choose(prompts, config.evaluate.sample.report_clips)
        sounds = {arm: dict(zip(ids, wavs, strict=True)) for arm, wavs in {"real": real, **arms}.items()}
        _write_page(config, measured, chosen, sounds, listing)
        run.summary(tables.summary(measured.metrics))
        run.artifact(REPORTS / "index.html")
        for name, figure in charts.evaluation_figures(measured.metrics).items():
            run.figure(name, figure)
        for prompt, arm in ((p, a) for p in chosen[:4] for a in PLAYED if a in sounds):
            run.audio(f"{prompt['id']}/{arm}", sounds[arm][prompt["id"]], rate)


def _balance(config: Config) -> dict[str, float]:
    """The paper's Loss Mean and Loss Ratio of stage 1 (Table 5), from its curves; nothing where one is missing."""
    from siren.evaluate import analyze, charts
    from siren.evaluate.records import Records

    records = Records()  # what is missing here is named by the page
    curves = _curves([f"stage1-{k}" for k in config.model.transformers], records)
    found = None if records.missing else analyze.convergence(charts.codebook_losses(curves.values()))
    return {} if found is None else {"loss_mean": round(found["mean"], 6), "loss_ratio": round(found["ratio"], 6)}


def _write_page(config: Config, measured: Any, chosen: Any, sounds: Any, listing: dict[str, Any]) -> None:
    """Everything that the pipeline left behind, on one page: reports/index.html."""
    from siren.evaluate.records import Records
    from siren.evaluate.report import Report, render

    records = Records()
    networks = {n: records.json(REPORTS / "networks" / f"{n}.json", "networks", n) for n in NETWORKS}
    page = Report(
        scale=config.scale,
        sample_rate=config.audio.sample_rate,
        prompts=chosen,
        sounds=sounds,
        metrics=measured.metrics,
        clips=measured.clips,
        curves=_curves([*(f"stage1-{k}" for k in config.model.transformers), "align"], records),
        funnel=_funnel(records),
        quarantine=records.quarantine({"fetch": CLIPS, "segment": SEGMENTS, "caption": CAPTIONS, "score": SCORES}),
        networks={name: figures for name, figures in networks.items() if figures is not None},
        analysis=records.json(REPORTS / "analysis" / "analysis.json", "codes", "analyze"),
        lineage=_lineage(config, listing),
        missing=records.missing,
        sweep=records.sweep(SPLITS / "sweep.csv"),
        min_score=config.filter.select.min_score,
        captioner=records.json(REPORTS / "networks" / "autocap.json", "captioner", "autocap"),
    )
    (REPORTS / "index.html").write_text(render(page), encoding="utf-8")


def _curves(names: list[str], records: Any) -> dict[str, Any]:
    """Curves by the name of their file; those that are missing are noted in `records`."""
    curves = {n: records.curve(REPORTS / "curves" / f"{n}.csv", n.replace("stage1-", "stage1@")) for n in names}
    return {name: curve for name, curve in curves.items() if curve is not None}


def _funnel(records: Any) -> list[tuple[str, int, str]]:
    """How many items each step of the corpus kept: (step, count, note)."""
    fetched = records.json(CLIPS / "summary.json", "corpus", "fetch") or {}
    steps = [
        ("found", fetched.get("in"), "in the sources"),
        ("fetched", records.rows(CLIPS / "clips.parquet", "fetch"), "clips that could be fetched"),
        ("segmented", records.rows(SEGMENTS / "segments-*.parquet", "segment"), "segments with something to hear"),
        ("captioned", records.rows(CAPTIONS / "captions.parquet", "caption"), "one caption each"),
        ("scored", records.rows(SCORES / "scores.parquet", "score"), "by CLAP"),
        ("stage 1", records.rows(SPLITS / "stage1.parquet", "select"), "pairs to train on"),
        ("alignment", records.rows(SPLITS / "rl.parquet", "select"), "prompts, the best scored of them"),
        ("validation", records.rows(SPLITS / "val.parquet", "select"), "held out"),
        ("test", records.rows(SPLITS / "test.parquet", "select"), "held out, never trained or chosen on"),
    ]
    return [(name, count, note) for name, count, note in steps if count is not None]


def _lineage(config: Config, listing: dict[str, Any]) -> list[tuple[str, str]]:
    """What the report was made from, by hash."""
    stage1, made_with = places.stage1_folders(config), places.made_with("test")
    folders = [*stage1, *(folder for folder in places.aligned_folders(config) if folder not in stage1)]
    given = ", ".join(f"{key} {value}" for key, value in listing["sampling"].items() if value is not None)
    weights = {
        f"weights of {folder.relative_to(MODELS)}": places.sha256(folder / "model.safetensors") for folder in folders
    }
    return [
        ("scale, seed", f"{config.scale}, {config.seed}"),
        ("sampling", given),
        ("candidates of best of N", str(listing.get("candidates", 1))),
        ("codec", made_with["codec"]),
        ("text encoder", made_with["text_encoder"]),
        ("test tokens", made_with["tokens"]),
        *weights.items(),
    ]


def _generated(arm: str, ids: list[str]) -> Any:
    """The sampled clips of one arm in the order of the prompts, float32 [N, S]. Each must be there."""
    import numpy as np

    from siren import audio

    return np.stack([audio.read(SAMPLES / arm / f"{name}.wav")[0][0] for name in ids])


def _through_codec(codec: Any, wavs: Any, batch_size: int, device: str) -> Any:
    """Real clips encoded and decoded again: what is left to hear of them at best. [N, S]"""
    import numpy as np
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(wavs), batch_size):
            batch = torch.from_numpy(wavs[start : start + batch_size]).to(device)
            parts.append(codec.decode(codec.encode(batch))[:, : wavs.shape[1]].cpu().numpy())
    return np.concatenate(parts)


def register(config: Config) -> None:
    """Everything the model needs to a version in the registry, alias challenger: reports/registered.json."""
    sections = ("evaluate.register", "evaluate.sample.sampling")
    with tracking.stage("register", config, sections=sections) as run:
        _require_measured(config)
        parts = (places.aligned_folders(config), True, MODELS / "codec", MODELS / "clap")
        name, sampling = config.evaluate.register.name, config.evaluate.sample.sampling
        _, files = register_version(
            run, config, name, parts, sampling, REPORTS / "metrics.json", config.scale, places.data_licences()
        )
        # Nothing here but what follows from the inputs: no version, no time, no commit.
        listing = {"model": name, "files": files}
        (REPORTS / "registered.json").write_text(json.dumps(listing, indent=1) + "\n")


def _require_measured(config: Config) -> None:
    """Raises ValueError where reports/metrics.json is not about the weights that are there now.

    DVC's own order ensures that; somebody who trains, then types `siren register`, would register old figures.
    """
    path = REPORTS / "metrics.json"
    measured = json.loads(path.read_text()).get("weights", {}).get("aligned")
    if measured is None:
        raise ValueError(
            f"{path} does not say which weights it was measured on (it was written before figures did); run: "
            "dvc repro --force --single-item sample evaluate"
        )
    if measured != places.hashes(places.aligned_folders(config)):
        raise ValueError(f"{path} was measured on other weights; run: dvc repro evaluate")


def register_version(
    run: tracking.Run,
    config: Config,
    name: str,
    parts: tuple[list[Path], bool, Path, Path],
    sampling: Sampling,
    metrics: Path,
    scale: str,
    licences: list[dict[str, Any]],
) -> tuple[str, dict[str, str]]:
    """A bundle of `parts` (transformers, whether aligned, codec, CLAP) to the registry → its address, its files."""
    import tempfile

    from siren.generate import bundle
    from siren.tracking import card, pyfunc, registry

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        bundle.write_bundle(folder, *parts, sampling, config.audio.segment_seconds)
        networks = places.network_versions(codec=parts[2], clap=parts[3])
        text = card.write(name, scale, json.loads(metrics.read_text()), licences, networks, run.record["tags"])
        facts = {"data": licences, "networks": networks, "policy": config.collect.licences}
        measured_on = _reference() if metrics == REPORTS / "metrics.json" else {}
        version = registry.register(run, name, folder, metrics, text, pyfunc.signature(), facts, measured_on)
        run.tag({"model": f"models:/{name}/{version}"})
        return f"models:/{name}/{version}", bundle.file_hashes(folder)


def _reference() -> dict[str, str]:
    """A digest of the list of test prompts: by it the gate knows whether two models were measured on the same one."""
    import hashlib

    path = SAMPLES / "samples.json"  # no dependency of its own in dvc.yaml: the metrics follow from it
    if not path.is_file():
        return {}
    prompts = json.dumps(json.loads(path.read_text())["prompts"], sort_keys=True)
    return {"reference.prompts": hashlib.sha256(prompts.encode()).hexdigest()}


def _untrained(config: Config, codec: Any, text_width: int, k: int) -> Any:
    """Transformer `k` as stage 1 finds it: the control that shows what training did."""
    import torch

    from siren.hashing import item_seed
    from siren.model.transformer import ResidualTransformer

    torch.manual_seed(item_seed(config.seed, f"stage1@{k}"))
    return ResidualTransformer(config.model, codec.tables().to("cpu"), text_width, k).eval()
