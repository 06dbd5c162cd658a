"""Lineage in both directions: from a registered model to the code, data and runs it came from, and back from data.

Nothing is computed here: versions carry DVC's hash of all that the pipeline had made (tags `data.PATH`), runs of what
they made (`data.out.PATH`), and a version keeps the dvc.lock, dvc.yaml and params.yaml it was registered with.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siren.tracking import lineage, registry, store

DATA, OUT = "data.", "data.out."


@dataclass(frozen=True)
class Origin:
    """Of a model. `data`: rows of path, DVC's hash, the run that made it and its id; `restore`: what to type."""

    facts: dict[str, str]
    data: list[list[str]]
    restore: list[str]


@dataclass(frozen=True)
class Descendants:
    """Of an output: its hash here, and rows of version, aliases, time, the version's hash, whether that is the same."""

    digest: str
    rows: list[list[str]]


def of_model(address: str, state: Path | None = None) -> Origin:
    """The origin of `models:/siren@champion`; its bytes are checked. `state`: a folder to write its lock to.

    Raises ValueError where there is no such version.
    """
    found = registry.version(address)
    folder = registry.fetch(found)
    client, tags = found.client, found.tags
    details = client.get_model_version(found.name, found.number)
    run = client.get_run(details.run_id)
    parent = run.data.tags.get("mlflow.parentRunId", "")
    commit, dirty = tags.get("git.commit", "none"), tags.get("git.dirty") == "true"
    facts = {
        "model": f"{found.uri}{_aliases(details)}",
        "registered": _moment(details.creation_timestamp),
        "sha256": tags.get("sha256", "none"),
        "commit": commit + (" with uncommitted changes" if dirty else ""),
        "branch": tags.get("git.branch", "none"),
        "scale": tags.get("scale", "none"),
        "dvc.lock": f"sha256 {tags.get('dvc.lock', 'none')}",
        "run": f"{run.info.run_name} {run.info.run_id}",
        "pipeline": f"{client.get_run(parent).info.run_name} {parent}" if parent else "none: registered by hand",
    }
    hashes = {key[len(DATA) :]: value for key, value in sorted(tags.items()) if key.startswith(DATA)}
    data = [[path, digest, *_maker(client, run.info.experiment_id, path, digest)] for path, digest in hashes.items()]
    kept = [name for name in registry.STATE if (folder / name).is_file()]
    restore = [f"git checkout {commit}", "dvc checkout"]
    if state is not None:
        state.mkdir(parents=True, exist_ok=True)
        for name in kept:
            shutil.copyfile(folder / name, state / name)
        restore.insert(1, f"cp {' '.join(str(state / name) for name in kept)} .")
    elif kept:
        restore.append("# where that commit holds another dvc.lock: --state DIR writes the one of the model")
    return Origin(facts, data, restore)


def models_of(path: str, name: str, root: Path | None = None) -> Descendants:
    """Which versions of `name` came from the output `path` as it is in dvc.lock here, and which from other bytes.

    Raises ValueError for a path that the pipeline does not make, or has not yet.
    """
    hashes = lineage.all_data(root or lineage.workspace())
    plain = path.rstrip("/")
    digest = hashes.get(f"{DATA}{plain}")
    if digest is None:
        made = ", ".join(key[len(DATA) :] for key in hashes) or "nothing yet"
        raise ValueError(f"{path!r} is no output in dvc.lock; the pipeline has made: {made}")
    client = store.connect(store.find())
    rows = []
    for version in sorted(_versions(client, name), key=lambda v: int(v.version)):
        theirs = version.tags.get(f"{DATA}{plain}", "none")
        row = [f"models:/{name}/{version.version}", _aliases(client.get_model_version(name, version.version)).strip()]
        rows.append([*row, _moment(version.creation_timestamp), theirs, "yes" if theirs == digest else "no"])
    return Descendants(digest, rows)


def needed(client: Any) -> set[str]:
    """DVC's hash of everything that any version of any registered model came from."""
    models = _pages(lambda token: client.search_registered_models(page_token=token))
    versions = (version for model in models for version in _versions(client, model.name))
    return {value for v in versions for key, value in v.tags.items() if key.startswith(DATA) and value}


def _versions(client: Any, name: str) -> list[Any]:
    return _pages(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))


def _pages(search: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(token)
        found += page
        token = page.token
        if not token:
            return found


def _maker(client: Any, experiment: str, path: str, digest: str) -> tuple[str, str]:
    """Name and id of the run that made these bytes: the last of those that DVC took them over from."""
    query = f"tags.`{OUT}{path}` = '{digest}'"
    runs = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    return (runs[0].info.run_name, runs[0].info.run_id) if runs else ("not known here", "")


def _aliases(version: Any) -> str:
    return f" ({', '.join(version.aliases)})" if version.aliases else ""


def _moment(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(milliseconds / 1000))
