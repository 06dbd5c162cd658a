"""The real DAC (arXiv 2306.06546) behind the codec protocol, through either of the two packages that have it.

`transformers` holds `DacModel`, `descript` holds `dac.DAC`. The networks are the packages' own, taken out of their
shells; weights go from one to the other exactly (names differ, and only descript's keeps weight normalisation apart),
so the same weights give the same codes and the same sound. Published weights: the safetensors of the hub
(`descript/dac_16khz`), or the original `.pth`, which is read without unpickling anything but tensors.

Unusual: with an odd stride the decoder returns a few samples less than T · hop (8 for the 16 kHz release); the
protocol pads them.
"""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siren.config import ConfigError, require
from siren.networks.codec.base import Codec
from siren.shapes import Float


@dataclass(frozen=True)
class DacArchitecture:
    """`networks.codec.architecture` of both backends. The 16 kHz release: 64, [2, 4, 5, 8], 1536, 12, 1024, 8."""

    encoder_dim: int
    rates: tuple[int, ...]  # strides of the encoder; the decoder has them in reverse
    decoder_dim: int
    num_codebooks: int
    codebook_size: int
    code_dim: int

    def __post_init__(self) -> None:
        require(len(self.rates) > 0 and min(self.rates) > 1, f"rates {list(self.rates)} must be strides above 1")
        require(
            self.decoder_dim % 2 ** len(self.rates) == 0,
            f"decoder_dim {self.decoder_dim} is halved {len(self.rates)} times; it must be a multiple of "
            f"{2 ** len(self.rates)}",
        )
        require(
            self.codebook_size & (self.codebook_size - 1) == 0 and self.codebook_size <= 65536,
            f"codebook_size {self.codebook_size} must be a power of two up to 65536",
        )

    @property
    def hop(self) -> int:
        return math.prod(self.rates)


class DacCodec(Codec):
    """DAC by way of the package that `backend` names: a key of `PACKAGES`."""

    def __init__(self, backend: str, architecture: DacArchitecture, sample_rate: int):
        super().__init__()
        a = self.architecture = architecture
        self.backend, self.sample_rate, self.hop = backend, sample_rate, a.hop
        self.num_codebooks, self.codebook_size, self.code_dim = a.num_codebooks, a.codebook_size, a.code_dim
        network: Any = PACKAGES[backend](a, sample_rate)
        self.encoder, self.quantizer, self.decoder = network.encoder, network.quantizer, network.decoder
        self.latent_dim = a.encoder_dim * 2 ** len(a.rates)

    def analyse(self, wav: Float[Tensor, "B S"]) -> Float[Tensor, "B latent T"]:
        return self.encoder(wav.unsqueeze(1))

    def synthesise(self, latent: Float[Tensor, "B latent T"], first: int = 0) -> Float[Tensor, "B S"]:
        return self.decoder(latent).squeeze(1)

    @property
    def context(self) -> int:
        """Three frames for the first convolution; at each rate one value for the transposed convolution and
        3 · (1 + 3 + 9) for the residual units' dilations; three samples for the last convolution."""
        reach, rate = 3.0, 1
        for stride in reversed(self.architecture.rates):
            reach += 1 / rate  # of the inputs of a transposed convolution, twice as wide as its stride
            rate *= stride
            reach += 3 * 13 / rate
        return math.ceil(reach + 3 / rate)

    def settings(self) -> dict[str, Any]:
        architecture = asdict(self.architecture) | {"rates": list(self.architecture.rates)}
        return {"backend": self.backend, "sample_rate": self.sample_rate, "architecture": architecture}


def transformers_network(a: DacArchitecture, sample_rate: int) -> nn.Module:
    """transformers' DacModel with random weights."""
    from transformers import DacConfig, DacModel

    config = DacConfig(
        encoder_hidden_size=a.encoder_dim,
        downsampling_ratios=list(a.rates),
        decoder_hidden_size=a.decoder_dim,
        n_codebooks=a.num_codebooks,
        codebook_size=a.codebook_size,
        codebook_dim=a.code_dim,
        sampling_rate=sample_rate,
    )
    return DacModel(config)


def descript_network(a: DacArchitecture, sample_rate: int) -> nn.Module:
    """descript-audio-codec's DAC with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, about their own futures
        try:
            import dac
        except ImportError as error:
            raise ConfigError(
                f"networks.codec.backend is 'descript', which needs the package descript-audio-codec ({error}); "
                "install requirements/audio.in and nodeps.txt, or use backend 'transformers' with the same weights"
            ) from error
        return dac.DAC(
            encoder_dim=a.encoder_dim,
            encoder_rates=list(a.rates),
            decoder_dim=a.decoder_dim,
            decoder_rates=list(reversed(a.rates)),
            n_codebooks=a.num_codebooks,
            codebook_size=a.codebook_size,
            codebook_dim=a.code_dim,
            sample_rate=sample_rate,
        )


PACKAGES: dict[str, Callable[[DacArchitecture, int], nn.Module]] = {
    "transformers": transformers_network,
    "descript": descript_network,
}


# --- weights from one package to the other


def converted(codec: DacCodec, backend: str) -> DacCodec:
    """The same codec through the other package: same codes, same sound."""
    other = DacCodec(backend, codec.architecture, codec.sample_rate)
    other.load_state_dict(CONVERSIONS[backend](plain_state(codec.state_dict()), len(codec.architecture.rates)))
    return other.train(codec.training)


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every weight-normalised pair (g, v) folded into one weight, w = g · v / |v|."""
    plain = {}
    for name, tensor in state.items():
        if name.endswith(".weight_g"):
            v = state[f"{name[:-1]}v"]
            plain[name[:-2]] = tensor * v / v.flatten(1).norm(dim=1).view_as(tensor)
        elif not name.endswith(".weight_v"):
            plain[name] = tensor
    return plain


