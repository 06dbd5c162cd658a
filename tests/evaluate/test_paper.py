"""The paper beside a run: printed figures are the paper's, verdicts follow from records, what is missing says so."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from siren.evaluate import alignment, best_of, claims, paper
from siren.evaluate.claims import FAILS, HOLDS, OPEN
from siren.evaluate.paper import NOT_RUN, Found
from siren.model import arms
from tests.evaluate import builders


def arm_rows(names: list[str], better: str | None = None) -> list[dict[str, Any]]:
    """Two seeds of each arm, all alike but `better`, whose figures are half of the others'."""
    values = {
        "fd": 40.0,
        "fad": 9.0,
        "is": 5.0,
        "clap": 0.7,
        "loss_mean": 3.0,
        "loss_ratio": 1.5,
        "sample_seconds": 0.1,
    }
    return [
        {"arm": name, "seed": seed, "parameters": 3_300_000}
        | {m: v * (0.5 if name == better else 1.0) + 0.001 * seed for m, v in values.items()}
        for name in names
        for seed in (0, 1)
    ]


def record(rows: list[dict[str, Any]], own: Any = claims.CLAIMS) -> dict[str, Any]:
    return claims.report(rows, {"scale": "test", "steps": 9}, own)


@pytest.fixture(scope="module")
def full() -> Found:
    prompts = [builders.prompts()[0], builders.prompts()[-1]]
    generator = np.random.default_rng(1)
    sounds = {p["id"]: builders.sound(p["labels"], p["relation"], generator) for p in prompts}
    figures = {"fd@cnn14-test": {"value": 31.0, "low": 25.0, "high": 38.0}}
    aligned = arm_rows([*alignment.ARMS], "anti-causal")
    rng = np.random.default_rng(0)
    takes = [{m: rng.random(9).tolist() for m in best_of.MEASURES} for _ in range(4)]
    for take in takes:
        take["both_heard"][:5] = [None] * 5  # prompts of one event
        take["seconds"] = {"sample": 0.2, "rank": 0.01}
    other = {"fad@vggish-x": {"value": 2.5, "low": 2.0, "high": 3.0}}
    reward = {"reward": [[0, 1, 2], [0.1, 0.2, 0.3]]}
    aligned = [row | (reward if row["arm"] != "stage1" else {}) for row in aligned]
    return Found(
        "test",
        builders.RATE,
        metrics={"arms": {"aligned": figures}, "networks": {"cnn14": "cnn14-test"}, "prompts": {"all": 2}},
        claims=record(arm_rows(claims.needed(6), "siren"), claims.tried(6)),
        alignment=record(aligned, alignment.CLAIMS),
        best_of=best_of.report(takes, 50, 0) | {"device": "CPU, 1 thread"},
        systems={"audiox": {"prompts": 7, "list_sha256": "ab" * 32, "figures": other}},
        prompts=prompts,
        sounds={"real": sounds, "aligned": sounds},
        arms={
            "claims": (
                prompts,
                {"real": sounds, "siren": sounds, "delay": {prompts[0]["id"]: sounds[prompts[0]["id"]]}},
            )
        },
        num_codebooks=6,
    )


def by_claim(found: Found) -> dict[str, dict[str, Any]]:
    return {one["claim"]: one for one in paper.verdicts(found)}


def table(found: Found, number: str) -> dict[str, Any]:
    return paper._table(found, next(t for t in paper.printed() if t["table"] == number))


def cells(found: Found, number: str, row: str) -> dict[str, dict[str, str]]:
    shown = table(found, number)
    return dict(zip(shown["columns"], next(r for r in shown["rows"] if r["name"] == row)["cells"], strict=True))


def test_nothing_run_is_not_run_everywhere_with_a_command() -> None:
    page = paper.arrange(Found("test"))
    assert page["claims"]
    assert {claim["verdict"] for claim in page["claims"]} == {NOT_RUN}
    assert all(claim["command"].startswith(("siren ", "dvc ")) for claim in page["claims"])
    assert all(figure["command"] and not figure["charts"] for figure in page["figures"])
    assert all(cell["ours"] == "–" for table in page["tables"] for row in table["rows"] for cell in row["cells"])
    assert all(table["commands"] for table in page["tables"])
    assert "siren measure SOUNDS REAL LIST --out reports/systems/audiox.json" in page["tables"][0]["commands"]


