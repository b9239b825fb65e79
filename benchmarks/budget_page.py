"""Make the page and the plot of `benchmarks.token_budgets` from its result file: `python -m benchmarks.budget_page`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.loop.provenance import ROOT

RESULT = ROOT / "benchmarks" / "results" / "token_budgets.json"
PAGE = RESULT.with_suffix(".md")
PLOT = ROOT / "docs" / "token_budgets.png"
SETS = {
    "standard": "held-out scenes, standard style",
    "shifted": "held-out scenes, shifted style",
    "measured: ground truth": "measured, structured light",
    "measured: stereo matching": "measured, stereo matching",
}
_FIGURES = {"abs_rel": "AbsRel", "delta1": "delta1", "rmse": "RMSE"}
_COLORS = {128: "tab:blue", 512: "tab:orange", 4096: "tab:green"}
_STYLES = {"ema": "-", "fsq": "--"}


def _cell(row: dict[str, Any], chosen: str, figure: str, factor: float = 1, digits: int = 3) -> str:
    value = row["results"].get(chosen, {}).get(figure)
    return "-" if value is None else f"{factor * value['mean']:.{digits}f}"


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["tokens"], row["codebook_size"], row["quantizer"], row["nested"], row["seed"]


def table(rows: Sequence[dict[str, Any]], chosen: str) -> str:
    """Markdown table of the figures on one set, one line per tokenizer."""
    orders = [f"order of {number}, %" for number in (2, 3, 4, 5)]
    head = ["tokens", "codes", "quantizer", "bits", *_FIGURES.values(), "delta2", "edges F1", *orders, "codes used, %"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in sorted(rows, key=_place):
        kind = row["quantizer"].upper() + (f", seed {row['seed']}" if row["seed"] else "")
        kind += ", first of a nested 100" if row["nested"] else ""
        cells = [str(row["tokens"]), str(row["codebook_size"]), kind, str(row["bits"])]
        cells += [_cell(row, chosen, figure) for figure in (*_FIGURES, "delta2", "boundary_f1")]
        cells += [_cell(row, chosen, f"order_{number}", 100, 1) for number in (2, 3, 4, 5)]
        used = row["results"].get(chosen, {}).get("codebook_usage")
        cells.append("-" if used is None else f"{100 * used:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page(result: dict[str, Any]) -> Path:
    """Write the page of a result."""
    rows = result["rows"]
    present = [name for name in SETS if any(name in row["results"] for row in rows)]
    parts = [
        "# What a depth map loses, by tokens and codes",
        "",
        f"Made by `python -m benchmarks.token_budgets`: each tokenizer trained for {result['steps']} steps of "
        f"{result['batch_size']} maps (the shipped one had 4,500), measured on {result['scenes_a_style']} held-out "
        "scenes per style at 160 x 160 and on measured maps at their own size, in each map's own range. Intervals of "
        "all figures are in `token_budgets.json`. RMSE is in the scenes' unit, or metres. Order: all of so many points "
        "are at least 20/255 apart in nearness and in order. Edges F1 is Depth Pro's boundary F1 without thinning.",
        "",
        f"Machine: {result['processor']}, {result['cores']} cores; torch {result['torch']}; "
        f"commit {result['commit'][:12]}.",
    ]
    for name in present:
        maps = rows[0]["results"][name]["maps"]
        parts += ["", f"## {SETS[name][0].upper()}{SETS[name][1:]} ({maps} maps)", "", table(rows, name)]
    PAGE.write_text("\n".join(parts) + "\n")
    return PAGE


def draw_curves(rows: Sequence[dict[str, Any]], path: Path = PLOT) -> Path:
    """Plot AbsRel, delta1 and order against tokens per map: one column per set of maps, one line per codebook."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    present = [name for name in SETS if any(name in row["results"] for row in rows)]
    kinds = {"abs_rel": "AbsRel (lower is better)", "delta1": "delta1", "order_5": "order of 5 points right"}
    figure, axes = pyplot.subplots(
        len(kinds), len(present), figsize=(3.6 * len(present), 8.4), squeeze=False, sharex=True, layout="constrained"
    )
    for column, name in enumerate(present):
        for axis, kind in zip(axes[:, column], kinds, strict=True):
            _curves(axis, rows, name, kind)
            axis.set_xscale("log")
            axis.set_xticks([16, 36, 64, 100, 196, 400], ["16", "36", "64", "100", "196", "400"])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0, column].set_title(SETS[name], fontsize=10)
        axes[0, column].set_yscale("log")
        axes[0, column].yaxis.set_major_locator(LogLocator(10, (1, 2, 3, 5)))
        axes[0, column].yaxis.set_major_formatter("{x:g}")
        axes[0, column].yaxis.set_minor_formatter(NullFormatter())
        axes[-1, column].set_xlabel("tokens per map")
    for axis, title in zip(axes[:, 0], kinds.values(), strict=True):
        axis.set_ylabel(title)
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=9, title="codes, quantizer", loc="outside lower center", ncols=len(labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _curves(axis: Any, rows: Sequence[dict[str, Any]], chosen: str, figure: str) -> None:
    kinds = [(size, kind, False) for size in _COLORS for kind in _STYLES]
    for size, quantizer, nested in [*kinds, (128, "ema", True)]:
        wanted = (size, quantizer, nested, 0)
        line = [r for r in rows if (r["codebook_size"], r["quantizer"], r["nested"], r["seed"]) == wanted]
        line = sorted((r for r in line if figure in r["results"].get(chosen, {})), key=_place)
        if not line:
            continue
        values, tokens = [r["results"][chosen][figure] for r in line], [r["tokens"] for r in line]
        color, style = ("black", ":") if nested else (_COLORS[size], _STYLES[quantizer])
        label = f"{size}, {quantizer.upper()}" + (", one nested tokenizer" if nested else "")
        means = [value["mean"] for value in values]
        axis.plot(tokens, means, style, color=color, marker="o", markersize=3, label=label)
        if quantizer == "ema":
            low, high = ([value[end] for value in values] for end in ("low", "high"))
            axis.fill_between(tokens, low, high, color=color, alpha=0.12, linewidth=0)


def main() -> None:
    result = json.loads(RESULT.read_text())
    print(write_page(result), draw_curves(result["rows"]))


if __name__ == "__main__":
    main()
