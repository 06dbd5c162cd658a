"""Caption metrics: known answers by hand, what a metric must do, the public tool's own answers, what people reach."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siren.evaluate import captions
from siren.evaluate.captions import agreement, per_clip, read, score, words

FIGURES = [*captions.BLEUS, "rouge_l", "cider_d", "distinct_words", "mean_length"]


def value(name: str, candidates: dict[str, str], references: dict[str, list[str]]) -> float:
    return float(score(candidates, references, resamples=1)[name]["value"])


def test_words_are_lower_case_without_punctuation() -> None:
    expected = ["a", "dog's", "bark", "twice", "then", "a", "walkie-talkie"]
    assert words("A dog's bark, twice… then -- a walkie-talkie!") == expected
    assert words("It’s 3 o’clock\t(loud) Über_all") == ["it's", "3", "o'clock", "loud", "über", "all"]
    assert words("?!") == []


def test_bleu_by_hand() -> None:
    """a dog dog barks / "a dog barks loud", "the dog": of the two dogs one counts, 3 of 4 words are there; of a-dog,
    dog-dog, dog-barks two; of three words none ("a dog barks" has no dog between). Lengths are equal: no penalty."""
    found = per_clip({"x": "a dog dog barks"}, {"x": ["a dog barks loud", "the dog"]})
    assert found.bleu[0] == pytest.approx([3 / 4, math.sqrt(3 / 4 * 2 / 3), 0, 0])


def test_bleu_of_a_corpus_pools_counts_and_punishes_shortness() -> None:
    candidates = {"x": "a dog", "y": "rain falls on a roof"}
    references = {"x": ["a dog barks in rain"], "y": ["rain falls on the roof"]}
    # 2 + 4 of 2 + 5 words, 1 + 2 of 1 + 4 pairs; 7 words where there are 10
    short = math.exp(1 - 10 / 7)
    assert value("bleu_1", candidates, references) == pytest.approx(short * 6 / 7)
    assert value("bleu_2", candidates, references) == pytest.approx(short * math.sqrt(6 / 7 * 3 / 5))


def test_the_closest_reference_gives_the_length_the_shorter_of_two() -> None:
    found = per_clip({"x": "a b c d"}, {"x": ["a b c", "a b c d e", "a"]})
    assert found.bleu_counts[0, -2:].tolist() == [4, 3]


def test_rouge_l_by_hand() -> None:
    """The best precision and the best recall may be of different references: 3 of 4 words, and 2 of 2."""
    found = per_clip({"x": "a dog barks loudly"}, {"x": ["a big dog barks at night", "dog barks"]})
    precision, recall = 3 / 4, 1.0
    assert found.rouge_l[0] == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))


def test_cider_d_by_hand() -> None:
    """Two clips, one reference each. "a" is in both, so its weight is log 2/2 = 0; words of one clip weigh log 2.

    x: candidate "a dog", reference "a dog barks". One word: (0, l) and (0, l, l): cosine l·l / (l · l√2) = 1/√2. Two
    words: (a-dog) and (a-dog, dog-barks): 1/√2. Of three and four the candidate has none. 1 and 2 pairs: exp(-1/72).
    """
    candidates = {"x": "a dog", "y": "a cat"}
    references = {"x": ["a dog barks"], "y": ["a bird"]}
    found = per_clip(candidates, references)
    assert found.cider_d == pytest.approx([10 * math.exp(-1 / 72) * 2 / math.sqrt(2) / 4, 0])
    assert value("cider_d", candidates, references) == pytest.approx(found.cider_d.mean())


def test_repeating_a_word_does_not_pay_in_cider_d() -> None:
    """Counts are cut to the reference's: min(3 l, l) · l over norms 3 l and l is a third."""
    found = per_clip({"x": "dog dog dog", "y": "cat"}, {"x": ["dog"], "y": ["cat"]})
    assert found.cider_d == pytest.approx([10 / 3 * math.exp(-4 / 72) / 4, 10 / 4])


def test_several_references_are_averaged_and_count_once_as_a_document() -> None:
    one = per_clip({"x": "dog", "y": "cat"}, {"x": ["dog"], "y": ["cat"]}).cider_d
    two = per_clip({"x": "dog", "y": "cat"}, {"x": ["dog", "dog"], "y": ["cat", "bird"]}).cider_d
    assert two == pytest.approx(one * [1, 0.5])


