"""Bars of the nested tokenizer: they fall where more tokens keep no more, or where all keep too little."""

from __future__ import annotations

from benchmarks.nested_budgets import BUDGETS, bars


def rows(lost: list[float], order: float = 1.0) -> list[dict]:
    figures = [{"abs_rel": {"mean": value}, "order_5": {"mean": order}} for value in lost]
    return [
        {"tokens": tokens, "results": {"standard": found}}
        for tokens, found in zip((*BUDGETS, 100), figures, strict=True)
    ]


def test_bars_fall_where_they_should() -> None:
    good = [0.09, 0.06, 0.045, 0.035, 0.03, 0.025, 0.02]
    assert all(bar.met for bar in bars(rows(good)))
    assert [bar.met for bar in bars(rows([*good[:4], 0.035, *good[5:]]))] == [False, True, True]
    assert [bar.met for bar in bars(rows([*good[:-1], 0.01]))] == [True, False, True]
    assert [bar.met for bar in bars(rows(good, order=0.9))] == [True, True, False]
