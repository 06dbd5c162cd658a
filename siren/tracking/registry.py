"""The registry of models: registering a challenger, and fetching a version with its bytes checked.

A version is an MLflow pyfunc made from code (`siren/tracking/pyfunc.py`), with the bundle that sampling needs, the
metrics it was evaluated with and a model card. The bundle lists the sha256 of its files; a digest over all files of the
MLflow model is a tag of the version, and fetching compares it, so that no file can change unnoticed.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siren.hashing import file_sha256
from siren.tracking import export, lineage, records, store
from siren.tracking.run import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient

PACKAGE = Path(__file__).resolve().parents[1]
CHALLENGER, CHAMPION = "challenger", "champion"
BUNDLE, METRICS, CARD = "model", "metrics.json", "README.md"  # the artifacts of a version, by name
ENVIRONMENT, LICENCES = "environment.txt", "licences.json"  # further ones
STATE = ("dvc.yaml", "dvc.lock", "params.yaml")  # likewise, those that the project has: all that restoring it needs
LISTING = "sha256.json"  # artifact of the run that registered: the hash of every file of the version
EXAMPLE = {"prompt": ["a dog barks while rain falls"]}
NOT_OURS = ("registered_model_meta", "__pycache__")  # what fetching or running a model may add to it
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # how MLflow's stores say that; the second of an alias


class NoVersion(ValueError):
    """The registry answered, and has no such model, alias or version."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model, and the client that knows it."""

    name: str
    number: str
    tags: dict[str, str]
    client: "MlflowClient"

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


def register(
    run: Run,
    name: str,
    bundle: Path,
    metrics: Path,
    card: str,
    signature: Any,
    licences: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> str:
    """Make a bundle, its metrics and its card the next version of `name`, alias challenger; returns its number.

    `licences`: of `data` (rows with licence) and `networks` (name → licence), and the `policy` of the corpus. All runs
    are sent to MLflow first, so that the version belongs to a run that is there. Raises ValueError when the store does
    not answer.
    """
    root, work = lineage.project_root(), lineage.workspace()
    uri = store.address(root)
    export.flush(root, uri=uri)
    opened = records.read_state(run.folder)["mlflow_run"]
    with tempfile.TemporaryDirectory() as scratch:
        parts = _parts(Path(scratch), work, bundle, metrics, card, licences or {})
        number = _log_model(uri, opened, name, parts, signature)
    client = store.connect(uri)
    listing = file_hashes(_download(f"models:/{name}/{number}", uri))
    client.log_dict(opened, listing, LISTING)
    kept = {k: v for k, v in run.record["tags"].items() if k.startswith(("git.", "dvc.")) or k == "scale"}
    facts = {**kept, **lineage.all_data(work), **(tags or {}), "sha256": digest(listing)}
    for key, value in facts.items():
        client.set_model_version_tag(name, number, key, value)
    client.update_model_version(name, number, description=card)
    client.set_registered_model_alias(name, CHALLENGER, number)
    return number


def _parts(
    folder: Path, root: Path, bundle: Path, metrics: Path, card: str, licences: dict[str, Any]
) -> dict[str, Path]:
    """The artifacts of a version, each in `folder` under its name, which is what MLflow calls it by."""
    shutil.copytree(bundle, folder / BUNDLE)
    shutil.copyfile(metrics, folder / METRICS)
    (folder / CARD).write_text(card)
    (folder / ENVIRONMENT).write_text("\n".join(environment()) + "\n")
    (folder / LICENCES).write_text(json.dumps(licences, indent=1) + "\n")
    for name in STATE:
        if (root / name).is_file():
            shutil.copyfile(root / name, folder / name)
    return {path.name: path for path in sorted(folder.iterdir())}


def _log_model(uri: str, run: str, name: str, parts: dict[str, Path], signature: Any) -> str:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=run):
        ignored = shutil.ignore_patterns("__pycache__")
        code = shutil.copytree(PACKAGE, Path(scratch) / PACKAGE.name, ignore=ignored)
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(code / "tracking" / "pyfunc.py"),
            artifacts={part: str(path) for part, path in parts.items()},
            code_paths=[str(code)],
            pip_requirements=requirements(),
            signature=signature,
            input_example=EXAMPLE,
            registered_model_name=name,
        )
    return str(logged.registered_model_version)


