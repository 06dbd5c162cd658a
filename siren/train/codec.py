"""Training a codec by reconstruction: spectra at several resolutions, no adversary.

Three things keep the codebooks alive, without which a short training ends with a handful of codes: the first steps run
without the quantiser, then every layer starts from the latents it will see (`fit_quantizer`), and rows that nothing
chooses are moved onto latents of the current batch. Crops are drawn by a seeded generator on the CPU, so the data do
not depend on the device; on one CPU with a fixed number of threads the same seed gives the same weights.

A decoder that draws noise is trained by the energy distance (arXiv 2008.01160): the distance of two drawings to the
target, less half their distance to each other. Without that last term the best noise is none, and rain is a buzz.

Shapes: N clips · B batch · K codebooks · S samples · T frames · V codebook size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siren import audio
from siren.config import Training
from siren.networks.codec import Codec, CodecOutput
from siren.networks.codec.quantizer import fit_quantizer, revive
from siren.progress import track
from siren.shapes import Float
from siren.train.loop import Checkpoint, Log, Watch, adamw, learning_rate, set_learning_rate

SCALES = ((128, 16), (512, 48), (2048, 96))  # window in samples, mel bands; the hop is a quarter of the window
FLOOR = 1e-4  # amplitude (-80 dBFS) added before the logarithm: what lies below is not worth a bit


@dataclass(frozen=True)
class Recipe:
    """What is not in `Training`: crops, when the quantiser starts, and the weights of the loss."""

    crop_seconds: float = 0.8
    free_steps: int = 60  # without the quantiser; at most a tenth of the training
    fit_crops: int = 64  # crops whose latents start the codebooks
    revive_every: int = 20
    linear: float = 0.5
    waveform: float = 0.1
    repulsion: float = 1.0  # between two drawings of the decoder's noise; 1 makes the energy distance
    commitment: float = 0.25
    codebook: float = 1.0


class State(nn.Module):
    """What a checkpoint holds besides optimiser and generator: the codec, and how often its rows were used."""

    usage: Tensor

    def __init__(self, codec: Codec):
        super().__init__()
        self.codec = codec
        self.register_buffer("usage", torch.zeros(codec.num_codebooks, codec.codebook_size))


def train_codec(
    codec: Codec,
    wavs: np.ndarray,
    settings: Training,
    seed: int,
    log: Log,
    device: str | torch.device = "cpu",
    checkpoint: Checkpoint | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Train `codec` in place on int16 waveforms [N, S] at its sample rate (a memory map is fine).

    With a `checkpoint` it resumes where that one stands and saves every `checkpoint_every` steps. The codec is left on
    `device`, in evaluation mode. Raises FloatingPointError on a loss or gradient that is not finite.
    """
    recipe = recipe or Recipe()
    if wavs.dtype != np.int16 or wavs.ndim != 2 or len(wavs) == 0:
        raise ValueError(f"the codec is trained on int16 waveforms [N, S], not on {wavs.dtype} {wavs.shape}")
    state = State(codec).to(device).train()
    optimiser = adamw(codec, settings)
    generator = torch.Generator().manual_seed(seed)
    distance = SpectralDistance(codec.sample_rate).to(device)
    samples = round(recipe.crop_seconds * codec.sample_rate / codec.hop) * codec.hop
    free_steps = min(recipe.free_steps, settings.steps // 10)
    done = checkpoint.restore(state, optimiser, generator) if checkpoint else 0
    watch = Watch("codec", device, checkpoint)

    for step in track(range(done, settings.steps), "codec", total=settings.steps, initial=done):
        set_learning_rate(optimiser, learning_rate(step, settings))
        if step == free_steps:
            fit_quantizer(
                codec.quantizer, latents(codec, wavs, recipe.fit_crops, samples, generator, device), generator
            )
        wav = random_crops(wavs, settings.batch_size, samples, generator).to(device)
        output = codec(wav, quantise=step >= free_steps, generator=on_device(generator, device))
        losses = reconstruction_losses(distance, output, wav, recipe.repulsion)
        loss = total(losses, recipe)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(codec.parameters(), settings.clip_norm)
        logs = (step + 1) % settings.log_every == 0 or step + 1 == settings.steps
        saves = checkpoint is not None and (step + 1) % settings.checkpoint_every == 0
        watch(step, loss, norm, now=logs or saves)
        optimiser.step()
        if output.codes is not None:
            count_usage(state.usage, output.codes)
            if (step + 1) % recipe.revive_every == 0 and step < settings.steps * 0.8:
                revive(codec.quantizer, output.projected, state.usage < 1, generator)
                state.usage.zero_()
        if logs:
            log(step + 1, {"loss": loss.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in losses.items()}})
        if checkpoint and saves:
            checkpoint.save(step + 1, state, optimiser, generator)
    codec.eval()