def test_the_words_of_all_candidates_are_counted_once() -> None:
    candidates = {"x": "a dog barks", "y": "a cat"}
    references = {name: ["something"] for name in candidates}
    assert value("distinct_words", candidates, references) == 4
    assert value("mean_length", candidates, references) == 2.5


def test_a_candidate_without_a_word_scores_nothing_and_counts() -> None:
    found = score({"x": "...", "y": "a dog barks now"}, {"x": ["a cat"], "y": ["a dog barks now"]}, resamples=10)
    assert (found["mean_length"]["value"], found["rouge_l"]["value"]) == (2, 0.5)
    assert found["cider_d"]["value"] == pytest.approx(5)
    assert score({"x": ""}, {"x": ["a cat"]}, resamples=10)["cider_d"]["value"] == 0


VOCABULARY = ["a", "dog", "cat", "barks", "rain", "falls", "on", "the", "roof", "then"]
TEXTS = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=9).map(" ".join)
CORPORA = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=4)), min_size=2, max_size=8)


@given(corpus=CORPORA)
@settings(deadline=None, max_examples=100)
def test_scores_keep_to_their_scale_and_do_not_know_the_order_of_references(corpus: Any) -> None:
    candidates = {str(i): text for i, (text, _) in enumerate(corpus)}
    references = {str(i): texts for i, (_, texts) in enumerate(corpus)}
    found = per_clip(candidates, references)
    assert np.all((found.bleu >= 0) & (found.bleu <= 1 + 1e-12))
    assert np.all((found.rouge_l >= 0) & (found.rouge_l <= 1 + 1e-12))
    assert np.all((found.cider_d >= 0) & (found.cider_d <= 10 + 1e-9))
    other = per_clip(candidates, {name: texts[::-1] for name, texts in reversed(references.items())})
    for name in ("bleu_counts", "rouge_l", "cider_d"):
        assert getattr(other, name) == pytest.approx(getattr(found, name), rel=1e-12)


@given(corpus=CORPORA)
@settings(deadline=None, max_examples=50)
def test_a_reference_itself_scores_best(corpus: Any) -> None:
    references = {str(i): texts[:1] for i, (_, texts) in enumerate(corpus)}
    same = per_clip({name: texts[0] for name, texts in references.items()}, references)
    assert same.bleu[:, 0] == pytest.approx(np.ones(len(corpus)))
    assert same.rouge_l == pytest.approx(np.ones(len(corpus)))
    other = per_clip({str(i): text for i, (text, _) in enumerate(corpus)}, references)
    assert np.all(other.cider_d <= same.cider_d + 1e-9)


@given(a=st.lists(st.integers(0, 4), max_size=80), b=st.lists(st.integers(0, 4), max_size=80))
@settings(deadline=None, max_examples=100)
def test_the_common_subsequence_is_the_textbook_s(a: list[int], b: list[int]) -> None:
    row = [0] * (len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[-1]))
    assert captions._common(a, b) == row[-1]


def test_intervals_hold_the_value_and_are_repeated_by_their_seed() -> None:
    generator = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(30)]
    texts = [" ".join(generator.choice(vocabulary, 8)) for _ in range(120)]
    candidates = {str(i): texts[i] for i in range(40)}
    references = {str(i): [texts[40 + i], texts[80 + i], f"more {texts[i][:16]} more"] for i in range(40)}
    first, again, other = (score(candidates, references, 200, seed) for seed in (3, 3, 4))
    assert list(first) == FIGURES
    assert first == again != other
    for figure in first.values():
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["count"] == 40
    assert first["bleu_4"]["low"] < first["bleu_4"]["high"]


def test_missing_clips_are_named() -> None:
    with pytest.raises(ValueError, match=r"2 clips have no reference: 'b', 'c'"):
        score({"a": "x", "b": "x", "c": "x"}, {"a": ["x"], "c": []})
    with pytest.raises(ValueError, match=r"1 clips have no candidate: 'b'"):
        score({"a": "x"}, {"a": ["x"], "b": ["x"]})
    with pytest.raises(ValueError, match="there are no clips to score"):
        score({}, {})
    with pytest.raises(ValueError, match=r"1 references have no word, among them one of 'a'"):
        score({"a": "x"}, {"a": ["x", "?!"]})
    with pytest.raises(ValueError, match="1 clips have a single caption: 'b'"):
        agreement({"a": ["x", "y"], "b": ["x"]})


