"""The tokeniser of the text towers: byte-level BPE, trained on the corpus's captions or taken from a published model.

It lies beside the weights as `tokenizer.json` (the format of the `tokenizers` library). What is unusual: an empty
tokeniser is an error. Offline, transformers gives back one that knows five special tokens and nothing else instead of
failing, and a text encoder then reads every caption as the same unknown word.

Byte level, so that no word is unknown: one that was never seen falls into pieces that were. Special tokens have
RoBERTa's ids. Shapes: B captions · L text length.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from siren.shapes import Bool, Int

FILE = "tokenizer.json"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0, 1, 2, 3
MARKS = SPECIALS[:3]  # beginning, padding, end: RoBERTa's
MIN_VOCABULARY = 64  # far below the 256 bytes that any byte-level vocabulary holds


class Tokenizer:
    """`<s> caption </s>`, padded on the right. Raises ValueError where the vocabulary is (nearly) empty."""

    def __init__(self, data: str, marks: tuple[str, str, str] = MARKS) -> None:
        import tokenizers

        self.data = data  # the JSON: what is saved, and what fingerprints are made of
        self._backend: Any = tokenizers.Tokenizer.from_str(data)
        self._backend.no_padding()
        self._backend.no_truncation()
        self.vocab_size: int = self._backend.get_vocab_size()
        if self.vocab_size < MIN_VOCABULARY:
            raise ValueError(
                f"the tokeniser is empty: {self.vocab_size} tokens, all of them special. A published one was probably "
                "asked for while offline (set HF_HUB_OFFLINE=0 once, or copy its tokenizer.json beside the weights)"
            )
        self.bos_id, self.pad_id, self.eos_id = (self._special(token) for token in marks)

    def _special(self, token: str) -> int:
        index = self._backend.token_to_id(token)
        if index is None:
            raise ValueError(f"the tokeniser lacks {token}: it is not the one that this text encoder was trained with")
        return int(index)

    def __call__(
        self, captions: list[str], max_length: int
    ) -> tuple[Int[torch.Tensor, "B L"], Bool[torch.Tensor, "B L"]]:
        """Ids (int64) and which of them are not padding. L is the longest caption's, at most `max_length`.

        A longer caption is cut and still ends in `</s>`, as the published models do at 77 tokens.
        """
        if isinstance(captions, str) or not captions:
            raise ValueError(f"captions must be a list of at least one string, not {captions!r}")
        rows = [encoding.ids for encoding in self._backend.encode_batch(list(captions))]
        rows = [row if len(row) <= max_length else [*row[: max_length - 1], self.eos_id] for row in rows]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(length) < lengths[:, None]

    def ids(self, text: str) -> list[int]:
        """A text's tokens without beginning and end; none for a text that is nothing but what is normalised away."""
        found: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, up to the first end; other special tokens say nothing."""
        kept = list(ids)
        kept = kept[: kept.index(self.eos_id)] if self.eos_id in kept else kept
        text: str = self._backend.decode(kept, skip_special_tokens=True)
        return text.strip()

    def save(self, folder: str | Path) -> None:
        (Path(folder) / FILE).write_text(self.data)

    @classmethod
    def load(cls, folder: str | Path, marks: tuple[str, str, str] = MARKS) -> "Tokenizer":
        """The tokeniser of a saved network. Raises ValueError where it is missing or empty."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing; a text encoder cannot be used without its tokeniser: copy it too")
        return cls(path.read_text(), marks)

    @classmethod
    def published(cls, name: str, marks: tuple[str, str, str] = MARKS) -> "Tokenizer":
        """The tokeniser of a model by hub name or folder (not run here: it needs a network or a copy)."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(name).backend_tokenizer.to_str(), marks)


def train(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokeniser of at most `vocab_size` tokens. The same captions in any order give the same one.

    Captions are lower-cased and their punctuation is dropped: "A dog barks." and "a dog barks" are one caption.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    if vocab_size < 256 + len(SPECIALS):
        raise ValueError(f"vocab_size is {vocab_size}; the bytes and special tokens alone are {256 + len(SPECIALS)}")
    lines = sorted(captions)
    if not lines:
        raise ValueError("a tokeniser cannot be trained on no captions")
    backend: Any = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(tokenizers.Regex(r"[.,;:!?\"()]+"), " "),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return Tokenizer(_stable(backend.to_str()))


def _stable(data: str) -> str:
    """The same JSON with its vocabulary in order of id, one item a line: the same bytes in every process."""
    parsed = json.loads(data)
    vocabulary = parsed["model"]["vocab"]
    parsed["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return json.dumps(parsed, indent=1, ensure_ascii=True) + "\n"
