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
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siren.config import Model, Sampling, parse
from siren.generate import streaming
from siren.generate.choice import guided
from siren.generate.sampler import Sampler, prepare
from siren.generate.stacked import Stacked
from siren.hashing import file_sha256
from siren.model.budget import sampling_memory
from siren.model.codebooks import CodecTables
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.networks import clap as claps
from siren.networks import codec as codecs
from siren.networks import store
from siren.networks.clap import Clap
from siren.networks.codec import Codec
from siren.progress import notice

KIND = "transformer"
INDEX = "bundle.json"
DECODED_SECONDS = 30.0  # of a clip that the codec decodes at once: its memory does not grow with longer ones
LONGEST_SECONDS = 600.0  # of a clip that is asked for: a limit against slips, not of the method


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
    return {str(p.relative_to(folder)): file_sha256(p) for p in files}


def sha256(folder: str | Path) -> str:
    """The digest of a whole model: its index holds the hash of every file. Raises ValueError as `verify` does."""
    verify(folder)
    return file_sha256(Path(folder) / INDEX)


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
    """A model ready to sample. `sample_rate` in Hz; `seconds` is the length it was trained on.

    `sha256` as the function of that name gives it; None for one made in memory.
    """

    def __init__(
        self,
        model: Siren,
        codec: Codec,
        clap: Clap,
        sampling: Sampling,
        seconds: float,
        device: str,
        sha256: str | None = None,
    ):
        self.model, self.codec, self.clap = model, codec, clap
        self.sampling, self.seconds, self.device, self.sha256 = sampling, seconds, device, sha256
        self.sample_rate = codec.sample_rate
        self._told: set[str] = set()  # prompts of which it was said that they are cut

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
        return cls(model, codec, clap, sampling, index["seconds"], device, file_sha256(folder / INDEX))

    @cached_property
    def sampler(self) -> Sampler:
        """The model prepared for sampling; its weights do not change any more."""
        return prepare(self.model, torch.bfloat16 if self.device.startswith("cuda") else torch.float32)

    @property
    def precision(self) -> str:
        """Of the sampler: bfloat16 on a GPU, where it halves what a frame has to read. Other codes than float32's."""
        dtype = self.sampler.dtype if isinstance(self.sampler, Stacked) else torch.float32
        return str(dtype).removeprefix("torch.")

    @property
    def window(self) -> streaming.Window:
        """What slides over clips longer than those of the training."""
        return streaming.Window.of(self._frames(round(self.seconds * self.sample_rate)), self.model.max_frames)

    def num_samples(self, seconds: float | None) -> int:
        """Samples of a clip of `seconds`, to the nearest one. Raises ValueError for a length that is none."""
        seconds = self.seconds if seconds is None else seconds
        if not 0 < seconds <= LONGEST_SECONDS:
            raise ValueError(f"{seconds} seconds asked for; a clip has more than 0 and at most {LONGEST_SECONDS:g}")
        return max(1, round(seconds * self.sample_rate))

    def slides(self, seconds: float | None) -> str:
        """What is to be said of a clip that is longer than the window; nothing of another one."""
        frame, window = self.codec.hop / self.sample_rate, self.window
        if self._frames(self.num_samples(seconds)) <= window.length:
            return ""
        least, most = (f"{frames * frame:.3g}" for frames in (window.context, window.length))
        return (
            f"longer than the {most} s that this model was trained on: a window slides over it, which knows the prompt "
            f"and the last {least} to {most} s of sound"
        )

    def _frames(self, num_samples: int) -> int:
        return -(-num_samples // self.codec.hop)

    def chunk(self, seconds: float, num_frames: int) -> int:
        """Frames of the pieces of `seconds` in which a clip is decoded; a shorter one is decoded once, at its end."""
        chunk = self._frames(round(seconds * self.sample_rate))
        return chunk if chunk < num_frames else num_frames + self.codec.context

    def memory(self, batch_size: int, seconds: float | None = None, sampling: Sampling | None = None) -> dict[str, int]:
        """Bytes that sampling such a batch takes besides the model, known before it starts; see `Stacked.memory`.

        Of these only `sound` grows with the length. What the codec takes to decode `DECODED_SECONDS` is not in it.
        """
        rows, samples = batch_size * (2 if guided(sampling or self.sampling) else 1), self.num_samples(seconds)
        if isinstance(self.sampler, Stacked):
            length = min(self._frames(samples), self.window.length)
            told = self.sampler.memory(rows, length, self.model[0].config.max_text)
        else:
            told = sampling_memory(self.model[0], rows, self.model.max_frames, self.model[0].config.max_text)
        sound = 4 * batch_size * samples
        return told | {"sound": sound, "total": told["total"] + sound}

    def cut(self, prompt: str) -> dict[str, int]:
        """Of a prompt with more tokens than the text encoder reads, how many it has and how many are read."""
        [tokens], most = self.clap.num_tokens([prompt]), self.clap.arch.max_tokens
        return {"prompt_tokens": tokens, "prompt_tokens_read": most} if tokens > most else {}

    def read(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text states and mask. Raises ValueError for an empty or too long prompt, and for none.

        What the text encoder does not read of a long prompt is said once.
        """
        if not prompts:
            raise ValueError("no prompts; say what should be heard")
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("an empty prompt; say what should be heard")
        most, seen = self.model[0].config.max_text, self.clap.arch.max_tokens
        for prompt, length in zip(prompts, self.clap.num_tokens(list(prompts)), strict=True):
            if min(length, seen) > most:
                raise ValueError(f"the prompt {prompt!r} has {length} tokens; this model reads at most {most}")
            if length > seen and prompt not in self._told:
                self._told.add(prompt)
                notice(f"the prompt {prompt[:50]!r}... has {length} tokens; only the first {seen} of them are read")
        states, mask = (t.to(self.device) for t in self.clap.text_states(list(prompts)))
        return states, mask

    @torch.no_grad()
    def encode(self, wav: np.ndarray) -> Tensor:
        """The codes of sound to continue, mono at `sample_rate`: those that the window has room for. [S] → [1, K, t]

        Whole frames up to its last sample, since a frame that is padded would be heard as a pause.
        """
        whole = max(1, min(self.window.context, len(wav) // self.codec.hop))
        kept = np.asarray(wav, np.float32)[-whole * self.codec.hop :]
        return self.codec.encode(torch.from_numpy(kept)[None].to(self.device))

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        seconds: float | None = None,
        sampling: Sampling | None = None,
        batch_size: int = 32,
        prefix: Tensor | None = None,
    ) -> list[np.ndarray]:
        """One waveform, float32 [S], for each prompt and seed; it follows `prefix` (see `encode`) where there is one.

        S is `num_samples(seconds)`. Raises ValueError for an empty or too long prompt. A clip longer than those of the
        training is made by a sliding window (`siren.generate.streaming`).
        """
        wavs: list[np.ndarray] = []
        for begin in range(0, len(prompts), batch_size):
            some, own = prompts[begin : begin + batch_size], seeds[begin : begin + batch_size]
            made, done = np.empty((len(some), self.num_samples(seconds)), np.float32), 0
            for wav in self.stream(some, own, seconds, sampling, prefix, DECODED_SECONDS):
                made[:, done : done + wav.shape[1]] = wav
                done += wav.shape[1]
            wavs += list(made)
        return wavs

    def stream(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        seconds: float | None = None,
        sampling: Sampling | None = None,
        prefix: Tensor | None = None,
        chunk_seconds: float = streaming.CHUNK_SECONDS,
    ) -> Iterator[np.ndarray]:
        """The same clips in chunks, float32 [B, S], each as soon as it can be heard. Errors are raised at once."""
        num_samples, (states, mask) = self.num_samples(seconds), self.read(prompts)
        num_frames = self._frames(num_samples)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; one each is needed")
        if prefix is not None:
            prefix = prefix.expand(len(prompts), -1, -1)
        drawn = streaming.codes(
            self.sampler, states, mask, seeds, num_frames, sampling or self.sampling, self.window, prefix
        )
        chunk = self.chunk(chunk_seconds, num_frames)
        return (wav.cpu().numpy() for wav in streaming.decode(self.codec, drawn, num_samples, chunk, prefix))
