"""The comparison of boxes and points to count with: what both draw, what is measured, and its targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from one_step import measure, measure_again

from benchmarks import counting_points
from benchmarks.counting_points import FORMS, drawn_span, examples, figures
from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene


def test_both_forms_draw_the_same_things_in_the_same_order() -> None:
    boxes = np.array([[0.1, 0.1, 0.3, 0.2], [0.5, 0.4, 0.9, 0.8]])
    assert drawn_span("boxes", boxes).codes == (10, 10, 30, 20, 50, 40, 90, 80)
    assert drawn_span("points", boxes).codes == (20, 15, 70, 60)
    assert drawn_span("points", np.zeros((0, 4))).codes == ()
    scene = Scene.from_batch(render_scenes([3], "standard"), 0)
    both = {form: examples(scene, 3, form) for form in FORMS}
    assert [e.question for e in both["boxes"]] == [e.question for e in both["points"]], "the words are the same"
    for box, point in zip(both["boxes"], both["points"], strict=True):
        assert len(box.target[0].codes) == 4 * int(box.answer) and len(point.target[0].codes) == 2 * int(box.answer)  # type: ignore[union-attr]
    assert len({e.question for e in both["boxes"]}) == len(both["boxes"]) > 1


def test_the_gain_of_boxes_is_over_points() -> None:
    found = figures({"said": {"boxes": [[True, True], [True, False]], "points": [[True, False], [False, False]]}})
    assert found["said"]["boxes"]["mean"] == 0.75 and found["said"]["boxes over points"]["mean"] == 0.5


@pytest.mark.slow
def test_trainings_of_one_step_make_a_result_and_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seeds", "0", "--scenes", "8", "--steps", "1", "--num-count", "3"]
    words += ["--store", str(tmp_path / "scenes"), "--runs", str(tmp_path / "runs")]
    first = measure(counting_points, words, tmp_path / "r.json")
    assert set(first["styles"]["shifted"]["drawn"]) == {*FORMS, "boxes over points"} and first["commit"]
    assert measure_again(counting_points, words, tmp_path / "again.json")["styles"] == first["styles"]
    capsys.readouterr()
    first["styles"]["shifted"]["said"]["boxes over points"]["mean"] = -0.1
    (tmp_path / "r.json").write_text(json.dumps(first))
    assert counting_points.main(["--check", "--out", str(tmp_path / "r.json")]) == 1
    assert "shifted style, number said: boxes over points: -10.0 points, target 0.0, MISSED" in capsys.readouterr().out
    assert counting_points.main(["--check", "--out", str(tmp_path / "none.json")]) == 1
