"""AutoCap: what its captions depend on, one path for training and captioning, what lies on disk, the authors' names."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from siren.config import AutoCap as Settings
from siren.config import ConfigError, Training
from siren.networks import autocap, store
from siren.networks import clap as claps
from siren.networks.autocap import published
from siren.networks.autocap.architecture import architecture
from siren.networks.autocap.model import AutoCap, bart
from siren.networks.clap.names import to_laion
from siren.networks.text import train
from siren.stages import places
from tests.networks.test_clap import CAPTIONS, clips, tiny

SMALL = {"queries": 4, "query_width": 16, "query_ffn": 32, "width": 32, "ffn": 32, "max_positions": 64, "dropout": 0.0}
STEPS = Training(1, 4, 1e-3, 0, 0.1, 0.0, 1.0, 1, 1)


def settings(folder: Path, **changes: object) -> Settings:
    """Of a small network that is trained here, with the small CLAP in `folder`."""
    if not (folder / "config.json").is_file():
        claps.save(folder, tiny())
    made = Settings(None, str(folder), True, None, SMALL, STEPS, STEPS, STEPS, 0.1, 0.5, 0.5)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clap")


@pytest.fixture(scope="module")
def network(clap_folder: Path) -> AutoCap:
    torch.manual_seed(1)
    made = autocap.build(settings(clap_folder), CAPTIONS, 16000)
    for parameter in made.writer.parameters():  # nothing may stay at a neutral zero or one
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval().requires_grad_(False)


def states(network: AutoCap, wav: torch.Tensor, known: list[dict[str, str]]) -> list[torch.Tensor]:
    """What the decoder attends to, without padding."""
    found, mask = network.writer.encode(*network.hear(wav), known)
    return [row[real] for row, real in zip(found, mask, strict=True)]


def test_what_is_read_is_claps_token_the_queries_and_the_fields_between_marks(network: AutoCap) -> None:
    known = [{"title": "a dog barks"}, {}]
    found = states(network, clips(2), known)
    arch, words = network.arch, len(network.tokenizer.ids("a dog barks"))
    marks = 2 * len(arch.fields)
    assert [len(row) for row in found] == [1 + 1 + arch.queries + marks + words + 1, 1 + 1 + arch.queries + marks + 1]
    tokens = network.writer.tokens({"title": "a dog barks", "labels": "rain"})
    assert [t - arch.vocab_size for t in tokens if t >= arch.vocab_size] == [0, 1, 2, 3]  # labels, title
    assert tokens[-1] == network.tokenizer.eos_id


def test_sound_clap_and_each_field_change_what_is_read(network: AutoCap) -> None:
    wav = clips(2)
    (plain,) = states(network, wav[:1], [{}])
    assert not torch.allclose(plain, states(network, wav[1:], [{}])[0])
    (labelled,), (titled,) = (states(network, wav[:1], [{name: "rain"}]) for name in ("labels", "title"))
    assert labelled.shape == titled.shape
    assert not torch.allclose(labelled, titled)  # marks say which field it is
    moments, embedding = network.hear(wav[:1])
    assert embedding is not None
    other = network.writer.encode(moments, -embedding, [{}])[0]
    assert not torch.allclose(plain[None], other)


def test_the_batch_does_not_change_what_is_read_or_written(network: AutoCap) -> None:
    wav, known = clips(3), [{"title": "a long title about rain and dogs"}, {}, {"labels": "dog"}]
    together, written = states(network, wav, known), network.captions(wav, known, beams=2)
    for index, row in enumerate(together):
        one = slice(index, index + 1)
        torch.testing.assert_close(row, states(network, wav[one], known[one])[0], atol=1e-5, rtol=0)
        assert written[index] == network.captions(wav[one], known[one], beams=2)[0]


def test_the_loss_is_that_of_the_decoder_that_writes(network: AutoCap) -> None:
    """The greedy caption is, token by token, the likeliest one under the logits that the loss is made of."""
    writer, seen = network.writer, []
    states, mask = writer.encode(*network.hear(clips(1)), [{"title": "rain"}])

    def watched(module: Any, args: Any, given: dict[str, Any], out: Any) -> None:
        seen.append((given["decoder_input_ids"], out.logits))

    handle = writer.bart.register_forward_hook(watched, with_kwargs=True)
    try:
        ((text, _),) = writer.write(states, mask, beams=1)
        written = torch.cat([step.argmax(-1)[:, -1:] for _, step in seen], dim=1)
        assert network.tokenizer.decode(written[0].tolist()) == text
        seen.clear()
        writer.loss(states, mask, CAPTIONS[:1], 0.0)
    finally:
        handle.remove()
    ((given, whole),) = seen
    ids = network.tokenizer(CAPTIONS[:1], network.arch.max_caption)[0]
    expected = torch.nn.functional.cross_entropy(whole[0], ids[0])
    torch.testing.assert_close(writer.loss(states, mask, CAPTIONS[:1], 0.0), expected)
    assert given.tolist() == [
        [network.tokenizer.eos_id, *ids[0, :-1].tolist()]
    ]  # it sees what was before, never the token
    start = torch.full((1, 1), network.tokenizer.eos_id)
    again = writer.bart(
        encoder_outputs=(states,),
        attention_mask=mask.long(),
        decoder_input_ids=torch.cat([start, written[:, :-1]], dim=1),
        use_cache=False,
    ).logits
    assert torch.equal(again.argmax(-1), written)


def test_only_the_writer_learns_and_bart_only_when_asked(clap_folder: Path) -> None:
    made = autocap.build(settings(clap_folder), CAPTIONS, 16000).train()
    assert not made.ears.tower.training
    assert made.clap is not None
    writer = made.writer
    for frozen in (True, False):
        writer.zero_grad(set_to_none=True)
        writer.freeze_language(frozen)
        writer.loss(*writer.encode(*made.hear(clips(2)), [{}, {"title": "rain"}]), CAPTIONS[:2], 0.1).backward()
        assert all(parameter.grad is None for parameter in [*made.ears.parameters(), *made.clap.parameters()])
        assert all((parameter.grad is None) == frozen for parameter in writer.bart.model.decoder.parameters())
        assert writer.queries.grad is not None
        assert writer.marks.weight.grad is not None


def test_what_is_saved_is_what_is_loaded_clap_included(network: AutoCap, tmp_path: Path) -> None:
    autocap.save(tmp_path, network, {"licence": "Apache-2.0"})
    loaded = autocap.load(tmp_path)
    wav, known = clips(2), [{"labels": "rain"}, {}]
    assert loaded.captions(wav, known, 2) == network.captions(wav, known, 2)
    again = autocap.load_weights(settings(tmp_path / "clap", weights=str(tmp_path)), 8000)
    assert again.clap is not None
    assert (again.sample_rate, again.clap.sample_rate) == (8000, 8000)
    same = {"tower": {"sample_rate": 48000, "max_seconds": 1.0}}  # it is its CLAP's, whatever is said
    autocap.load_weights(settings(tmp_path / "clap", weights=str(tmp_path), architecture=SMALL | same), 16000)
    for wrong, message in (
        (
            {"architecture": SMALL | {"queries": 8}},
            r"networks\.autocap\.architecture\.queries is 8, but .* made with 4",
        ),
        ({"clap_token": False}, r"networks\.autocap\.clap_token is False, but"),
        ({"weights": "nowhere"}, r"networks\.autocap\.weights is 'nowhere', where nothing lies"),
    ):
        with pytest.raises(ConfigError, match=message):
            autocap.load_weights(settings(tmp_path / "clap", **({"weights": str(tmp_path)} | wrong)), 16000)
    (tmp_path / store.WEIGHTS).write_bytes(b"other")
    with pytest.raises(ValueError, match="its SHA-256 differs"):
        autocap.load(tmp_path)


def test_a_pipeline_without_a_captioner_says_so(tmp_path: Path) -> None:
    places.no_network(tmp_path)
    with pytest.raises(ValueError, match="of kind 'none'"):
        autocap.load(tmp_path)


def test_without_claps_token_there_is_none(clap_folder: Path) -> None:
    made = autocap.build(settings(clap_folder, clap_token=False), CAPTIONS, 16000).eval()
    moments, embedding = made.hear(clips(1))
    assert embedding is None
    assert made.writer.encode(moments, None, [{}])[0].shape[1] == 1 + 4 + 4 + 1


def test_a_tower_is_needed_and_sizes_have_to_fit(clap_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"networks\.autocap\.clap is needed"):
        settings(clap_folder, clap=None)
    with pytest.raises(ConfigError, match=r"networks\.autocap\.clap is 'weights/none', where nothing lies"):
        autocap.build(settings(clap_folder, clap="weights/none"), CAPTIONS, 16000)
    for wrong, message in (
        ({"positions": 2}, "positions 2"),
        ({"fields": ["smell"]}, "smell"),
        ({"widht": 3}, "widht"),
    ):
        with pytest.raises(ConfigError, match=message):
            autocap.build(settings(clap_folder, architecture=SMALL | wrong), CAPTIONS, 16000)


def test_a_published_language_model_is_where_it_starts(clap_folder: Path, tmp_path: Path) -> None:
    """From a folder in transformers' layout, as a published BART is."""
    tokenizer = train(CAPTIONS, 512)
    (tmp_path / "words.json").write_text(tokenizer.data)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "words.json"), **named).save_pretrained(tmp_path)
    sizes = SMALL | {"vocab_size": tokenizer.vocab_size}
    theirs = bart(architecture(sizes), tokenizer)
    theirs.save_pretrained(tmp_path)
    chosen = settings(clap_folder, bart=str(tmp_path), language=None, architecture=sizes)
    made = autocap.build(chosen, ["never", "read"], 16000)
    own = made.writer.bart.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.state_dict().items())
    positions = theirs.model.encoder.embed_positions.weight
    torch.testing.assert_close(made.writer.positions.weight, positions[: made.arch.positions])
    assert made.tokenizer.ids("a dog") == tokenizer.ids("a dog")
    with pytest.raises(ValueError, match=r"networks\.autocap\.bart"):
        autocap.build(dataclasses.replace(chosen, architecture=sizes | {"width": 64}), CAPTIONS, 16000)


