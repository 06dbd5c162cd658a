"""The service: prompts in, sound out, over HTTP.

Every error is JSON with what is wrong and what would be right. A request that is refused costs nothing: its body is
bounded while it is read, its prompt and settings are checked before it waits. A listener that goes away frees the row.
There is no password and no encryption: it listens to loopback unless told otherwise and answers to no name that it does
not know (`siren.serve.hosts`); a proxy adds both (docs/serving.md). The documentation page needs nothing from outside.
"""

import asyncio
import base64
import json
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from siren.config import Sampling
from siren.generate.bundle import Bundle
from siren.serve.engine import Closing, Delivery, Engine, Full, Job
from siren.serve.hosts import Hosts
from siren.serve.sound import HEADER_BYTES, MEDIA, encode, pcm, wav_header

PAGE = Path(__file__).parent / "page" / "docs.html"
REPORT = Path(__file__).parents[1] / "evaluate" / "page" / "page.css"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SETTINGS = ("temperature", "top_k", "top_p", "guidance")
PATHS = ("/", "/generate", "/healthz", "/readyz", "/metrics", "/openapi.json")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Asked(BaseModel):
    """One clip. What is left out, or null, is as the model was registered."""

    model_config = ConfigDict(extra="forbid", title="Clip", allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1, description="What to hear.", examples=["a dog barks while rain falls"])]
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Same prompt, settings and seed: same sound.")] = 0
    seconds: Annotated[float | None, Field(gt=0, description="By default the length of the training clips.")] = None
    temperature: Annotated[float | None, Field(ge=0.05, le=10)] = None
    top_k: Annotated[int | None, Field(ge=1, lt=2**31, description="1 takes the likeliest code.")] = None
    top_p: Annotated[float | None, Field(ge=0.001, le=1)] = None
    guidance: Annotated[float | None, Field(ge=0, le=20, description="1 is none.")] = None
    format: Literal["wav", "flac"] = "wav"
    stream: Annotated[bool, Field(description="Send a wav while it is made.")] = False


class Problem(BaseModel):
    """Why there is no sound, and what to do about it."""

    error: str
    remedy: str


