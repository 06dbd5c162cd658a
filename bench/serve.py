"""How the service bears many clients: errors, latency, memory and sound, on loopback.

    python bench/serve.py MODEL --quick             # 16 clients, 20 s
    python bench/serve.py MODEL                     # 64 clients, 300 s
    python bench/serve.py MODEL --rows 16 --seconds 3.2

MODEL is what `siren serve --model` takes. The service runs in a process of its own; the clients share one event loop
here, so their time is not the model's. A client asks for a clip, reads it to its end and asks again, every fourth one
streamed. Latency is from the request to the last byte. Memory is the service's resident set after a tenth of the time
and at the end. Every sound is checked: status, length, and the same bytes whenever the same seed came back.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

PROMPTS = ("a dog barks while rain falls", "a bell rings", "wind and footsteps", "an engine starts")
SEEDS = 50  # each client's seeds come round, so that sounds can be compared


@dataclass
class Found:
    answers: Counter = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # of streamed sounds
    seconds: float = 0.0
    digests: dict[tuple, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


async def client(number: int, session: httpx.AsyncClient, end: float, length: float | None, found: Found) -> None:
    """Ask until `end`."""
    for n in range(10**9):
        if time.monotonic() >= end:
            return
        body: dict[str, Any] = {"prompt": PROMPTS[n % len(PROMPTS)], "seed": n % SEEDS, "stream": (number + n) % 4 == 0}
        if length is not None:
            body["seconds"] = length
        begun, heard, content = time.monotonic(), None, b""
        try:
            async with session.stream("POST", "/generate", json=body) as answer:
                async for piece in answer.aiter_raw():
                    heard = heard or time.monotonic() - begun
                    content += piece
        except httpx.HTTPError as error:
            found.answers[type(error).__name__] += 1
            continue
        found.answers[answer.status_code] += 1
        if answer.status_code != 200:
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
            continue
        found.latencies.append(time.monotonic() - begun)
        if body["stream"]:
            found.first.append(heard or 0.0)
        facts = json.loads(answer.headers["siren-sidecar"])
        found.seconds += facts["seconds"]
        if len(content) != 44 + 2 * facts["samples"]:
            found.wrong.append(f"{len(content)} bytes for {facts['samples']} samples")
        key, digest = tuple(body.items()), hashlib.sha256(content).hexdigest()
        if found.digests.setdefault(key, digest) != digest:
            found.wrong.append(f"another sound for {body}")


def resident(session: httpx.Client) -> float:
    """The service's resident memory in MB."""
    found = re.search(r"^process_resident_memory_bytes (\S+)", session.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1]) / 1e6


async def load(url: str, clients: int, seconds: float, length: float | None) -> tuple[Found, list[float]]:
    found, memory = Found(), []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as session:
        begun = time.monotonic()
        asking = [asyncio.create_task(client(n, session, begun + seconds, length, found)) for n in range(clients)]
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as watcher:
            for share in (0.1, 0.5, 1.0):
                await asyncio.sleep(max(0, begun + share * seconds - time.monotonic()))
                memory.append(await asyncio.to_thread(resident, watcher))
        await asyncio.gather(*asking)
    return found, memory


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--time", type=float, help="seconds")
    parser.add_argument("--quick", action="store_true", help="16 clients, 20 s")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seconds", type=float, help="of a clip")
    given = parser.parse_args()
    clients, seconds = given.clients or (16 if given.quick else 64), given.time or (20 if given.quick else 300)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    verb = [sys.executable, "-m", "siren.cli", "serve", "--model", given.model, "--port", str(port)]
    service = subprocess.Popen([*verb, "--rows", str(given.rows), "--queue", str(max(64, clients))])
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{url}/readyz", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                assert service.poll() is None, "the service did not start"
                time.sleep(0.2)
        begun, before = time.monotonic(), os.times()
        found, memory = asyncio.run(load(url, clients, seconds, given.seconds))
        took, metrics = time.monotonic() - begun, httpx.get(f"{url}/metrics", trust_env=False).text
        own = sum(os.times()[:2]) - sum(before[:2])
    finally:
        service.terminate()
        service.wait(60)
    busy, sound, frames, steps = (
        float(re.search(rf"^siren_{name}_total (\S+)", metrics, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("busy_seconds", "sound_seconds", "frames", "steps")
    )
    bad = sum(count for status, count in found.answers.items() if status != 200)
    print(f"{clients} clients, {took:.0f} s, {given.rows} rows; answers: {dict(found.answers)}")
    print(f"errors {bad}, wrong sounds {len(found.wrong)} {found.wrong[:3]}; {len(found.digests)} different requests")
    print(f"latency: p50 {percentile(found.latencies, 0.5):.2f} s, p95 {percentile(found.latencies, 0.95):.2f} s")
    print(
        f"first sound of streams: p50 {percentile(found.first, 0.5):.2f} s, p95 {percentile(found.first, 0.95):.2f} s"
    )
    waited, begun_clips = (
        float(re.search(rf"^siren_queue_seconds_{name} (\S+)", metrics, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("sum", "count")
    )
    mean = sum(found.latencies) / max(1, len(found.latencies))
    print(f"mean latency {mean:.2f} s, of which in the queue {waited / max(1, begun_clips):.2f} s")
    print(f"memory after 10 %, 50 %, 100 %: {', '.join(f'{m:.1f}' for m in memory)} MB")
    print(f"{found.seconds / took:.1f} s of sound per second; {sound / busy:.1f} per second of work")
    print(f"{frames / steps:.1f} clips in a frame of the batch; clients' own CPU {own:.0f} s")


if __name__ == "__main__":
    main()
