"""A frozen T5 as a reward: what it reads is aligned to what another network hears, in closed form."""

import pytest
import tokenizers
import torch

from siren.networks.t5 import T5Alignment

WORDS = ["dog", "rain", "bell", "engine", "bird", "loud"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A T5 with random weights and a vocabulary of words."""
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    place = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    T5EncoderModel(T5Config(vocab_size=16, **shape)).save_pretrained(place)
    vocabulary = {name: i for i, name in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 8}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(place)
    return place


class Ears:
    """Hears which word a clip is of: one sample each."""

    def embed_audio(self, wav):
        return torch.nn.functional.normalize(wav, dim=-1)


def test_a_t5_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no T5 can be read from '.*/none' .*align.t5 takes a folder"):
        T5Alignment(str(tmp_path / "none"), Ears())


def test_clips_score_highest_with_their_own_captions(folder):
    clips = torch.eye(len(WORDS)).repeat(4, 1) + 0.05 * torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    network = T5Alignment(str(folder), Ears())
    with pytest.raises(ValueError, match="not aligned to sound yet"):
        network.embed_audio(clips)
    with pytest.raises(ValueError, match="at least two pairs"):
        network.fit(clips[:1], WORDS[:1])
    network.fit(Ears().embed_audio(clips), WORDS * 4)
    sounds, texts = network.embed_audio(torch.eye(6)), network.embed_text(WORDS)
    scores = sounds @ texts.T
    assert scores.argmax(dim=1).tolist() == list(range(6))
    torch.testing.assert_close(sounds.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(6))
    # padding beside a longer caption changes nothing
    torch.testing.assert_close(network.embed_text(["dog", "dog loud rain bird"])[0], texts[0], atol=1e-5, rtol=1e-5)
