"""MS-CLAP: its checkpoints' layout, what it does otherwise than LAION's, and its authors' code on the same weights."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors, trainers

from siren.config import ConfigError
from siren.evaluate.features import find_networks
from siren.networks import clap as claps
from siren.networks.clap import msclap, published
from siren.networks.clap.features import LogMel, windows
from siren.networks.packages import module_of
from siren.networks.text import Tokenizer
from tests.networks.test_clap import CAPTIONS, TINY, clips, network, tiny

RATE = 16000
SMALL = {
    **TINY,
    "heads": (2, 4),
    "vocab_size": 600,
    "sample_rate": 22050,
    "max_seconds": 1.0,
    "mel_rate": 16000,
    "cnn_width": 1 / 16,
    "classes": 5,
    "max_positions": 120,
}
ARCHITECTURES = {
    "2023": msclap.MsArchitecture(**SMALL),
    "2022": msclap.MsArchitecture(**{**SMALL, "mel_rate": 22050}, name="msclap-2022", audio="cnn14", text="bert"),
}
BACK = (  # from our names to a checkpoint's
    (r"^audio_model\.audio_encoder\.batch_norm\.", "audio_encoder.base.htsat.bn0."),
    (r"^audio_model\.audio_encoder\.", "audio_encoder.base.htsat."),
    (r"^audio_model\.", "audio_encoder.base."),
    (r"^audio_projection\.", "audio_encoder.projection."),
    (r"^text_model\.", "caption_encoder.base."),
    (r"^text_projection\.", "caption_encoder.projection."),
    (r"^logit_scale_t$", "logit_scale"),
    (r"(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.attention\.self\.", r"\1.attn."),
    (r"(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)


def tokenizer(text: str) -> Tokenizer:
    """A small one of GPT-2's kind ("!" is token 0, nothing is added) or BERT's ([CLS] ... [SEP])."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [] if text == "gpt2" else list(msclap.MARKS["bert"])
    backend.train_from_iterator(
        CAPTIONS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=specials)
    )
    if text == "gpt2":
        backend.add_special_tokens(["<|endoftext|>"])
    else:
        ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return Tokenizer(backend.to_str(), msclap.MARKS[text])


def made(version: str) -> msclap.MsClap:
    torch.manual_seed(0)
    arch = ARCHITECTURES[version]
    clap = msclap.MsClap(arch, tokenizer(arch.text), RATE)
    for name, parameter in clap.named_parameters():  # nothing may stay at a neutral zero or one
        if parameter.ndim < 2 or "relative_position" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in clap.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(400 if "bn0" in name else 0.02 + 0.1 * torch.rand_like(buffer))
        elif name.endswith("running_mean"):
            buffer.copy_((-30 if "bn0" in name else 0) + 0.1 * torch.rand_like(buffer))
    return clap.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["2022", "2023"])
def clap(request: pytest.FixtureRequest) -> msclap.MsClap:
    return made(request.param)


def layout(clap: msclap.MsClap) -> dict[str, torch.Tensor]:
    """The weights under a checkpoint's names, with the constants that it holds beside them."""
    out: dict[str, torch.Tensor] = {}
    state = clap.canonical_state()
    for name, tensor in state.items():
        if re.search(r"attention\.self\.(key|value)\.", name) and "blocks" in name:
            continue
        if "blocks" in name and "attention.self.query." in name:
            tensor = torch.cat([state[name.replace("query", part)] for part in ("query", "key", "value")])
            name = name.replace("query", "qkv")
        for ours, theirs in BACK:
            name = re.sub(ours, theirs, name)
        out[name] = tensor.clone()
    tower = "audio_encoder.base.htsat." if clap.arch.audio == "htsat" else "audio_encoder.base."
    out |= {f"{tower}logmel_extractor.melW": clap.features.filters.clone()}
    out |= {f"{tower}spectrogram_extractor.stft.conv_real.weight": torch.zeros(3, 1, 3)}
    if clap.arch.audio == "htsat":
        out |= {f"{tower}tscam_conv.weight": torch.zeros(5, 32, 1, 3), f"{tower}head.weight": torch.zeros(5, 5)}
        out |= {f"{tower}layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
        masks = {"attn.bias": torch.ones(1, 1, 120, 120), "attn.masked_bias": torch.tensor(-1e4)}
        out |= {f"caption_encoder.base.h.{i}.{name}": mask for i in range(2) for name, mask in masks.items()}
    else:
        out |= {"caption_encoder.base.embeddings.position_ids": torch.arange(120)[None]}
        out |= {"caption_encoder.base.pooler.dense.weight": torch.zeros(32, 32)}
    return out


def checkpoint(folder: Path, clap: msclap.MsClap, **changes: torch.Tensor) -> Path:
    path = folder / f"CLAP_weights_{clap.arch.name[-4:]}.pth"
    torch.save({"model": layout(clap) | changes, "epoch": 3}, path)
    clap.tokenizer.save(folder)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msclap, "MSCLAP_2022", ARCHITECTURES["2022"])
    monkeypatch.setattr(msclap, "MSCLAP_2023", ARCHITECTURES["2023"])