def test_agreement_is_the_mean_over_whose_caption_is_the_candidate() -> None:
    references = {"x": ["a dog barks", "a dog", "dog barks loud"], "y": ["rain falls", "rain", "it rains"]}
    found = agreement(references, 20)
    parts = [
        per_clip({n: t[k] for n, t in references.items()}, {n: t[:k] + t[k + 1 :] for n, t in references.items()})
        for k in range(3)
    ]
    assert found["cider_d"]["value"] == pytest.approx(np.mean([part.cider_d for part in parts]))
    assert found["mean_length"]["value"] == pytest.approx((3 + 2 + 3 + 2 + 1 + 2) / 6)
    assert found["distinct_words"]["value"] == pytest.approx((5 + 3 + 5) / 3)


# Tables


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_tables_of_every_kind_and_layout(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"file": "in/x.wav", "caption": "A"},
        {"file": "in/x.wav", "caption": "B"},
        {"file": "y.wav", "caption": "C"},
    ]
    assert read(table(tmp_path / f"rows{suffix}", rows)) == {"x": ["A", "B"], "y": ["C"]}
    clotho = [{"file_name": "x.y.wav", "caption_1": "A", "caption_2": "B"}]
    assert read(table(tmp_path / f"clotho{suffix}", clotho)) == {"x.y": ["A", "B"]}
    assert read(table(tmp_path / f"ids{suffix}", [{"id": "v1.0", "caption": "A"}])) == {"v1.0": ["A"]}
    assert read(table(tmp_path / f"own{suffix}", [{"clip": 7, "caption": "A"}]), "clip") == {"7": ["A"]}
    if suffix != ".csv":
        assert read(table(tmp_path / f"lists{suffix}", [{"id": "x", "captions": ["A", "B"]}])) == {"x": ["A", "B"]}


def test_what_is_wrong_with_a_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no table of captions at"):
        read(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"no column file or id .*; it has clip, caption: name it with --id"):
        read(table(tmp_path / "a.csv", [{"clip": "x", "caption": "A"}]))
    with pytest.raises(ValueError, match=r"2 rows without clip or caption: 'row 1 \(x\)', 'row 2'"):
        read(table(tmp_path / "b.csv", [{"id": "x", "caption": " "}, {"id": "", "caption": "A"}]))
    with pytest.raises(ValueError, match=r"in/x.wav and out/x.wav have one name"):
        read(table(tmp_path / "c.csv", [{"file": "in/x.wav", "caption": "A"}, {"file": "out/x.wav", "caption": "A"}]))
    twice = table(tmp_path / "d.csv", [{"id": "x", "caption": "A"}, {"id": "x", "caption": "B"}])
    with pytest.raises(ValueError, match="several captions of 'x'; a candidate is one"):
        captions.compare(twice, twice)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from siren.cli import measuring

    made = table(tmp_path / "made.csv", [{"file": "x.wav", "caption": "A dog."}, {"file": "y.wav", "caption": "Rain"}])
    people = [{"id": "x", "captions": ["A dog barks", "Dog"]}, {"id": "y", "captions": ["Rain falls", "Rain"]}]
    references = table(tmp_path / "people.jsonl", people)
    measuring.captions(made, references, out=tmp_path / "out/record.json", clips=tmp_path / "clips.csv", resamples=20)
    said = capsys.readouterr()
    assert "cider_d" in said.out
    assert "2 clips with 2 references" in said.err
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert list(record["figures"]) == FIGURES
    expected = score({"x": "A dog.", "y": "Rain"}, {row["id"]: row["captions"] for row in people}, 20)  # type: ignore[misc]
    assert {k: v for k, v in record["figures"]["rouge_l"].items() if k != "people"} == expected["rouge_l"]
    assert record["figures"]["rouge_l"]["people"] > 0
    assert [line.split(",")[0] for line in (tmp_path / "clips.csv").read_text().splitlines()] == ["id", "x", "y"]


# People's captions, and the public tool's answers


