"""Parts of a style: what they are made of, and that each is measured alone."""

from __future__ import annotations

from dataclasses import fields

import pytest

from benchmarks import style_parts
from perception.chains import Answer
from perception.evaluation.scenes import ScoredAnswer
from perception.scenes.styles import SHIFTED, STANDARD, STYLES, Style


def test_all_parts_together_are_the_shifted_style():
    assert style_parts.with_parts(*style_parts.PARTS) == SHIFTED
    assert style_parts.with_parts() == STANDARD
    parts = [field for part in style_parts.PARTS.values() for field in part]
    assert sorted(parts) == sorted(field.name for field in fields(Style))


def test_a_style_is_known_only_while_it_is_measured():
    with style_parts.known_as("for a test", SHIFTED):
        assert STYLES["for a test"] is SHIFTED
    assert set(STYLES) == {"standard", "shifted"}
    with pytest.raises(ValueError, match="'shifted' is a style already"), style_parts.known_as("shifted", STANDARD):
        pass


def test_each_part_is_measured_alone(monkeypatch, capsys):
    """A model that counts wrong as soon as the camera differs loses there, and where all differs."""
    seen = []

    def answers(model, items, mode, title):
        (style,) = (s for name, s in STYLES.items() if name not in ("standard", "shifted"))
        seen.append(style)
        right = style.camera_height == STANDARD.camera_height
        return [ScoredAnswer(item.group, right or item.kind != "count", Answer("", (), None)) for item in items]

    monkeypatch.setattr(style_parts, "evaluate_items", answers)
    found = style_parts.measure(None, 4, 2)  # type: ignore[arg-type]
    assert len(seen) == 9 and seen[0] == STANDARD and seen[-1] == SHIFTED
    costs = {name: style_parts.change(found, name, "counting") for name in found}
    assert {name for name, cost in costs.items() if cost} == {"camera", "all of these"} and costs["camera"] == -100
    missed = [bar.name for bar in style_parts.bars(found) if not bar.met]
    assert missed == ["counting: change by the camera"]
    assert "| camera | 0.0 [0.0, 0.0] | -100.0 | 100.0 [100.0, 100.0] | +0.0 |" in style_parts.table(found)
    assert not capsys.readouterr().err
