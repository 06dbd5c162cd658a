"""One downloader for every source: polite, bounded, resumable; a rerun asks only for what is missing.

A file lies in the cache under a name made of its URL and checksum, so an index that promises other bytes is a new file.
It is written as `.part` beside the validator that the server gave (`.tag`: ETag or Last-Modified), which lets an
interrupted transfer continue with `Range` and `If-Range` (RFC 9110, sections 13 and 14), and renamed when it is whole.
What passes (429, 5xx, stalls, cut connections, wrong bytes) is tried again with growing pauses; a `Retry-After` holds
all threads off that host, and all workers that share these `Limits`. Files are locked by the system, because several
processes may want one. Whatever stays wrong is a `FetchError` with a stable reason, for the caller to quarantine.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from siren.config import Download

if TYPE_CHECKING:
    import httpx

Result = TypeVar("Result")
PERMANENT = {401: "forbidden", 403: "forbidden", 404: "not_found", 410: "not_found", 451: "forbidden"}
MAX_REDIRECTS = 10


class FetchError(Exception):
    """Something that could not be had. `reason` is a stable code, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Passing(FetchError):
    """A failure that may pass. `after`: seconds that the server asked to wait."""

    def __init__(self, reason: str, detail: str, after: float | None = None) -> None:
        super().__init__(reason, detail)
        self.after = after


