"""What a listening test must not do: tell who is who, favour the louder, lose an answer, or count one twice."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from siren.study import answers, design, prompts, results
from siren.study.server import app
from tests.study import builders

HEARD = [0.5, 0.5, 0.5]


def ranks(order: tuple[str, ...] | list[str], best: tuple[str, ...]) -> dict[str, list[int]]:
    """Everybody's taste: `best` first to last, for both questions."""
    return {question: [best.index(system) + 1 for system in order] for question in design.QUESTIONS}


def test_clips_are_equally_loud_and_their_names_say_nothing(tmp_path):
    study = builders.study(tmp_path)
    for trial in study.trials:
        wavs = [soundfile.read(tmp_path / "study" / "clips" / name)[0] for name in trial.clips.values()]
        levels = [design.loudness(wav, builders.RATE) for wav in wavs]
        assert np.ptp(levels) < 0.05
        assert all(np.abs(wav).max() <= design.PEAK + 1e-3 for wav in wavs)
        assert not any(system in name for name in trial.clips.values() for system in study.systems)
    assert design.load(tmp_path / "study") == study


def test_raters_hear_all_channels_and_are_said_to(tmp_path):
    tone = 0.1 * np.sin(np.arange(8000) / 5)
    for name, channels in (("left", [tone, 0 * tone]), ("right", [0 * tone, tone]), ("mono", [tone])):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", np.stack(channels, axis=1), 8000)
    (tmp_path / "list.csv").write_text("file,caption\na.wav,a tone\n")
    folders = {name: tmp_path / name for name in ("left", "right", "mono")}
    study, notes = design.make(tmp_path / "study", tmp_path / "list.csv", folders, 0)
    assert notes == ["left has 2 channels; raters hear their mean", "right has 2 channels; raters hear their mean"]
    heard = {
        name: soundfile.read(tmp_path / "study" / "clips" / file)[0] for name, file in study.trials[0].clips.items()
    }
    assert np.array_equal(heard["left"], heard["right"])
    assert np.abs(heard["right"]).max() > 0.05


def test_a_clip_that_would_clip_makes_its_whole_trial_quieter():
    spike = np.zeros(16000)
    spike[::4000] = 0.9  # quiet for its peak
    tone = 0.5 * np.sin(np.arange(16000) / 5)
    gains = design._gains({"spike": (spike, 16000), "tone": (tone, 16000), "silence": (np.zeros(16000), 16000)})
    made = {name: wav * 10 ** (gains[name] / 20) for name, wav in (("spike", spike), ("tone", tone))}
    levels = [design.loudness(wav, 16000) for wav in made.values()]
    assert abs(levels[0] - levels[1]) < 0.05
    assert levels[0] < design.LOUDNESS - 1
    assert np.abs(made["spike"]).max() == pytest.approx(design.PEAK, abs=1e-3)
    assert gains["silence"] == 0


def test_every_rater_has_an_order_of_his_own_with_places_in_balance(tmp_path):
    study = builders.study(tmp_path, {"general": 12})
    first, second = study.order("anna"), study.order("ben")
    assert first == study.order("anna") != second
    assert {t.id for t, _ in first} == {t.id for t in study.trials}
    assert set(Counter(systems for _, systems in first).values()) == {2}  # six arrangements in twelve trials


