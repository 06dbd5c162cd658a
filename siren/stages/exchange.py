"""Checkpoints in the authors' format, in and out."""

from pathlib import Path

from siren import tracking
from siren.stages.evaluate import register_version
from siren.stages.places import MODELS


def import_checkpoint(folder: Path, out: Path, codec: Path | None, clap: Path | None, name: str | None) -> list[str]:
    """A release in the authors' format to `out`, checked against codec and text encoder where they are given.

    With a `name` it becomes a version of that model in the registry, sampled as params.yaml says but without guidance,
    for which it was not trained. Returns what was done, in lines.
    """
    import dataclasses
    import tempfile

    from siren import config as settings
    from siren.generate import published
    from siren.networks import clap as claps
    from siren.networks import codec as codecs

    if name is not None and (codec is None or clap is None):
        lacking = " and ".join(part for part, given in (("codec", codec), ("clap", clap)) if given is None)
        raise ValueError(f"a registered model needs its codec and its text encoder; name the {lacking} (--{lacking})")
    folders = published.import_release(
        folder, out, codecs.load(codec) if codec else None, claps.load(clap) if clap else None
    )
    against = [f"{part} {path}" for part, path in (("codec", codec), ("text encoder", clap)) if path]
    said = [f"{out}: {len(folders)} transformers; checked against {', '.join(against) or 'no codec'}"]
    if name is None or codec is None or clap is None:
        return said
    config = settings.load()
    with tracking.stage("import-checkpoint", config, sections=("audio", "evaluate.sample.sampling")) as run:
        sampling = dataclasses.replace(config.evaluate.sample.sampling, guidance=None)
        with tempfile.TemporaryDirectory() as scratch:
            metrics = Path(scratch) / "metrics.json"
            metrics.write_text("{}\n")  # it has not been evaluated here, and the gate to champion knows by that
            address, _ = register_version(
                run, config, name, (folders, False, codec, clap), sampling, metrics, "imported", []
            )
    return [*said, f"{address}, alias challenger; not evaluated"]


def export_checkpoint(folder: Path, out: Path) -> str:
    """The transformers 0, 1, … in `folder`, or in the bundle that it is, as a release in the authors' format."""
    from siren.generate import published

    inside = folder / "transformers"
    root = inside if inside.is_dir() else folder
    folders = sorted((path for path in root.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))
    if not folders:
        raise ValueError(f"no transformers in {root}; name a folder of them (0, 1, …), such as {MODELS}/stage1")
    return f"{published.export_release(folders, out)}: {len(folders)} transformers"