def app(engine: Engine, model: str, names: Sequence[str] = ()) -> FastAPI:
    """The service of one model; `model` is what it is called. It starts and stops the engine.

    It answers to localhost, to addresses and to `names` (`siren.serve.hosts`).
    """
    limits, metrics, bundle = engine.limits, engine.metrics, engine.bundle

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(engine.start)
        yield
        await asyncio.to_thread(engine.close)

    server = FastAPI(
        title="siren",
        version="1",
        description="Text to audio. Errors are JSON with a remedy.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    server.add_middleware(Hosts, names=names, refuse=problem)
    server.add_middleware(Guard, engine=engine)  # the outer one: it counts what the other refuses
    metrics.watch("siren_queue_length", "Clips that wait for a row.", lambda: len(engine.waiting))
    metrics.watch("siren_batch_occupancy", "Clips that are being made.", lambda: engine.active)
    metrics.watch("siren_batch_rows", "Clips that can be made at once.", lambda: limits.rows * len(engine.lanes))
    metrics.watch("siren_sampling_bytes", "Memory of the batches, allocated once.", lambda: engine.memory)

    @server.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return problem(422, "; ".join(map(_told, error.errors())), "see /openapi.json for what a request may hold")

    @server.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> Response:
        remedy = {404: f"there are {', '.join(PATHS)}", 405: "POST to /generate, GET the others"}
        text = remedy.get(error.status_code, "send JSON as /openapi.json describes it, as application/json")
        return problem(error.status_code, str(error.detail), text, dict(error.headers or {}))

    @server.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return problem(500, f"{type(error).__name__} in the service", "report it; the service's log has the trace")

    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem, "description": "The body is no JSON."},
        403: {"model": Problem, "description": "A page of another origin asks."},
        413: {"model": Problem, "description": "The body is too long."},
        421: {"model": Problem, "description": "The service does not go by this Host."},
        422: {"model": Problem, "description": "What is asked for cannot be."},
        429: {"model": Problem, "description": "The queue is full; Retry-After says when to come back."},
        503: {"model": Problem, "description": "The service is stopping, or failed."},
    }
    sounds: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "The sound; how it was made is in the header Siren-Sidecar, as JSON without the prompt. "
            "With `json`: both, the sound in base64.",
            "content": {
                **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA.values()},
                "application/json": {"schema": {"type": "object", "required": ["sidecar", "audio"]}},
            },
        }
    }

    @server.post("/generate", responses=sounds | problems, response_class=Response)
    async def generate(
        request: Request,
        asked: Asked,
        as_json: Annotated[bool, Query(alias="json", description="Sidecar and sound in one JSON.")] = False,
    ) -> Response:
        """A clip for a prompt."""
        if asked.stream and (asked.format != "wav" or as_json):
            return problem(422, "only a wav is streamed", "leave out stream, or format and json")
        changes: dict[str, Any] = {k: v for k in SETTINGS if (v := getattr(asked, k)) is not None}
        sampling = replace(bundle.sampling, **changes)
        try:
            num_samples = engine.check(asked.prompt, asked.seconds, sampling)
        except ValueError as error:
            return problem(422, str(error), "see /openapi.json and the service's limits")
        pieces: asyncio.Queue[Delivery] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(piece: Delivery) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        job = Job(asked.prompt, asked.seed, num_samples, sampling, deliver, asked.stream)
        facts = sidecar(bundle, model, asked.prompt, asked.seed, sampling, num_samples)
        try:
            engine.submit(job)
        except (Full, Closing) as error:
            return unavailable(error, engine)
        gone = asyncio.create_task(_listen(request, job, pieces))
        try:
            first = await pieces.get()
        except BaseException:
            job.cancelled = True
            gone.cancel()
            raise
        if not isinstance(first, np.ndarray):
            gone.cancel()
            return unavailable(first or Gone(), engine)
        headers = _headers(facts, asked)
        if asked.stream:
            headers["Content-Length"] = str(HEADER_BYTES + 2 * num_samples)
            body = _streamed(first, pieces, job, gone, num_samples, bundle.sample_rate, engine)
            return StreamingResponse(body, media_type=MEDIA["wav"], headers=headers)
        gone.cancel()
        sound = await asyncio.to_thread(encode, first, bundle.sample_rate, asked.format)
        metrics.request_seconds.observe(time.monotonic() - job.asked)
        if as_json:
            return JSONResponse({"sidecar": facts, "audio": base64.b64encode(sound).decode()})
        return Response(sound, media_type=MEDIA[asked.format], headers=headers)

    health: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "It is not."}}

    @server.get("/healthz", responses=health)
    async def healthz() -> Response:
        """Whether the process works. If not, restart it."""
        if engine.alive or engine.draining:
            return JSONResponse({"status": "ok", "model": model})
        return problem(503, "the thread that makes sound has ended", "restart the service; its log says why")

    @server.get("/readyz", responses=health)
    async def readyz() -> Response:
        """Whether it takes requests. If not, send them elsewhere."""
        if engine.ready and not engine.draining:
            return JSONResponse({"status": "ready", "model": model, "limits": asdict(limits)})
        return problem(503, "the service is starting or stopping", "ask again, or another one")

    @server.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @server.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8").replace("/* palette */", palette()), headers=headers)

    return server


def palette() -> str:
    """One look for all pages: the colours of the report, light and dark, as CSS variables."""
    return REPORT.read_text(encoding="utf-8").partition("\n* {")[0]


class Gone(Exception):
    """The listener went away."""


class Guard:
    """Counts every answer, and bounds bodies while they are read."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], engine: Engine) -> None:
        self.app, self.engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        most, read, status = self.engine.limits.body_bytes, 0, 0
        path = scope["path"] if scope["path"] in PATHS else "other"  # not what strangers invent: each is kept for ever

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, f"the body has more than {most} bytes")
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, bounded, noted)
        finally:
            self.engine.metrics.requests.labels(path, str(status or 500)).inc()


async def _listen(request: Request, job: Job, pieces: "asyncio.Queue[Delivery]") -> None:
    """Wait until the listener goes away, then give up the job."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancelled = True
    pieces.put_nowait(Gone())


