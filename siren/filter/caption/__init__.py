"""One caption for each segment: people's captions refined by small named rules, a captioner where there are none.

Unusual: everything that became of a candidate is kept with the caption, from the words as they came through every rule
to what is left, and so is why one is missing. A segment that is left without a caption is quarantined: there is never
an empty caption. Of several candidates one is drawn, by the segment's id and the seed alone; `score` may take a better
one (`filter.score.choose`). No segment's caption depends on the others, so any division into batches gives the same.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from siren import shards
from siren.config import Caption, LanguageModel
from siren.filter.caption import captioners
from siren.filter.caption.autocap import Listener
from siren.filter.caption.protocol import Answer, Clip
from siren.filter.caption.rules import LIGHT, RULES, Rule, Step, refine

STEP = pa.struct([("rule", pa.string()), ("text", pa.string())])  # text is null where the rule removed it
CANDIDATE = pa.struct(
    [
        ("origin", pa.string()),  # "human" or a key of CAPTIONERS
        ("raw", pa.string()),  # as it came; null where it is missing
        ("missing", pa.string()),  # why
        ("steps", pa.list_(STEP)),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("candidates", pa.list_(pa.string())),  # all that are left after refinement, the caption among them
        ("captioner", pa.string()),  # "human" or a key of CAPTIONERS
        ("rules", pa.list_(pa.string())),  # those that changed the caption or removed a candidate
        ("history", pa.list_(CANDIDATE)),  # of all candidates
    ]
)
SOURCE_COLUMNS = ("id", "captions", "labels", "relation", "title")
SOUND_COLUMNS = ("num_samples", "pcm")  # for captioners that hear


@dataclass
class Candidate:
    """One candidate and what became of it."""

    origin: str
    raw: str | None
    missing: str | None = None
    steps: list[Step] = field(default_factory=list)
    text: str | None = None  # what is left

    def refine(self, rules: dict[str, Rule]) -> None:
        if self.text is not None:
            self.text, steps = refine(self.text, rules)
            self.steps += steps

    @classmethod
    def of(cls, origin: str, answer: Answer) -> "Candidate":
        return cls(origin, answer.text, answer.missing, [], answer.text)

    def row(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "text"}


class Captioning:
    """Batches of segments to their captions; holds the captioner's network, which is loaded where one is needed.

    `sample_rate`: of the segments. Made from settings, so that any process can have its own.
    """

    def __init__(self, settings: Caption, seed: int, sample_rate: int) -> None:
        self.settings, self.seed, self.sample_rate = settings, seed, sample_rate
        self.captioner = captioners.captioner(settings, seed)
        self.rewriter = captioners.Rewriter(settings.rewrite, seed) if settings.rewrite else None

    @property
    def columns(self) -> list[str]:
        """Which columns of the segments are needed."""
        return [*SOURCE_COLUMNS, *(SOUND_COLUMNS if self.captioner.hears else ())]

    @property
    def loads(self) -> bool:
        """Whether a network is loaded in this process; one behind an address is not."""
        return isinstance(self.captioner, Listener) or any(model.endpoint is None for model in self._models())

    @property
    def network(self) -> Path | None:
        """The folder of the pipeline's network that it captions with, if it does."""
        return Path(self.captioner.settings.model) if isinstance(self.captioner, Listener) else None

    @property
    def only_asks(self) -> bool:
        """Whether all models are behind addresses. Their limits hold for one process, so one has to do all the work."""
        return bool(self._models()) and not self.loads

    def _models(self) -> list[LanguageModel]:
        models = (self.settings.describe if self.captioner.hears else None, self.settings.rewrite)
        return [model for model in models if model is not None]

    def provenance(self) -> dict[str, Any]:
        """What captions that nobody wrote were made with."""
        made = {"describe": self.captioner.provenance()}
        if self.rewriter is not None:
            made["rewrite"] = self.rewriter.model.provenance()
        return {name: value for name, value in made.items() if value}

    def __call__(self, segments: pa.Table) -> tuple[pa.Table, list[dict[str, str]], dict[str, int]]:
        """Captions (`SCHEMA`) of segments (`columns`), the quarantine, and how often each rule did something."""
        rows = segments.select([name for name in segments.column_names if name != "pcm"]).to_pylist()
        found = [of_people(row["captions"]) for row in rows]
        lacking = [index for index, candidates in enumerate(found) if not left(candidates)]
        for index, made in zip(lacking, self._describe(segments, rows, lacking), strict=True):
            found[index] += made
        kept, quarantine = [], []
        used: Counter[str] = Counter()
        for row, candidates in zip(rows, found, strict=True):
            names = list(dict.fromkeys(step.rule for candidate in candidates for step in candidate.steps))
            used.update(names)
            used["missing"] += sum(candidate.raw is None for candidate in candidates)
            texts = left(candidates)
            if texts:
                chosen = texts[_draw(row["id"], self.seed, len(texts))]
                origin = next(candidate.origin for candidate in candidates if candidate.text is not None)
                history = [candidate.row() for candidate in candidates]
                values = (row["id"], chosen, texts, origin, names, history)
                kept.append(dict(zip(SCHEMA.names, values, strict=True)))
            else:
                lost = "; ".join(map(_lost, candidates)) or "it has none, and no label"
                quarantine.append({"item": row["id"], "stage": "caption", "reason": "no_caption", "detail": lost})
        return pa.Table.from_pylist(kept, schema=SCHEMA), quarantine, {k: n for k, n in used.items() if n}

    def _describe(self, segments: pa.Table, rows: list[dict[str, Any]], which: list[int]) -> list[list[Candidate]]:
        """Refined candidates of the captioner for these rows."""
        if not which:
            return []
        wavs = {}
        if self.captioner.hears:
            lengths = [rows[index]["num_samples"] for index in which]
            pcm = shards.pcm_to_float(segments["pcm"].take(which))
            wavs = {index: wav[:length] for index, wav, length in zip(which, pcm, lengths, strict=True)}
        clips = [clip_of(rows[index], wavs.get(index), self.sample_rate) for index in which]
        name, free = self.settings.captioner, self.captioner.writes_freely
        found = [[Candidate.of(name, answer) for answer in answers] for answers in self.captioner(clips)]
        every = [candidate for candidates in found for candidate in candidates]
        for candidate in every:
            candidate.refine(RULES if free else LIGHT)
        if free and self.rewriter is not None:
            readable = [candidate for candidate in every if candidate.text is not None]
            answers = self.rewriter([candidate.text or "" for candidate in readable])
            for candidate, answer in zip(readable, answers, strict=True):
                if answer.text is None:  # what the rules made of it is still a caption
                    candidate.steps.append(Step(f"rewrite failed ({answer.missing})", candidate.text))
                else:
                    candidate.steps.append(Step("rewrite", answer.text))
                    candidate.text = answer.text
                    candidate.refine(RULES)
        return found


def of_people(captions: Sequence[str] | None) -> list[Candidate]:
    """What people said of a segment, lightly refined."""
    candidates = [Candidate("human", text, None, [], text) for text in captions or ()]
    for candidate in candidates:
        candidate.refine(LIGHT)
    return candidates


def clip_of(row: dict[str, Any], wav: Any = None, sample_rate: int = 0) -> Clip:
    """A row of segments as captioners see it."""
    return Clip(row["id"], tuple(row["labels"] or ()), row["relation"], row["title"], wav, sample_rate)


def left(candidates: list[Candidate]) -> list[str]:
    """What refinement left of the candidates, without repetition."""
    return list(dict.fromkeys(candidate.text for candidate in candidates if candidate.text is not None))


def _lost(candidate: Candidate) -> str:
    """Why a candidate is no caption, for people."""
    if candidate.raw is None:
        return f"{candidate.origin}: missing, {candidate.missing}"
    return f"{candidate.raw!r} ({candidate.steps[-1].rule})"


def _draw(name: str, seed: int, count: int) -> int:
    digest = hashlib.sha256(f"{seed}\x1fcaption\x1f{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % count
