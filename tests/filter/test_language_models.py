"""Qwen2-Audio and Qwen2.5 as captioners: transformers' own classes at a tiny size, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siren.config import Caption, ConfigError, LanguageModel
from siren.filter.caption import captioners, local, protocol
from siren.filter.caption.protocol import Answer, Clip, Question
from siren.randomness import draw

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def describe(folder: Any, **changes: Any) -> LanguageModel:
    given: dict[str, Any] = {
        "model": str(folder),
        "revision": None,
        "licence": "Apache-2.0",
        "prompt": "describe the dog and the rain",
        "candidates": 3,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "batch_size": 4,
        "dtype": "float32",
        "device": "cpu",
        "endpoint": None,
    }
    return LanguageModel(**given | changes)


def tokenizer() -> Any:
    """A byte-level one, trained here, with Qwen's special tokens."""
    import tokenizers
    from transformers import Qwen2TokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=sorted(alphabet), special_tokens=SPECIALS, show_progress=False
    )
    backend.train_from_iterator(["a dog barks while rain falls. describe the dog and the rain."] * 4, trainer)
    made = Qwen2TokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None
    )
    made.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    made.chat_template = CHAT
    return made


TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Qwen2-Audio's: two layers, random weights, 128 mel bands, and 4 s in the place of 30."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    folder, words = tmp_path_factory.mktemp("qwen2-audio"), tokenizer()
    ears = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 32}
    text = TEXT | {"model_type": "qwen2", "vocab_size": len(words), "num_key_value_heads": 2}
    config = Qwen2AudioConfig(
        audio_config=ears | {"model_type": "qwen2_audio_encoder", "num_mel_bins": 128, "max_source_positions": 200},
        text_config=text,
        audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>"),
    )
    torch.manual_seed(0)
    network = Qwen2AudioForConditionalGeneration(config)
    for name, weight in network.named_parameters():
        if "norm" not in name and weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)  # so that sound and text matter
    network.generation_config.eos_token_id = [words.eos_token_id, words.pad_token_id]
    network.save_pretrained(folder)
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128, chunk_length=4), words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Qwen2.5's."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder, words = tmp_path_factory.mktemp("qwen2.5"), tokenizer()
    torch.manual_seed(1)
    sizes = TEXT | {"num_key_value_heads": 2, "vocab_size": len(words), "eos_token_id": words.eos_token_id}
    network = Qwen2ForCausalLM(Qwen2Config(**sizes, initializer_range=0.3))
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def clip(name: str, seconds: float = 1.0, pitch: float = 200.0) -> Clip:
    times = np.arange(round(16000 * seconds)) / 16000
    return Clip(name, ("dog",), wav=np.sin(2 * np.pi * pitch * times).astype(np.float32), sample_rate=16000)


def free(answers: list[list[Answer]]) -> list[list[str | None]]:
    return [[answer.text for answer in row] for row in answers]


def test_five_candidates_of_each_clip_do_not_depend_on_the_batch(hearing: Path) -> None:
    """Clips of different lengths, so padding is on the left of some; one batch of 15, of 4, and each clip alone."""
    clips = [clip("a"), clip("b", 2.5), clip("c", 0.6, 900)]
    # Whole answers are compared, so none may be put aside as broken off.
    whole = captioners.Describer(describe(hearing, batch_size=15, candidates=5), 0)
    parts = captioners.Describer(describe(hearing, candidates=5), 0)
    together = raw(whole, clips)
    assert together == raw(parts, clips) == [raw(parts, [one])[0] for one in clips]
    assert [len(row) for row in together] == [5, 5, 5]
    assert len({text for row in together for text in row}) > 10  # candidates differ, and so do clips
    assert together != raw(captioners.Describer(describe(hearing, candidates=5), 1), clips)


