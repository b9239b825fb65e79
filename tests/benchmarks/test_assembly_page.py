"""The page of the assembly: whose figures stand beside its own."""

from __future__ import annotations

import json

from benchmarks import assembly


def test_the_baseline_of_aurora_tiny_is_not_taken_for_it() -> None:
    text = assembly.page(json.loads(assembly.RESULT.read_text()))
    beside = json.loads(assembly.TINY.read_text())["styles"]["standard"]["accuracy"]["counting"]
    head = next(line for line in text.splitlines() if line.startswith("| task | n |")).split(" | ")
    row = next(line for line in text.splitlines() if line.startswith("| counting |")).split(" | ")
    shown = dict(zip(head, row, strict=True))
    assert shown["aurora-tiny's baseline, direct"].startswith(f"{100 * beside['direct']['mean']:.1f} [")
    assert shown["aurora-tiny, drawing first |"].startswith(f"{100 * beside['chain']['mean']:.1f} [")
