"""The public sources, each against a server with its real layout and some faults: in = out + quarantined."""

import hashlib
import io
import json
import os
import stat
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from siren.collect.fetch import videos
from siren.collect.fetch.download import Downloader
from siren.collect.sources import CLIPS_SCHEMA, REMOTE, collect
from siren.config import Audio, ConfigError, Source
from tests.collect.server import Server, serving, status, truncated
from tests.collect.test_download import SETTINGS

AUDIO = Audio(16000, 10.0)
LISTS = Path(__file__).resolve().parents[2] / "../shared/data/captions"


def wav(seed: int, seconds: float = 0.5, rate: int = 16000, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).normal(size=round(seconds * rate))
    soundfile.write(file, noise, rate, format=format)
    return file.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in files.items():
            made.writestr(name, data)
    return file.getvalue()


class Run:
    """Collecting from one source, again and again, into one folder with one cache."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.requests = 0

    def __call__(
        self, kind: str, options: dict[str, Any], wanted: tuple[str, ...] | None = None
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Rows by id and reasons by item; every row is a file that is there, and everything is counted."""
        with Downloader(self.folder / "cache", SETTINGS) as downloader:
            source = Source(kind, options)
            table, quarantine, total = collect([source], self.folder, AUDIO, 0, downloader, wanted)
            self.requests = downloader.requests
        assert table.schema.equals(CLIPS_SCHEMA)
        assert total == table.num_rows + len(quarantine)
        rows = {row["id"]: row for row in table.to_pylist()}
        for row in rows.values():
            data = (self.folder / row["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            assert soundfile.info(self.folder / row["path"]).frames > 0
            assert row["licence"]
        assert all(row["stage"] == "fetch" and row["detail"] for row in quarantine)
        return rows, {row["item"]: row["reason"] for row in quarantine}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, server: Server) -> Run:
    return Run(tmp_path, server)


# Videos: programs on the PATH that do what yt-dlp and ffmpeg would, and write down how they were called.

YT_DLP = """
import json, pathlib, sys
here = pathlib.Path(sys.argv[0]).parent
arguments = sys.argv[1:]
with open(here / "calls", "a") as file:
    file.write(json.dumps(["yt-dlp", *arguments]) + "\\n")
video = arguments[-1].split("v=")[1]
says = json.loads((here / "says.json").read_text()).get(video, [])
count = len([1 for line in open(here / "calls") if video in line and '"yt-dlp"' in line])
if count <= len(says):
    sys.exit(f"ERROR: [youtube] {video}: {says[count - 1]}")
target = arguments[arguments.index("--output") + 1].replace("%%", "%")
pathlib.Path(target).write_text(video)
licence = "Creative Commons Attribution license (reuse allowed)" if video.startswith("CC") else None
print(json.dumps({"license": licence, "uploader": "author of " + video, "channel": None}))
"""
FFMPEG = """
import json, pathlib, random, sys, wave
arguments = sys.argv[1:]
with open(pathlib.Path(sys.argv[0]).parent / "calls", "a") as file:
    file.write(json.dumps(["ffmpeg", *arguments]) + "\\n")
video = pathlib.Path(arguments[arguments.index("-i") + 1]).read_text()
if video.startswith("mute"):
    sys.exit("Stream map '0:a:0' matches no streams.")
with wave.open(arguments[-1], "wb") as file:
    file.setparams((1, 1, 8000, 0, "NONE", None))
    file.writeframes(random.Random(video).randbytes(round(8000 * float(arguments[arguments.index("-t") + 1]))))
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the programs; says.json has what yt-dlp complains of, by video, once for each try."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in (("yt-dlp", YT_DLP), ("ffmpeg", FFMPEG)):
        (folder / name).write_text(f"#!{sys.executable} -IS\n{body}")
        (folder / name).chmod(stat.S_IRWXU)
    (folder / "says.json").write_text("{}")
    (folder / "calls").touch()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def calls(programs: Path, name: str) -> list[list[str]]:
    return [call for line in (programs / "calls").read_text().splitlines() if (call := json.loads(line))[0] == name]


def lists(server: Server, name: str, text: str) -> dict[str, Any]:
    server.add(f"/index/{name}", text.encode())
    return {"index": f"{server.url}/index"}


def test_audiocaps_cuts_ten_seconds_and_merges_captions(run: Run, server: Server, programs: Path) -> None:
    header = "audiocap_id,youtube_id,start_time,caption\n"
    test = '1,7fmOlUlwoNg,20,"Rattling, then noise"\n2,CCBJ455B1aA,0,A rocket\n3,7fmOlUlwoNg,20,Sharp noise\n'
    options = lists(server, "test.csv", header + test) | lists(server, "val.csv", header)
    lists(server, "train.csv", header + "4,bad,3,x\n5,GOD8Bt5LfDE,soon,x\n6,GOD8Bt5LfDE,1,\n7,GOD8Bt5LfDE\n")
    rows, bad = run("audiocaps", options)
    first, second = rows["audiocaps-7fmOlUlwoNg-20000-30000"], rows["audiocaps-CCBJ455B1aA-0-10000"]
    assert first["captions"] == ["Rattling, then noise", "Sharp noise"]
    assert (first["recording_id"], first["split"]) == ("youtube:7fmOlUlwoNg", "test")
    assert (first["licence"], first["author"]) == ("YouTube", "author of 7fmOlUlwoNg")
    assert second["licence"] == "CC-BY"
    assert soundfile.info(run.folder / first["path"]).duration == 10
    assert bad == dict.fromkeys([f"train.csv:{line}" for line in (2, 3, 4, 5)], "bad_row")
    (download,) = [call for call in calls(programs, "yt-dlp") if call[-1].endswith("7fmOlUlwoNg")]
    (cut,) = [call for call in calls(programs, "ffmpeg") if call[call.index("-ss") + 1] == "20.000"]
    assert download[-2] == "--"
    assert download[download.index("--format") + 1] == "bestaudio/best"
    assert cut[cut.index("-t") + 1] == "10.000"
    assert cut.index("-ss") < cut.index("-i") < cut.index("-t")  # seeks in the input, and measures the output
    run("audiocaps", options)
    assert (run.requests, len(calls(programs, "yt-dlp"))) == (0, 2)


def test_audioset_reads_its_lists_with_comments_and_names_the_labels(run: Run, server: Server, programs: Path) -> None:
    ontology = [{"id": "/m/068hy", "name": "Domestic animals, pets"}, {"id": "/m/0bt9lr", "name": "Dog"}]
    head = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=3\n# YTID, start_seconds\n"
    text = head + '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/0bt9lr"\n-0BIyqJj9ZU, 30.500, 38.200, "/m/0bt9lr"\n'
    text += '-0HsrVfb5vc, 20.000, 20.000, "/m/0bt9lr"\n-0Gj8-vB1q4, 30.000, 40.000, "/m/unheard"\n'
    options = lists(server, "eval_segments.csv", text) | {"parts": ["eval_segments"]}
    options |= {"ontology": server.add("/ontology.json", json.dumps(ontology).encode())}
    rows, bad = run("audioset", options)
    assert rows["audioset---4gqARaEJE-0-10000"]["labels"] == ["Domestic animals, pets", "Dog"]
    assert rows["audioset--0BIyqJj9ZU-30500-38200"]["split"] == "test"
    assert bad == {"eval_segments.csv:6": "bad_row", "eval_segments.csv:7": "bad_row"}


def test_vggsound_and_what_becomes_of_videos_that_are_gone(run: Run, server: Server, programs: Path) -> None:
    says = {
        "goneAAAAAAA": ["Video unavailable. This video has been removed by the uploader"],
        "privAAAAAAA": ["Private video. Sign in if you've been granted access to this video"],
        "busyAAAAAAA": ["HTTP Error 429: Too Many Requests", "HTTP Error 503: Service Unavailable"],
        "slowAAAAAAA": ["The read operation timed out"] * 3,
        "oddAAAAAAAA": ["something nobody has seen"],
    }
    (programs / "says.json").write_text(json.dumps(says))
    names = [*says, "muteAAAAAAA", "fineAAAAAAA"]
    text = "".join(f'{name},{index},"bird chirping, tweeting",train\n' for index, name in enumerate(names))
    rows, bad = run("vggsound", lists(server, "vggsound.csv", text + "fineBAAAAAA,1,x,dev\n"))
    assert {row["recording_id"][8:12] for row in rows.values()} == {"busy", "fine"}
    assert rows["vggsound-fineAAAAAAA-6000-16000"]["labels"] == ["bird chirping, tweeting"]
    assert {key.split("-")[-3][:4] if "-" in key else key: reason for key, reason in bad.items()} == {
        "gone": "not_found",
        "priv": "forbidden",
        "slow": "timeout",
        "oddA": "download_failed",
        "mute": "no_sound",
        "vggsound.csv:8": "bad_row",
    }


def test_a_recording_of_one_dataset_s_test_list_is_not_trained_on_from_another(
    tmp_path: Path, server: Server, programs: Path
) -> None:
    header = "audiocap_id,youtube_id,start_time,caption\n"
    held = lists(server, "test.csv", header + "1,7fmOlUlwoNg,20,Rattling\n")
    lines = ("rattle/7fmOlUlwoNg_000090_000100_2.0_6.0.mp4", "rocket/CCBJ455B1aA_000000_000010_0.0_2.0.mp4")
    again = lists(server, "train.txt", "\n".join(lines)) | {"splits": ["train"]}
    sources = [Source("audiocaps", held | {"splits": ["test"]}), Source("avsync15", again)]
    with Downloader(tmp_path / "cache", SETTINGS) as downloader:
        table, quarantine, total = collect(sources, tmp_path, AUDIO, 0, downloader)
    assert table["recording_id"].to_pylist() == ["youtube:7fmOlUlwoNg", "youtube:CCBJ455B1aA"]
    assert [(row["item"], row["reason"]) for row in quarantine] == [("avsync15-7fmOlUlwoNg-92000-96000", "two_splits")]
    assert total == 3


def test_avsync15_finds_the_part_in_the_file_name(run: Run, server: Server, programs: Path) -> None:
    lists(server, "test.txt", "frog_croaking/PUTvgrTcdZ0_000014_000024_0.0_5.0.mp4\nfrog_croaking/nothing.mp4\n")
    options = lists(server, "train.txt", "playing_violin__fiddle/ERra12KuEvw_000153_000163_6.5_9.5.mp4\n")
    rows, bad = run("avsync15", options)
    assert rows["avsync15-PUTvgrTcdZ0-14000-19000"]["labels"] == ["frog croaking"]
    train = rows["avsync15-ERra12KuEvw-159500-162500"]
    assert (train["labels"], train["split"]) == (["playing violin fiddle"], "train")
    assert bad == {"test.txt:2": "bad_row"}


def test_a_missing_program_is_one_error_with_its_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for kind in ("audiocaps", "audioset", "vggsound", "avsync15"):
        with pytest.raises(ConfigError, match=r"yt-dlp \(install it with `pip .*; *|ffmpeg"):
            run(kind, {"index": "nowhere"})


def test_limits_and_more_arguments_reach_yt_dlp(tmp_path: Path, programs: Path) -> None:
    settings = replace(SETTINGS, max_bytes_per_second=4000)
    with Downloader(tmp_path / "cache", settings) as downloader:
        videos.Cut("fineAAAAAAA", 1.0, 2.5, arguments=("--cookies", "file")).get(downloader)
    (call,) = calls(programs, "yt-dlp")
    assert call[call.index("--limit-rate") + 1] == "1000"  # of each of four
    assert call[-4:-2] == ["--cookies", "file"]


def clotho(server: Server, kind: str, pack: Any) -> dict[str, Any]:
    """A record of one split with three clips, one of them missing from the archive."""
    captions = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    captions += "Santa Motor.wav,a,b,c,d,e\nünï [1].wav,a,b,c,d,e\nlost.wav,a,b,c,d,e\nshort.wav,a,b\n"
    metadata = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
    metadata += 'Santa Motor.wav,"a;b",45,link,"[0, 9]",caf\xe9,http://creativecommons.org/licenses/by/3.0/\n'
    metadata += 'lost.wav,a,Not found,link,"[0, 9]",x,http://creativecommons.org/publicdomain/zero/1.0/\n'
    sounds = pack({"evaluation/Santa Motor.wav": wav(1), "evaluation/ünï [1].wav": wav(2), "evaluation/x.wav": b"x"})
    files = {
        f"clotho_audio_evaluation.{kind}": sounds,
        "clotho_captions_evaluation.csv": captions.encode(),
        "clotho_metadata_evaluation.csv": metadata.encode("latin-1"),
    }
    entries = [
        {
            "key": name,
            "size": len(data),
            "checksum": f"md5:{hashlib.md5(data).hexdigest()}",
            "links": {"self": server.add(f"/api/records/1/files/{name}/content", data)},
        }
        for name, data in files.items()
    ]
    record = server.add("/api/records/1", json.dumps({"id": 1, "files": entries}).encode())
    return {"record": record, "splits": ["evaluation"]}


def test_clotho_is_a_record_with_sums_archives_and_credits(run: Run, server: Server) -> None:
    options = clotho(server, "zip", archive)
    path = "/api/records/1/files/clotho_audio_evaluation.zip/content"
    server.faults[path] += [status(429, Retry_After="0"), truncated(5000)]
    rows, bad = run("clotho", options)
    motor = rows["clotho-evaluation-Santa Motor.wav"]
    assert (motor["recording_id"], motor["licence"], motor["author"]) == ("freesound:45", "CC-BY-3.0", "café")
    assert (motor["captions"], motor["split"]) == (["a", "b", "c", "d", "e"], "test")
    assert rows["clotho-evaluation-ünï [1].wav"]["licence"] == "unknown"
    assert bad == {"clotho-evaluation-lost.wav": "missing_member", "clotho_captions_evaluation.csv:5": "bad_row"}
    assert run("clotho", options) == (rows, bad)
    assert run.requests == 0
    server.files[path] = b"rotten" * 1000
    fresh = Run(run.folder / "again", server)
    assert set(fresh("clotho", options)[1].values()) == {"checksum", "bad_row"}


def test_clotho_comes_in_7z(run: Run, server: Server, tmp_path: Path) -> None:
    py7zr = pytest.importorskip("py7zr")

    def pack(files: dict[str, bytes]) -> bytes:
        with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as made:
            for name, data in files.items():
                made.writestr(data, name)
        return (tmp_path / "a.7z").read_bytes()

    rows, bad = run("clotho", clotho(server, "7z", pack))
    assert (len(rows), sorted(bad.values())) == (2, ["bad_row", "missing_member"])


def test_esc50_takes_the_stricter_of_two_licences(run: Run, server: Server) -> None:
    table = "filename,fold,target,category,esc10,src_file,take\n"
    table += "1-100032-A-0.wav,1,0,dog,True,100032,A\n2-100210-B-36.wav,2,36,vacuum_cleaner,False,100210,B\n"
    table += "5-1-A-0.wav,5,0,dog,True,1,A\n5-9-A-0.wav,five,0,dog,True,9,A\n"
    credits = (
        "101 - Dog:\n- [1-100032-A.ogg]: clip derived from rose_bark.wav (http://x/sounds/100032/) by nfrae [CC0]\n"
    )
    credits += "- [2-100210-B.ogg]:  clip derived from by night (http://x/sounds/100210/) by some one [CC0]\n"
    files = {f"audio/{name}.wav": wav(n) for n, name in enumerate(["1-100032-A-0", "2-100210-B-36"])}
    files |= {"meta/esc50.csv": table.encode(), "LICENSE": credits.encode()}
    url = server.add(
        "/master.zip", archive({f"ESC-50-master/{name}": data for name, data in files.items()}), truncated(10)
    )
    rows, bad = run("esc50", {"archive": url, "val_folds": [2], "test_folds": [5]})
    dog, cleaner = rows["esc50-1-100032-A-0"], rows["esc50-2-100210-B-36"]
    assert (dog["licence"], dog["author"], dog["recording_id"]) == ("CC0-1.0", "nfrae", "freesound:100032")
    assert (cleaner["licence"], cleaner["author"], cleaner["split"]) == ("CC-BY-NC-3.0", "some one", "val")
    assert cleaner["labels"] == ["vacuum cleaner"]
    assert bad == {"esc50-5-1-A-0": "missing_member", "esc50.csv:5": "bad_row"}
    rows, bad = run("esc50", {"archive": url}, ("CC0", "CC-BY"))
    assert (list(rows), bad["esc50-2-100210-B-36"]) == (["esc50-1-100032-A-0"], "licence")


def test_an_archive_that_is_none_is_an_error_and_is_fetched_anew(run: Run, server: Server) -> None:
    url = server.add("/master.zip", b"no archive")
    for _ in range(2):
        with pytest.raises(ValueError, match="corrupt_archive"):
            run("esc50", {"archive": url})
    assert server.seen["/master.zip"] == 2


def sound(server: Server, number: int, **changes: Any) -> dict[str, Any]:
    preview = server.add(f"/previews/{number}-hq.ogg", wav(number, format="OGG"))
    found = {"id": number, "name": f"{number}.wav", "tags": ["rain", "roof"], "username": "someone"}
    found |= {"license": "http://creativecommons.org/publicdomain/zero/1.0/", "previews": {"preview-hq-ogg": preview}}
    return found | changes


def test_freesound_pages_with_a_key_from_the_environment(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"api": f"{server.url}/apiv2", "query": "rain", "requests_per_minute": 60000}
    monkeypatch.delenv("FREESOUND_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="FREESOUND_API_KEY"):
        run("freesound", options)
    monkeypatch.setenv("FREESOUND_API_KEY", "secret")
    pages = [
        [sound(server, 1), sound(server, 2, license="https://creativecommons.org/licenses/by-nc/4.0/"), {"id": 3}],
        [sound(server, 4, tags=[]), sound(server, 5)],
    ]
    server.faults["/previews/5-hq.ogg"] = [status(404)]
    following = f"{server.url}/apiv2/search/text/?query=rain&page=2"
    server.files["/apiv2/search/text/"] = json.dumps({"count": 5, "next": following, "results": pages[0]}).encode()
    second = json.dumps({"count": 5, "next": None, "results": pages[1]}).encode()
    server.add("/apiv2/search/text/?query=rain&page=2", second, status(429, Retry_After="0"))
    rows, bad = run("freesound", options)
    assert list(rows) == ["freesound-1", "freesound-2", "freesound-4"]
    assert (rows["freesound-1"]["licence"], rows["freesound-1"]["author"]) == ("CC0-1.0", "someone")
    assert (rows["freesound-1"]["labels"], rows["freesound-4"]["labels"]) == (["rain", "roof"], ["4.wav"])
    assert bad == {"freesound-3": "bad_row", "freesound-5": "not_found"}
    assert {headers["Authorization"] for headers in server.headers["/apiv2/search/text/"]} == {"Token secret"}
    assert "Authorization" not in server.headers["/previews/1-hq.ogg"][0]
    assert server.seen["/apiv2/search/text/"] == 3  # two pages, and one answer of 429
    rows, bad = run("freesound", options, ("CC0",))  # the rerun asks for what was missing only
    assert (run.requests, list(rows)) == (1, ["freesound-1", "freesound-4", "freesound-5"])
    assert bad == {"freesound-2": "licence", "freesound-3": "bad_row"}
    assert list(run("freesound", options | {"limit": 1})[0]) == ["freesound-1"]


def test_freesound_originals_are_checked_by_their_sum(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREESOUND_ACCESS_TOKEN", "secret")
    data = wav(1)
    sounds = [sound(server, 1, md5=hashlib.md5(data).hexdigest()), sound(server, 2, md5="0" * 32)]
    for number in (1, 2):
        server.add(f"/apiv2/sounds/{number}/download/", data)
    server.files["/apiv2/search/text/"] = json.dumps({"next": None, "results": sounds}).encode()
    options = {"api": f"{server.url}/apiv2", "quality": "original", "requests_per_minute": 60000}
    rows, bad = run("freesound", options)
    assert (list(rows), bad) == (["freesound-1"], {"freesound-2": "checksum"})
    assert server.headers["/apiv2/sounds/1/download/"][0]["Authorization"] == "Bearer secret"


def test_freesound_never_follows_to_another_host(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREESOUND_API_KEY", "secret")
    server.files["/apiv2/search/text/"] = json.dumps({"next": "http://127.0.0.1:1/page", "results": []}).encode()
    with pytest.raises(ConfigError, match="leads on to"):
        run("freesound", {"api": f"{server.url}/apiv2"})


@pytest.mark.parametrize("kind", ["zip", "wav"])
def test_bbc_reads_its_catalogue(run: Run, server: Server, kind: str) -> None:
    catalogue = '"location","description","secs","category","CDNumber","CDName","tracknum"\n'
    catalogue += '"07076051.wav","Two-stroke engine, caf\xe9","194","Engines","EC117D","Petrol","1"\n'
    catalogue += '"07076052.wav","Gone","1","","a","b","1"\n"../etc.wav","Out","1","a","a","b","1"\n'
    options = {"catalogue": server.add("/BBC.csv", catalogue.encode("latin-1"))}
    data = wav(1)
    packed = archive({"07076051.wav": data}) if kind == "zip" else data
    server.add(f"/media/07076051.wav{'.zip' * (kind == 'zip')}", packed, status(500))
    options["media"] = f"{server.url}/media/{{location}}{'.zip' * (kind == 'zip')}"
    rows, bad = run("bbc", options)
    (row,) = rows.values()
    assert (row["captions"], row["labels"]) == (["Two-stroke engine, café"], ["Engines"])
    assert (row["licence"], row["author"], row["id"]) == ("RemArc", "BBC", "bbc-07076051")
    assert bad == {"bbc-07076052": "not_found", "BBCSoundEffects.csv:4": "bad_row"}


def test_soundbible_is_read_off_its_pages(run: Run, server: Server) -> None:
    def listing(*names: str) -> bytes:
        links = "".join(f'<h3><a href="{name}">x</a></h3>' for name in names)
        return f'<html><a href="about.html">About</a>{links}</html>'.encode()

    server.add("/free-sound-effects-1.html", listing("2219-Airplane-Landing.html", "18-Gone.html"))
    server.add("/free-sound-effects-2.html", listing("2219-Airplane-Landing.html", "5-Empty.html"), status(503))
    page = (
        '<section id="course-details"><h2>Airplane</h2><p>An airplane <b>lands</b>.</p><p>License: Attribution 3.0</p>'
    )
    page += '<p>Recorded by <a href="#">Daniel Simion</a></p></section><a href="mp3/a.mp3">MP3</a>'
    server.add("/2219-Airplane-Landing.html", (page + '<a href="wav/a b.wav">WAV</a>').encode())
    server.add("/5-Empty.html", b"<p>nothing</p>")
    server.add("/wav/a%20b.wav", wav(1))
    rows, bad = run("soundbible", {"site": server.url})
    (row,) = rows.values()
    assert (row["captions"], row["labels"]) == (["An airplane lands ."], ["Airplane Landing"])
    assert (row["licence"], row["author"], row["id"]) == ("CC-BY-3.0", "Daniel Simion", "soundbible-2219")
    assert bad == {"soundbible-18": "not_found", "soundbible-5": "bad_row"}


def test_an_index_that_cannot_be_had_is_an_error_that_says_what_to_do(run: Run, server: Server) -> None:
    for kind, key in (("bbc", "catalogue"), ("clotho", "record")):
        with pytest.raises(ValueError, match=r"not_found.*collect\.fetch"):
            run(kind, {key: f"{server.url}/nowhere"})
        with pytest.raises(ValueError, match="there is no index file"):
            run(kind, {key: "nowhere.csv"})
    with pytest.raises(ValueError, match="no column 'location'; it has file, text"):
        run("bbc", {"catalogue": server.add("/x.csv", b"file,text\n")})


@pytest.mark.parametrize("kind", REMOTE)
def test_an_unknown_option_names_the_source(run: Run, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"{kind}.*colour"):
        run(kind, {"colour": 1})
    with pytest.raises(ConfigError, match="limit is 'x'"):
        run(kind, {"limit": "x"})


@pytest.mark.real
def test_the_datasets_own_lists_are_read_whole(run: Run, server: Server, programs: Path) -> None:
    if not LISTS.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    with Downloader(run.folder / "cache", SETTINGS) as downloader:
        options = {"index": str(LISTS), "tables": "audiocaps_{split}.csv", "splits": ["test", "val"]}
        found = list(REMOTE["audiocaps"](options, downloader))
        assert [len(item.captions) for item in found] == [5] * (975 + 495)  # type: ignore[union-attr]
        labels = [line.split(",", 2) for line in (LISTS / "audioset_class_labels.csv").read_text().splitlines()[1:]]
        segments = [f'{"A" * 8}{int(number):03d}, 0.000, 10.000, "{mid}"' for number, mid, _ in labels]
        (run.folder / "eval_segments.csv").write_text("\n".join(["# YTID", *segments]))
        options = {"index": str(run.folder), "ontology": str(LISTS / "audioset_ontology.json")}
        found = list(REMOTE["audioset"](options | {"parts": ["eval_segments"]}, downloader))
        assert [item.labels[0] for item in found] == [name.strip('"') for _, _, name in labels]  # type: ignore[union-attr]
    record = {"splits": ["evaluation"], "record": f"{server.url}/record"}
    files = {}
    for split in record["splits"]:
        files[f"clotho_captions_{split}.csv"] = (LISTS / f"clotho_captions_{split}.csv").read_bytes()
        files[f"clotho_metadata_{split}.csv"] = b"file_name,sound_id,manufacturer,license\n"
        files[f"clotho_audio_{split}.zip"] = archive({})
    entries = [
        {"key": key, "checksum": f"md5:{hashlib.md5(data).hexdigest()}", "links": {"self": server.add(f"/{key}", data)}}
        for key, data in files.items()
    ]
    server.add("/record", json.dumps({"files": entries}).encode())
    rows, bad = run("clotho", record)
    assert (rows, len(bad), set(bad.values())) == ({}, 1045, {"missing_member"})
    meta = {"a/meta/esc50.csv": (LISTS / "esc50_meta.csv").read_bytes(), "a/LICENSE": b""}
    rows, bad = run("esc50", {"archive": server.add("/esc.zip", archive(meta))})
    assert (rows, len(bad), set(bad.values())) == ({}, 2000, {"missing_member"})
