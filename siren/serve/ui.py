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
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr
import numpy as np
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import Response, StreamingResponse

from siren.generate.batch import slug
from siren.serve.app import Receive, Scope, Send, palette, sidecar
from siren.serve.engine import Closing, Engine, Full, Sound
from siren.serve.hosts import Hosts
from siren.serve.sound import HEADER_BYTES, MEDIA, encode, pcm, wav_header

EXAMPLES = (
    "a dog barks while rain falls",
    "a bell rings, then footsteps on gravel",
    "an engine starts and drives away",
    "wind in the trees with birds far away",
)
EMPTY = (
    "<p>Type what you want to hear, or take an example, and press Enter.</p><p>It plays once half a second is made.</p>"
)
KEPT = 64  # clips that can still be played
KINDS = ("wav", "flac", "json")  # of downloads
MOST_CLIPS = 4  # at once, of all models together
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'"
)
STYLE = """
.html-container { padding: 0 !important; }
#title h1 { font-size: 1.7rem; letter-spacing: -.02em; margin: .3rem 0 0; } #notes p { color: var(--soft); margin: 0; }
#empty { border: 1px dashed var(--line) !important; border-radius: 10px; padding: 2.2rem 1rem; text-align: center; }
#empty p { margin: .3rem auto; color: var(--soft); } #said, #said p { color: var(--soft); }
:focus-visible { outline: 2px solid var(--accent) !important; outline-offset: 2px; }
.dark audio { color-scheme: dark; }
.siren-clip { margin: 0; } .siren-clip audio { width: 100%; display: block; height: 2.75rem; }
.siren-clip figcaption { color: var(--soft); margin: .2rem 0; overflow-wrap: anywhere; }
.siren-clip nav { color: var(--soft); margin-top: .4rem; }
.siren-clip nav a { display: inline-block; padding: .3rem .5rem; color: var(--accent); }
.siren-seen { position: relative; cursor: pointer; overflow: hidden; }
.siren-seen svg { width: 100%; height: 4rem; display: block; }
.siren-seen img { width: 100%; height: 8rem; display: block; image-rendering: pixelated; border-radius: .3rem; }
.siren-seen span { position: absolute; left: .3rem; color: #fff; font-size: .7rem; text-shadow: 0 0 3px #000; }
.siren-cursor { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; pointer-events: none; background: #fff;
  box-shadow: 0 0 0 1px #000; }
#make, #again, #stop { white-space: nowrap; font-size: 1rem; padding: .6rem .4rem; }
#make, #again, #stop { border: 1px solid var(--line); }
footer { display: none !important; }
@media (max-width: 760px) {  /* one column: what is asked, what became of it, and the settings last */
  .gradio-container { padding: .5rem !important; } #make, #again, #stop { font-size: .85rem; padding: .6rem .1rem; }
  #left { display: contents; } #ask { order: 0; } #result { order: 1; } #settings { order: 2; }
  #ask, #result, #settings { flex: 1 1 100%; }
}
"""
COLOURS = {
    "body_background_fill": "var(--page)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--soft)",
    "block_background_fill": "var(--card)",
    "block_info_text_color": "var(--soft)",
    "block_label_text_color": "var(--ink)",
    "block_title_text_color": "var(--ink)",
    "border_color_primary": "var(--line)",
    "input_background_fill": "var(--page)",
    "slider_color": "var(--accent)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "var(--accent)",
    "button_primary_text_color": "var(--page)",
    "button_secondary_background_fill": "var(--shade)",
    "button_secondary_text_color": "var(--ink)",
}
# One sound at a time; a cursor over the pictures; a click in them plays from there. Media events do not bubble.
SCRIPT = """<script>
document.addEventListener('play', e =>
  document.querySelectorAll('audio').forEach(other => other === e.target || other.pause()), true);
document.addEventListener('timeupdate', e => {
  const cursor = document.querySelector(`.siren-seen[data-key="${e.target.dataset.key}"] .siren-cursor`);
  if (cursor) cursor.style.left = 100 * e.target.currentTime / e.target.duration + '%';
}, true);
document.addEventListener('click', e => {
  const seen = e.target.closest('.siren-seen');
  if (!seen) return;
  const audio = document.querySelector(`audio[data-key="${seen.dataset.key}"]`);
  const box = seen.getBoundingClientRect();
  audio.currentTime = (e.clientX - box.left) / box.width * audio.duration;
  audio.play();
});
</script>"""


