"""Rules of refinement: each does what its name says and nothing else, and good captions of people pass untouched."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren.filter.caption.rules import LIGHT, MAX_WORDS, RULES, refine

LONG = " ".join(["rain"] + ["falls"] * MAX_WORDS)
EXAMPLES = [  # rule, before, after (None: removed)
    ("whitespace", " a dog\n  barks\t", "a dog barks"),
    ("whitespace", "ｒａｉｎ ﬁlls", "rain fills"),
    ("markup", "**A dog** barks", "A dog barks"),
    ("markup", "- a dog barks", "a dog barks"),
    ("markup", "1. a dog barks", "a dog barks"),
    ("markup", '"A dog barks."', "A dog barks."),
    ("markup", "a dog barks<|im_end|>", "a dog barks"),
    ("markup", "a low-pitched hum at 2.5 kHz", "a low-pitched hum at 2.5 kHz"),
    ("markup", 'a "beep" and a "boop"', 'a "beep" and a "boop"'),
    ("refusal", "I'm sorry, but I can't help with that", None),
    ("refusal", "As an AI language model, I have no ears", None),
    ("refusal", "Please provide the audio you would like described", None),
    ("refusal", "It is impossible to determine the source", None),
    ("refusal", "a man apologizes while a door closes", "a man apologizes while a door closes"),
    ("refusal", "someone is unable to start an engine", "someone is unable to start an engine"),
    ("opening", "The audio contains a dog barking", "a dog barking"),
    ("opening", "This audio clip features the sound of rain on a roof", "rain on a roof"),
    ("opening", "In this recording, we can hear birds chirping", "birds chirping"),
    ("opening", "Sure! Here is a description of the audio: There is a car passing", "a car passing"),
    ("opening", "This is a recording of a busy street", "a busy street"),
    ("opening", "Caption: wind blows", "wind blows"),
    ("opening", "The sound of rain is heard on a roof", "The sound of rain is heard on a roof"),
    ("opening", "The sound gets louder", "The sound gets louder"),
    ("opening", "The audio contains", "The audio contains"),
    ("too_long", f"A dog barks. {LONG}.", "A dog barks."),
    ("too_long", LONG, None),
    ("too_long", "A dog barks. Rain falls.", "A dog barks. Rain falls."),
    ("repetition", "a dog barks, a dog barks, a dog barks, a dog barks", None),
    ("repetition", "tick tock tick tock and a bell", "tick tock tick tock and a bell"),
    ("repetition", "a bell rings again and again", "a bell rings again and again"),
    ("final_stop", "A dog barks.", "A dog barks"),
    ("final_stop", "A dog barks ...", "A dog barks"),
    ("final_stop", "a tone of 2.5 kHz", "a tone of 2.5 kHz"),
    ("non_descriptive", "...", None),
    ("non_descriptive", "Audio clip", None),
    ("non_descriptive", "N/A", None),
    ("non_descriptive", "none", None),
    ("non_descriptive", "recording_0012.WAV", None),
    ("non_descriptive", "see https://example.org", None),
    ("non_descriptive", "the sound of rain", "the sound of rain"),
    ("transcribed_speech", 'a man says "good morning"', None),
    ("transcribed_speech", "a man says 'good morning' calmly", None),
    ("transcribed_speech", "A woman is speaking, saying in a calm voice: “let us go”", None),
    ("transcribed_speech", "Transcription: good morning everyone", None),
    ("transcribed_speech", 'the speech is: "good morning"', None),
    ("transcribed_speech", "a man says something far away", "a man says something far away"),
    ("transcribed_speech", "a man speaks; the crowd's laughter follows", "a man speaks; the crowd's laughter follows"),
    ("transcribed_speech", "people are talking, and a radio says: nothing", None),
    ("non_english", "собака лает", None),
    ("non_english", "犬が吠える", None),
    ("non_english", "el sonido de un perro que ladra", None),
    ("non_english", "le bruit de la pluie sur une fenêtre", None),
    ("non_english", "ein Hund bellt und das Wasser fließt", None),
    ("non_english", "a café with music", "a café with music"),
    ("non_english", "a man on a loudspeaker in a plaza de toros", "a man on a loudspeaker in a plaza de toros"),
    ("non_english", "440 hz 1/2", "440 hz 1/2"),
    ("acoustic_terms", "loud barking", "loud dog bark"),
    ("acoustic_terms", "a low-pitched rumble", "an engine noise"),
    ("acoustic_terms", "a low-pitched rumble of thunder", "a low-pitched rumble of thunder"),
    ("acoustic_terms", "a dog is barking", "a dog is barking"),
    ("acoustic_terms", "an animal is barking", "an animal is barking"),
    ("acoustic_terms", "foot steps and bg noise", "footsteps and background noise"),
    ("too_short", "Rain", None),
    ("too_short", "Continuous rainfall", "Continuous rainfall"),
    ("lower_case", "A Dog barks", "a dog barks"),
]


@pytest.mark.parametrize(("rule", "before", "after"), EXAMPLES)
def test_each_rule(rule: str, before: str, after: str | None) -> None:
    assert RULES[rule](before) == after


def test_every_rule_has_an_example_that_it_changes_and_one_that_it_leaves() -> None:
    changing = {rule for rule, before, after in EXAMPLES if before != after}
    leaving = {rule for rule, before, after in EXAMPLES if before == after}
    assert changing == set(RULES)
    assert leaving >= set(RULES) - {"whitespace", "lower_case"}  # which change nothing but spaces and letters


PIECES = """the audio contains a dog barking. Rain, the sound of is low-pitched rumble 'says' "hello" we can hear
** - 1. sure! caption: there el que bg noise in background noises wet ... . ; und das"""
WORDS = st.lists(st.sampled_from(PIECES.split()), max_size=25).map(" ".join)
TEXTS = st.one_of(st.text(max_size=40), WORDS)


@given(TEXTS)
def test_every_rule_is_a_fixed_point_of_itself(text: str) -> None:
    for rule in RULES.values():
        once = rule(text)
        assert once is None or rule(once) == once


@given(TEXTS, st.sampled_from([LIGHT, RULES]))
def test_refining_never_gives_an_empty_caption_and_twice_is_once(text: str, rules: dict) -> None:
    refined, steps = refine(text, rules)
    assert {step.rule for step in steps} <= set(rules)
    if refined is not None:
        assert refined.strip() == refined != ""
        assert refine(refined, rules) == (refined, [])
    assert (steps[-1].text if steps else text) == refined


def test_what_a_model_says_becomes_a_caption() -> None:
    said = "**Description:** In this audio, we can hear the sound of a dog barking loudly.\nIt stops after a moment."
    refined, steps = refine(said, RULES)
    assert refined == "a dog barking loudly. it stops after a moment"
    assert [step.rule for step in steps] == ["whitespace", "markup", "opening", "final_stop", "lower_case"]


def human_captions(folder: Path) -> list[str]:
    """All captions of the AudioCaps and Clotho lists."""
    texts = []
    for path in [*sorted(folder.glob("audiocaps_*.csv")), *sorted(folder.glob("clotho_*.csv"))]:
        with path.open(newline="", encoding="utf-8") as file:
            texts += [
                value for row in csv.DictReader(file) for name, value in row.items() if name.startswith("caption")
            ]
    return texts


@pytest.mark.slow
@pytest.mark.real
def test_people_s_captions_pass(shared: Path) -> None:
    """Of 36,995 captions none is removed, neither by the rules for people's nor by all of them."""
    texts = human_captions(shared / "captions")
    assert len(texts) > 30_000
    for rules in (LIGHT, RULES):
        assert not Counter(steps[-1].rule for text in texts for out, steps in [refine(text, rules)] if out is None)
