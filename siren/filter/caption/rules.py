"""Refinement of captions by small named rules (paper, appendix A): what is removed, and what is brought to one form.

A rule is a function `caption -> caption or None`; None removes the candidate. All hold for what a language model wrote
(`RULES`, in this order). What people wrote and what templates made is kept as it is but for the rules of `LIGHT`:
nobody opens a caption with "the audio contains", and a person may well describe a sound in one word.

Unusual: a rule is a fixed point of itself, so refining twice is refining once, and each is held against the captions of
AudioCaps and Clotho, of which it must take away next to nothing (`tests/filter/test_rules.py`).
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Rule = Callable[[str], str | None]

MAX_WORDS = 60  # CLAP reads 77 tokens
MIN_WORDS = 2


@dataclass(frozen=True)
class Step:
    """What one rule made of a caption; None where it removed it."""

    rule: str
    text: str | None


def refine(text: str, rules: Mapping[str, Rule]) -> tuple[str | None, list[Step]]:
    """The caption after all rules in order, until none does anything, and the steps of those that did something.

    The caption is None where a rule removed it.
    """
    steps: list[Step] = []
    while True:
        before = text
        for name, rule in rules.items():
            changed = rule(text)
            if changed != text:
                steps.append(Step(name, changed))
            if changed is None:
                return None, steps
            text = changed
        if text == before:
            return text, steps


def whitespace(text: str) -> str:
    """One space between words; compatibility forms of characters (full width, ligatures) made ordinary."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


MARKUP = re.compile(r"[*_`#]{1,3}(?=\S)|(?<=\S)[*_`#]{1,3}|^\s*(?:[-•*]|\d+[.)])\s+|<\|[^|>]*\|>|</?[a-z]+>")
QUOTES = "\"'“”‘’«»"


def markup(text: str) -> str:
    """No Markdown, list marks, control tokens or quotation marks around the whole."""
    while (bare := _unquoted(whitespace(MARKUP.sub(" ", text)))) != text:
        text = bare
    return text


def _unquoted(text: str) -> str:
    whole = len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES and not any(q in text[1:-1] for q in '"“”«»')
    return text[1:-1].strip() if whole else text


