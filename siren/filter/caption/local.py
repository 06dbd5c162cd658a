"""Language models run here, through transformers: Qwen2-Audio, which hears, and text models such as Qwen2.5.

Unusual: nothing is drawn by the library. Each answer takes one uniform number for each of its tokens from its own seed,
and the token is where the cumulative distribution passes it. So an answer does not depend on what else is in the
batch, but for rounding, which batches of another shape may change where two tokens are nearly as likely.

A batch that does not fit into memory is halved; what fails alone is an answer with a reason.
Shapes: B answers · L tokens · V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siren.config import LanguageModel
from siren.filter.caption.protocol import Answer, Question
from siren.progress import track
from siren.randomness import draw, uniforms


class Local:
    """A model by folder or hub name. It is loaded at its first question; `hears`: whether questions have sound.

    Raises ValueError where it cannot be read.
    """

    def __init__(self, settings: LanguageModel, hears: bool) -> None:
        self.settings, self.hears = settings, hears
        self._loaded: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}  # another process loads its own

    @property
    def sample_rate(self) -> int:
        return int(self._load()[1].feature_extractor.sampling_rate)

    @property
    def device(self) -> str:
        return self.settings.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer each, in order."""
        size, answers = self.settings.batch_size, []
        starts = range(0, len(questions), size)
        for start in track(starts, "describe" if self.hears else "rewrite", len(starts), unit="batch"):
            answers += self._batch(questions[start : start + size])
        return answers

    def _batch(self, questions: Sequence[Question]) -> list[Answer]:
        try:
            return self._generate(questions)
        except torch.OutOfMemoryError as error:
            if len(questions) == 1:
                return [Answer(None, f"memory: {str(error).splitlines()[0]}")]
        torch.cuda.empty_cache()
        half = len(questions) // 2
        return self._batch(questions[:half]) + self._batch(questions[half:])

    @torch.inference_mode()
    def _generate(self, questions: Sequence[Question]) -> list[Answer]:
        from transformers import GenerationConfig, LogitsProcessorList

        network, processor = self._load()
        tokenizer = processor.tokenizer if self.hears else processor
        inputs = self._inputs(processor, questions)
        ends = _ends(network, tokenizer)
        # Numbers in [0, 1), [B, L].
        numbers = uniforms([question.seed for question in questions], self.settings.max_new_tokens, 1)[..., 0]
        pick = Drawn(numbers.to(network.device), self.settings.temperature, self.settings.top_p)
        given = GenerationConfig(
            do_sample=False,  # the likeliest of what `pick` leaves, which is one token
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
        )
        made = network.generate(**inputs, generation_config=given, logits_processor=LogitsProcessorList([pick]))
        made = made[:, inputs["input_ids"].shape[1] :].cpu()
        texts = tokenizer.batch_decode(made, skip_special_tokens=True)
        ended = torch.isin(made, torch.tensor(ends)).any(1).tolist()
        failed = pick.failed.cpu().tolist()
        return [_answer(*found) for found in zip(texts, ended, failed, strict=True)]

    def _inputs(self, processor: Any, questions: Sequence[Question]) -> dict[str, Any]:
        """What the network takes, padded on the left and on its device."""
        prompts = []
        for question in questions:
            content: Any = question.text
            if self.hears:
                content = [{"type": "audio", "audio_url": "here"}, {"type": "text", "text": question.text}]
            chat = [{"role": "user", "content": content}]
            prompts.append(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        kind, device = getattr(torch, self.settings.dtype), self._load()[0].device
        if self.hears:
            wavs, rate = [question.wav for question in questions], self.sample_rate
            given = processor(text=prompts, audio=wavs, sampling_rate=rate, padding=True, return_tensors="pt")
        else:
            given = processor(prompts, padding=True, return_tensors="pt")
        found = {name: value.to(device) for name, value in given.items() if isinstance(value, Tensor)}
        return {name: value.to(kind) if value.is_floating_point() else value for name, value in found.items()}

    def provenance(self) -> dict[str, Any]:
        """The model by name, revision and licence, and what it is asked."""
        given = self.settings
        made = {name: getattr(given, name) for name in ("model", "licence", "prompt", "temperature", "top_p", "dtype")}
        return made | {"backend": "transformers", "revision": revision(given.model, given.revision)}

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = self._read()
        return self._loaded

    def _read(self) -> tuple[Any, Any]:
        import transformers

        name, revision = self.settings.model, {"revision": self.settings.revision or "main"}
        reader = transformers.AutoProcessor if self.hears else transformers.AutoTokenizer
        kind = transformers.Qwen2AudioForConditionalGeneration if self.hears else transformers.AutoModelForCausalLM
        try:
            processor = reader.from_pretrained(name, **revision)
            network = kind.from_pretrained(
                name, dtype=getattr(torch, self.settings.dtype), use_safetensors=True, **revision
            )
        except OSError as error:
            key = f"filter.caption.{'describe' if self.hears else 'rewrite'}.model"
            raise ValueError(
                f"no model can be read from {name!r} ({str(error).splitlines()[0]}); {key} takes a folder or a hub "
                "name, and hubs are asked with HF_HUB_OFFLINE=0 only"
            ) from None
        (processor.tokenizer if self.hears else processor).padding_side = "left"  # answers begin in one column
        return network.eval().requires_grad_(False).to(self.device), processor


class Drawn:
    """A logits processor that leaves each row the one token of the nucleus at the row's next number. numbers [B, L]"""

    def __init__(self, numbers: Tensor, temperature: float, top_p: float) -> None:
        self.numbers, self.temperature, self.top_p = numbers, temperature, top_p
        self.step = 0
        self.failed = torch.zeros(len(numbers), dtype=torch.bool, device=numbers.device)  # rows without any number

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, L], [B, V] → [B, V]"""
        logits = scores.double()
        lost = ~torch.isfinite(logits.logsumexp(-1))
        self.failed |= lost
        logits[lost] = 0
        if self.temperature == 0:
            token = logits.argmax(-1)
        else:
            token = draw(nucleus((logits / self.temperature).softmax(-1), self.top_p), self.numbers[:, self.step])
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens that together reach `top_p`, always one at least; the others at 0. [B, V] → [B, V]"""
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    ordered = ordered * (ordered.cumsum(-1) - ordered < top_p)
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered)


def revision(name: str, wanted: str | None = None) -> str | None:
    """Which weights these are: the hub's commit, or for a folder a hash of its JSON files and its weights' sizes.

    Asked of files, not of a loaded network: who records it may not be the process that had one. Of weights that are not
    here, `wanted`.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(name, "config.json", revision=wanted or "main")
        except ValueError:  # a folder that is not here is no name of the hub
            return wanted
        return Path(found).parent.name if isinstance(found, str) else wanted
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}\x1f{path.stat().st_size}\x1f".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return f"files:{digest.hexdigest()[:16]}"


def _answer(text: str, ended: bool, failed: bool) -> Answer:
    if failed:
        return Answer(None, "not_finite: the network's logits are not numbers")
    return Answer.of(text, ended)


def _ends(network: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the model's own, or the tokeniser's."""
    own = getattr(network.generation_config, "eos_token_id", None)
    given = own if isinstance(own, list) else [own if own is not None else tokenizer.eos_token_id]
    return [int(token) for token in given]
