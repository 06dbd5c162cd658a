"""One local record as MLflow runs: a child for the stage, under a parent for the pipeline execution.

Everything can be repeated: runs are found by a tag before they are made, what was sent is noted in `export.json`
beside the record after it was sent, and MLflow keeps one copy of a point that is sent twice. So an exporter that dies
anywhere leaves nothing missing and nothing double.
"""

import getpass
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from siren.tracking import lineage, listen, records, store
from siren.tracking.records import FAILED, FINISHED, LOG, RUNNING

LIMITS = {"metrics": 500, "params": 100, "tags": 100}  # entries of one request
PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")  # sending it again will not help


class Mirror:
    """One MLflow store and experiment. Methods raise MLflow's errors when it cannot be reached; the caller retries."""

    def __init__(self, root: Path, uri: str, experiment: str) -> None:
        self.root, self.uri = root, uri
        self.client = store.connect(uri)
        self.experiment = store.experiment(self.client, root, uri, experiment)

    def export(self, folder: Path, record: dict[str, Any], state: dict[str, Any]) -> None:
        """Send what is new in a record; `state` is brought up to date and saved after each thing that was sent.

        Where the store no longer knows the run (a database was replaced), the record is sent again from its start.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._send(folder, record, state)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                state.update(records.forget(self.root, folder, record))
            raise

    def _send(self, folder: Path, record: dict[str, Any], state: dict[str, Any]) -> None:
        identity = record.get("continues") or record["id"]
        if state["mlflow_run"] and state.get("identity", record["id"]) != identity:
            self.client.delete_run(state["mlflow_run"])  # made before the stage found what it continues; empty so far
            state.update(records.UNSENT, files=[])
        if not state["mlflow_run"]:
            parent = self.pipeline(record)
            state["mlflow_run"] = self._open(
                source=f"siren {record['name'].replace('@', ' ')}",
                identity=identity,
                name=record["name"],
                started=record["started"],
                tags={**record["tags"], "pipeline": record["pipeline"]["id"] or "", "mlflow.parentRunId": parent},
                params=record["params"],
            )
            state["identity"] = identity
            if "continues" in record:
                self._continue(state["mlflow_run"], record, parent)
            self._send_inputs(state["mlflow_run"], record)
            records.save_state(folder, state)
        self._send_metrics(folder, record, state)
        self._send_files(folder, record, state)
        if record["status"] != state["status"]:
            self._send_page(folder, record, state)
            self._send_log(folder, record, state)
            if not records.continued(self.root, record):  # its MLflow run is by now a later record's
                self._close(state["mlflow_run"], record)
            state["status"] = record["status"]
            records.save_state(folder, state)

    def finish(self, folder: Path, record: dict[str, Any], state: dict[str, Any]) -> None:
        """Add what is known only after DVC has taken the outputs over: their hashes."""
        if record["status"] == FINISHED and record["dvc"]:
            self._tag(state["mlflow_run"], lineage.out_tags(self.root, record))
        state["done"] = True
        records.save_state(folder, state)

    def pipeline(self, record: dict[str, Any]) -> str:
        """The MLflow run of the pipeline execution that `record` belongs to, made at its first stage; '' if alone."""
        known = record["pipeline"]
        if known["id"] is None:
            return ""
        note = records.pipeline_note(self.root, known["id"])
        if note is None:
            tags = record["tags"]
            commit = tags.get("git.commit", "no commit")[:7] + ("+" if tags.get("git.dirty") == "true" else "")
            shared = {k: v for k, v in tags.items() if k == "scale" or k.startswith("git.")}
            opened = self._open(
                source="dvc repro" if known["kind"] == "dvc" else "prefect, flow siren",
                identity=known["id"],
                name=f"{tags['scale']} {commit}",
                started=record["started"],
                tags={**shared, "stage": "pipeline", "pipeline": known["id"]},
                params=record["settings"],
            )
            where = {"store": record["store"], "experiment": record["experiment"]}
            where |= {key: record[key] for key in ("workspace",) if key in record}
            note = {**known, **where, "mlflow_run": opened, "experiment_id": self.experiment, "status": RUNNING}
            records.save_pipeline(self.root, note)
        return str(note["mlflow_run"])

    def settle(self, note: dict[str, Any], stages: list[dict[str, Any]]) -> None:
        """Bring the status of a pipeline's run up to date with its stages: the last try of each stage counts."""
        latest = {r["name"]: r for r in sorted(stages, key=lambda r: r["started"])}
        statuses = {r["status"] for r in latest.values()}
        running = RUNNING in statuses or lineage.alive(note["process"])
        status = RUNNING if running else FAILED if FAILED in statuses else FINISHED
        if status != note["status"]:
            ended = max((r["ended"] for r in stages if r["status"] != RUNNING), default=None)
            self._close(note["mlflow_run"], {"status": status, "ended": ended})
            if status != RUNNING:
                self._tag(note["mlflow_run"], lineage.lock_tags(lineage.of(note, self.root), ""))
            note["status"] = status
            records.save_pipeline(self.root, note)

    def _open(
        self, source: str, identity: str, name: str, started: int, tags: dict[str, str], params: dict[str, Any]
    ) -> str:
        from mlflow.entities import Param

        found = self.client.search_runs([self.experiment], f"tags.`siren.id` = '{identity}'", max_results=1)
        if found:
            opened = found[0].info.run_id
        else:
            own = {
                "siren.id": identity,
                "mlflow.source.name": source,
                "mlflow.source.type": "LOCAL",
                "mlflow.source.git.commit": tags.get("git.commit", ""),
                "mlflow.user": getpass.getuser(),
            }
            kept = {_key(k): str(v)[:5000] for k, v in {**own, **tags}.items() if v}
            made = self.client.create_run(self.experiment, start_time=started, tags=kept, run_name=name)
            opened = made.info.run_id
        self._put(opened, "params", [Param(_key(k), str(v)[:5000]) for k, v in params.items()])
        return str(opened)

    def _continue(self, run: str, record: dict[str, Any], parent: str) -> None:
        """A run that was killed goes on, perhaps under another execution of the pipeline."""
        found = self.client.get_run(run).data.tags
        if "error" in found:
            self.client.delete_tag(run, "error")
        tags = {**record["tags"], "pipeline": record["pipeline"]["id"] or "", "mlflow.parentRunId": parent}
        tags["resumed"] = " ".join(dict.fromkeys([*found.get("resumed", "").split(), record["id"]]))
        self._tag(run, {key: value for key, value in tags.items() if value})
        self.client.update_run(run, status=RUNNING)

    def _send_inputs(self, run: str, record: dict[str, Any]) -> None:
        """The data that a stage read, as MLflow's inputs: a name, DVC's hash, and the context it was read in."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        read = {k[len("data.in.") :]: v for k, v in record["tags"].items() if k.startswith("data.in.") and v}
        inputs = [
            DatasetInput(
                Dataset(path, digest[:36], "dvc", json.dumps({"path": path, "hash": digest})),  # 36 is MLflow's limit
                [InputTag("mlflow.data.context", record["name"])],
            )
            for path, digest in read.items()
        ]
        if inputs:
            self.client.log_inputs(run, inputs)

    def _close(self, run: str, record: dict[str, Any]) -> None:
        if record["status"] == RUNNING:
            self.client.update_run(run, status=RUNNING)
            return
        if record.get("error"):
            self._tag(run, {"error": record["error"]})
        self.client.set_terminated(run, record["status"], record["ended"])

    def _tag(self, run: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._put(run, "tags", [RunTag(_key(k), v[:5000]) for k, v in tags.items()])

    def _put(self, run: str, kind: str, entries: list[Any]) -> None:
        """Send entries in batches. One that MLflow will never take is named in the log, and stays in the record."""
        from mlflow.exceptions import MlflowException

        for first in range(0, len(entries), LIMITS[kind]):
            batch = entries[first : first + LIMITS[kind]]
            try:
                self.client.log_batch(run, **{kind: batch})
            except MlflowException as error:
                if error.error_code not in PERMANENT:
                    raise
                if len(batch) == 1:
                    print(f"not taken by MLflow: {kind} {batch[0].key} of {run}: {error.message}", flush=True)
                else:
                    for entry in batch:
                        self._put(run, kind, [entry])

    def _send_metrics(self, folder: Path, record: dict[str, Any], state: dict[str, Any]) -> None:
        for lines, end in records.batches(folder / "metrics.jsonl", state["offset"]):
            entries = [json.loads(line) for line in lines]
            self._log(state["mlflow_run"], entries, "")
            summaries = [e for e in entries if e["step"] is None]
            parent = self.pipeline(record)
            if parent and summaries:
                self._log(parent, summaries, f"{record['name']}/")
            state["offset"] = end
            records.save_state(folder, state)

    def _log(self, run: str, entries: list[dict[str, Any]], prefix: str) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(_key(prefix + name), value, entry["time"], entry["step"] or 0)
            for entry in entries
            for name, value in entry["metrics"].items()
        ]
        self._put(run, "metrics", points)

    def _send_files(self, folder: Path, record: dict[str, Any], state: dict[str, Any]) -> None:
        root, parent = folder / "artifacts", self.pipeline(record)
        for file in records.artifact_files(folder):
            if file in state["files"]:
                continue
            place = os.path.dirname(file) or None
            self.client.log_artifact(state["mlflow_run"], str(root / file), place)
            if file.endswith(".wav"):
                picture = records.picture(folder, file)
                listen.draw(root / file, picture)
                self.client.log_artifact(state["mlflow_run"], str(picture), place)
                self._send_image(state["mlflow_run"], file, picture)
                if parent:
                    self._send_image(parent, file, picture, f"{record['name']}/")
            state["files"].append(file)
            records.save_state(folder, state)

    def _send_image(self, run: str, file: str, picture: Path, prefix: str = "") -> None:
        """The spectrogram once more as an image of a step: MLflow puts those of several runs side by side.

        Its name has the form that MLflow's UI reads, but none of the chance of `log_image`: what is sent again, by an
        exporter that died before it noted it or a training that went back to its checkpoint, takes its own place.
        """
        from PIL import Image

        name, _, step = Path(file).with_suffix("").as_posix().removeprefix("audio/").rpartition("-")
        stepped = len(step) == 6 and step.isdecimal()
        key = prefix + (name if stepped else f"{name}-{step}".lstrip("-"))
        plain = re.sub(r"[^A-Za-z0-9_\-. ~]", "-", key.replace("/", "~"))[:150]  # the UI shows ~ as /
        own = uuid.uuid5(uuid.NAMESPACE_OID, prefix + file)
        place = f"images/{plain}+step+{int(step) if stepped else 0}+timestamp+0+{own}"
        with Image.open(picture) as image:
            self.client.log_image(run, image, f"{place}.png")
            image.thumbnail((256, 256))  # as MLflow does
            self.client.log_image(run, image, f"{place}+compressed.webp")
        self.client.set_tag(run, "mlflow.loggedImages", "True")

    def _send_log(self, folder: Path, record: dict[str, Any], state: dict[str, Any]) -> None:
        """What the stage printed; that of a run which another one continued keeps its own name."""
        if (folder / LOG).is_file() and (folder / LOG).stat().st_size:
            name = LOG if "continues" not in record else f"{record['id']}.log"
            self.client.log_text(state["mlflow_run"], (folder / LOG).read_text(errors="replace"), name)

    def _send_page(self, folder: Path, record: dict[str, Any], state: dict[str, Any]) -> None:
        """The sounds of a run that has ended on one page, and on its pipeline's page with those of the other stages.

        Both lie at the same path in every run, so that MLflow opens those of two runs side by side.
        """
        if not (own := records.sounds(folder)):
            return
        self.client.log_text(state["mlflow_run"], listen.page(record["name"], own), "listen.html")
        if parent := self.pipeline(record):
            stages = records.latest(self.root, record["pipeline"]["id"])
            every = [(f"{r['name']}/{name}", wav, drawn) for f, r in stages for name, wav, drawn in records.sounds(f)]
            self.client.log_text(parent, listen.page("All stages", every), "listen.html")


def _key(name: str) -> str:
    """`name` in the characters that MLflow allows."""
    return re.sub(r"[^\w.\- :/]", "-", name)


def unreachable(error: Exception) -> bool:
    """Whether an error is about the store as a whole rather than about what was sent."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, OSError) or (isinstance(error, MlflowException) and error.error_code not in PERMANENT)
