"""Curves of a reinforcement learning run, drawn from its log."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CURVES = {
    "reward": "reward",
    "kl": "KL from the start",
    "length": "tokens written",
    "triggers": "share of chains that look",
    "entropy": "entropy, nats per token",
    "selected": "visual tokens per look",
}
"""Scalars of log.jsonl and their titles in the plot."""


def draw_curves(log: Path, out: Path) -> Path:
    """Plot every scalar of CURVES by step, and the accuracy on held-out problems along with the reward."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    trained = [r for r in records if "losses" in r]
    looked = [(r["step"], r["held_out"]["accuracy"]) for r in records if "accuracy" in r.get("held_out", {})]
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.5), layout="constrained")
    for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
        points = [(r["step"], r["losses"][name]) for r in trained if name in r["losses"]]
        axis.plot(*zip(*points, strict=True) if points else ([], []), label="training")
        if name == "reward" and looked:
            axis.plot(*zip(*looked, strict=True), "o-", label="held-out accuracy, greedy")
            axis.legend()
        axis.set_title(title)
        axis.set_xlabel("step")
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return out