def drawn(seed: int, clips: int = 40) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Texts with some sense of likeness: references are a candidate with words left out, put in and exchanged."""
    generator = np.random.default_rng(seed)
    vocabulary = np.array([f"word{i}" for i in range(60)])
    chances = 1 / np.arange(1, 61) / np.sum(1 / np.arange(1, 61))

    def changed(text: list[str]) -> str:
        kept = [word for word in text if generator.random() < 0.8]
        more = generator.choice(vocabulary, int(generator.integers(0, 4)), p=chances).tolist()
        return " ".join([*kept, *more]) or "word0"

    texts = [generator.choice(vocabulary, int(generator.integers(4, 15)), p=chances).tolist() for _ in range(clips)]
    candidates = {f"c{i:02d}": " ".join(text) for i, text in enumerate(texts)}
    references = {
        f"c{i:02d}": [changed(text) for _ in range(int(generator.integers(1, 6)))] for i, text in enumerate(texts)
    }
    return candidates, references


def of_the_tool(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, tuple[float, list[float]]]:
    """(of the corpus, of each clip) by the COCO caption tool, whose own tokenizer is Java and left out."""
    pytest.importorskip("pycocoevalcap", reason="pip install --no-deps pycocoevalcap (104 MB) to compare with it")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    made = {name: [" ".join(words(candidates[name]))] for name in sorted(candidates)}
    real = {name: [" ".join(words(text)) for text in references[name]] for name in sorted(candidates)}
    bleu, each = Bleu(4).compute_score(real, made, verbose=0)
    found = {name: (bleu[k], list(each[k])) for k, name in enumerate(captions.BLEUS)}
    for name, metric in (("rouge_l", Rouge()), ("cider_d", Cider())):
        whole, parts = metric.compute_score(real, made)
        found[name] = (float(whole), [float(part) for part in parts])
    return found


def assert_as_the_tool(
    candidates: dict[str, str], references: dict[str, list[str]], theirs: dict[str, tuple[float, list[float]]]
) -> None:
    """Equal but for the tool's guards against zero: 1e-9 beside every count, and 1e-15 in the place of no match."""
    ours, parts = score(candidates, references, resamples=1), per_clip(candidates, references)
    for name, (whole, _) in theirs.items():
        assert ours[name]["value"] == pytest.approx(whole, rel=1e-7, abs=1e-12), name
    assert parts.rouge_l == pytest.approx(np.array(theirs["rouge_l"][1]), rel=1e-12)
    assert parts.cider_d == pytest.approx(np.array(theirs["cider_d"][1]), rel=1e-9, abs=1e-12)
    each = np.array([theirs[name][1] for name in captions.BLEUS]).T
    matched = np.cumprod(parts.bleu_counts[:, :4], axis=1) > 0
    assert parts.bleu[matched] == pytest.approx(each[matched], rel=1e-7)
    assert not np.any(parts.bleu[~matched])
    assert matched.mean() > 0.3


GOLDEN = Path(__file__).parents[1] / "golden/captions.json"  # made by `of_the_tool`, pycocoevalcap 1.2


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_that_the_coco_tool_gave(seed: int) -> None:
    assert_as_the_tool(*drawn(seed), json.loads(GOLDEN.read_text())[str(seed)])


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_the_coco_tool(seed: int) -> None:
    theirs = of_the_tool(*drawn(seed))
    assert_as_the_tool(*drawn(seed), theirs)
    golden = json.loads(GOLDEN.read_text()).get(str(seed), theirs)
    for name, (whole, parts) in theirs.items():
        assert golden[name][0] == pytest.approx(whole, rel=1e-12)
        assert golden[name][1] == pytest.approx(parts, rel=1e-12)


def people_s(folder: Path) -> dict[str, dict[str, list[str]]]:
    lists = {"clotho": "clotho_captions_evaluation.csv", "audiocaps": "audiocaps_test.csv"}
    return {name: read(folder / "captions" / file) for name, file in lists.items()}


@pytest.mark.real
def test_people_agree_as_much_as_they_did(shared: Path) -> None:
    """CIDEr-D of each person's caption against the other four, and of another clip's caption, which is near nothing."""
    expected = {"clotho": (1045, 0.9057), "audiocaps": (975, 0.9075)}
    for name, references in people_s(shared).items():
        clips, cider = expected[name]
        assert (len(references), {len(texts) for texts in references.values()}) == (clips, {5})
        among = agreement(references, resamples=10)
        assert among["cider_d"]["value"] == pytest.approx(cider, abs=0.001)
        names = list(references)
        strangers = {name: references[other][0] for name, other in zip(names, names[1:] + names[:1], strict=True)}
        assert value("cider_d", strangers, references) < 0.1 * cider


@pytest.mark.real
@pytest.mark.parametrize("name", ["clotho", "audiocaps"])
def test_figures_of_people_s_captions_are_those_of_the_coco_tool(shared: Path, name: str) -> None:
    references = people_s(shared)[name]
    candidates = {clip: texts[0] for clip, texts in references.items()}
    others = {clip: texts[1:] for clip, texts in references.items()}
    assert_as_the_tool(candidates, others, of_the_tool(candidates, others))