def requirements() -> list[str]:
    """What the model needs at run time, pinned to what is installed here; names and versions only, no addresses."""
    from importlib.metadata import requires
    from importlib.metadata import version as installed

    names = [name for name in requires("siren") or [] if "extra ==" not in name]
    return [f"{name}=={installed(name).split('+')[0]}" for name in (*names, "mlflow", "pandas")]


def environment() -> list[str]:
    """Every installed distribution with its exact version; no addresses."""
    from importlib.metadata import distributions

    return sorted({f"{d.metadata['Name'].lower()}=={d.version}" for d in distributions() if d.metadata["Name"]})


def version(address: str, uri: str | None = None) -> Version:
    """The version behind `models:/siren@champion` or `models:/siren/3`.

    Raises NoVersion if there is none, ValueError for another address and where the registry does not answer.
    """
    uri = uri or store.find()
    client = store.connect(uri)
    name, _, alias = address.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    if not name or bool(alias) == bool(number):
        raise ValueError(f"{address!r} is no address of a model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    with asking(uri, address):
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    return Version(name, str(found.version), dict(found.tags), client)


@contextmanager
def asking(uri: str, address: str) -> Iterator[None]:
    """MLflow's errors about the model at `address` as NoVersion or ValueError: one that is not there is not one that
    could not be asked for."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in ABSENT:
            raise NoVersion(
                f"no model {address} in the registry {uri} ({error.message}); the pipeline (dvc repro) registers a "
                f"challenger, and `siren promote` makes it the champion"
            ) from None
        raise ValueError(f"the registry {uri} did not answer ({error.message}); try again when it does") from None


def fetch(found: Version) -> Path:
    """The local folder of a version's artifacts, its bytes checked. Raises ValueError where they do not match."""
    from siren.generate import bundle

    folder = _download(found.uri, found.client.tracking_uri)
    hashes = file_hashes(folder)
    if digest(hashes) != found.tags.get("sha256"):
        bundle.verify(folder / "artifacts" / BUNDLE)  # names the file, where it is one of the bundle
        raise ValueError(
            f"the files of {found.uri} in {folder} are not those that were registered{_changed(found, hashes)}; "
            "register it anew"
        )
    return folder / "artifacts"


def open_bundle(address: str) -> tuple[Path, str]:
    """The folder of the bundle behind a registry address or in a local folder, and the name to call it by."""
    if address.startswith("models:"):
        found = version(address)
        return fetch(found) / BUNDLE, found.uri
    folder = Path(address)
    if not folder.is_dir():
        raise ValueError(f"no folder {address}; --model takes models:/NAME@ALIAS or the folder of a model")
    inside = folder / "artifacts" / BUNDLE  # the folder of an MLflow model
    return (inside if inside.is_dir() else folder), str(folder)


def _changed(found: Version, hashes: dict[str, str]) -> str:
    """Which files those are, where the run that registered them can still be asked; ' (a, b)' or ''."""
    from mlflow.exceptions import MlflowException

    run = found.client.get_model_version(found.name, found.number).run_id
    try:
        recorded = json.loads(Path(found.client.download_artifacts(run, LISTING)).read_text())
    except (MlflowException, OSError):
        return ""
    names = sorted(k for k in hashes.keys() | recorded.keys() if hashes.get(k) != recorded.get(k))
    return f" ({', '.join(names)})"


def digest(listing: dict[str, str]) -> str:
    """One sha256 over the names and hashes of files."""
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder, by name."""
    files = (p for p in folder.rglob("*") if p.is_file() and not set(p.parts) & set(NOT_OURS))
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _download(address: str, uri: str) -> Path:
    import mlflow

    mlflow.set_tracking_uri(uri)  # not as an argument alone: MLflow asks its default store too, and would make one here
    return Path(mlflow.artifacts.download_artifacts(address))