def test_verdicts_are_those_of_the_records(full: Found) -> None:
    said = by_claim(full)
    single = "isolated transformers beat a single one of the same total size"
    assert (said[single]["verdict"], said[single]["where"]) == (HOLDS, "Table 3")
    assert said[single]["why"] == "FD: siren − single: −20.0 [−20.0, −20.0]"
    assert said["a single transformer gets better with size"]["verdict"] == OPEN
    assert said["two codes for a transformer are better than one"]["verdict"] == HOLDS
    assert said["the anti-causal direction beats the causal one"]["verdict"] == FAILS  # half the CLAP score
    assert said["heads pull a shared transformer in nearly orthogonal directions"]["verdict"] == NOT_RUN
    worse = Found("test", claims=record(arm_rows(["siren", "single"], "single")))
    assert by_claim(worse)[single]["verdict"] == FAILS
    missing = by_claim(worse)["a single transformer gets better with size"]
    assert (missing["verdict"], missing["command"]) == (NOT_RUN, "siren claims --arm single-small")


def test_an_unbalanced_training_holds_only_where_seeds_agree() -> None:
    for ratios, verdict in (([1.2, 1.21, 1.19], HOLDS), ([0.8, 0.81, 0.79], FAILS), ([0.9, 1.3, 1.0], OPEN)):
        rows = [{"arm": "independent", "seed": s, "parameters": 1, "loss_ratio": r} for s, r in enumerate(ratios)]
        said = by_claim(Found("test", claims=record(rows)))
        assert said["independent heads learn the last codebook less well than the first"]["verdict"] == verdict


@pytest.mark.parametrize(("mean", "near", "verdict"), [(0.02, 0.7, HOLDS), (0.02, 0.4, FAILS), (-0.3, 0.9, FAILS)])
def test_nearly_orthogonal_asks_for_the_mean_and_for_most(mean: float, near: float, verdict: str) -> None:
    row = {"all": {"mean": mean, "near_orthogonal": near}}
    assert paper._cosines({"cosine": {"per_frame": row}}, "per_frame")[0] == verdict


def test_rows_stand_beside_their_own_arm(full: Found) -> None:
    siren, single = (cells(full, "6", name) for name in ("6-2, Siren", "1-12"))
    assert (siren["FD ↓"]["paper"], siren["FD ↓"]["ours"]) == ("12.09", "20.0")
    assert (single["FD ↓"]["paper"], single["FD ↓"]["ours"]) == ("25.18", "40.0")
    assert single["CLAP ↑"]["ours"] == "70.0"  # on the paper's scale
    assert single["parameters"] == {"paper": "1.6B", "ours": "3.3M", "interval": ""}
    assert cells(full, "6", "12-1")["FD ↓"] == {"paper": "itg", "ours": "40.0", "interval": "40.0–40.0"}  # m6
    other = cells(full, "1", "AudioX")
    assert (other["FAD ↓"]["ours"], other["FAD ↓"]["interval"]) == ("2.50", "2.00–3.00")
    assert other["FD ↓"]["ours"] == "–"
    assert cells(full, "1", "Siren here, one clip each")["FD ↓"]["ours"] == "31.0"


def test_an_arm_that_the_codec_cannot_have_says_so(full: Found) -> None:
    shown = table(full, "6")
    row = next(r for r in shown["rows"] if r["name"] == "4-3")
    assert row["note"] == "6 codebooks cannot be shared out so"
    assert not shown["commands"]


