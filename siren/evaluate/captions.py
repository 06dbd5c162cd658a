"""Captions against people's: BLEU, ROUGE-L and CIDEr-D with intervals over clips, as the field reports captioners.

The figures are the COCO caption tool's (pycocoevalcap), on these scales: BLEU and ROUGE-L in [0, 1], **CIDEr-D as that
tool prints it**, its factor of 10 included, so that a paper's "CIDEr 83.2" is 0.832 here. What is unusual: no loop goes
over n-grams; those of a whole corpus are sorted arrays, joined. A BLEU without a single match is 0, where the tool's
guards against zero leave something. METEOR and SPICE need Java and WordNet and are left out, and SPIDEr with them.

Words are runs of letters and digits in lower case, perhaps with hyphens or apostrophes inside; all else is dropped. The
tool's PTB tokenizer differs in that it cuts "dog's" in two: figures made with it differ a little.
Shapes: N clips · C captions, N candidates and then the references · W words · E n-grams of a caption, each once.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from siren.evaluate import bootstrap, folders
from siren.hashing import file_sha256

ORDERS = 4  # n-grams of one to four words
SIGMA = 6.0  # words of difference in length, of CIDEr-D's penalty
BETA = 1.2  # how much more than precision recall weighs in ROUGE-L
BLEUS = tuple(f"bleu_{order}" for order in range(1, ORDERS + 1))
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
NAMES = ("file", "id", "file_name", "youtube_id")  # columns that may say which clip it is, the first that is there
FILES = ("file", "file_name")  # of these, those that hold paths
CAPTION = re.compile(r"captions?(_\d+)?")

Figures = dict[str, dict[str, Any]]  # value, low, high and count of each


@dataclass(frozen=True)
class PerClip:
    """What corpus figures are made of, of clips in the order of `ids`."""

    ids: list[str]
    bleu_counts: np.ndarray  # [N, 10] matched n-grams of 1 to 4 words, those of the candidate, its length, reference's
    rouge_l: np.ndarray  # [N]
    cider_d: np.ndarray  # [N]
    words: np.ndarray  # [W] of all candidates, each once for a clip
    clip: np.ndarray  # [W] whose they are

    @property
    def bleu(self) -> np.ndarray:
        """BLEU-1 to BLEU-4 of each clip by itself. [N, 4]"""
        return _bleu(self.bleu_counts)

    def corpus_bleu(self, counts: np.ndarray) -> np.ndarray:
        """BLEU-1 to BLEU-4 of a corpus that has clip i counts[i] times. [N] → [4]"""
        return _bleu(counts @ self.bleu_counts)

    def distinct(self, counts: np.ndarray) -> int:
        """How many words there are among all candidates that count. [N] → number"""
        return int(np.count_nonzero(np.bincount(self.words[counts[self.clip] > 0])))

    @property
    def length(self) -> np.ndarray:
        """Words of each candidate. [N]"""
        return self.bleu_counts[:, 2 * ORDERS]


def words(text: str) -> list[str]:
    """The one tokenizer of these figures: lower case, without punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("’", "'"))


def score(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], resamples: int = 1000, seed: int = 0
) -> Figures:
    """Figures of one candidate a clip against its references, by name: each with value, low, high and count (of clips).

    bleu_1 … bleu_4 of the corpus; means over clips of rouge_l, of cider_d (on the COCO tool's scale: 100 times it is
    what papers print) and of the length in words (mean_length); distinct_words of all candidates. Intervals (95 %) draw
    clips with replacement; CIDEr-D's word weights stay those of all references, and the interval of distinct words is
    shifted by what repeated clips lack. Raises ValueError as `per_clip` does.
    """
    return _figures([per_clip(candidates, references)], resamples, seed)


def agreement(references: Mapping[str, Sequence[str]], resamples: int = 1000, seed: int = 0) -> Figures:
    """What people reach among themselves: each clip's k-th caption against its other ones, averaged over k.

    k goes up to the smallest number of captions that a clip has. A candidate has one reference fewer here than in
    `score`, which costs some points. Raises ValueError where a clip has a single caption.
    """
    if single := sorted(name for name, texts in references.items() if len(texts) < 2):
        raise ValueError(f"{len(single)} clips have a single caption: {folders.named(single)}; agreement needs two")
    least = min(map(len, references.values()), default=0)
    parts = [
        per_clip(
            {name: texts[k] for name, texts in references.items()},
            {name: [*texts[:k], *texts[k + 1 :]] for name, texts in references.items()},
        )
        for k in range(least)
    ]
    return _figures(parts, resamples, seed)