def raw(captioner: captioners.Describer, clips: list[Clip]) -> list[list[str]]:
    """What the network says, broken off or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_answer", lambda text, ended, failed: Answer(repr(text)))
        return [[answer.text or "" for answer in row] for row in captioner(clips)]


def test_the_network_hears_and_the_prompt_is_read(hearing: Path) -> None:
    greedy = {"temperature": 0.0, "candidates": 1}
    captioner = captioners.Describer(describe(hearing, **greedy), 0)
    low, high = raw(captioner, [clip("a", pitch=200), clip("a", pitch=3000)])
    other = raw(captioners.Describer(describe(hearing, prompt="the rain?", **greedy), 0), [clip("a", pitch=200)])
    assert low != high
    assert low != other[0]


def test_answers_are_those_of_the_library_where_nothing_is_drawn(hearing: Path) -> None:
    captioner = captioners.Describer(describe(hearing, temperature=0.0, candidates=1), 0)
    ours = raw(captioner, [clip("a")])[0][0]
    network, processor = captioner.model._load()  # type: ignore[attr-defined]
    inputs = captioner.model._inputs(processor, [Question("describe the dog and the rain", 0, clip("a").wav)])  # type: ignore[attr-defined]
    theirs = network.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)[
        :, inputs["input_ids"].shape[1] :
    ]
    assert ours == repr(processor.tokenizer.decode(theirs[0], skip_special_tokens=True))


def test_sound_of_another_rate_is_resampled(hearing: Path) -> None:
    captioner = captioners.Describer(describe(hearing, temperature=0.0, candidates=1), 0)
    times = np.arange(8000) / 8000
    slow = Clip("a", wav=np.sin(2 * np.pi * 200 * times).astype(np.float32), sample_rate=8000)
    assert raw(captioner, [slow]) == raw(captioner, [clip("a")])


def test_tokens_come_as_often_as_they_are_likely() -> None:
    """Against the closed form: 0.6, 0.3, 0.1 at temperature 1, and a nucleus of 0.7 has the first two."""
    numbers = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([0.3, 0.6, 0.1]).log().repeat(len(numbers), 1)
    for top_p, expected in ((1.0, [0.3, 0.6, 0.1]), (0.7, [1 / 3, 2 / 3, 0.0]), (0.1, [0.0, 1.0, 0.0])):
        picked = local.Drawn(numbers, 1.0, top_p)(torch.zeros(1), scores).argmax(-1)
        shares = torch.bincount(picked, minlength=3) / len(numbers)
        torch.testing.assert_close(shares, torch.tensor(expected), atol=0.015, rtol=0)
    assert draw(local.nucleus(torch.tensor([[0.5, 0.5]]), 0.5), torch.tensor([0.99])).item() == 0


def test_a_network_without_numbers_and_an_answer_without_an_end_are_told(hearing: Path) -> None:
    captioner = captioners.Describer(describe(hearing, candidates=1), 0)
    network, _ = captioner.model._load()  # type: ignore[attr-defined]
    assert captioner([clip("a")])[0][0].missing.startswith("unfinished: ")  # type: ignore[union-attr]
    with torch.no_grad():
        network.get_output_embeddings().weight.fill_(torch.nan)
    assert captioner([clip("a")]) == [[Answer(None, "not_finite: the network's logits are not numbers")]]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A dog barks. It is lou", "A dog barks."),
        ("A dog at 2.5 k", None),
        ("... a", None),
        ("", None),
        ("Rain! And", "Rain!"),
    ],
)
def test_what_is_broken_off_ends_with_its_last_sentence(text: str, kept: str | None) -> None:
    assert protocol.whole(text) == kept


def test_a_batch_that_does_not_fit_is_halved_and_what_fails_alone_is_told(
    reading: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = local.Local(describe(reading, batch_size=8), hears=False)
    sizes = []

    def narrow(self: local.Local, questions: list[Question]) -> list[Answer]:
        sizes.append(len(questions))
        if len(questions) > 2 or questions[0].text == "huge":
            raise torch.OutOfMemoryError("out of memory\nmore")
        return [Answer(question.text) for question in questions]

    monkeypatch.setattr(local.Local, "_generate", narrow)
    answers = model.answer([Question(text, 0) for text in ("a", "b", "c", "huge", "e", "f")])
    assert [answer.text for answer in answers] == ["a", "b", "c", None, "e", "f"]
    assert answers[3].missing == "memory: out of memory"
    assert max(sizes) == 6


def test_a_text_model_rewrites_each_caption_once(reading: Path) -> None:
    settings = describe(reading, prompt="say shorter: {caption}", candidates=1, max_new_tokens=40)
    rewriter = captioners.Rewriter(settings, 0)
    asked: list[Question] = []
    answer = rewriter.model.answer
    rewriter.model.answer = lambda questions: asked.extend(questions) or answer(questions)  # type: ignore[method-assign]
    first, second, again = rewriter(["a dog barks", "rain falls", "a dog barks"])
    assert first == again
    assert [question.text for question in asked] == ["say shorter: a dog barks", "say shorter: rain falls"]
    assert captioners.Rewriter(settings, 0)(["rain falls"]) == [second]
    assert rewriter.model.provenance()["licence"] == "Apache-2.0"


def test_weights_are_recorded(hearing: Path, reading: Path) -> None:
    found = captioners.Describer(describe(hearing), 0).provenance()
    other = local.Local(describe(reading), hears=False).provenance()
    assert found["revision"].startswith("files:")
    assert found["revision"] != other["revision"]
    assert found["prompt"] == "describe the dog and the rain"


def test_the_commit_of_hub_weights_is_recorded_by_a_process_that_never_loaded_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit, folder = "c0ffee" * 6 + "abcd", tmp_path / "models--one--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    known = (
        ("one/model", None, commit),
        ("one/model", "v2", "v2"),
        ("another/model", None, None),
        ("./a/b", None, None),
    )
    for name, wanted, found in known:
        settings = describe(name, revision=wanted)
        assert local.Local(settings, hears=False).provenance()["revision"] == found


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    captioner = captioners.Describer(describe(tmp_path / "none"), 0)
    with pytest.raises(ValueError, match=r"no model can be read from '.*none' .*filter.caption.describe.model takes"):
        captioner([clip("a")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "candidates is 3 with temperature 0"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompt": " "}, "prompt is empty"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe("x", **change)
    with pytest.raises(ConfigError, match=r"a prompt that holds \{caption\}, and candidates: 1"):
        Caption("template", None, describe("x"))
