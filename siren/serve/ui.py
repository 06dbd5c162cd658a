"""The page: a prompt box, players that start while sound is being made, two models side by side.

Gradio makes the page. Its own streaming audio needs ffmpeg and plays a lossy copy of the sound, so a player here is the
browser's, over a WAV that this server sends while the engine makes it (`/play/...`): what is heard first is what is
downloaded later. Nothing comes from outside: fonts are the system's, browsers are told to load nothing from elsewhere,
and Gradio's analytics are off (`siren.quiet`).

All listeners share the engines and so their batches. A finished clip is kept for as long as `KEPT` newer ones are few.
"""

import asyncio
import html
import json
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response, StreamingResponse

from siren.generate.batch import slug
from siren.serve.app import Receive, Scope, Send, sidecar
from siren.serve.engine import Closing, Engine, Full, Sound
from siren.serve.sound import HEADER_BYTES, encode, pcm, wav_header

EXAMPLES = (
    "a dog barks while rain falls",
    "a bell rings, then footsteps on gravel",
    "an engine starts and drives away",
    "wind in the trees with birds far away",
)
KEPT = 64  # clips that can still be played
MOST_CLIPS = 4  # at once, of all models together
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'"
)
STYLE = """
.siren-clip audio { width: 100%; } .siren-clip figcaption { opacity: .8; margin: .2rem 0; }
.siren-clip svg { width: 100%; height: 4rem; display: block; }
.siren-clip img { width: 100%; height: 7rem; display: block;
  image-rendering: pixelated; border-radius: .3rem; } .siren-clip { margin: 0 0 1rem; }
footer { display: none !important; }
@media (max-width: 640px) { .gradio-container { padding: .5rem !important; } }
"""


@dataclass
class Recording:
    """A clip while it is made and after."""

    facts: dict[str, Any]
    pieces: list[np.ndarray] = field(default_factory=list)
    ended: bool = False
    files: list[Path] = field(default_factory=list)

    @property
    def wav(self) -> np.ndarray:
        return np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.float32)


class Studio:
    """The clips of a page, and the engines (name → engine) that make them."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = engines
        self.recordings: OrderedDict[str, Recording] = OrderedDict()
        self.lock = threading.Lock()
        self.folder = tempfile.TemporaryDirectory(prefix="siren-ui-")

    def make(self, wanted: list[tuple[str, int]], prompt: str, seconds: float, **changes: Any) -> Iterator[list[str]]:
        """Clips for (model, seed) pairs, all at once; their keys first, and again whenever more of one can be heard.

        Raises ValueError, Full or Closing before anything is made. Closing the iterator gives up what is not done.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        checked = []
        for name, seed in wanted:
            engine = self.engines[name]
            sampling = replace(engine.bundle.sampling, **given)
            checked.append((name, seed, sampling, engine.check(prompt, seconds, sampling)))
        keys: list[str] = []
        sounds: list[Sound] = []
        try:
            for name, seed, sampling, num_frames in checked:
                sounds.append(self.engines[name].iterate(prompt, seed, seconds, sampling))
                bundle, key = self.engines[name].bundle, secrets.token_urlsafe(12)
                facts = sidecar(prompt, seed, sampling, name, num_frames * bundle.codec.hop, bundle.sample_rate)
                self._keep(key, Recording(facts))
                keys.append(key)
        except (Full, Closing):
            for sound in sounds:
                sound.close()
            raise
        going = list(zip(keys, sounds, strict=True))
        try:
            yield keys
            while going:
                for key, sound in list(going):
                    piece = next(sound, None)
                    if piece is None:
                        going.remove((key, sound))
                        self.recordings[key].ended = True
                    else:
                        self.recordings[key].pieces.append(piece)
                yield keys
        finally:
            for key, sound in going:
                sound.close()
                self.recordings[key].ended = True

    def _keep(self, key: str, recording: Recording) -> None:
        with self.lock:
            self.recordings[key] = recording
            while len(self.recordings) > KEPT:
                _, old = self.recordings.popitem(last=False)
                for path in old.files:
                    path.unlink(missing_ok=True)

    def files(self, keys: list[str]) -> list[str]:
        """Each clip as a WAV and a JSON sidecar, for download."""
        paths = []
        for key in keys:
            made = self.recordings[key]
            stem = Path(self.folder.name) / f"{slug(made.facts['prompt'])}-{made.facts['seed']}-{key[:6]}"
            stem.with_suffix(".wav").write_bytes(encode(made.wav, made.facts["sample_rate"], "wav"))
            stem.with_suffix(".json").write_text(json.dumps(made.facts, indent=1) + "\n")
            made.files = [stem.with_suffix(suffix) for suffix in (".wav", ".json")]
            paths += [str(path) for path in made.files]
        return paths