def _figures(parts: Sequence[PerClip], resamples: int, seed: int) -> Figures:
    """Of several candidates of the same clips, the average of each figure."""
    if not parts:
        raise ValueError("there are no clips to score")
    count = len(parts[0].ids)

    def of_all(statistic: Callable[[PerClip, np.ndarray], float]) -> dict[str, Any]:
        def average(counts: np.ndarray) -> float:
            return float(np.mean([statistic(part, counts) for part in parts]))

        value, low, high = bootstrap.of_counts(average, count, resamples, seed)
        # Distinct words, where nothing is left to find, may lie outside of what is drawn.
        return bootstrap.Interval(value, min(low, value), max(high, value)).record(count)

    def mean(values: Sequence[np.ndarray]) -> dict[str, Any]:
        return bootstrap.mean(np.mean(values, axis=0), resamples, seed).record(count)

    return {
        **{name: of_all(partial(_corpus_bleu, order)) for order, name in enumerate(BLEUS)},
        "rouge_l": mean([part.rouge_l for part in parts]),
        "cider_d": mean([part.cider_d for part in parts]),
        "distinct_words": of_all(PerClip.distinct),
        "mean_length": mean([part.length for part in parts]),
    }


def _corpus_bleu(order: int, part: PerClip, counts: np.ndarray) -> float:
    return float(part.corpus_bleu(counts)[order])


def per_clip(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> PerClip:
    """Every clip's share of the figures, clips ordered by id.

    A candidate without a word counts and scores 0. CIDEr-D's word weights are log(N / clips whose references have the
    n-gram): with one clip they are all 0, and so is the score. Raises ValueError that names the clips where one side
    lacks some, or a reference has no word.
    """
    _check(candidates, references)
    ids = sorted(candidates)
    count = len(ids)
    clip = np.array([*range(count), *(i for i, name in enumerate(ids) for _ in references[name])])  # [C]
    vocabulary: dict[str, int] = {}
    captions = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
        for text in [*(candidates[name] for name in ids), *(text for name in ids for text in references[name])]
    ]
    if empty := [ids[i] for i, caption in zip(clip[count:], captions[count:], strict=True) if not caption]:
        raise ValueError(f"{len(empty)} references have no word, among them one of {folders.named(empty)}")
    length = np.array([len(caption) for caption in captions])  # [C]
    flat, owner = np.array([word for c in captions for word in c], np.int64), np.repeat(np.arange(len(clip)), length)
    joined = [_Joined(grams, clip, count) for grams in _ngrams(flat, owner)]
    total = np.maximum(length[:count, None] - np.arange(ORDERS), 0)
    matched = np.column_stack([one.matched() for one in joined])
    bigrams = np.maximum(length - 1, 0)  # what the tool takes for a caption's length
    penalty = np.exp(-((bigrams[clip] - bigrams) ** 2) / (2 * SIGMA**2))
    similarity = penalty * np.mean([one.cosine() for one in joined], axis=0)  # [C]
    whose, texts = clip[count:], iter(captions[count:])
    used = np.unique(np.column_stack([owner, flat])[owner < count], axis=0)
    return PerClip(
        ids,
        np.column_stack([matched, total, length[:count], _closest(length[:count], length[count:], whose)]),
        np.array([_rouge_l(captions[i], list(islice(texts, len(references[name])))) for i, name in enumerate(ids)]),
        10 * np.bincount(whose, similarity[count:]) / np.bincount(whose),
        used[:, 1],
        used[:, 0],
    )


def _check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not candidates:
        raise ValueError("there are no clips to score")
    described = {name for name, texts in references.items() if texts}
    for lacking, what in ((candidates.keys() - described, "reference"), (references.keys() - candidates, "candidate")):
        if lacking:
            raise ValueError(
                f"{len(lacking)} clips have no {what}: {folders.named(sorted(lacking))}; both tables need the same"
            )