async def _streamed(
    first: np.ndarray,
    pieces: "asyncio.Queue[Delivery]",
    job: Job,
    gone: "asyncio.Task[None]",
    num_samples: int,
    sample_rate: int,
    engine: Engine,
) -> AsyncIterator[bytes]:
    piece: Delivery = first
    try:
        yield wav_header(num_samples, sample_rate)
        while piece is not None:
            if isinstance(piece, Gone):
                return
            if isinstance(piece, Exception):
                raise RuntimeError(f"a clip was broken off: {piece}")  # its length was promised: cut the connection
            yield pcm(piece, sample_rate)
            piece = await pieces.get()
        engine.metrics.request_seconds.observe(time.monotonic() - job.asked)
    finally:
        job.cancelled = True
        gone.cancel()


def sidecar(bundle: Bundle, model: str, prompt: str, seed: int, sampling: Sampling, samples: int) -> dict[str, Any]:
    """Everything needed to make the same sound again; an address (`model`) alone may hold other weights tomorrow."""
    rate = bundle.sample_rate
    facts: dict[str, Any] = {"prompt": prompt, "seed": seed, "model": model, "model_sha256": bundle.sha256}
    facts |= {"precision": bundle.precision}
    return facts | {"sample_rate": rate, "samples": samples, "seconds": samples / rate, "sampling": asdict(sampling)}


def _headers(facts: dict[str, Any], asked: Asked) -> dict[str, str]:
    """The sidecar without the prompt, which may be longer than proxies allow a header to be."""
    name = re.sub(r"[^a-z0-9]+", "-", asked.prompt.lower()).strip("-")[:60] or "sound"
    told = json.dumps({key: value for key, value in facts.items() if key != "prompt"})
    disposition = f'inline; filename="{name}-{asked.seed}.{asked.format}"'
    return {"Siren-Sidecar": told, "Content-Disposition": disposition, "Cache-Control": "no-store"}


def problem(status: int, error: str, remedy: str, headers: dict[str, str] | None = None) -> Response:
    """An error as JSON, in ASCII: what was sent may hold what no encoding allows."""
    text = json.dumps({"error": error, "remedy": remedy})
    return Response(text, status, headers, media_type="application/json")


def unavailable(error: Exception, engine: Engine) -> Response:
    """429 or 503 for a clip that was not made."""
    after = {"Retry-After": str(max(1, math.ceil(engine.wait_seconds())))}
    if isinstance(error, Full):
        return problem(429, str(error), f"come back in {after['Retry-After']} s", after)
    if isinstance(error, Closing):
        return problem(503, str(error), "ask another one, or this one once it is back", after)
    if isinstance(error, Gone):
        return problem(503, "the listener went away", "wait for the answer", after)
    return problem(
        503, f"making the clip failed: {error}", "try again; if it fails again, see the service's log", after
    )


def _told(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "body")[:100]
    return f"{where or 'body'}: {error['msg']}"


class Server(uvicorn.Server):
    """Stops in order: at the first signal nothing new is begun; what waits is refused while the rest is finished."""

    def __init__(self, settings: uvicorn.Config, engines: list[Engine]) -> None:
        super().__init__(settings)
        self.engines = engines

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        for engine in self.engines:
            engine.drain()
        super().handle_exit(sig, frame)


def run(server: FastAPI, engines: list[Engine], host: str, port: int, connections: int, grace_seconds: int) -> None:
    """Serve until a signal ends it. Raises OSError where it cannot begin."""
    settings = uvicorn.Config(
        server,
        host=host,
        port=port,
        log_level="warning",
        limit_concurrency=connections,
        timeout_graceful_shutdown=grace_seconds,
        server_header=False,
        ws="none",
    )
    made = Server(settings, engines)
    made.run()
    if not made.started:
        raise OSError(f"the service did not start on {host}:{port}; see above")
