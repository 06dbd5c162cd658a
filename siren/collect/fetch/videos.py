"""The sound of a part of a video: yt-dlp gets the audio track, ffmpeg cuts it, and only the cut is kept.

The whole track is fetched, because a part that a server cuts begins where its container likes. ffmpeg seeks in the
input, decodes from there (`-ss` before `-i`, re-encoded) and writes FLAC at the track's own rate and channels: the cut
has its exact length, and begins where the container's clock says (tried on FLAC, Opus and AAC: within 9 ms). Both are
programs on the PATH; licence and author are those that the video's page gives.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from siren.atomic import replacing
from siren.collect.fetch.download import Downloader, FetchError, Passing
from siren.collect.fetch.media import Item, Row
from siren.config import ConfigError

WATCH = "https://www.youtube.com/watch?v="
ID = re.compile(r"[A-Za-z0-9_-]{11}")
VIDEO_SECONDS = 1800  # longest that either program may take
FACTS = "after_move:%(.{license,uploader,channel})j"
# What yt-dlp says, the reason that it stands for, and whether it may pass.
COMPLAINTS: tuple[tuple[str, str, bool], ...] = (
    (r"HTTP Error 429|too many requests|not a bot", "rate_limited", True),
    (r"HTTP Error (408|5\d\d)", "server_error", True),
    (r"timed out|timeout", "timeout", True),
    (r"private video|members.only|confirm your age|log ?in|in your country|HTTP Error 40[13]", "forbidden", False),
    (r"unavailable|removed|terminated|does not exist|copyright|HTTP Error 4(04|10)", "not_found", False),
    (r"requested format|no video formats", "no_sound", False),
    (r"urlopen|connection|resolve|unable to download", "network", True),
)


REMEDIES = {
    "yt-dlp": "`pip install -r requirements/extras.in`",
    "ffmpeg": "your system's package manager (e.g. `apt install ffmpeg`)",
}


def require_tools() -> None:
    """Raises `ConfigError` naming the remedy where a program is missing: before the first video, and not for each."""
    missing = [f"{name} (install it with {remedy})" for name, remedy in REMEDIES.items() if not shutil.which(name)]
    if missing:
        raise ConfigError(f"sources of videos need programs that are not on the PATH: {', '.join(missing)}")


@dataclass(frozen=True)
class Cut:
    """Seconds `start` to `end` of a video's sound."""

    video: str  # the id
    start: float
    end: float
    watch: str = WATCH
    arguments: tuple[str, ...] = ()  # more for yt-dlp, e.g. --cookies FILE
    parts: tuple[tuple[float, float], ...] = ()  # all that is wanted of the video, cut out of one download

    @property
    def id(self) -> str:
        """Of the clip in its dataset: two of one video may differ in their ends only."""
        return f"{self.video}-{round(self.start * 1000)}-{round(self.end * 1000)}"

    @property
    def url(self) -> str:
        return f"{self.watch}{self.video}"

    def get(self, downloader: Downloader) -> tuple[Path, Row]:
        path, track = self._path(downloader), downloader.path(self.url, suffix=".track")
        with downloader.lock(track):
            if not path.is_file():
                track.parent.mkdir(parents=True, exist_ok=True)
                info = downloader.retrying(self.url, lambda: self._download(self.url, track, downloader))
                try:
                    self._cut(track, path, info)
                    for start, end in self.parts:
                        other = replace(self, start=start, end=end)
                        if not (place := other._path(downloader)).is_file():
                            with suppress(FetchError):  # it will be asked for itself
                                other._cut(track, place, info)
                finally:
                    track.unlink(missing_ok=True)
        return path, json.loads(path.with_suffix(".json").read_text())

    def _path(self, downloader: Downloader) -> Path:
        return downloader.path(f"{self.url}#{self.start:.3f}-{self.end:.3f}", suffix=".flac")

    def _download(self, url: str, track: Path, downloader: Downloader) -> Row:
        settings = downloader.settings
        command = ["yt-dlp", "--ignore-config", "--no-playlist", "--no-progress", "--no-simulate", "--continue"]
        command += ["--format", "bestaudio/best", "--output", str(track).replace("%", "%%"), "--print", FACTS]
        command += ["--retries", str(settings.attempts), "--socket-timeout", f"{settings.stall_seconds:g}"]
        if settings.max_bytes_per_second is not None:
            command += ["--limit-rate", str(settings.max_bytes_per_second // settings.concurrency)]
        downloader.count()
        said = _run([*command, *self.arguments, "--", url], url)
        if said.returncode:
            raise complaint(url, said.stderr)
        lines = said.stdout.strip().splitlines()
        found = json.loads(lines[-1]) if lines else {}
        licence = found.get("license") or "YouTube"  # its standard licence, which the page does not name
        return {"licence": licence, "author": found.get("uploader") or found.get("channel")}

    def _cut(self, track: Path, path: Path, info: Row) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(info))
        command = ["ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
        command += ["-ss", f"{self.start:.3f}", "-i", str(track), "-t", f"{self.end - self.start:.3f}", "-map", "0:a:0"]
        command += ["-map_metadata", "-1", "-fflags", "+bitexact", "-c:a", "flac", "-sample_fmt", "s16"]
        with replacing(path) as made:
            said = _run([*command, "-f", "flac", str(made)], self.url)
            if said.returncode or not made.is_file():
                reason = "no_sound" if "matches no streams" in said.stderr else "cut_failed"
                raise FetchError(reason, f"ffmpeg on {self.url}: {_last(said.stderr)}")


def together(items: Sequence[Item | Row]) -> Iterator[Item | Row]:
    """Items that are cuts, those of one video told of one another."""
    parts: dict[str, dict[tuple[float, float], None]] = {}
    for item in items:
        if isinstance(item, Item) and isinstance(cut := item.media, Cut):
            parts.setdefault(cut.video, {})[cut.start, cut.end] = None
    for item in items:
        if isinstance(item, Item) and isinstance(cut := item.media, Cut):
            item = replace(item, media=replace(cut, parts=tuple(parts[cut.video])))
        yield item


def _run(command: list[str], url: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=VIDEO_SECONDS)
    except subprocess.TimeoutExpired:
        raise Passing("timeout", f"{command[0]} on {url} was not done after {VIDEO_SECONDS} s") from None


def complaint(url: str, stderr: str) -> FetchError:
    """The failure that yt-dlp's words stand for."""
    detail = f"yt-dlp on {url}: {_last(stderr)}"
    for words, reason, passes in COMPLAINTS:
        if re.search(words, _last(stderr), re.IGNORECASE):
            return Passing(reason, detail) if passes else FetchError(reason, detail)
    return FetchError("download_failed", detail)


def _last(stderr: str) -> str:
    """The last error that a program named, without the place on this machine."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines or ["it said nothing"]
    return re.sub(r"(?<=[\s':])/\S+/", "", errors[-1])