class Limits:
    """What all who ask one host must know of one another: pauses, pace, bandwidth.

    It says how long to wait and never waits itself, so that one of it can serve many threads, or many machines.
    """

    def __init__(self, max_bytes_per_second: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = max_bytes_per_second, clock
        self._mutex = threading.Lock()
        self._not_before: dict[str, float] = {}  # host → end of the pause that it asked for
        self._turns: dict[str, float] = {}  # host → time of the next request
        self._gaps: dict[str, float] = {}  # host → seconds between requests
        self._bandwidth_free = 0.0

    def pace(self, host: str, per_minute: float) -> None:
        """At most so many requests a minute."""
        with self._mutex:
            self._gaps[host] = 60 / per_minute

    def pause(self, host: str, seconds: float) -> None:
        """Nobody asks this host for so long."""
        with self._mutex:
            self._not_before[host] = max(self._not_before.get(host, 0), self._clock() + seconds)

    def turn(self, host: str, longest: float) -> float | None:
        """Seconds until the next request may be made, which is then taken; None where a pause is longer than that."""
        with self._mutex:
            now = self._clock()
            pause = max(0.0, self._not_before.get(host, 0) - now)
            if pause > longest:
                return None
            turn = max(now + pause, self._turns.get(host, 0))
            self._turns[host] = turn + self._gaps.get(host, 0)
            return turn - now

    def meter(self, count: int) -> float:
        """Seconds to wait after so many bytes, so that all together stay below the bandwidth."""
        if self._rate is None:
            return 0.0
        with self._mutex:
            now = self._clock()
            self._bandwidth_free = max(self._bandwidth_free, now) + count / self._rate
            return self._bandwidth_free - now


class Downloader:
    """Files of the web in `folder`, for any number of threads. Use in a `with`; nothing is opened before its use.

    `limits`: those of all workers; its own where there is none other.
    """

    def __init__(
        self,
        folder: Path,
        settings: Download,
        limits: Limits | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.folder, self.settings = folder, settings
        self.limits = Limits(settings.max_bytes_per_second) if limits is None else limits
        self.requests = 0
        self._sleep = sleep
        self._mutex = threading.Lock()
        self._client: httpx.Client | None = None

    def __enter__(self) -> "Downloader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def path(self, url: str, checksum: str | None = None, suffix: str | None = None) -> Path:
        """Where the file lies once it is here. Its suffix is that of the URL, where it has one."""
        if suffix is None:
            end = PurePosixPath(urlsplit(url).path).suffix.lower()
            suffix = end if end[1:].isalnum() and end.isascii() and len(end) < 7 else ""
        key = hashlib.sha256(f"{url}\x1f{checksum or ''}".encode()).hexdigest()[:32]
        return self.folder / key[:2] / f"{key}{suffix}"

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Held by whoever makes `path`: one thread of one process. The system takes it from one that is killed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        place = path.with_name(f"{path.name}.lock")
        while True:
            with place.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    found = place.stat()
                except FileNotFoundError:
                    continue
                # Who held it before has removed the file: then this is the lock of nothing, and there may be another.
                if os.path.samestat(os.fstat(file.fileno()), found):
                    try:
                        yield
                    finally:
                        place.unlink()
                    return

    def pace(self, url: str, per_minute: float) -> None:
        """At most so many requests a minute to the host of `url`."""
        self.limits.pace(urlsplit(url).netloc, per_minute)

    def read(self, place: str, name: str = "", headers: dict[str, str] | None = None) -> bytes:
        """An index file, whole: `place` is its URL or path, or the base of `name`.

        Raises ValueError where it cannot be had.
        """
        if not place.startswith(("http://", "https://")):
            path = Path(place).expanduser() / name
            if not path.is_file():
                raise ValueError(
                    f"there is no index file {str(path)!r}; give its folder or its URL as the source's option"
                )
            return path.read_bytes()
        url = urljoin(place.rstrip("/") + "/", name) if name else place
        try:
            return self.fetch(url, headers=headers).read_bytes()
        except FetchError as error:
            raise unavailable(f"the index {url}", error) from None

    def fetch(self, url: str, checksum: str | None = None, headers: dict[str, str] | None = None) -> Path:
        """The file at `url`, from the cache or the network. `checksum`: "md5:..." or "sha256:..." in hexadecimal.

        Raises `FetchError` with reason bad_url | not_found | forbidden | refused | redirects | rate_limited |
        server_error | timeout | network | incomplete | checksum.
        """
        try:
            target = self.path(url, checksum)
        except ValueError as error:
            raise FetchError("bad_url", f"{url!r} is no address: {error}") from None
        if target.is_file():
            return target
        with self.lock(target):
            if not target.is_file():
                self.retrying(url, lambda: self._transfer(url, target, checksum, headers or {}))
        return target

    def retrying(self, url: str, work: Callable[[], Result]) -> Result:
        """`work`, again after each `Passing` failure, up to the settings' attempts. Pauses hold for the whole host."""
        host = urlsplit(url).netloc
        for attempt in range(self.settings.attempts):
            self._wait_for(host)
            try:
                return work()
            except Passing as failure:
                pause = self.settings.backoff_seconds * 2**attempt * _jitter(url, attempt)
                if failure.after is not None:
                    self.limits.pause(host, failure.after)
                if attempt + 1 == self.settings.attempts:
                    raise FetchError(failure.reason, f"{failure.detail}, after {attempt + 1} attempts") from None
                if failure.after is None:
                    self._sleep(min(pause, self.settings.max_wait_seconds))
        raise AssertionError("attempts is at least 1")

    def count(self, requests: int = 1) -> None:
        """So many more requests were made."""
        with self._mutex:
            self.requests += requests

    def _wait_for(self, host: str) -> None:
        """Keep the host's pace and pauses. Raises `FetchError` where a pause is longer than the settings allow."""
        wait = self.limits.turn(host, self.settings.max_wait_seconds)
        if wait is None:
            limit = f"max_wait_seconds {self.settings.max_wait_seconds:g}"
            raise FetchError("rate_limited", f"{host} asks to wait longer than {limit}; run again later")
        if wait > 0:
            self._sleep(wait)

    def _transfer(self, url: str, target: Path, checksum: str | None, headers: dict[str, str]) -> None:
        part, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.tag")
        self._receive(url, part, tag, headers)
        if checksum is not None:
            algorithm, _, right = checksum.partition(":")
            with part.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != right.lower():
                part.unlink()
                raise Passing("checksum", f"{url} has {algorithm} {found}, not {right.lower()}")
        os.replace(part, target)
        tag.unlink(missing_ok=True)

    def _receive(self, url: str, part: Path, tag: Path, headers: dict[str, str]) -> None:
        """One request. What has come is left in `part`, for the next one to go on from."""
        import httpx

        validator = tag.read_text() if part.is_file() and tag.is_file() else ""
        have = part.stat().st_size if validator else 0
        asked = {"Accept-Encoding": "identity"} | headers
        if have:
            asked |= {"Range": f"bytes={have}-", "If-Range": validator}
        self.count()
        try:
            with self._http().stream("GET", url, headers=asked) as response:
                if response.status_code == 416:  # what was here is longer than the file has become
                    part.unlink(missing_ok=True)
                    raise Passing("incomplete", f"{url} answered 416")
                check_status(url, response)
                resumed = response.status_code == 206 and _range_start(response) == have
                if response.status_code == 206 and not resumed:
                    part.unlink(missing_ok=True)
                    raise Passing("incomplete", f"{url} answered with another range than was asked for")
                etag = response.headers.get("ETag", "")
                strong = etag and not etag.startswith("W/")  # a weak one does not promise the same bytes
                tag.write_text(etag if strong else response.headers.get("Last-Modified", ""))
                encoded = response.headers.get("Content-Encoding", "identity") != "identity"
                with part.open("ab" if resumed else "wb") as file:
                    for chunk in response.iter_bytes() if encoded else response.iter_raw():
                        self._meter(len(chunk))
                        file.write(chunk)
        except httpx.TimeoutException:
            raise Passing("timeout", f"{url} sent nothing for {self.settings.stall_seconds:g} s") from None
        except httpx.TooManyRedirects:
            raise FetchError("redirects", f"{url} was redirected more than {MAX_REDIRECTS} times") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise FetchError("bad_url", f"{url!r} is no address: {error}") from None
        except httpx.RemoteProtocolError as error:
            raise Passing("incomplete", f"{url} broke off: {error}") from None
        except httpx.DecodingError as error:
            raise Passing("incomplete", f"{url} sent what it calls encoded, and is not: {error}") from None
        except httpx.TransportError as error:
            raise Passing("network", f"{url}: {type(error).__name__} {error}") from None

    def _http(self) -> "httpx.Client":
        import httpx

        with self._mutex:
            if self._client is None:
                limits = httpx.Limits(max_connections=self.settings.concurrency)
                self._client = httpx.Client(
                    timeout=httpx.Timeout(self.settings.stall_seconds, pool=None),
                    limits=limits,
                    follow_redirects=True,
                    max_redirects=MAX_REDIRECTS,
                    headers={"User-Agent": "siren"},
                )
            return self._client

    def _meter(self, count: int) -> None:
        """Hold back so that all together stay below the bandwidth."""
        if self.settings.max_bytes_per_second is not None and (wait := self.limits.meter(count)) > 0:
            self._sleep(wait)


def unavailable(what: str, error: FetchError) -> ValueError:
    """For what a source cannot do without: nothing can be counted where its index is not known."""
    return ValueError(
        f"{what} cannot be had ({error}); run again later, or change this source of collect.fetch.sources"
    )


def check_status(url: str, response: Any) -> None:
    """Raises `Passing` for an answer that another try may change, `FetchError` for one that it will not."""
    code = response.status_code
    if code in (200, 206):
        return
    said = f"{url} answered {code}"
    if code == 429:
        raise Passing("rate_limited", said, _retry_after(response))
    if code == 408 or code >= 500:
        raise Passing("server_error", said, _retry_after(response))
    raise FetchError(PERMANENT.get(code, "refused"), said)


def _retry_after(response: Any) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _range_start(response: Any) -> int | None:
    text = response.headers.get("Content-Range", "")
    start = text.removeprefix("bytes ").split("-")[0]
    return int(start) if start.isdigit() else None


def _jitter(url: str, attempt: int) -> float:
    """In [0.5, 1.5), so that many workers that failed together do not come back together."""
    return 0.5 + int(hashlib.sha256(f"{url}\x1f{attempt}".encode()).hexdigest()[:8], 16) / 2**32
