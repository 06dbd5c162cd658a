"""The tokeniser: never empty, never without a piece for a word, the same bytes from the same captions."""

import pytest
import torch

from siren.networks.text import FILE, SPECIALS, Tokenizer, train

CAPTIONS = ["a dog barks", "rain falls while a bell rings", "an engine running then a dog barking", "someone knocks"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(CAPTIONS, 400)


def test_special_tokens_have_roberta_ids_and_frame_every_caption(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(["a dog barks", "rain"], 20)
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == (0, 1, 2)
    for row, real in zip(ids, mask, strict=True):
        assert row[0] == tokenizer.bos_id
        assert row[real][-1] == tokenizer.eos_id
        assert (row[~real] == tokenizer.pad_id).all()


def test_a_word_that_was_never_seen_is_read_in_pieces_that_differ(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer(["xylophone", "saxophone", "naïve 雨"], 40)
    assert not torch.equal(ids[0], ids[1])
    assert not (ids == SPECIALS.index("<unk>")).any()


def test_case_and_punctuation_make_no_difference(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer(["A dog  barks.", "a dog barks"], 20)
    assert torch.equal(ids[0], ids[1])


def test_a_long_caption_is_cut_and_still_ends(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(["a dog barks " * 30], 12)
    assert ids.shape == (1, 12)
    assert ids[0, -1] == tokenizer.eos_id
    assert mask.all()


def test_the_empty_caption_has_two_tokens(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer([""], 12)
    assert ids.tolist() == [[tokenizer.bos_id, tokenizer.eos_id]]


def test_the_same_captions_in_any_order_give_the_same_bytes(tokenizer: Tokenizer) -> None:
    assert train(reversed(CAPTIONS), 400).data == tokenizer.data


def test_saved_and_loaded_it_reads_the_same(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.data == tokenizer.data
    assert torch.equal(again(CAPTIONS, 30)[0], tokenizer(CAPTIONS, 30)[0])


def test_an_empty_tokeniser_is_an_error_and_not_a_silence(tmp_path) -> None:
    import tokenizers

    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    empty.add_special_tokens([*SPECIALS, "<mask>"])  # what transformers gives offline, without a word
    (tmp_path / FILE).write_text(empty.to_str())
    with pytest.raises(ValueError, match="5 tokens, all of them special"):
        Tokenizer.load(tmp_path)


def test_a_missing_tokeniser_says_what_to_copy(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("captions", ["a dog barks", []])
def test_captions_must_be_a_list_of_strings(tokenizer: Tokenizer, captions) -> None:
    with pytest.raises(ValueError, match="list of at least one string"):
        tokenizer(captions, 20)


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 100"):
        train(CAPTIONS, 100)
