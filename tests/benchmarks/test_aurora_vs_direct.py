"""The comparison's benchmark without a model: bars, stored outcomes, the page, and the command line's refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import aurora_vs_direct
from benchmarks.aurora_vs_direct import Baseline, ItemSet
from benchmarks.bars import Bar, all_met, comparison_bars
from benchmarks.comparison_page import comparison_page
from benchmarks.outcomes import Fingerprint, StaleOutcomes, StoredOutcomes, fingerprint
from perception.evaluation.bootstrap import Interval
from perception.evaluation.comparison import GROUPS, Comparison
from perception.evaluation.scenes import Item, scene_items


def interval(mean: float, half: float = 0.03) -> Interval:
    return Interval(mean, mean - half, mean + half, 600)


def comparison(style: str = "shifted", chain: float = 0.8, direct: float = 0.65, random: float = 0.2) -> Comparison:
    arms = {"direct": interval(direct), "chain": interval(chain), "aurora, direct": interval(0.7)}
    spans = {"own": interval(chain), "oracle": interval(0.95), "other image": interval(0.3), "shuffled": interval(0.4)}
    return Comparison(
        style,
        dict.fromkeys(GROUPS, arms),
        dict.fromkeys(GROUPS, interval(chain - direct)),
        {row: {**spans, "random": interval(random)} for row in ("counting", "depth, 3-5 points")},
        {"depth-2": 0.9, "depth-3": 0.8},
    )


def result(shifted: Comparison | None = None) -> dict:
    styles = {"standard": comparison("standard"), "shifted": shifted or comparison()}
    training = {"steps": 9000, "command": "python -m train.aurora --arm direct"}
    return {
        "sets": {"full/shifted": vars(ItemSet("full", "shifted", 600, 250, 1))},
        "processor": "a processor",
        "cores": 2,
        "python": "3.12",
        "torch": "2",
        "commit": "0123456789abcdef",
        "uncommitted_changes": False,
        "minutes": 4.5,
        "aurora": {"folder": "models/aurora-tiny", "parameters": 5, "weights_sha256": "ab" * 32, "training": None},
        "direct": {"folder": "direct", "parameters": 5, "weights_sha256": "cd" * 32, "training": training},
        "direct_was": "stored",
        "bars": [],
        "styles": {style: c.to_json() for style, c in styles.items()},
        "direct_outcomes": {},
    }


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return scene_items("shifted", 3, 1)


def test_a_comparison_survives_json() -> None:
    assert Comparison.from_json(json.loads(json.dumps(comparison().to_json()))) == comparison()
    with pytest.raises(ValueError, match="no stored comparison"):
        Comparison.from_json({"style": "shifted"})


def test_bars_are_met_by_a_model_that_uses_what_it_draws() -> None:
    bars = {bar.name: bar for bar in comparison_bars(comparison())}
    assert all_met(list(bars.values()))
    assert bars["counting: gain over answering directly"].figure == pytest.approx(15)
    assert bars["counting: gap between the intervals"].figure == pytest.approx(9)
    assert "counting: drop by spans shuffled, between the intervals" not in bars  # their number is kept
    assert "depth, 3-5 points: drop by spans shuffled, between the intervals" in bars


@pytest.mark.parametrize(
    ("changed", "short"),
    [
        ({"direct": 0.71}, {"counting: gain over answering directly"}),
        (
            {"random": 0.76},
            {f"{row}: drop by spans at random, between the intervals" for row in ("counting", "depth, 3-5 points")},
        ),
        ({"chain": 0.96, "direct": 0.7}, {f"{row}: lift by oracle spans" for row in ("counting", "depth, 3-5 points")}),
    ],
)
def test_what_falls_short_is_named(changed: dict[str, float], short: set[str]) -> None:
    assert short <= {bar.name for bar in comparison_bars(comparison(**changed)) if not bar.met}


def test_lines_of_bars() -> None:
    assert Bar("gain", 12.34, 10.0).line() == "gain: 12.3 points, target 10.0, met"
    assert Bar("gain", 7.5, 10.0).line() == "gain: 7.5 points, target 10.0, MISSED by 2.5"


def test_interventions_that_were_not_measured_have_no_bar() -> None:
    bare = replace(comparison(), interventions={"counting": {"own": interval(0.8)}})
    assert len(comparison_bars(bare)) == 4


def test_stored_outcomes_come_back_for_their_items_alone(items: list[Item]) -> None:
    correct = [index % 2 == 0 for index in range(len(items))]
    stored = StoredOutcomes.from_json(json.loads(json.dumps(StoredOutcomes.of(items, correct).to_json())))
    assert stored.read_for(items, "") == correct
    with pytest.raises(StaleOutcomes, match=r"stale.*train it anew"):
        stored.read_for(list(reversed(items)), "train it anew")
    with pytest.raises(StaleOutcomes, match="stale"):
        stored.read_for(items[:-1], "")
    with pytest.raises(StaleOutcomes, match="cannot be read"):
        StoredOutcomes.from_json({"correct": "01"})


def test_a_repainted_scene_is_another_item_and_a_stray_pixel_is_not(items: list[Item]) -> None:
    pixel, paint = items[0].image.clone(), 255 - items[0].image
    pixel[0, 0, 0] ^= 1
    before = fingerprint(items)
    assert fingerprint([replace(items[0], image=pixel), *items[1:]]).same(before)
    assert not fingerprint([replace(items[0], image=paint), *items[1:]]).same(before)
    assert not Fingerprint("other", before.brightness).same(before)


def test_a_baseline_without_weights_needs_outcomes(tmp_path: Path, items: list[Item]) -> None:
    asked = ItemSet("check", "shifted", 3, 1, 0)
    with pytest.raises(StaleOutcomes, match="no outcomes are stored for check/shifted; train the baseline with"):
        Baseline(tmp_path / "absent", None).correct(asked, items)
    stored = {**result(), "direct_outcomes": {asked.key: StoredOutcomes.of(items, [True] * len(items)).to_json()}}
    baseline = Baseline(tmp_path / "absent", stored)
    assert baseline.correct(asked, items) == [True] * len(items)
    assert baseline.command == "python -m train.aurora --arm direct" and baseline.record()["folder"] == "direct"


def test_the_page_says_what_the_numbers_say() -> None:
    page = comparison_page(result())
    assert "Every target is met." in page and "The target of 10 points is met; the two intervals do not overlap" in page
    assert "The model uses what it draws" in page and "python -m train.aurora --arm direct" in page
    assert "The same model answering directly, which few of its tasks taught it, gets 70.0 %." in page
    assert page.count("## The ") == 4 and "| standard | 90.0 | 80.0 |" in page
    short = comparison_page(result(comparison(direct=0.72, random=0.79)))
    assert "is missed by 2.0" in short and "**missed**" in short and "do not show" in short and "do not overlap" in page


def test_the_page_is_made_anew_from_the_result_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(result()))
    assert aurora_vs_direct.main(["--page-only", "--out", str(path)]) == 0
    assert path.with_suffix(".md").read_text() == comparison_page(json.loads(path.read_text()))


@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    assert aurora_vs_direct.main(["--check", "--out", str(path)]) == 2
    assert "r.json is no result of this benchmark" in capsys.readouterr().err


def test_a_baseline_that_is_named_must_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--check", "--direct", str(tmp_path / "no"), "--out", str(tmp_path / "r.json")]
    assert aurora_vs_direct.main(arguments) == 2
    assert "does not exist; give the folder of a trained baseline" in capsys.readouterr().err