def test_metadata_that_is_too_long_is_cut_and_still_ends(network: AutoCap) -> None:
    tokens = network.writer.tokens({"labels": "rain and a dog " * 50})
    assert len(tokens) == network.arch.max_metadata + 1
    assert tokens[-1] == network.tokenizer.eos_id


def test_the_authors_names_are_read(network: AutoCap, tmp_path: Path) -> None:
    """A checkpoint with their names, made of a network of ours, gives its captions."""
    arch = dataclasses.replace(network.arch, fields=("visual_caption", "title"))
    torch.manual_seed(2)
    made = AutoCap(arch, network.tokenizer, network.clap, 16000).eval()
    theirs = as_published(made)
    torch.save({"state_dict": theirs}, tmp_path / "model.ckpt")
    network.tokenizer.save(tmp_path)
    read = published.load_published(str(tmp_path / "model.ckpt"), arch, network.clap, 16000)
    wav, known = clips(2), [{"title": "rain"}, {"visual_caption": "a dog"}]
    torch.testing.assert_close(states(read, wav, known)[0], states(made, wav, known)[0])
    assert read.captions(wav, known, 3) == made.captions(wav, known, 3)
    with pytest.raises(ConfigError, match=r"name the CLAP in networks\.autocap\.clap"):
        published.load_published(str(tmp_path / "model.ckpt"), arch, None, 16000)
    del theirs["clap_proj.weight"]
    torch.save({"state_dict": theirs}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"1 missing \(writer\.clap\.weight\)"):
        published.load_published(str(tmp_path / "model.ckpt"), arch, network.clap, 16000)


