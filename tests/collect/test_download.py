"""The downloader: every fault of a server ends as the file or as a reason, and nothing is asked for twice."""

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from siren.collect.fetch.download import Downloader, FetchError, Limits
from siren.config import ConfigError, Download
from tests.collect.server import Fault, Handler, Server, dropped, other, serving, stalled, status, truncated

SETTINGS = Download(
    concurrency=4,
    attempts=3,
    backoff_seconds=0.01,
    max_wait_seconds=5.0,
    stall_seconds=60.0,  # a busy machine is no stalled server
    max_bytes_per_second=None,
)
HASTY = replace(SETTINGS, stall_seconds=0.3)  # for servers that do stall
DATA = bytes(range(256)) * 1000
MD5 = f"md5:{hashlib.md5(DATA).hexdigest()}"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def downloader(tmp_path: Path) -> Iterator[Downloader]:
    with Downloader(tmp_path, SETTINGS) as downloader:
        yield downloader


def undecodable(handler: Handler) -> bool:
    """It says gzip, and is none."""
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", "5")
    handler.end_headers()
    handler.wfile.write(b"plain")
    return True


PASSING: dict[str, Fault] = {
    "500": status(500),
    "503 with a date": status(503, Retry_After=formatdate(time.time() - 5, usegmt=True)),
    "429": status(429, Retry_After="0"),
    "408": status(408),
    "stall": stalled,
    "truncated": truncated(100_000),
    "dropped": dropped,
    "wrong bytes": other(b"an error page of a proxy"),
    "redirect": status(302, Location="/b.wav"),
    "416": status(416),
    "undecodable": undecodable,
}


@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_leaves_no_trace(server: Server, tmp_path: Path, kind: str) -> None:
    url = server.add("/a.wav", DATA, PASSING[kind])
    server.add("/b.wav", DATA)
    # However busy the machine is, one of twenty attempts is answered in time.
    with Downloader(tmp_path, replace(HASTY, attempts=20) if kind == "stall" else SETTINGS) as downloader:
        path = downloader.fetch(url, MD5)
    assert path.read_bytes() == DATA
    assert path.suffix == ".wav"
    assert [file for file in path.parent.iterdir() if file != path] == []


STAYING: dict[str, tuple[str, int, Fault]] = {  # fault: (reason, requests, fault)
    "404": ("not_found", 1, status(404)),
    "410": ("not_found", 1, status(410)),
    "403": ("forbidden", 1, status(403)),
    "451": ("forbidden", 1, status(451)),
    "400": ("refused", 1, status(400)),
    "500": ("server_error", 3, status(500)),
    "429": ("rate_limited", 3, status(429)),
    "429 for an hour": ("rate_limited", 1, status(429, Retry_After="3600")),
    "stall": ("timeout", 3, stalled),
    "truncated": ("incomplete", 3, truncated(0)),
    "wrong bytes": ("checksum", 3, other(b"another file")),
    "undecodable": ("incomplete", 3, undecodable),
    "redirects": ("redirects", 11, status(302, Location="/a.wav")),
}


@pytest.mark.parametrize("kind", STAYING)
def test_a_fault_that_stays_is_a_reason_after_the_attempts(server: Server, tmp_path: Path, kind: str) -> None:
    reason, requests, fault = STAYING[kind]
    url = server.add("/a.wav", DATA, *[fault] * 20)
    with (
        Downloader(tmp_path, HASTY if kind == "stall" else SETTINGS) as downloader,
        pytest.raises(FetchError) as caught,
    ):
        downloader.fetch(url, MD5)
    assert (caught.value.reason, downloader.requests) == (reason, 1 if kind == "redirects" else requests)
    if kind != "stall":  # what nobody waited for may not have reached the server yet
        assert server.seen["/a.wav"] == requests
    assert "/a.wav" in caught.value.detail or "127.0.0.1" in caught.value.detail