def to_transformers(plain: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Plain weights under either naming → the names of transformers. `depth` is the number of strides."""
    return {_transformers_name(name, depth): tensor for name, tensor in plain.items()}


def to_descript(plain: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Plain weights under either naming → the names of descript, every convolution split as g = |w|, v = w."""
    state = {}
    for name, tensor in to_transformers(plain, depth).items():
        name = _descript_name(name, depth)
        if name.endswith(".weight") and tensor.ndim == 3:
            state[f"{name}_g"] = tensor.flatten(1).norm(dim=1).view(-1, 1, 1)
            state[f"{name}_v"] = tensor
        else:
            state[name] = tensor
    return state


CONVERSIONS = {"transformers": to_transformers, "descript": to_descript}

UNIT = ["snake1", "conv1", "snake2", "conv2"]  # the four parts of a residual unit, in order
ENCODER_BLOCK = ["res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"]
DECODER_BLOCK = ["snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"]


def _transformers_name(name: str, depth: int) -> str:
    """descript numbers its layers in one sequence, transformers names them; names of transformers stay as they are."""
    match = re.fullmatch(r"(encoder\.block|decoder\.model)\.(\d+)\.(.+)", name)
    if match is None or match[3].split(".")[0] in ENCODER_BLOCK + DECODER_BLOCK:
        return name
    side, index, rest = match[1].split(".")[0], int(match[2]), match[3]
    outer = {0: "conv1", depth + 1: "snake1", depth + 2: "conv2"}
    if index in outer:
        return f"{side}.{outer[index]}.{rest}"
    _, inner, *tail = rest.split(".")  # "block.<inner>.[block.<unit>.]<parameter>"
    part = (ENCODER_BLOCK if side == "encoder" else DECODER_BLOCK)[int(inner)]
    if tail[0] == "block":
        tail = [UNIT[int(tail[1])], *tail[2:]]
    return ".".join([side, "block", str(index - 1), part, *tail])


def _descript_name(name: str, depth: int) -> str:
    """The inverse of `_transformers_name` on names of transformers."""
    parts = name.split(".")
    if parts[0] not in ("encoder", "decoder"):
        return name
    sequence = "encoder.block" if parts[0] == "encoder" else "decoder.model"
    outer = {"conv1": 0, "snake1": depth + 1, "conv2": depth + 2}
    if parts[1] in outer:
        return ".".join([sequence, str(outer[parts[1]]), *parts[2:]])
    _, _, index, part, *tail = parts
    inner = (ENCODER_BLOCK if parts[0] == "encoder" else DECODER_BLOCK).index(part)
    if part.startswith("res_unit"):
        tail = ["block", str(UNIT.index(tail[0])), *tail[1:]]
    return ".".join([sequence, str(int(index) + 1), "block", str(inner), *tail])


# --- published weights


def from_hub(name: str, backend: str) -> DacCodec:
    """DAC from a hub name or a folder in transformers' format (config.json, model.safetensors)."""
    from transformers import DacModel

    try:
        network = DacModel.from_pretrained(name, use_safetensors=True)
    except OSError as error:
        raise ConfigError(
            f"networks.codec.weights is {name!r}: neither a folder of codec weights nor a hub name that can be fetched "
            f"({str(error).splitlines()[0]}); set HF_HUB_OFFLINE=0 to allow the download"
        ) from error
    c = network.config
    a = DacArchitecture(
        encoder_dim=c.encoder_hidden_size,
        rates=tuple(c.downsampling_ratios),
        decoder_dim=c.decoder_hidden_size,
        num_codebooks=c.n_codebooks,
        codebook_size=c.codebook_size,
        code_dim=c.codebook_dim,
    )
    return _filled(backend, a, c.sampling_rate, network.state_dict())


def from_pth(path: str | Path, backend: str) -> DacCodec:
    """DAC from an original `.pth` file: {"state_dict", "metadata": {"kwargs"}}. Nothing but tensors is unpickled."""
    advice = "use the safetensors of the hub instead: networks.codec.weights: descript/dac_16khz"
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError or EOFError, by what torch finds
        raise ConfigError(
            f"{path} is damaged or holds more than plain tensors ({type(error).__name__}); {advice}"
        ) from None
    try:
        kwargs = file["metadata"]["kwargs"]
        a = DacArchitecture(
            encoder_dim=kwargs["encoder_dim"],
            rates=tuple(kwargs["encoder_rates"]),
            decoder_dim=kwargs["decoder_dim"],
            num_codebooks=kwargs["n_codebooks"],
            codebook_size=kwargs["codebook_size"],
            code_dim=kwargs["codebook_dim"],
        )
        state, sample_rate = file["state_dict"], kwargs["sample_rate"]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a checkpoint of descript-audio-codec (no {error}); {advice}") from None
    return _filled(backend, a, sample_rate, state)


def _filled(backend: str, a: DacArchitecture, sample_rate: int, state: dict[str, Tensor]) -> DacCodec:
    codec = DacCodec(backend, a, sample_rate)
    codec.load_state_dict(CONVERSIONS[backend](plain_state(state), len(a.rates)))
    return codec