def test_a_checkpoint_in_the_published_layout_embeds_alike(clap: msclap.MsClap, small: None, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, clap)
    loaded = claps.load_weights(network({}, str(path), "msclap"), RATE)
    assert loaded.arch == clap.arch
    wav = clips(3)[:, :9000]
    assert torch.equal(loaded.embed_audio(wav), clap.embed_audio(wav))
    assert torch.equal(loaded.embed_text(CAPTIONS), clap.embed_text(CAPTIONS))
    assert clap.embed_audio(wav).std(dim=0).max() > 1e-3
    assert clap.embed_text(CAPTIONS).std(dim=0).max() > 1e-3
    torch.testing.assert_close(clap.embed_audio(wav).norm(dim=1), torch.ones(3))


def test_a_saved_one_is_found_under_the_name_of_its_metrics(clap: msclap.MsClap, small: None, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, clap)
    claps.save(tmp_path / "networks" / "second", clap, claps.extra(str(path)))
    again = claps.load(tmp_path / "networks" / "second")
    assert torch.equal(again.embed_text(CAPTIONS), clap.embed_text(CAPTIONS))
    assert again.text_fingerprint() == clap.text_fingerprint()
    [found] = find_networks(tmp_path / "networks")
    assert (found.kind, found.name) == ("clap", clap.arch.name)
    assert found.origin["weights"] == path.name


def test_a_file_is_imported_by_what_it_holds(clap: msclap.MsClap, small: None, tmp_path: Path) -> None:
    made = claps.import_file(checkpoint(tmp_path, clap))
    assert (made.backend, made.sample_rate) == ("msclap", 22050)
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a laion_clap checkpoint"):
        claps.import_file(tmp_path / "other.pth")


def test_another_mel_matrix_is_refused(clap: msclap.MsClap, small: None, tmp_path: Path) -> None:
    name = next(name for name in layout(clap) if name.endswith("melW"))
    other = LogMel(replace(clap.arch, sample_rate=24000)).filters
    path = checkpoint(tmp_path, clap, **{name: other})
    with pytest.raises(ValueError, match=f"mel matrix .* not {clap.arch.name}'s"):
        claps.load_weights(network({}, str(path), "msclap"), RATE)


def test_families_are_not_taken_for_each_other(clap: msclap.MsClap, small: None, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, clap)
    with pytest.raises(ConfigError, match=r"holds an MS-CLAP; networks\.clap\.backend is 'transformers'"):
        claps.load_weights(network({}, str(path)), RATE)
    with pytest.raises(ConfigError, match="takes published weights"):
        claps.build(network(backend="msclap"), CAPTIONS, RATE)
    torch.save({"model": {**layout(clap), "run": print}}, path)
    with pytest.raises(ValueError, match="nothing is unpickled"):
        published.load_tensors(path)
    claps.save(tmp_path / "laion", tiny())
    with pytest.raises(ValueError, match=r"the tokeniser lacks|do not fit"):
        claps.load(tmp_path / "laion", backend="msclap")