def _closest(own: np.ndarray, length: np.ndarray, whose: np.ndarray) -> np.ndarray:
    """Length of the reference closest to the candidate's own, the shorter of equally close ones. [N]"""
    order = np.lexsort((length, np.abs(length - own[whose]), whose))
    return length[order[np.unique(whose[order], return_index=True)[1]]]


@dataclass(frozen=True)
class _Grams:
    """How often each n-gram is in each caption, in the order of captions and then of n-grams. [E] all"""

    caption: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    size: int  # how many different n-grams there are, at least 1


def _ngrams(flat: np.ndarray, owner: np.ndarray) -> Iterator[_Grams]:
    """Of one word, two, … four: words [W] and the caption that each is in [W]."""
    at, gram = np.arange(len(flat)), flat
    num_words = size = int(flat.max(initial=0)) + 1
    for order in range(ORDERS):
        if order:  # those of one word less that go on in the same caption
            goes_on = np.append(owner, -1)[at + order] == owner[at]
            at = at[goes_on]
            kinds, gram = np.unique(gram[goes_on] * num_words + flat[at + order], return_inverse=True)
            size = max(1, len(kinds))
        pairs, count = np.unique(owner[at] * size + gram, return_counts=True)
        yield _Grams(pairs // size, pairs % size, count, size)


class _Joined:
    """n-grams of candidates beside the same ones of the same clip's references."""

    def __init__(self, grams: _Grams, clip: np.ndarray, count: int) -> None:
        self.grams, self.clip, self.count = grams, clip, count
        key = clip[grams.caption] * grams.size + grams.gram
        self.mine = int(np.searchsorted(grams.caption, count))  # entries before are candidates', in order of key
        self.theirs = key[self.mine :]
        place = np.minimum(np.searchsorted(key[: self.mine], self.theirs), max(self.mine - 1, 0))
        hit = np.flatnonzero(key[place] == self.theirs) if self.mine else np.zeros(0, int)
        self.reference, self.candidate = self.mine + hit, place[hit]  # entries that belong to one another

    def matched(self) -> np.ndarray:
        """N-grams of each candidate that one of its references has, no more than as often as there. [N]"""
        count, most = self.grams.count, np.zeros(self.mine, np.int64)
        np.maximum.at(most, self.candidate, count[self.reference])
        clipped = np.minimum(count[: self.mine], most)
        return np.bincount(self.grams.caption[: self.mine], clipped, self.count)

    def cosine(self) -> np.ndarray:
        """Of TF-IDF vectors, the candidate's counts cut to the reference's; 0 for candidates themselves. [C]"""
        caption, gram, num = self.grams.caption, self.grams.gram, len(self.clip)
        clips_with = np.bincount(np.unique(self.theirs) % self.grams.size, minlength=self.grams.size)
        weight = self.grams.count * (np.log(self.count) - np.log(np.maximum(clips_with, 1)))[gram]
        norm = np.sqrt(np.bincount(caption, weight**2, num))
        theirs = weight[self.reference]
        product = np.bincount(caption[self.reference], np.minimum(weight[self.candidate], theirs) * theirs, num)
        scale = norm[self.clip] * norm
        return np.divide(product, scale, out=np.zeros(num), where=scale > 0)


def _bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 (Papineni et al., ACL 2002) of what `PerClip.bleu_counts` has. [..., 10] → [..., 4]"""
    matched, total, lengths = np.split(counts, [ORDERS, 2 * ORDERS], axis=-1)
    precision = matched / np.maximum(total, 1)
    brevity = np.exp(np.minimum(0, 1 - lengths[..., 1:] / np.maximum(lengths[..., :1], 1)))
    return np.asarray(brevity * np.cumprod(precision, -1) ** (1 / np.arange(1, ORDERS + 1)))


def _rouge_l(candidate: Sequence[int], references: Sequence[Sequence[int]]) -> float:
    """F of the longest common subsequence (Lin, ACL 2004), best precision and best recall among the references."""
    common = [_common(candidate, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(n / len(reference) for n, reference in zip(common, references, strict=True))
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence, a row of its table as the bits of one integer (Hyyrö 2004)."""
    places: dict[int, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    whole = row = (1 << len(a)) - 1
    for word in b:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & whole
    return len(a) - row.bit_count()


def compare(
    candidates: Path, references: Path, column: str | None = None, resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, Any], PerClip]:
    """Two tables of captions → the record of all figures and each clip's share.

    The record has what people reach among themselves where each clip has two references. Raises ValueError naming what
    a table lacks, or the clips that only one of them has.
    """
    made, real = read(candidates, column), read(references, column)
    if several := sorted(name for name, texts in made.items() if len(texts) > 1):
        raise ValueError(f"{candidates} has several captions of {folders.named(several)}; a candidate is one")
    ours = {name: texts[0] for name, texts in made.items()}
    figures = score(ours, real, resamples, seed)
    numbers = sorted(map(len, real.values()))
    if numbers[0] > 1:
        for name, among_people in agreement(real, resamples, seed).items():
            figures[name]["people"] = among_people["value"]
    record = {
        "protocol": {"words": WORD.pattern, "resamples": resamples, "seed": seed, "level": bootstrap.LEVEL},
        "clips": len(ours),
        "references": [numbers[0], numbers[-1]],  # fewest and most of a clip
        "candidates_sha256": file_sha256(candidates),
        "references_sha256": file_sha256(references),
        "figures": figures,
    }
    return record, per_clip(ours, real)


def read(path: Path, column: str | None = None) -> dict[str, list[str]]:
    """Captions by clip, of a CSV, JSONL or Parquet table whose rows have a clip and one caption or several.

    The clip is in `column`, or in the first of `NAMES` that is there; of paths, their name without folder and suffix.
    Captions are in `caption` (text or a list), `captions`, or `caption_1`, `caption_2`, …; several rows of a clip are
    several captions. Raises ValueError naming rows that lack one, and files that would be one clip.
    """
    if not path.is_file():
        raise ValueError(f"no table of captions at {path}; it is CSV, JSONL or Parquet with file (or id) and caption")
    found: dict[str, list[str]] = {}
    named: dict[str, str] = {}  # clip → what the table calls it
    lacking = []
    for number, row in enumerate(folders.table(path), 1):
        key = column or next((name for name in NAMES if name in row), None)
        if key is None or key not in row:
            has = ", ".join(str(name) for name in row)
            raise ValueError(f"{path} has no column {column or ' or '.join(NAMES)}; it has {has}: name it with --id")
        texts = [text for name, value in row.items() if CAPTION.fullmatch(name or "") for text in _texts(value)]
        called = str(row[key] or "").strip()
        if not texts or not called:
            lacking.append(f"row {number}" + (f" ({called})" if called else ""))
            continue
        clip = Path(called).stem if key in FILES else called
        if named.setdefault(clip, called) != called:
            raise ValueError(f"{path}: {named[clip]} and {called} have one name; clips are paired by it")
        found.setdefault(clip, []).extend(texts)
    if lacking:
        raise ValueError(f"{path}: {len(lacking)} rows without clip or caption: {folders.named(lacking)}")
    if not found:
        raise ValueError(f"{path} has no captions")
    return found


def _texts(value: Any) -> list[str]:
    return [str(text).strip() for text in (value if isinstance(value, list) else [value]) if str(text or "").strip()]


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The figures as text: name, value, interval, what people reach."""
    return [
        [
            name,
            f"{figure['value']:.4g}",
            f"{figure['low']:.4g} to {figure['high']:.4g}",
            f"{figure['people']:.4g}" if "people" in figure else "",
        ]
        for name, figure in record["figures"].items()
    ]


def csv_of(parts: PerClip) -> str:
    """Each clip's own scores as a table, for finding those that fail."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", *BLEUS, "rouge_l", "cider_d", "length"])
    columns = (*parts.bleu.T, parts.rouge_l, parts.cider_d)
    for name, *scores, length in zip(parts.ids, *columns, parts.length, strict=True):
        table.writerow([name, *(f"{score:.6g}" for score in scores), int(length)])
    return text.getvalue()
