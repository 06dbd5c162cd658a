"""The listening test as a small web server: one page, its clips, and two calls. It never says which system is which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel

from siren.serve.hosts import Hosts
from siren.study.answers import Book
from siren.study.design import CLIPS, QUESTIONS, letters, load

PAGE = Path(__file__).parent / "page" / "study.html"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Ranked(BaseModel):
    """What the page sends: ranks and seconds of A, B, C."""

    rater: str
    trial: str
    ranks: dict[str, list[int]]
    heard_seconds: list[float]
    took_seconds: float


def app(folder: Path, names: Sequence[str] = ()) -> FastAPI:
    """The server of a study's folder, which answers to localhost, to addresses and to `names`.

    Raises ValueError where there is no study.
    """
    study = load(folder)
    book = Book(folder, study)
    known = {name for trial in study.trials for name in trial.clips.values()}
    server = FastAPI(title="siren study", docs_url=None, redoc_url=None, openapi_url=None)
    server.add_middleware(Hosts, names=names)

    @server.get("/")
    def page() -> HTMLResponse:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)

    @server.get("/clips/{name}")
    def clip(name: str) -> FileResponse:
        if name not in known:
            raise HTTPException(404, "no such clip")
        return FileResponse(folder / CLIPS / name, media_type="audio/wav")

    @server.get("/next")
    def following(rater: str) -> dict[str, Any]:
        return _next(rater)

    @server.post("/answer")
    def answer(ranked: Ranked) -> dict[str, Any]:
        try:
            book.keep(**ranked.model_dump())
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return _next(ranked.rater)

    def _next(rater: str) -> dict[str, Any]:
        try:
            done = book.done(rater)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        for trial, systems in study.order(rater):
            if trial.id not in done:
                names = letters(len(systems))
                clips = [{"name": n, "url": f"clips/{trial.clips[s]}"} for n, s in zip(names, systems, strict=True)]
                shown = {"id": trial.id, "caption": trial.caption, "clips": clips, "questions": QUESTIONS}
                return {"done": len(done), "total": len(study.trials), "trial": shown}
        return {"done": len(done), "total": len(study.trials), "trial": None}

    return server