# What a model says about itself or its task instead of the sound.
REFUSAL = re.compile(
    r"""\b(?:
      as\ an?\ (?:ai|language\ model|large\ language|assistant) | (?:i'?\ ?a?m|we\ are)\ (?:sorry|unable|not\ able)
    | i\ (?:can ?not|can'?t|could\ not|couldn'?t|do\ not|don'?t|am\ unable|apologi[sz]e)
    | (?:unable|impossible|not\ possible)\ to\ (?:describe|determine|provide|identify|analy[sz]e|hear|process|tell)
    | (?:please|could\ you|can\ you)\ (?:provide|upload|share|send|give|attach)
    | no\ (?:audio|sound|recording)\ (?:file\ )?(?:was\ |is\ |has\ been\ )?(?:provided|attached|given|available)
    | (?:the\ )?audio\ (?:file\ )?(?:is|was)\ (?:not\ (?:provided|available|accessible)|unavailable|missing)
    | let\ me\ know | feel\ free | happy\ to\ help | how\ can\ i\ (?:help|assist)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def refusal(text: str) -> str | None:
    """Remove apologies, refusals and talk about the task."""
    return None if REFUSAL.search(text.replace("’", "'")) else text


SPEECH = (
    re.compile(
        r"""\b(says?|saying|said|asks?|asking|shouts?|replies|whispers?)\b[^"“«.]{0,40}[:,]?\s*["“«]\s*\w""", re.I
    ),
    re.compile(r"""\b(says?|saying|said|asks?|shouts?)\b\s*[:,]?\s*['‘]\s*\w""", re.I),
    re.compile(r"\b(says?|saying|said|asks?|states?|replies|goes)\s*:\s*\w", re.I),
    re.compile(r"\b(?:transcript(?:ion)?|lyrics|subtitles?)\b\s*(?:is|are|reads?|says?)?\s*[:\"“]", re.I),
    re.compile(r"\b(?:speech|spoken content|words?|voice|dialogue)\s+(?:is|are|says?|reads?|goes)\s*[:\"“']", re.I),
)


def transcribed_speech(text: str) -> str | None:
    """Remove captions that quote what is said: they describe words, not sounds."""
    return None if any(pattern.search(text) for pattern in SPEECH) else text


NON_DESCRIPTIVE = {
    *("audio", "sound", "sounds", "noise", "recording", "clip", "untitled", "unknown", "none", "null", "nan", "n a"),
    *("test", "todo", "caption", "no caption", "no description", "description", "audio clip", "sound effect"),
}
FILE_OR_LINK = re.compile(r"https?://|www\.|\.(wav|flac|mp3|ogg|m4a|aiff?)$", re.IGNORECASE)


def non_descriptive(text: str) -> str | None:
    """Remove what says nothing about the sound: no letters, a bare "audio clip", a file name, a link."""
    words = " ".join(re.findall(r"[^\W\d_]+", text)).lower()
    return None if not words or words in NON_DESCRIPTIVE or FILE_OR_LINK.search(text) else text


# Words that carry no meaning of their own and are no English words: two different ones tell the language.
FOREIGN = {
    "Spanish": "el los las una del y que con por para como está esta se su sonido ruido suena mientras",
    "French": "le les des du une est et dans avec sur pour qui que il elle au aux bruit sont pendant",
    "German": "der das und ein eine einer einem ist mit auf von zu den dem nicht wird geräusch während im",
    "Italian": "il gli una di che con per della dei nel nella è suono rumore mentre sono",
    "Portuguese": "os uma do da dos das e com por para que não está som ruído enquanto em",
    "Dutch": "het een en van met op dat is niet geluid wordt terwijl zijn",
}
ENGLISH = {
    *("the", "a", "an", "and", "of", "is", "are", "in", "on", "with", "to", "while", "then", "as", "by", "from"),
    *("for", "it", "at", "into", "over", "some", "being"),
}
FOREIGN_WORDS = {language: set(words.split()) - ENGLISH for language, words in FOREIGN.items()}


def non_english(text: str) -> str | None:
    """Remove captions most of whose letters are not Latin, or whose small words are those of another language."""
    letters = [letter for letter in text if letter.isalpha()]
    latin = sum("LATIN" in unicodedata.name(letter, "") for letter in letters)
    if latin < 0.5 * len(letters):
        return None
    words = re.findall(r"[^\W\d_]+", text.lower())
    english = sum(word in ENGLISH for word in words)
    foreign = max(len(known.intersection(words)) for known in FOREIGN_WORDS.values())
    return None if foreign >= 2 and foreign > english else text


SENTENCE = re.compile(r"(?<=[.!?])\s+")


def too_long(text: str) -> str | None:
    """The first sentences that fit into `MAX_WORDS` words; removed where the first alone is longer."""
    kept: list[str] = []
    for sentence in SENTENCE.split(text):
        if len(" ".join([*kept, sentence]).split()) > MAX_WORDS:
            break
        kept.append(sentence)
    return " ".join(kept) or None


REPEATED = re.compile(r"\b(\w+(?:\W+\w+){0,11}?)(?:\W+\1\b){3,}", re.IGNORECASE)


def repetition(text: str) -> str | None:
    """Remove captions that say the same words four times in a row: a model that is caught in a loop."""
    return None if REPEATED.search(text) else text


SOUND = r"(?:audio|sound|clip|recording|track|segment|file|soundscape|audio\s+(?:clip|recording|file|track|segment))"
HEARD = (
    r"(?:contains?|features?|includes?|has|consists?\s+of|captures?|presents?|depicts?|describes?|records?|starts?\s+with"
    r"|begins?\s+with|is(?:\s+(?:of|that\s+of))?|shows?|comprises?|opens?\s+with)"
)
OPENINGS = re.compile(
    rf"""^(?:
      (?:sure|certainly|of\s+course|okay|ok)\s*[!,.:]\s*
    | (?:here(?:'s|\s+is)|this\s+is)\s+(?:a|the|an|your)\s+(?:\w+\s+){{0,2}}?
      (?:description|caption)(?:\s+of\s+[^:]*)?\s*:\s*
    | (?:caption|description|answer|output|audio\s+description|refined\s+caption)\s*:\s*
    | in\s+(?:the|this)\s+{SOUND}\s*,\s*
    | (?:the|this|that)\s+{SOUND}\s+{HEARD}\s+(?:(?:of|by)\s+)?
    | (?:this|it)\s+is\s+(?:a|an|the)\s+(?:(?:audio|sound)\s+)?(?:recording|clip|sound|audio)\s+of\s+
    | (?:we|you|i|one)\s+(?:can\s+|could\s+)?(?:also\s+)?hear\s+
    | there\s+(?:is|are)\s+
    | (?:the|a)\s+sounds?\s+of\s+(?!.*\b(?:is|are|can|comes?|fills?)\b)
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def opening(text: str) -> str:
    """No "the audio contains", "we can hear", "the sound of": captions begin with what sounds.

    An opening with nothing behind it is left for `non_descriptive`.
    """
    while (rest := OPENINGS.sub("", text, count=1).strip()) not in ("", text):
        text = rest
    return text


# Sounds that have one usual maker; named where nobody who could have made them is (the paper's example: "barking").
MAKERS = {
    "barking": ("dog bark", "dog puppy hound canine seal fox terrier retriever coyote wolf"),
    "meowing": ("cat meow", "cat kitten feline"),
    "mooing": ("cow moo", "cow cattle calf bull bovine"),
    "neighing": ("horse neigh", "horse pony mare stallion foal donkey"),
    "quacking": ("duck quack", "duck drake waterfowl bird goose geese"),
    "oinking": ("pig oink", "pig hog swine piglet boar"),
    "bleating": ("sheep bleat", "sheep goat lamb"),
    "low-pitched rumble": (
        "engine noise",
        "engine motor thunder storm train truck car earthquake plane aircraft vehicle stomach volcano machine wind",
    ),
}
# After these the word is a verb or belongs to somebody: "is barking", "an animal barking", "its barking".
NOT_A_NOUN = r"(?:is|are|was|were|be|been|starts?|begins?|keeps?|stops?|continues?|heard|something|animals?|its|their)"
TERMS = [
    (
        name,
        re.compile(rf"(?<!-)\b(?P<before>{NOT_A_NOUN}\s+)?{name}\b(?!-)(?:\s+(?:sounds?|noises?))?", re.IGNORECASE),
        standard,
        re.compile(rf"\b(?:{'|'.join(makers.split())})(?:s|es)?\b", re.IGNORECASE),
    )
    for name, (standard, makers) in MAKERS.items()
]
SPELLING = [
    (re.compile(pattern, re.IGNORECASE), standard)
    for pattern, standard in {
        r"\b(?:bg|back-ground|back\s+ground)\b": "background",
        r"\b(?:sfx|fx)\b": "sound effect",
        r"\bbackground\s+noises?\s+in\s+the\s+background\b": "background noise",
        r"\bbird\s+song\b": "birdsong",
        r"\b(?:foot\s+steps|foot-steps)\b": "footsteps",
    }.items()
]


def acoustic_terms(text: str) -> str:
    """One word for one sound: "loud barking" → "loud dog bark", "low-pitched rumble" → "engine noise"."""
    for pattern, standard in SPELLING:
        text = pattern.sub(standard, text)
    lower = text.lower()
    for name, pattern, standard, makers in TERMS:
        if name in lower and not makers.search(text):
            text = pattern.sub(functools.partial(_standard, standard), text)
            text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text) if standard[0] in "aeiou" else text
    return text


def _standard(word: str, match: re.Match[str]) -> str:
    return match[0] if match["before"] else word


def final_stop(text: str) -> str:
    """No full stop, comma or semicolon at the end."""
    return text.rstrip(" .,;。")


def too_short(text: str) -> str | None:
    """Remove answers of one word. Two are fine: AudioCaps has "continuous rainfall"."""
    return text if len(re.findall(r"\w+", text)) >= MIN_WORDS else None


def lower_case(text: str) -> str:
    """Small letters."""
    return text.lower()


RULES: dict[str, Rule] = {
    "whitespace": whitespace,
    "markup": markup,
    "refusal": refusal,
    "opening": opening,
    "too_long": too_long,
    "repetition": repetition,
    "final_stop": final_stop,
    "non_descriptive": non_descriptive,
    "transcribed_speech": transcribed_speech,
    "non_english": non_english,
    "acoustic_terms": acoustic_terms,
    "too_short": too_short,
    "lower_case": lower_case,
}
LIGHT = {
    name: RULES[name]
    for name in ("whitespace", "final_stop", "non_descriptive", "transcribed_speech", "non_english", "lower_case")
}