def test_the_page_is_whole_and_asks_for_nothing(full: Found) -> None:
    page = paper.render(full)
    assert not re.search(r'(src|href)="(?!data:|#|https://arxiv.org/abs/)', page)
    for number in ("1", "3", "4", "5", "6", "7"):
        assert f"<h3>Table {number}:" in page
    for number in ("2a, 8", "2b", "2c, 9", "2d, 6", "5", "7"):
        assert f"<h3>Figure {number}:" in page
    assert "Best of N" in page
    assert "0.210 s for each clip made" in page
    assert page.count("<audio") == 4 + 5  # two prompts, two arms of the run; three arms, one of them without a clip
    stack: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "img", "br"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if stack and stack[-1] == tag:
                stack.pop()
            elif tag in stack:
                raise AssertionError(f"</{tag}> closes {stack[-1]}")

    Reader().feed(re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))
    assert not stack


def test_arms_are_heard_side_by_side_with_their_own_fd(full: Found) -> None:
    arms_of, ways = paper.arrange(full)["arms"]
    first, second = arms_of["rows"]
    assert [cell["title"] for cell in first["cells"]] == ["Real", "Siren, stage 1", "Delay pattern"]
    assert [cell["figures"] for cell in first["cells"]] == ["", "FD 20.0", "FD 40.0"]
    assert second["cells"][2]["reason"] == "no clip of this prompt in the arm 'delay pattern'."
    assert (ways["rows"], ways["command"]) == ([], "siren claims --alignment")
    for record, names in (("claims", {*arms.ARMS}), ("alignment", {*alignment.ARMS})):
        assert set(paper.ARMS_PLAYED[record][1]) == names | {"real"}


def test_every_row_of_ours_names_an_arm_that_there_is() -> None:
    tables = paper.printed()
    assert [table["table"] for table in tables] == ["1", "3", "4", "5", "6", "7"]
    for row in (row for table in tables for row in table["rows"]):
        source, _, arm = row.get("ours", "/").partition("/")
        known = {"arms": [*arms.ARMS, "one-code"], "alignment": alignment.ARMS, "run": paper.PLAYED, "": [""]}
        assert arm in known[source], row
        assert len({"ours", "system", "scale"} & set(row)) == 1, row
    assert all(name in paper.COLUMNS for table in tables for name in table["measures"])


@pytest.mark.real
def test_printed_figures_are_the_paper_s(shared) -> None:
    """Each row's figures stand together in one line of one of the paper's tables."""
    text = (shared.parent / "seeds" / "siren-paper.md").read_text()
    lines = [re.split(r"[|\t]", line) for line in text.splitlines()]
    rows = [[re.sub(r"[<>/*u]|\\s", "", cell).strip() for cell in line] for line in lines]
    for table in paper.printed():
        for row in table["rows"]:
            values = [row[name] for name in table["measures"] if name in row]
            wanted = [f"{value:.2f}" for value in values]
            wanted += [row[fact] for fact in ("parameters", "batch") if fact in row]
            held = [line for line in rows if all(value in line for value in wanted)]
            assert not wanted or held, f"table {table['table']}: {row['name']}: {wanted}"


def test_best_of_curves_rise_and_count_only_prompts_they_apply_to() -> None:
    rng = np.random.default_rng(3)
    takes = []
    for _ in range(5):
        clap = rng.random(200)
        both = [None if i % 2 else float(clap[i] > 0.5) for i in range(200)]
        same, nothing = {m: clap.tolist() for m in ("clap", "imagebind")}, [None] * 200
        seconds = {"sample": 0.3, "rank": 0.02}
        takes.append(same | {"event_accuracy": nothing, "both_heard": both, "seconds": seconds})
    found = best_of.report(takes, 200, 0)
    assert "event_accuracy" not in found["curves"]
    values = [point["value"] for point in found["curves"]["clap"]]
    assert values == pytest.approx([n / (n + 1) for n in range(1, 6)], abs=0.03)  # the largest of n uniform numbers
    assert all(point["low"] < point["value"] < point["high"] for point in found["curves"]["clap"])
    assert [point["count"] for point in found["curves"]["both_heard"]] == [100] * 5
    assert found["seconds"] == {"sample": pytest.approx(0.3), "rank": pytest.approx(0.02)}
    assert set(best_of.draw(found)) == {"best_of", "cost"}