@pytest.mark.parametrize(
    ("url", "reason"), [("ftp://127.0.0.1/a", "bad_url"), ("http://[x", "bad_url"), ("http://127.0.0.1:9/a", "network")]
)
def test_what_is_no_address_or_has_no_server_is_a_reason(downloader: Downloader, url: str, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        downloader.fetch(url)
    assert caught.value.reason == reason


def test_a_cut_transfer_goes_on_where_it_stopped_even_in_another_run(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.wav", DATA, truncated(100_000), truncated(50_000))
    with Downloader(tmp_path, replace(SETTINGS, attempts=1)) as first, pytest.raises(FetchError, match="incomplete"):
        first.fetch(url)
    with Downloader(tmp_path, SETTINGS) as second:
        assert second.fetch(url).read_bytes() == DATA
    assert [headers.get("Range") for headers in server.headers["/a.wav"]] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.wav", DATA, truncated(100_000))
    with Downloader(tmp_path, replace(SETTINGS, attempts=1)) as first, pytest.raises(FetchError, match="incomplete"):
        first.fetch(url)
    server.files["/a.wav"] = DATA[::-1]
    with Downloader(tmp_path, SETTINGS) as second:
        assert second.fetch(url).read_bytes() == DATA[::-1]


def test_without_a_validator_nothing_is_glued_together(server: Server, downloader: Downloader) -> None:
    server.validators = False
    url = server.add("/a.wav", DATA, truncated(100_000))
    assert downloader.fetch(url).read_bytes() == DATA
    assert all("Range" not in headers for headers in server.headers["/a.wav"])


def test_a_rerun_asks_only_for_what_is_missing_or_promised_otherwise(server: Server, downloader: Downloader) -> None:
    url = server.add("/a.wav", DATA)
    assert downloader.fetch(url) == downloader.fetch(url)
    assert server.seen["/a.wav"] == 1
    assert downloader.fetch(url, MD5) != downloader.fetch(url)  # the index has a checksum now
    assert server.seen["/a.wav"] == 2


def test_threads_that_want_one_file_ask_once(server: Server, downloader: Downloader) -> None:
    url = server.add("/a.wav", DATA)
    threads = [threading.Thread(target=downloader.fetch, args=(url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.seen["/a.wav"] == 1


def test_processes_that_want_one_file_ask_once_and_leave_no_lock(server: Server, tmp_path: Path) -> None:
    """The system's locks belong to an opened file, so downloaders of one process exclude each other as others do."""
    url = server.add("/a.wav", DATA, lambda handler: time.sleep(0.1) or False)
    with ExitStack() as stack:
        downloaders = [stack.enter_context(Downloader(tmp_path, SETTINGS)) for _ in range(3)]
        threads = [threading.Thread(target=one.fetch, args=(url,)) for one in downloaders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.seen["/a.wav"] == 1
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [downloaders[0].path(url)]


def test_a_lock_is_held_by_one_at_a_time_however_many_want_it(downloader: Downloader, tmp_path: Path) -> None:
    inside, most = [0], [0]

    def hold() -> None:
        for _ in range(100):
            with downloader.lock(tmp_path / "a" / "x.wav"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(hold) for _ in range(8)]:
            done.result()
    assert most == [1]
    assert list((tmp_path / "a").iterdir()) == []


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def timed(folder: Path, **changes: Any) -> tuple[Downloader, Clock]:
    clock = Clock()
    settings = replace(SETTINGS, **changes)
    return Downloader(folder, settings, Limits(settings.max_bytes_per_second, clock), clock.sleep), clock


def test_a_retry_after_holds_back_the_whole_host(server: Server, tmp_path: Path) -> None:
    first, second = server.add("/a", DATA, status(429, Retry_After="3")), server.add("/b", DATA)
    downloader, clock = timed(tmp_path, attempts=1)
    with downloader:
        with pytest.raises(FetchError, match="rate_limited"):
            downloader.fetch(first)
        downloader.fetch(second)
    assert clock.now == 3.0


def test_a_pause_longer_than_allowed_fails_at_once_and_asks_no_more(server: Server, tmp_path: Path) -> None:
    first, second = server.add("/a", DATA, status(429, Retry_After="3600")), server.add("/b", DATA)
    downloader, clock = timed(tmp_path)
    with downloader:
        for url in (first, second):
            with pytest.raises(FetchError, match="max_wait_seconds"):
                downloader.fetch(url)
    assert (clock.now, server.seen["/b"]) == (0.0, 0)


def test_pauses_grow_and_are_bounded(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", DATA, *[status(500)] * 6)
    downloader, clock = timed(tmp_path, attempts=7, backoff_seconds=1.0)
    with downloader:
        downloader.fetch(url)
    assert 0.5 + 1 + 2 + 4 + 5 + 5 <= clock.now <= 1.5 + 3 + 5 + 5 + 5 + 5


def test_bandwidth_and_pace_are_kept(server: Server, tmp_path: Path) -> None:
    urls = [server.add(f"/{name}", DATA) for name in "abc"]
    downloader, clock = timed(tmp_path, max_bytes_per_second=len(DATA))
    with downloader:
        for url in urls:
            downloader.fetch(url)
        assert clock.now == pytest.approx(3.0)
        downloader.pace(server.url, per_minute=6)
        for url in [server.add(f"/{name}", b"x") for name in "def"]:
            downloader.fetch(url)
    assert clock.now == pytest.approx(23.0, abs=0.1)


def test_a_key_is_not_sent_on_to_another_host(server: Server, downloader: Downloader) -> None:
    with serving() as elsewhere:
        target = elsewhere.add("/b", DATA)
        url = server.add("/a", b"", status(302, Location=target))
        downloader.fetch(url, headers={"Authorization": "Token secret"})
        assert server.headers["/a"][0]["Authorization"] == "Token secret"
        assert "Authorization" not in elsewhere.headers["/b"][0]


@pytest.mark.parametrize(("name", "value"), [("attempts", 0), ("stall_seconds", 0.0), ("max_bytes_per_second", -1)])
def test_impossible_limits_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        replace(SETTINGS, **{name: value})