def on_device(generator: torch.Generator, device: str | torch.device) -> torch.Generator:
    """A generator on the device, seeded by the next number of this one: the noise of one step."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def reconstruction_losses(
    distance: "SpectralDistance", output: CodecOutput, wav: Float[Tensor, "B S"], repulsion: float
) -> dict[str, Tensor]:
    """Distances to the target (the energy distance where there are twins), and the losses of the quantiser."""
    losses = distance(output.wav, wav)
    if output.twin is not None:
        other, apart = distance(output.twin, wav), distance(output.wav, output.twin, loudness=wav)
        losses = {name: (losses[name] + other[name] - repulsion * apart[name]) / 2 for name in losses}
    return {**losses, "commitment": output.commitment, "codebook": output.codebook}


def total(losses: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """The weighted sum; log-mel has weight 1."""
    return (
        losses["mel"]
        + recipe.linear * losses["linear"]
        + recipe.waveform * losses["waveform"]
        + recipe.commitment * losses["commitment"]
        + recipe.codebook * losses["codebook"]
    )


def random_crops(wavs: np.ndarray, count: int, samples: int, generator: torch.Generator) -> Float[Tensor, "B S"]:
    """`count` crops of random clips at random places, float32; clips shorter than a crop are zero-padded."""
    rows = torch.randint(len(wavs), (count,), generator=generator).tolist()
    starts = torch.randint(max(1, wavs.shape[1] - samples + 1), (count,), generator=generator).tolist()
    crops = np.zeros((count, samples), np.float32)
    for crop, row, start in zip(crops, rows, starts, strict=True):
        part = wavs[row, start : start + samples]
        crop[: len(part)] = part
    return torch.from_numpy(crops / np.float32(32767))


@torch.no_grad()
def latents(
    codec: Codec, wavs: np.ndarray, count: int, samples: int, generator: torch.Generator, device: Any
) -> Float[Tensor, "B latent T"]:
    """Latents before the quantiser of `count` random crops; as many more as one vector for each row needs."""
    frames = samples // codec.hop
    count = max(count, -(-codec.codebook_size // frames))
    return codec.analyse(codec.padded(random_crops(wavs, count, samples, generator).to(device)))


def count_usage(usage: Float[Tensor, "K V"], codes: Tensor) -> None:
    """Add how often each row was chosen in `codes` [B, K, T]."""
    for row, chosen in zip(usage, codes.transpose(0, 1), strict=True):
        row += torch.bincount(chosen.flatten(), minlength=len(row))


class SpectralDistance(nn.Module):
    """How far a reconstruction is from its target, at several resolutions.

    mel: mean absolute difference of the natural logarithms of mel amplitudes; linear: L1 of amplitudes over the L1 of
    the target; waveform: the same of samples. Amplitudes are scaled so that a sine of amplitude a reads a.
    """

    def __init__(self, sample_rate: int, scales: Sequence[tuple[int, int]] = SCALES):
        super().__init__()
        self.scales = tuple(scales)
        for window, bands in self.scales:
            self.register_buffer(f"window_{window}", torch.hann_window(window))
            self.register_buffer(f"filters_{window}", audio.mel_filterbank(bands, window, sample_rate))

    def forward(
        self, wav: Float[Tensor, "B S"], target: Float[Tensor, "B S"], loudness: Float[Tensor, "B S"] | None = None
    ) -> dict[str, Tensor]:
        """`loudness` is the signal whose L1 the linear and waveform terms are relative to, if not the target's."""
        loudness = target if loudness is None else loudness
        mels, linears = [], []
        for window, _ in self.scales:
            ours, theirs = self.amplitudes(wav, window), self.amplitudes(target, window)
            scale = theirs if loudness is target else self.amplitudes(loudness, window)
            mels.append((self.log_mel(ours, window) - self.log_mel(theirs, window)).abs().mean())
            linears.append(relative(ours - theirs, scale))
        return {
            "mel": torch.stack(mels).mean(),
            "linear": torch.stack(linears).mean(),
            "waveform": relative(wav - target, loudness),
        }

    def amplitudes(self, wav: Float[Tensor, "B S"], window: int) -> Float[Tensor, "B bins T"]:
        """Short-time amplitude spectra with a hop of a quarter window."""
        shape = getattr(self, f"window_{window}")
        return torch.stft(wav, window, window // 4, window=shape, return_complex=True).abs() * (4 / window)

    def log_mel(self, amplitudes: Float[Tensor, "B bins T"], window: int) -> Float[Tensor, "B mel T"]:
        return torch.log(getattr(self, f"filters_{window}") @ amplitudes + FLOOR)


def relative(difference: Tensor, scale: Tensor) -> Tensor:
    return difference.abs().sum() / scale.abs().sum().clamp_min(1e-3)


@torch.no_grad()
def quality(codec: Codec, wavs: np.ndarray, device: str | torch.device = "cpu", batch_size: int = 32) -> dict[str, Any]:
    """How well `codec` reconstructs held-out int16 waveforms [N, S] through its codes.

    mel_distance: mean absolute difference of natural-log mel amplitudes (window 1024, hop 256, 80 bands, floor -80
    dBFS), 0 is perfect; si_sdr: scale-invariant signal-to-distortion ratio in dB, mean over clips, which needs the
    phase and so stays low for a codec that invents it; perplexity: exp(entropy) of each codebook's use, at most V.
    """
    if len(wavs) == 0:
        raise ValueError("quality is measured on at least one held-out clip; the validation split is empty")
    codec = codec.to(device).eval()
    distance = SpectralDistance(codec.sample_rate, ((1024, 80),)).to(device)
    usage = torch.zeros(codec.num_codebooks, codec.codebook_size, device=device)
    mels, ratios = [], []
    for start in range(0, len(wavs), batch_size):
        wav = torch.from_numpy(wavs[start : start + batch_size] / np.float32(32767)).to(device)
        codes = codec.encode(wav)
        ours = codec.decode(codes)[:, : wav.shape[1]]
        count_usage(usage, codes)
        mels += [distance(ours, wav)["mel"].item()] * len(wav)
        ratios += si_sdr(ours, wav).tolist()
    shares = usage / usage.sum(1, keepdim=True)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum(1)
    return {
        "mel_distance": float(np.mean(mels)),
        "si_sdr": float(np.mean(ratios)),
        "perplexity": {str(k): value for k, value in enumerate(entropy.exp().tolist())},
    }


def reconstructions(codec: Codec, wavs: np.ndarray, device: str | torch.device) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs (real [S], decoded [S]) of int16 waveforms [N, S], to listen to."""
    real = wavs / np.float32(32767)
    decoded = codec.decode(codec.encode(torch.from_numpy(real).to(device))).cpu().numpy()
    return list(zip(real, decoded[:, : real.shape[1]], strict=True))


def si_sdr(wav: Float[Tensor, "B S"], target: Float[Tensor, "B S"]) -> Float[Tensor, " B"]:
    """Scale-invariant signal-to-distortion ratio in dB (arXiv 1811.02508), of signals with their mean removed."""
    wav, target = wav - wav.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    scale = (wav * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True).clamp_min(1e-8)
    signal = (scale * target).square().sum(1)
    noise = (wav - scale * target).square().sum(1)
    return 10 * torch.log10((signal + 1e-8) / (noise + 1e-8))
