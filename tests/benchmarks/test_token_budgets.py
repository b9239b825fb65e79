from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import budget_page, token_budgets
from benchmarks.depth_sets import scene_set
from benchmarks.token_budgets import BUDGETS, CODEBOOKS, variants


def test_the_grid_holds_every_budget_codebook_and_quantizer_once() -> None:
    grid = [v for v in variants() if v.seed == 0 and not v.nested]
    assert len({v.name for v in variants()}) == len(variants())
    assert {(v.tokens, v.codebook_size, v.quantizer) for v in grid} == {
        (tokens, size, kind) for tokens in BUDGETS for size in CODEBOOKS for kind in ("ema", "fsq")
    }
    for variant in grid:
        assert variant.model.num_codes == variant.tokens and variant.model.codebook_size == variant.codebook_size


def test_a_row_is_trained_once_measured_and_drawn(tmp_path: Path, monkeypatch: Any) -> None:
    variant = token_budgets.Variant(16, 128, "fsq")
    first = token_budgets.finished(variant, tmp_path, steps=2, num_scenes=64)
    monkeypatch.setattr(token_budgets, "train", lambda config: 1 / 0)
    assert token_budgets.finished(variant, tmp_path, steps=2, num_scenes=64).fingerprint() == first.fingerprint()
    monkeypatch.setattr(token_budgets, "variants", lambda: [variant])
    monkeypatch.setattr(token_budgets, "depth_sets", lambda scenes: {"standard": scene_set("standard", scenes, 32)})
    (row,) = token_budgets.measure(tmp_path, 2, 5)
    assert row["bits"] == 16 * 7 and row["results"]["standard"]["maps"] == 5
    assert budget_page.table([row], "standard").splitlines()[-1].startswith("| 16 | 128 | FSQ | 112 | ")
    nested = token_budgets.Variant(100, 128, "ema", nested=True)
    assert nested.lengths == (16, 36, 64, 100) and variant.lengths == (16,)
    plot = budget_page.draw_curves([row], tmp_path / "plot.png")
    assert plot.stat().st_size > 5000
