"""Everything that turns a prompt into sound, in one folder: transformers, codec, text encoder, sampling settings.

    bundle.json                what it is, the sampling settings, and the SHA-256 of every other file
    transformers/<m>/          transformer m (the aligned one where alignment was run)
    codec/  clap/              the frozen neighbours, as the pipeline keeps them

A bundle is what the registry stores and what `siren generate` loads. Parts that do not belong together are refused:
a transformer remembers the fingerprint of the codec and of the text encoder that it was trained with.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siren.config import Model, Sampling, parse
from siren.generate.sampler import sample
from siren.model.codebooks import CodecTables
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.networks import clap as claps
from siren.networks import codec as codecs
from siren.networks import store
from siren.networks.clap import Clap
from siren.networks.codec import Codec

KIND = "transformer"
INDEX = "bundle.json"


def save_transformer(folder: str | Path, transformer: ResidualTransformer, extra: dict[str, Any]) -> None:
    """Write one transformer; `extra` names what it was trained with (`codec`, `text_encoder`: fingerprints)."""
    config = {
        "model": dataclasses.asdict(transformer.config),
        "index": transformer.index,
        "text_width": transformer.text_width,
    }
    store.save(folder, transformer, KIND, config, extra)


def load_transformer(
    folder: str | Path, codec: str | None = None, text_encoder: str | None = None
) -> ResidualTransformer:
    """Read one transformer. Raises ValueError where it was trained with another codec or text encoder than named."""
    config, state = store.load_state(folder, KIND)
    extra = store.read_sidecar(Path(folder))["extra"]
    for part, wanted in (("codec", codec), ("text_encoder", text_encoder)):
        if wanted is not None and extra[part] != wanted:
            raise ValueError(
                f"the transformer in {folder} was trained with {part} {extra[part][:12]}, this one is {wanted[:12]}; "
                "train it again with this one, or bring back the one it knows"
            )
    model = parse(Model, {**config["model"], "transformers": list(config["model"]["transformers"])}, "model")
    tables = CodecTables(*(state[f"codebooks.{name}"] for name in ("rows", "weight", "bias")))
    transformer = ResidualTransformer(model, tables, config["text_width"], config["index"])
    transformer.load_state_dict(state)
    return transformer.eval()


def load_model(folders: Sequence[str | Path], codec: str | None = None, text_encoder: str | None = None) -> Siren:
    """The collaboration whose transformers lie in these folders, in order."""
    return Siren([load_transformer(folder, codec, text_encoder) for folder in folders])


def write_bundle(
    folder: str | Path,
    transformer_folders: Sequence[str | Path],
    aligned: bool,
    codec_folder: str | Path,
    clap_folder: str | Path,
    sampling: Sampling,
    seconds: float,
) -> None:
    """Collect a model's parts into a new folder and record the hash of every file."""
    folder = Path(folder)
    if folder.exists():
        shutil.rmtree(folder)
    for m, part in enumerate(transformer_folders):
        shutil.copytree(part, folder / "transformers" / str(m))
    shutil.copytree(codec_folder, folder / "codec")
    shutil.copytree(clap_folder, folder / "clap")
    index = {
        "format": 1,
        "aligned": aligned,
        "seconds": seconds,
        "sampling": dataclasses.asdict(sampling),
        "sha256": file_hashes(folder),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a bundle but its index, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != INDEX)
    return {str(p.relative_to(folder)): store.file_sha256(p) for p in files}


def verify(folder: str | Path) -> dict[str, Any]:
    """The index of a bundle whose files are the recorded ones. Raises ValueError naming each that is not."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} is not a model: it has no {INDEX}")
    index = json.loads((folder / INDEX).read_text())
    found, recorded = file_hashes(folder), index["sha256"]
    wrong = sorted(k for k in found.keys() | recorded.keys() if found.get(k) != recorded.get(k))
    if wrong:
        raise ValueError(f"the model in {folder} is not the one that was registered; changed: {', '.join(wrong)}")
    return index


class Bundle:
    """A model ready to sample. `sample_rate` in Hz; `seconds` is the length it was trained on."""

    def __init__(self, model: Siren, codec: Codec, clap: Clap, sampling: Sampling, seconds: float, device: str):
        self.model, self.codec, self.clap = model, codec, clap
        self.sampling, self.seconds, self.device = sampling, seconds, device
        self.sample_rate = codec.sample_rate

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "Bundle":
        """Check and read a bundle. Raises ValueError for changed files or parts that do not fit each other."""
        folder = Path(folder)
        index = verify(folder)
        codec = codecs.load(folder / "codec", device)
        clap = claps.load(folder / "clap", device)
        parts = sorted((folder / "transformers").iterdir(), key=lambda p: int(p.name))
        model = load_model(parts, codec.fingerprint(), clap.text_fingerprint()).to(device).eval()
        sampling = parse(Sampling, index["sampling"], "sampling")
        return cls(model, codec, clap, sampling, index["seconds"], device)

    def num_frames(self, seconds: float | None) -> int:
        """Frames of a clip of `seconds`, rounded up. Raises ValueError for a length the model cannot make."""
        seconds = self.seconds if seconds is None else seconds
        longest = self.model.max_frames * self.codec.hop / self.sample_rate
        if not 0 < seconds <= longest:
            raise ValueError(f"{seconds} seconds asked for; this model makes clips of up to {longest:g} seconds")
        return -(-round(seconds * self.sample_rate) // self.codec.hop)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        seconds: float | None = None,
        sampling: Sampling | None = None,
        batch_size: int = 32,
    ) -> list[np.ndarray]:
        """One waveform, float32 [S], for each prompt and seed. Raises ValueError for an empty or too long prompt."""
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("an empty prompt; say what should be heard")
        frames = self.num_frames(seconds)
        wavs: list[np.ndarray] = []
        for begin in range(0, len(prompts), batch_size):
            some = list(prompts[begin : begin + batch_size])
            states, mask = (t.to(self.device) for t in self.clap.text_states(some))
            length, longest = max(zip(mask.sum(1).tolist(), some, strict=True))
            if length > (most := self.model[0].config.max_text):
                raise ValueError(f"the prompt {longest!r} has {length} tokens; this model reads at most {most}")
            rollout = sample(
                self.model, states, mask, seeds[begin : begin + batch_size], frames, sampling or self.sampling
            )
            wavs += list(self.codec.decode(rollout.codes).cpu().numpy())
        return wavs