def test_the_page_is_never_told_who_is_who(tmp_path):
    study = builders.study(tmp_path)
    client = TestClient(app(tmp_path / "study"), base_url="http://localhost")
    told = client.get("/next", params={"rater": "anna"}).text + client.get("/").text
    assert not any(system in told for system in study.systems)
    assert "http://" not in client.get("/").text
    assert "https://" not in client.get("/").text
    shown = client.get("/next", params={"rater": "anna"}).json()["trial"]
    trial, order = study.order("anna")[0]
    assert [clip["url"] for clip in shown["clips"]] == [f"clips/{trial.clips[system]}" for system in order]
    part = client.get("/" + shown["clips"][0]["url"], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")  # phones ask for parts
    assert client.get("/clips/study.json").status_code == 404
    assert client.get("/clips/..%2Fstudy.json").status_code == 404


def test_what_is_no_answer_is_refused_with_its_reason(tmp_path):
    study = builders.study(tmp_path)
    client = TestClient(app(tmp_path / "study"), base_url="http://localhost")
    trial, order = study.order("anna")[0]
    good = {"rater": "anna", "trial": trial.id, "ranks": ranks(order, study.systems), "heard_seconds": HEARD}
    good["took_seconds"] = 3.0
    for change, reason in (
        ({"ranks": {"fidelity": [1, 2, 3]}}, "each need 1 to 3 once"),
        ({"ranks": {key: [1, 1, 2] for key in design.QUESTIONS}}, "each need 1 to 3 once"),
        ({"heard_seconds": [1, 0, 1]}, "has to be heard"),
        ({"heard_seconds": [1, math.nan, 1]}, "must be numbers of seconds"),
        ({"took_seconds": math.inf}, "must be numbers of seconds"),
        ({"trial": "other"}, "no trial 'other'"),
        ({"rater": "../anna"}, "no rater's code"),
    ):
        reply = client.post("/answer", content=json.dumps(good | change), headers={"Content-Type": "application/json"})
        assert reply.status_code == 422
        assert reason in reply.json()["detail"]
    assert answers.Book(tmp_path / "study", study).all() == []
    assert client.post("/answer", json=good).json()["done"] == 1
    assert client.post("/answer", json=good).json()["done"] == 1  # a reply that got lost: kept once
    assert len(answers.Book(tmp_path / "study", study).all()) == 1


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7861", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:7861", 200),
        ("[::1]:7861", 200),
        ("192.168.1.5:7861", 200),  # a phone in the same network
        ("study.example.org", 200),  # allowed below
        ("evil.example", 421),
        ("localhost.evil.example:7861", 421),
        ("127.0.0.1.evil.example", 421),
        ("study.example.org.evil.example", 421),
        ("localhost:7861@evil.example", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_a_name_that_was_pointed_at_this_machine_is_refused(tmp_path, host, status):
    builders.study(tmp_path, {"general": 1})
    client = TestClient(app(tmp_path / "study", ["Study.example.org"]))
    for path in ("/", "/next?rater=anna"):
        assert client.get(path, headers={"Host": host}).status_code == status
    reply = client.post("/answer", json={}, headers={"Host": host})
    assert reply.status_code == (422 if status == 200 else status)
    if status == 421:
        assert "start it with --allow-host" in reply.text


def test_a_page_of_another_origin_is_refused(tmp_path):
    builders.study(tmp_path, {"general": 1})
    client = TestClient(app(tmp_path / "study", ["study.example.org"]), base_url="http://localhost:7861")
    for origin, status in (
        ("http://localhost:7861", 200),
        ("https://study.example.org", 200),  # a proxy that passes on its own Host
        ("http://localhost:9999", 403),
        ("http://evil.example", 403),
        ("null", 403),
    ):
        assert client.get("/next?rater=anna", headers={"Origin": origin}).status_code == status


def test_a_line_that_a_kill_cut_costs_that_line_only(tmp_path):
    study = builders.study(tmp_path)
    book = answers.Book(tmp_path / "study", study)
    given = [(trial.id, ranks(order, study.systems), HEARD, 1.0) for trial, order in study.order("anna")]
    for answer in given[:2]:
        assert book.keep("anna", *answer)
    path = tmp_path / "study" / "answers" / "anna.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert book.done("anna") == {given[0][0]}
    assert book.keep("anna", *given[1])
    assert book.keep("anna", *given[2])
    assert book.done("anna") == {answer[0] for answer in given[:3]}


def answer_all(folder: Path, study: design.Study, tastes: dict[str, tuple[str, ...]]) -> None:
    book = answers.Book(folder, study)
    for rater, taste in tastes.items():
        for trial, order in study.order(rater):
            book.keep(rater, trial.id, ranks(order, taste), HEARD, 2.0)


def test_raters_who_agree_are_found_to_agree_whatever_their_order_was(tmp_path):
    study = builders.study(tmp_path)
    taste = ("delay", "ours", "diffusion")
    answer_all(tmp_path / "study", study, dict.fromkeys(("anna", "ben", "cleo"), taste))
    found = results.results(tmp_path / "study", resamples=50)
    assert (found["raters"], found["complete"], found["answers"]) == (3, 3, 18)
    assert list(found["sets"]) == ["general", "multi-event", "all"]
    figures = found["sets"]["all"]["fidelity"]
    assert figures["best"]["delay"] == {"value": 1, "low": 1, "high": 1}
    assert [figures["rank"][system]["value"] for system in taste] == [1, 2, 3]
    assert figures["ahead"]["ours of diffusion"]["value"] == 1
    assert figures["agreement"]["kendall_w"]["value"] == 1
    page = results.write(tmp_path / "study", found)[0].read_text()
    assert "100.0 % [100.0, 100.0]" in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_raters_of_opposite_taste_agree_less_than_chance(tmp_path):
    study = builders.study(tmp_path)
    taste = study.systems
    answer_all(tmp_path / "study", study, {"anna": taste, "ben": taste[::-1]})
    figures = results.results(tmp_path / "study", resamples=50)["sets"]["general"]["instruction"]
    assert figures["agreement"]["kendall_w"]["value"] == 0
    assert figures["agreement"]["correlation"]["value"] == -1
    share = figures["best"][taste[0]]
    assert (share["low"], share["value"], share["high"]) == (0, 0.5, 1)  # two raters: the interval is all there is


def test_kendalls_w_is_the_textbooks():
    ranked = np.array([[1, 2, 3, 4], [2, 1, 3, 4], [1, 3, 2, 4]])
    sums = ranked.sum(0)  # 4, 6, 8, 12 about 7.5: squares 12.25 + 2.25 + 0.25 + 20.25 = 35
    assert np.sum((sums - 7.5) ** 2) == 35
    assert results.kendall_w(ranked) == pytest.approx(12 * 35 / (9 * 60))
    pairs = [np.corrcoef(ranked[i], ranked[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert (3 * results.kendall_w(ranked) - 1) / 2 == pytest.approx(np.mean(pairs))


def test_the_interval_covers_raters_and_prompts_and_missing_answers_count_for_nothing():
    rng = np.random.default_rng(0)
    values = (rng.random((20, 30, 1)) < 0.4).astype(float)
    whole = results.mean_over(values, 500, 0)[0]
    assert whole["low"] < whole["value"] < whole["high"]
    values[:10, :, 0] = rng.random((10, 1)) < 0.4  # ten raters who always say the same: fewer opinions in fact
    assert np.ptp([results.mean_over(values, 500, 0)[0][k] for k in ("low", "high")]) > whole["high"] - whole["low"]
    values[10:] = np.nan
    assert results.mean_over(values, 500, 0)[0]["value"] == pytest.approx(values[:10].mean())


def test_what_does_not_make_a_study_is_refused(tmp_path):
    manifest, folders = builders.systems(tmp_path / "sounds", {"general": 1})
    with pytest.raises(ValueError, match="1 systems: a ranking needs 2 to 6"):
        design.make(tmp_path / "study", manifest, {"ours": folders["ours"]}, 0)
    design.make(tmp_path / "study", manifest, folders, 0)
    with pytest.raises(ValueError, match="holds a study already"):
        design.make(tmp_path / "study", manifest, folders, 0)
    with pytest.raises(ValueError, match="no study in"):
        design.load(tmp_path)
    with pytest.raises(ValueError, match="nobody has answered"):
        results.results(tmp_path / "study")
    next(folders["delay"].glob("*.wav")).unlink()
    with pytest.raises(ValueError, match="delay: 1 of 1 clips are missing"):
        design.make(tmp_path / "other", manifest, folders, 0)


LISTED = [
    *({"id": f"one-{n}", "caption": f"A {n} makes a noise.", "labels": [n]} for n in ("dog", "bell", "rain", "car")),
    *({"id": f"two-{i}", "caption": "a dog while a bell", "labels": ["dog", "bell"]} for i in range(3)),
    *({"id": f"three-{i}", "caption": "dog, bell, rain", "labels": ["dog", "bell", "rain"]} for i in range(3)),
]  # fmt: skip


def test_prompt_sets_are_disjoint_and_what_is_made_was_never_together():
    chosen = prompts.choose(LISTED, general=5, many=2, unusual=6, seed=0)
    assert Counter(row["set"] for row in chosen) == {"general": 5, "multi-event": 2, "out-of-distribution": 6}
    assert len({row["id"] for row in chosen}) == 13
    made = [row for row in chosen if row["set"] == prompts.SETS[2]]
    together = {frozenset(("dog", "bell")), frozenset(("dog", "rain")), frozenset(("bell", "rain"))}
    assert all(len(row["labels"]) == 2 and frozenset(row["labels"]) not in together for row in made)
    assert len({row["caption"] for row in made}) == 6
    assert all(any(row["caption"].endswith(s) for s in prompts.SETTINGS) for row in made)
    assert chosen == prompts.choose(LISTED, 5, 2, 6, seed=0) != prompts.choose(LISTED, 5, 2, 6, seed=1)
    with pytest.raises(ValueError, match="only 3 of 10 prompts tell of 3 events"):
        prompts.choose(LISTED, 1, 4, 1, seed=0)
    with pytest.raises(ValueError, match="leaves 6 pairs"):
        prompts.choose(LISTED, 1, 1, 7, seed=0)


def test_captions_without_labels_are_counted_by_what_joins_them():
    captions = ("A dog barks", "Rain falls", "Someone barks orders")
    listed = [{"id": str(i), "caption": caption, "labels": []} for i, caption in enumerate(captions)]
    assert prompts.events({"caption": "A dog barks, rain falls and a bell rings", "labels": []}) == 3
    made = prompts.combine(listed, 4, np.random.default_rng(0))
    assert all("rain falls" in row["caption"] and row["labels"] == [] for row in made)  # the others share a word
    with pytest.raises(ValueError, match="leaves 4 pairs"):
        prompts.combine(listed, 5, np.random.default_rng(0))
