"""Who describes a segment that has no human caption: one entry of `CAPTIONERS` for each.

A captioner (`protocol`) takes clips (waveform and what is known of them) and gives candidates for each. It is made from
settings alone and loads its network at first use, so that it can be sent to another process and costs nothing where
every clip has a caption.

`template` is a sentence from labels. `qwen2-audio` is the paper's (section 5.1, appendix A): five answers to one
prompt, each from a seed of its own, so that a clip's candidates do not depend on the batch. `autocap` (arXiv
2406.19388) reads title and labels beside the sound; the pipeline loads or trains its network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from siren import audio
from siren.config import Caption, ConfigError, LanguageModel
from siren.filter.caption.autocap import Listener
from siren.filter.caption.protocol import Answer, Captioner, Clip, Model, Question
from siren.hashing import item_seed


@dataclass(frozen=True)
class Template:
    """A sentence from the labels; no candidate for a clip without labels."""

    hears = False
    writes_freely = False

    def __call__(self, clips: Sequence[Clip]) -> list[list[Answer]]:
        named = [([label.replace("_", " ") for label in clip.labels], clip.relation) for clip in clips]
        return [[Answer(text) for text in sentences(labels, relation)] for labels, relation in named]

    def provenance(self) -> dict[str, Any]:
        return {}


def sentences(labels: list[str], relation: str | None) -> list[str]:
    if not labels:
        return []
    if relation == "then":
        return ["the sound of " + " followed by ".join(labels)]
    return ["the sound of " + (" and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]])))]


@dataclass
class Describer:
    """Several answers of one audio language model to one prompt, each drawn from its own seed."""

    settings: LanguageModel
    seed: int
    model: Model = field(init=False)
    hears = True
    writes_freely = True

    def __post_init__(self) -> None:
        self.model = open_model(self.settings, hears=True)

    def __call__(self, clips: Sequence[Clip]) -> list[list[Answer]]:
        count, questions = self.settings.candidates, []
        for clip in clips:
            assert clip.wav is not None  # `caption` gives it to captioners that hear
            wav = audio.resample(clip.wav, clip.sample_rate, self.model.sample_rate)
            seeds = [item_seed(self.seed, "describe", clip.id, index) for index in range(count)]
            questions += [Question(self.settings.prompt, seed, wav) for seed in seeds]
        answers = self.model.answer(questions)
        return [answers[start : start + count] for start in range(0, len(answers), count)]

    def provenance(self) -> dict[str, Any]:
        return self.model.provenance()


@dataclass
class Rewriter:
    """A language model that refines captions (the paper: Qwen2.5); the caption takes the place of {caption}."""

    settings: LanguageModel
    seed: int
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        self.model = open_model(self.settings, hears=False)

    def __call__(self, captions: Sequence[str]) -> list[Answer]:
        """One answer each; the same caption is asked once and always gets the same answer."""
        unique = list(dict.fromkeys(captions))
        prompts = [self.settings.prompt.replace("{caption}", caption) for caption in unique]
        seeds = [item_seed(self.seed, "rewrite", caption) for caption in unique]
        answers = self.model.answer([Question(*pair) for pair in zip(prompts, seeds, strict=True)])
        found = dict(zip(unique, answers, strict=True))
        return [found[caption] for caption in captions]


def open_model(settings: LanguageModel, hears: bool) -> Model:
    """The model that the settings name. Nothing is loaded or asked before its first question."""
    from siren.filter.caption import endpoint, local

    if settings.endpoint is None:
        return local.Local(settings, hears)
    return endpoint.Endpoint(settings, settings.endpoint)


def _template(settings: Caption, seed: int) -> Captioner:
    return Template()


def _qwen2_audio(settings: Caption, seed: int) -> Captioner:
    if settings.describe is None:
        raise ConfigError(
            "filter.caption.captioner is 'qwen2-audio' with filter.caption.describe null; say which model"
        )
    return Describer(settings.describe, seed)


def _autocap(settings: Caption, seed: int) -> Captioner:
    if settings.autocap is None:
        raise ConfigError(
            "filter.caption.captioner is 'autocap' with filter.caption.autocap null; say which network, or compose the "
            "settings with captioner=autocap"
        )
    return Listener(settings.autocap)


CAPTIONERS: dict[str, Callable[[Caption, int], Captioner]] = {
    "template": _template,
    "qwen2-audio": _qwen2_audio,
    "autocap": _autocap,
}


def captioner(settings: Caption, seed: int) -> Captioner:
    """The captioner that the settings name. Raises ConfigError for one that is not there."""
    if settings.captioner not in CAPTIONERS:
        raise ConfigError(f"filter.caption.captioner is {settings.captioner!r}; there are {', '.join(CAPTIONERS)}")
    return CAPTIONERS[settings.captioner](settings, seed)