def as_published(made: AutoCap) -> dict[str, torch.Tensor]:
    """The weights under the names of the authors' code, with what their files hold besides."""
    out, marks = {}, torch.zeros(12, made.arch.width)
    own = made.network.state_dict()
    tower = {k.replace("ears.tower.", "audio_model."): v for k, v in own.items() if k.startswith("ears.tower.")}
    template = htsat_names(tower)
    out |= {k.replace("audio_branch.", "encoder.audio_enc."): v for k, v in to_laion(tower, template).items()}
    for name, tensor in own.items():
        if name.startswith("ears."):
            continue
        if name == "writer.marks.weight":
            marks[:2], marks[4:6] = tensor[:2], tensor[2:]  # <HQVC>, then <TITLE>
            continue
        name = re.sub(r"^writer\.qformer\.layernorm", "audio_Qformer.bert.embeddings.LayerNorm", name)
        name = re.sub(r"^writer\.qformer\.encoder", "audio_Qformer.bert.encoder", name)
        name = re.sub(r"((?:cross)?attention)\.attention\.", r"\1.self.", name)
        for ours, other in (
            ("writer.bart.", "decoder."),
            ("writer.heard.", "enc_to_dec_proj."),
            ("writer.positions.", "audio_position_embedding."),
            ("writer.norm.", "audio_Qfromer_layernorm_embedding."),
            ("writer.queries", "audio_query_tokens"),
            ("writer.asked.", "audio_qformer_proj."),
            ("writer.clap.", "clap_proj."),
            ("writer.clap_norm.", "clap_layernorm."),
        ):
            name = name.replace(ours, other) if name.startswith(ours) else name
        out[name] = tensor
    more = {
        "special_tokens_embed.special_token_embed.weight": marks,
        "special_tokens_embed.model.shared.weight": torch.zeros(3, 2),
        "decoder.lm_head.weight": own["writer.bart.model.shared.weight"],
        "clap_model.model.logit_scale_a": torch.zeros(()),
        "encoder.audio_enc.fc1.weight": torch.zeros(2, 2),
        "encoder.audio_enc.tscam_conv.weight": torch.zeros(2, 2),
    }
    return {name: tensor.clone() for name, tensor in (out | more).items()}


def htsat_names(tower: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' names of these weights of an HTS-AT."""
    names = {}
    for name, tensor in tower.items():
        for pattern, other in (
            (r"^audio_model\.audio_encoder\.", "audio_branch."),
            (r"\.batch_norm\.", ".bn0."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.attention\.self\.(query|key|value)\.", ".attn.qkv."),
            (r"\.attention\.self\.", ".attn."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        ):
            name = re.sub(pattern, other, name)
        names[name] = tensor
    return names


def test_the_sidecar_says_how_it_was_made(network: AutoCap, tmp_path: Path) -> None:
    autocap.save(tmp_path, network, {"recipe": {"seed": 1}})
    sidecar = json.loads((tmp_path / "config.json").read_text())
    assert sidecar["kind"] == "autocap"
    assert sidecar["config"]["architecture"]["queries"] == 4
    assert sidecar["extra"] == autocap.extra(str(tmp_path)) == {"recipe": {"seed": 1}}