def waveform(wav: np.ndarray, samples: int) -> str:
    """Peaks of what is there of `samples` samples, as an SVG."""
    columns = 200
    width = max(1, samples // columns)
    tops = [float(np.abs(wav[i : i + width]).max()) for i in range(0, len(wav), width)][:columns]
    bars = "".join(f"M{i} {32 - 31 * min(1.0, t):.1f}V{32 + 31 * min(1.0, t):.1f}" for i, t in enumerate(tops))
    return (
        f'<svg viewBox="0 0 {columns} 64" preserveAspectRatio="none" role="img" aria-label="waveform">'
        f'<path d="{bars}M0 32H{len(tops)}" stroke="currentColor" stroke-width=".8" fill="none"/></svg>'
    )


def spectrogram(wav: np.ndarray, sample_rate: int) -> str:
    """Log-mel energies of a finished clip, -80 to 0 dB, as an image in a data address."""
    import base64
    import io

    import torch
    from matplotlib import colormaps
    from PIL import Image

    from siren import audio

    size, hop = 1024, max(1, len(wav) // 300)
    frames = torch.from_numpy(np.pad(wav, size // 2)).unfold(0, size, hop) * torch.hann_window(size)
    power = torch.fft.rfft(frames).abs().square() @ audio.mel_filterbank(96, size, sample_rate).T
    decibels = 10 * torch.log10(power.clamp_min(1e-10))
    shade = ((decibels - decibels.max()) / 80 + 1).clamp(0, 1).T.flip(0).numpy()
    file = io.BytesIO()
    Image.fromarray((colormaps["magma"](shade)[..., :3] * 255).astype(np.uint8)).save(file, "PNG")
    return f'<img alt="spectrogram" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def shown(studio: Studio, key: str) -> str:
    """What is heard and seen of a clip now. The player is the same element from the start."""
    made = studio.recordings[key]
    facts, wav = made.facts, made.wav
    picture = spectrogram(wav, facts["sample_rate"]) if made.ended and len(wav) else ""
    state = f"{len(wav) / facts['sample_rate']:.1f} of {facts['seconds']:.1f} s"
    title = html.escape(f"{facts['model']} · seed {facts['seed']} · {state}")
    return (
        f'<figure class="siren-clip" data-ended="{str(made.ended).lower()}">'
        f"<figcaption>{title}</figcaption>{waveform(wav, facts['samples'])}{picture}</figure>"
    )


def player(key: str, first: bool) -> str:
    begin = " autoplay" if first else ""
    return f'<div class="siren-clip"><audio controls{begin} preload="auto" src="play/{key}.wav"></audio></div>'


def page(studio: Studio) -> gr.Blocks:
    """The page of one or more models; with two or more they can be compared."""
    names = list(studio.engines)
    limits = studio.engines[names[0]].limits
    usual = studio.engines[names[0]].bundle

    def generate(model, other, prompt, seconds, seed, samples, temperature, top_k, top_p, guidance):  # type: ignore[no-untyped-def]
        models = [model] if not other or other == model else [model, other]
        wanted = [(name, int(seed) + n) for n in range(int(samples)) for name in models][:MOST_CLIPS]
        changes = {"temperature": temperature, "top_k": None if not top_k else int(top_k), "top_p": top_p}
        changes["guidance"] = guidance
        blank = [gr.skip()] * (2 * MOST_CLIPS + 2)
        try:
            sounds = studio.make(wanted, prompt or "", float(seconds), **changes)
            keys = next(sounds)
        except (ValueError, Full, Closing) as error:
            yield [f"**{html.escape(str(error))}**", *blank[1:]]
            return
        rest = MOST_CLIPS - len(keys)
        players = [gr.HTML(player(key, n == 0), visible=True) for n, key in enumerate(keys)]
        players += [gr.HTML("", visible=False)] * rest
        hidden = [gr.HTML("", visible=False)] * rest
        yield ["making sound …", *players, *[gr.HTML(shown(studio, key), visible=True) for key in keys], *hidden, None]
        try:
            for _ in sounds:
                yield [gr.skip()] * (1 + MOST_CLIPS) + [shown(studio, key) for key in keys] + blank[: rest + 1]
        except Exception as error:
            yield [f"**{html.escape(str(error))}**", *blank[1:]]
            return
        finally:
            sounds.close()  # type: ignore[attr-defined]
        done = [shown(studio, key) for key in keys] + [gr.skip()] * rest
        yield ["done", *[gr.skip()] * MOST_CLIPS, *done, studio.files(keys)]

    with gr.Blocks(title="siren", analytics_enabled=False, delete_cache=(3600, 3600)) as made:
        gr.Markdown("# siren\nSay what you want to hear.")
        prompt = gr.Textbox(label="Prompt", lines=2, max_length=limits.prompt_characters, elem_id="prompt")
        with gr.Row():
            make = gr.Button("Make sound", variant="primary", elem_id="make", min_width=120)
            stop = gr.Button("Stop", elem_id="stop", min_width=120)
        gr.Examples([[text] for text in EXAMPLES], [prompt], label="Examples")
        with gr.Row():
            seconds = gr.Slider(0.4, limits.seconds, usual.seconds, step=0.1, label="Seconds")
            samples = gr.Slider(1, MOST_CLIPS, 1, step=1, label="Samples")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="same seed, same sound")
        with gr.Row(visible=len(names) > 1):
            model = gr.Dropdown(names, value=names[0], label="Model")
            other = gr.Dropdown(["", *names], value="", label="Compare with")
        with gr.Accordion("More", open=False), gr.Row():
            temperature = gr.Slider(0.05, 2, usual.sampling.temperature, step=0.05, label="Temperature")
            top_k = gr.Number(usual.sampling.top_k, precision=0, minimum=0, label="Top k", info="0: every code")
            top_p = gr.Slider(0.05, 1, usual.sampling.top_p or 1, step=0.05, label="Top p")
            guidance = gr.Slider(1, 8, usual.sampling.guidance or 1, step=0.1, label="Guidance", info="1: none")
        said = gr.Markdown(elem_id="said")
        players, pictures = [], []
        for pair in ((0, 1), (2, 3)):
            with gr.Row():
                for n in pair:
                    with gr.Column(min_width=280):
                        players.append(gr.HTML(visible=n == 0, elem_id=f"player{n}"))
                        pictures.append(gr.HTML(visible=n == 0, elem_id=f"picture{n}"))
        files = gr.Files(label="Download", interactive=False, elem_id="files")
        inputs = [model, other, prompt, seconds, seed, samples, temperature, top_k, top_p, guidance]
        outputs = [said, *players, *pictures, files]
        how: dict[str, Any] = {"concurrency_limit": 8, "show_progress": "hidden"}
        clicked = make.click(generate, inputs, outputs, api_name="generate", **how)
        sent = prompt.submit(generate, inputs, outputs, api_visibility="private", **how)
        stop.click(None, cancels=[clicked, sent])
    return made


class Closed:
    """Tells browsers to load nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, told)


def app(engines: Mapping[str, Engine]) -> FastAPI:
    """The page as a server; it starts and stops the engines."""
    studio = Studio(engines)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for engine in engines.values():
            await asyncio.to_thread(engine.start)
        yield
        for engine in engines.values():
            await asyncio.to_thread(engine.close)
        studio.folder.cleanup()

    server = FastAPI(title="siren ui", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    server.add_middleware(Closed)

    @server.get("/play/{key}.wav")
    async def play(key: str) -> Response:
        recording = studio.recordings.get(key)
        if recording is None:
            raise HTTPException(404, "this clip is no longer kept; make it again from its seed")
        facts = recording.facts
        headers = {"Content-Length": str(HEADER_BYTES + 2 * facts["samples"]), "Cache-Control": "no-store"}
        return StreamingResponse(_played(recording), media_type="audio/wav", headers=headers)

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(server, page(studio), path="/", theme=theme, css=STYLE, show_error=True)


async def _played(recording: Recording) -> AsyncIterator[bytes]:
    rate, sent = recording.facts["sample_rate"], 0
    yield wav_header(recording.facts["samples"], rate)
    while True:
        ended = recording.ended
        for piece in recording.pieces[sent:]:
            yield pcm(piece, rate)
            sent += 1
        if ended:
            break
        await asyncio.sleep(0.03)
    missing = recording.facts["samples"] - sum(map(len, recording.pieces))
    yield bytes(2 * missing)  # of a clip that was stopped: silence, as long as was promised