def test_the_text_embedding_is_read_where_the_tokens_end(clap: msclap.MsClap) -> None:
    alone = torch.cat([clap.embed_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(clap.embed_text(CAPTIONS), alone, atol=1e-5, rtol=0)  # whatever stands beside it
    ids, mask = clap._tokens([CAPTIONS[0]])
    states, _ = clap._text(ids, mask)
    place = -1 if clap.arch.text == "gpt2" else 0
    embedding = clap.model["text_projection"](states[:, place])
    torch.testing.assert_close(torch.nn.functional.normalize(embedding), alone[:1])
    if clap.arch.text == "gpt2":
        ids, mask = clap._tokens(["!" + CAPTIONS[0]])  # "!" is GPT-2's padding too: the token before the last is read
        states, embedding = clap._text(ids, mask)
        torch.testing.assert_close(embedding, clap.model["text_projection"](states[:, -2]))
        assert clap.tokenizer.eos_id in ids[0]


def test_short_clips_are_repeated_without_zeros() -> None:
    wav = torch.arange(1.0, 8.0)[None]
    assert windows(wav, 10, wrap=True)[0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    assert windows(wav, 10)[0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 0, 0]
    assert torch.equal(windows(wav, 7, wrap=True), windows(wav, 7))


def test_the_published_sizes_hold_what_their_authors_say() -> None:
    assert msclap.MSCLAP_2023.max_samples == 7 * 44100
    assert msclap.MSCLAP_2023.frames == 965 <= msclap.MSCLAP_2023.spec_frames
    assert msclap.MSCLAP_2023.audio_width == 768
    assert (msclap.MSCLAP_2022.max_samples, msclap.MSCLAP_2022.max_tokens) == (5 * 44100, 100)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2022", "2023"])
def test_their_own_code_gives_the_same_embeddings_at_the_published_size(version: str, tmp_path: Path) -> None:
    """Random weights at full size, but for the text tower, which is small."""
    pytest.importorskip("torchlibrosa")
    try:
        theirs_clap = module_of("msclap", "models.clap", "msclap")
    except ImportError as error:
        pytest.skip(str(error))
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    arch = {"2022": msclap.MSCLAP_2022, "2023": msclap.MSCLAP_2023}[version]
    arch = replace(arch, vocab_size=600, text_width=32, text_layers=2, text_heads=4, text_ffn=64, dropout=0.0)
    torch.manual_seed(0)
    sizes = {"vocab_size": 600}
    folder = tmp_path / arch.text
    if arch.text == "gpt2":
        GPT2Model(
            GPT2Config(**sizes, bos_token_id=1, eos_token_id=1, n_embd=32, n_layer=2, n_head=4, n_inner=64)
        ).save_pretrained(folder)
    else:
        widths = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        BertModel(BertConfig(**sizes, **widths)).save_pretrained(folder)
    audio = {"audioenc_name": "HTSAT" if arch.audio == "htsat" else "Cnn14", "sample_rate": 44100, "window_size": 1024}
    audio |= {"hop_size": 320, "mel_bins": 64, "fmin": 50, "fmax": int(arch.fmax), "classes_num": 527}
    width = 768 if arch.audio == "htsat" else 2048
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")  # the package's own call, still right
        theirs = theirs_clap.CLAP(
            **audio, out_emb=width, text_model=str(folder), transformer_embed_dim=32, d_proj=1024
        ).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad and parameter.ndim < 2:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    ours = msclap.MsClap(arch, tokenizer(arch.text), 44100).eval()
    state = theirs.state_dict()
    mel = next(tensor for name, tensor in state.items() if name.endswith("melW"))
    torch.testing.assert_close(ours.features.filters, mel, atol=1e-6, rtol=0)  # at 32 kHz for 2023, whatever is asked
    ours.load_canonical(msclap.canonical(state))
    wav = 0.1 * torch.randn(2, arch.max_samples)
    ids, mask = ours._tokens(CAPTIONS)
    pad = torch.full((len(ids), arch.max_tokens - ids.shape[1]), ours.tokenizer.pad_id)
    tokens = {"input_ids": torch.cat([ids, pad], 1), "attention_mask": torch.cat([mask.long(), 0 * pad], 1)}
    with torch.inference_mode():
        torch.testing.assert_close(ours._audio(wav), theirs.audio_encoder(wav)[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours._text(ids, mask)[1], theirs.caption_encoder(tokens), atol=1e-5, rtol=0)