@dataclass
class Recording:
    """A clip while it is made and after."""

    facts: dict[str, Any]
    pieces: list[np.ndarray] = field(default_factory=list)
    ended: bool = False

    @property
    def wav(self) -> np.ndarray:
        return np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.float32)


class Studio:
    """The clips of a page, and the engines (name → engine) that make them."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = engines
        self.recordings: OrderedDict[str, Recording] = OrderedDict()
        self.lock = threading.Lock()

    def make(self, wanted: list[tuple[str, int]], prompt: str, seconds: float, **changes: Any) -> Iterator[list[str]]:
        """Clips for (model, seed) pairs, all at once; their keys first, and again whenever more of one can be heard.

        `changes` to the sampling that each model was registered with; `top_k` None is every code.

        Raises ValueError, Full or Closing before anything is made. Closing the iterator gives up what is not done.
        """
        checked = []
        for name, seed in wanted:
            engine = self.engines[name]
            sampling = replace(engine.bundle.sampling, **changes)
            checked.append((name, seed, sampling, engine.check(prompt, seconds, sampling)))
        keys: list[str] = []
        sounds: list[Sound] = []
        try:
            for name, seed, sampling, num_samples in checked:
                sounds.append(self.engines[name].iterate(prompt, seed, seconds, sampling))
                bundle, key = self.engines[name].bundle, secrets.token_urlsafe(12)
                facts = sidecar(bundle, name, prompt, seed, sampling, num_samples)
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
                self.recordings.popitem(last=False)


def waveform(wav: np.ndarray, samples: int) -> str:
    """The outline of what is there of `samples` samples, as an SVG; as high as it is wide open, however quiet."""
    columns = 200
    width = max(1, samples // columns)
    tops = np.array([np.abs(wav[i : i + width]).max() for i in range(0, len(wav), width)][:columns])
    tops = tops / max(1e-3, tops.max(initial=0.0))  # silence stays a line
    bars = "".join(f"M{i} {32 - 31 * t:.1f}V{32 + 31 * t:.1f}" for i, t in enumerate(tops))
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
    """What is seen of a clip now, and once it is whole, what can be downloaded."""
    made = studio.recordings[key]
    facts, wav = made.facts, made.wav
    rate, whole = facts["sample_rate"], made.ended and len(wav) > 0
    state = f"{len(wav) / rate:.1f} of {facts['seconds']:.1f} s"
    if whole:
        state = f"{len(wav) / rate:.4g} s · peak {20 * np.log10(max(1e-5, float(np.abs(wav).max()))):.0f} dBFS"
    title = html.escape(f"{facts['model']} · seed {facts['seed']} · {state}")
    picture = spectrogram(wav, rate) if whole else ""
    if picture:
        picture += f'<span style="top: 4.2rem">{rate / 2000:g} kHz</span><span style="bottom: .2rem">0</span>'
    return (
        f'<figure class="siren-clip" data-ended="{str(made.ended).lower()}"><figcaption>{title}</figcaption>'
        f'<div class="siren-seen" data-key="{key}">{waveform(wav, facts["samples"])}{picture}'
        f'<i class="siren-cursor"></i></div>{links(key, facts) if whole else ""}</figure>'
    )


def links(key: str, facts: dict[str, Any]) -> str:
    """Downloads of a clip: its sound, and the sidecar to make it again with."""
    name = f"{slug(facts['prompt'])}-{facts['seed']}-{key[:6]}"
    own = "".join(f'<a href="play/{key}.{kind}" download="{name}.{kind}">{kind.upper()}</a>' for kind in KINDS)
    return f'<nav aria-label="Downloads">Save {own}</nav>'


def player(key: str, begin: str = "autoplay preload=auto") -> str:
    """The same element from the first sound to the last; `begin` says when it loads."""
    return f'<div class="siren-clip"><audio controls {begin} data-key="{key}" src="play/{key}.wav"></audio></div>'


def earlier(studio: Studio, keys: list[str]) -> str:
    """Clips made before, newest first, as far as they are kept."""
    kept = [(key, studio.recordings[key].facts) for key in keys if key in studio.recordings]
    return "".join(
        f'<figure class="siren-clip"><figcaption>{html.escape(facts["prompt"])} · {html.escape(facts["model"])} · '
        f"seed {facts['seed']}</figcaption>{player(key, 'preload=none')}{links(key, facts)}</figure>"
        for key, facts in kept
    )


def _about(studio: Studio) -> str:
    """The models by name, the lengths that they know, and what becomes of a longer clip."""
    lengths = sorted({engine.bundle.seconds for engine in studio.engines.values()})
    told = f"{', '.join(studio.engines)} · trained on clips of {' and '.join(f'{s:.3g}' for s in lengths)} s"
    longer = any(engine.limits.seconds > engine.bundle.seconds for engine in studio.engines.values())
    return f"{told}; longer ones go on from their last moments and forget what came before" if longer else told


def page(studio: Studio, notes: Sequence[str] = ()) -> gr.Blocks:
    """The page of one or more models; with two or more they can be compared."""
    names = list(studio.engines)
    limits = studio.engines[names[0]].limits
    usual = studio.engines[names[0]].bundle

    def generate(model, other, prompt, seconds, seed, takes, temperature, top_k, top_p, guidance, before):  # type: ignore[no-untyped-def]
        models = [model] if not other or other == model else [model, other]
        wanted = [(name, int(seed or 0) + n) for n in range(int(takes)) for name in models]
        note = f" {MOST_CLIPS} clips at once, so {MOST_CLIPS // len(models)} of each model."
        note, wanted = note if len(wanted) > MOST_CLIPS else "", wanted[:MOST_CLIPS]
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        changes = {name: value for name, value in given.items() if value is not None}  # a field that was emptied
        if "top_k" in changes:
            changes["top_k"] = int(changes["top_k"]) or None
        begun = time.monotonic()
        try:
            sounds = studio.make(wanted, prompt or "", float(seconds), **changes)
            keys = next(sounds)
        except (ValueError, Full, Closing) as error:
            yield {said: f"**{html.escape(str(error))}**", empty: gr.HTML(visible=False)}
            return
        rest = [""] * (MOST_CLIPS - len(keys))
        new = [player(key, *["preload=auto"] * (n > 0)) for n, key in enumerate(keys)]
        wide = len(keys) if len(keys) < 3 else MOST_CLIPS
        yield {
            said: f"making sound …{note}",
            empty: gr.HTML(visible=False),
            **{column: gr.Column(visible=n < wide) for n, column in enumerate(columns)},
            **dict(zip(players + pictures, new + rest + [shown(studio, key) for key in keys] + rest, strict=True)),
            taken: [*keys, *before][:KEPT],
            past: gr.HTML(earlier(studio, before)),
            ago: gr.Accordion(visible=bool(before)),
        }
        try:
            for _ in sounds:
                yield {picture: shown(studio, key) for picture, key in zip(pictures, keys, strict=False)}
        except Exception as error:
            yield {said: f"**{html.escape(str(error))}**"}
            return
        finally:
            sounds.close()  # type: ignore[attr-defined]
        told = f"{len(keys)} clip{'s' * (len(keys) > 1)} in {time.monotonic() - begun:.1f} s.{note}"
        done = {picture: shown(studio, key) for picture, key in zip(pictures, keys, strict=False)}
        yield {said: told, **done}

    with gr.Blocks(title="siren", analytics_enabled=False, delete_cache=(3600, 3600)) as made:
        gr.HTML("<h1>siren</h1>", elem_id="title")
        gr.HTML("".join(f"<p>{html.escape(note)}</p>" for note in (_about(studio), *notes)), elem_id="notes")
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="left"):
                with gr.Column(elem_id="ask"):
                    prompt = gr.Textbox(
                        label="What do you want to hear?",
                        max_lines=4,
                        max_length=limits.prompt_characters,
                        elem_id="prompt",
                        autofocus=True,
                    )
                    with gr.Row():
                        make = gr.Button("Make sound", variant="primary", elem_id="make", min_width=100)
                        again = gr.Button("Next take", elem_id="again", min_width=90)
                        stop = gr.Button("Stop", elem_id="stop", min_width=70)
                    gr.Examples([[text] for text in EXAMPLES], [prompt], label="Examples")
                with gr.Column(elem_id="settings"):
                    with gr.Row(visible=len(names) > 1):
                        model = gr.Dropdown(names, value=names[0], label="Model")
                        other = gr.Dropdown([("nothing", ""), *names], value="", label="Compare with")
                    length = min(usual.seconds, limits.seconds)
                    seconds = gr.Slider(min(0.4, length / 2), limits.seconds, length, step=0.1, label="Seconds")
                    with gr.Row():
                        takes = gr.Slider(1, MOST_CLIPS, 1, step=1, label="Takes", buttons=[])
                        seed = gr.Number(0, precision=0, minimum=0, label="Seed: same seed, same sound")
                    with gr.Accordion("More", open=False):
                        temperature = gr.Slider(0.05, 2, usual.sampling.temperature, step=0.05, label="Temperature")
                        top_k = gr.Number(
                            usual.sampling.top_k, precision=0, minimum=0, label="Top k", info="0: every code"
                        )
                        top_p = gr.Slider(0.05, 1, usual.sampling.top_p or 1, step=0.05, label="Top p")
                        guidance = gr.Slider(
                            1, 8, usual.sampling.guidance or 1, step=0.1, label="Guidance", info="1: none"
                        )
            with gr.Column(scale=3, min_width=300, elem_id="result"):
                empty = gr.HTML(EMPTY, elem_id="empty")
                said = gr.Markdown(elem_id="said")
                columns, players, pictures = [], [], []
                for pair in ((0, 1), (2, 3)):
                    with gr.Row():
                        for n in pair:
                            with gr.Column(min_width=260, visible=False) as column:
                                columns.append(column)
                                players.append(gr.HTML(elem_id=f"player{n}"))
                                pictures.append(gr.HTML(elem_id=f"picture{n}"))
                with gr.Accordion("Earlier", open=False, visible=False, elem_id="earlier") as ago:
                    past = gr.HTML()
        taken = gr.State([])  # keys of this listener's clips, newest first
        inputs = [model, other, prompt, seconds, seed, takes, temperature, top_k, top_p, guidance, taken]
        outputs = [said, empty, *columns, *players, *pictures, taken, past, ago]
        how: dict[str, Any] = {"concurrency_limit": 8, "show_progress": "hidden"}
        clicked = make.click(generate, inputs, outputs, api_name="generate", **how)
        sent = prompt.submit(generate, inputs, outputs, api_visibility="private", **how)
        moved = again.click(
            lambda seed, takes: int(seed or 0) + int(takes), [seed, takes], seed, api_visibility="private"
        )
        repeated = moved.then(generate, inputs, outputs, api_visibility="private", **how)
        stop.click(None, cancels=[clicked, sent, moved, repeated])
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


def app(engines: Mapping[str, Engine], notes: Sequence[str] = (), names: Sequence[str] = ()) -> FastAPI:
    """The page as a server; it starts and stops the engines. `notes` stand under the title; `names` as in `Hosts`."""
    studio = Studio(engines)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for engine in engines.values():
            await asyncio.to_thread(engine.start)
        yield
        for engine in engines.values():
            await asyncio.to_thread(engine.close)

    server = FastAPI(title="siren ui", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    server.add_middleware(Closed)
    server.add_middleware(Hosts, names=names)
    server.include_router(sounds(studio))
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(**COLOURS, **{f"{name}_dark": value for name, value in COLOURS.items()})
    return gr.mount_gradio_app(
        server,
        page(studio, notes),
        path="/",
        theme=theme,
        css=STYLE,
        head=f"<style>{palette()}</style>{SCRIPT}",
        show_error=True,
    )


def sounds(studio: Studio) -> APIRouter:
    """What players and downloads ask for: /play/KEY.wav while and after it is made, .flac and .json."""
    router = APIRouter()

    @router.get("/play/{key}.{kind}")
    async def play(key: str, kind: str, request: Request) -> Response:
        recording = studio.recordings.get(key)
        if recording is None or kind not in KINDS:
            raise HTTPException(404, "this clip is no longer kept; make it again from its seed")
        facts, headers = recording.facts, {"Cache-Control": "no-store"}
        if kind == "json":
            return Response(json.dumps(facts, indent=1) + "\n", media_type="application/json", headers=headers)
        if kind == "flac":
            sound = await asyncio.to_thread(encode, recording.wav, facts["sample_rate"], kind)
            return Response(sound, media_type=MEDIA[kind], headers=headers)
        size = HEADER_BYTES + 2 * facts["samples"]
        begin, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))  # players on phones insist on it
        if asked and int(asked[1]) < size:
            begin, end, status = int(asked[1]), min(size, int(asked[2] or size) + 1), 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        headers |= {"Content-Length": str(max(0, end - begin)), "Accept-Ranges": "bytes"}
        return StreamingResponse(_cut(_played(recording), begin, end), status, headers, MEDIA["wav"])

    return router


async def _cut(stream: AsyncIterator[bytes], begin: int, end: int) -> AsyncIterator[bytes]:
    """Bytes begin … end - 1."""
    at = 0
    async for piece in stream:
        if part := piece[max(0, begin - at) : max(0, end - at)]:
            yield part
        at += len(piece)
        if at >= end:
            return


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
