"""Language models behind an address that speaks OpenAI's chat protocol, such as vLLM's server.

One request for each answer, with its own seed, so that one that fails takes no other with it; a server that caches
prefixes reads the sound once. Sound goes as a WAV in base64 (`input_audio`). Failures that pass are tried again as
downloads are (`siren.collect.fetch.download`): growing pauses, and a Retry-After holds all requests off. What stays
wrong is an answer with a reason. Whether the same seed gives the same words is the server's affair.
"""

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siren.collect.fetch import download
from siren.collect.fetch.download import Downloader, FetchError, Passing
from siren.config import Endpoint as Settings
from siren.config import LanguageModel
from siren.filter.caption.protocol import Answer, Question
from siren.progress import track

if TYPE_CHECKING:
    import httpx

KEY = "SIREN_ENDPOINT_KEY"
SAMPLE_RATE = 16000  # what Qwen2-Audio hears; a server resamples for another


class Endpoint:
    """A model by its name at an address."""

    sample_rate = SAMPLE_RATE

    def __init__(self, model: LanguageModel, endpoint: Settings) -> None:
        self.model, self.endpoint = model, endpoint

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer each, in order; so many at once as the limits say."""
        import httpx

        limits, key = self.endpoint.limits, os.environ.get(KEY)
        headers = {"User-Agent": "siren"} | ({"Authorization": f"Bearer {key}"} if key else {})
        with (
            Downloader(Path(), limits) as waiting,
            httpx.Client(timeout=httpx.Timeout(limits.stall_seconds, pool=None), headers=headers) as client,
            ThreadPoolExecutor(limits.concurrency) as threads,
        ):
            answers = threads.map(lambda question: self._ask(client, waiting, question), questions)
            return list(track(answers, "ask", len(questions), unit="answer"))

    def _ask(self, client: "httpx.Client", waiting: Downloader, question: Question) -> Answer:
        url = self.endpoint.url.rstrip("/") + "/chat/completions"
        body = self._body(question)
        try:
            return waiting.retrying(url, lambda: _post(client, url, body))
        except FetchError as error:
            return Answer(None, str(error))

    def _body(self, question: Question) -> dict[str, Any]:
        content: Any = question.text
        if question.wav is not None:
            sound = {"type": "input_audio", "input_audio": {"data": wav_base64(question.wav), "format": "wav"}}
            content = [sound, {"type": "text", "text": question.text}]
        given = self.model
        sampling = {"temperature": given.temperature, "top_p": given.top_p, "max_tokens": given.max_new_tokens}
        # JSON numbers above 2^53 are not safe everywhere, and some servers take 32 bits only.
        seed = {"seed": question.seed % 2**31}
        return {"model": given.model, "messages": [{"role": "user", "content": content}], **sampling, **seed}

    def provenance(self) -> dict[str, Any]:
        """The model by name, revision and licence as the settings tell them, and what it is asked."""
        names = ("model", "revision", "licence", "prompt", "temperature", "top_p")
        return {name: getattr(self.model, name) for name in names} | {"backend": "endpoint", "url": self.endpoint.url}


def wav_base64(wav: Any) -> str:
    """A 16-bit WAV at `SAMPLE_RATE`. [S]"""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, wav, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()


def _post(client: "httpx.Client", url: str, body: dict[str, Any]) -> Answer:
    """One request. Raises `Passing` for what is worth another try, `FetchError` for what is not."""
    import httpx

    try:
        response = client.post(url, json=body)
    except httpx.TimeoutException:
        raise Passing("timeout", f"{url} did not answer in time") from None
    except httpx.RequestError as error:  # also an answer that cannot be decoded
        raise Passing("network", f"{url}: {type(error).__name__} {error}") from None
    except httpx.InvalidURL as error:
        raise FetchError("bad_url", f"{url!r} is no address: {error}") from None
    download.check_status(url, response)
    try:
        choice = response.json()["choices"][0]
        said, ended = str.strip(choice["message"]["content"] or ""), choice.get("finish_reason") != "length"
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Passing("bad_answer", f"{url} answered {response.text[:200]!r}, which is no chat completion") from None
    return Answer.of(said, ended)
