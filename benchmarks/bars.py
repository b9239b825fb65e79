"""Targets of benchmarks: a name, the measured value, the target, and the line that reports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perception.evaluation.comparison import Comparison
from perception.evaluation.replacement import INTERVENTIONS

GAIN_BARS = {"counting": 10.0, "depth, 3-5 points": 6.0}
"""Target gain in accuracy over the baseline, in points, per row of the tables"""
DROPS = {
    "counting": ("other image", "random"),
    "depth, 3-5 points": ("other image", "shuffled", "random"),
}
"""Replaced spans that must lower accuracy. Shuffled boxes keep their number, which is all that counting uses."""

_WORDS = {"other image": "of another image", "shuffled": "shuffled", "random": "at random"}
APART = 0.1
"""A gap, in points, that counts as more than nothing"""


@dataclass(frozen=True)
class Bar:
    """One target. `figure` and `bar` are in `unit`; a figure equal to the bar meets it."""

    name: str
    figure: float
    bar: float
    unit: str = "points"

    @property
    def met(self) -> bool:
        return self.figure >= self.bar

    def line(self) -> str:
        """The line to print: name, figure and unit, target, and whether it is met or by how much it is missed."""
        verdict = "met" if self.met else f"MISSED by {self.bar - self.figure:.1f}"
        return f"{self.name}: {self.figure:.1f} {self.unit}, target {self.bar:.1f}, {verdict}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def comparison_bars(shifted: Comparison) -> list[Bar]:
    """All targets of the comparison, on the shifted style.

    A gain has two targets: its size, and that the intervals do not overlap (the low end of the chain's interval
    minus the high end of the baseline's). True spans must raise accuracy. Each replaced span of `DROPS` must lower
    it, with intervals apart. Interventions that were not measured have no target.
    """
    bars = []
    for row, least in GAIN_BARS.items():
        arms = shifted.accuracy[row]
        bars.append(Bar(f"{row}: gain over answering directly", 100 * shifted.gain[row].mean, least))
        apart = 100 * (arms["chain"].low - arms["direct"].high)
        bars.append(Bar(f"{row}: gap between the intervals", apart, APART))
    for row, cells in shifted.interventions.items():
        own = cells["own"]
        if "oracle" in cells:
            bars.append(Bar(f"{row}: lift by oracle spans", 100 * (cells["oracle"].mean - own.mean), APART))
        for name in INTERVENTIONS:
            if name in cells and name in DROPS[row]:
                gap = 100 * (own.low - cells[name].high)
                bars.append(Bar(f"{row}: drop by spans {_WORDS[name]}, between the intervals", gap, APART))
    return bars


def all_met(bars: Sequence[Bar]) -> bool:
    return all(bar.met for bar in bars)
