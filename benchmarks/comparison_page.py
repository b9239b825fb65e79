"""The Markdown page of `benchmarks.aurora_vs_direct`, made from its result file only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.bars import DROPS, GAIN_BARS, Bar, comparison_bars
from perception.evaluation.comparison import HEADER, Comparison, accuracy_rows

DIRECT_COMMAND = "python -m train.aurora --arm direct --run_dir runs/direct --out models/direct-tiny"
AURORA_COMMAND = "python -m train.aurora --out models/aurora-tiny"

_INTRO = """\
# Drawing first or answering directly

Made from `{file}` by `python -m benchmarks.aurora_vs_direct`; do not edit.

Two copies of `models/tiny-base` were fine-tuned on the same rendered scenes of the *standard* style: one AURORA-style,
with perception tokens (`{aurora}`), and one to answer directly (`{direct}`). Both answer the same held-out questions
about scenes that neither has seen, of the standard style and of the *shifted* style (other palette, textures, light,
camera and sizes), which no training uses. Accuracy is in %, with 95 % bootstrap intervals over questions in brackets;
gains are paired by question.
"""

_REPLACED = """\
Accuracy when the model's span is replaced before it answers (oracle: the true span; shuffled boxes keep their number):
"""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown table whose first column is text and whose other columns are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _interventions(comparison: Comparison) -> str:
    columns = list(next(iter(comparison.interventions.values())))
    rows = [(row, *(cells[c] for c in columns)) for row, cells in comparison.interventions.items()]
    return markdown_table(("task", "its own span", *columns[1:]), rows)


def _drawn_maps(styles: Sequence[Comparison]) -> str:
    groups = sorted({group for c in styles for group in c.drawn_map_order})
    rows = [
        (c.style, *(f"{100 * c.drawn_map_order[g]:.1f}" if g in c.drawn_map_order else "" for g in groups))
        for c in styles
    ]
    return markdown_table(("style", *(f"{g.removeprefix('depth-')} points" for g in groups)), rows)


def _gain_reading(comparison: Comparison, row: str) -> str:
    arms, gain, bar = comparison.accuracy[row], comparison.gain[row], GAIN_BARS[row]
    chain, direct, without = arms["chain"], arms["direct"], arms["aurora, direct"]
    verdict = "is met" if 100 * gain.mean >= bar else f"is missed by {bar - 100 * gain.mean:.1f}"
    overlap = chain.low <= direct.high and direct.low <= chain.high
    touch = "overlap" if overlap else "do not overlap"
    return (
        f"- **{row}**, shifted style: {100 * chain.mean:.1f} % drawing first, {100 * direct.mean:.1f} % for the direct "
        f"baseline, a gain of {gain} points. The target of {bar:.0f} points {verdict}; the two intervals {touch}. "
        f"The same model answering directly, which few of its tasks taught it, gets {100 * without.mean:.1f} %."
    )


def _use_reading(comparison: Comparison, row: str) -> str:
    cells = comparison.interventions[row]
    own = cells["own"]
    said = [f"{name} {100 * (cell.mean - own.mean):+.1f}" for name, cell in cells.items() if name != "own"]
    if not said:
        return f"- **{row}**: no spans were replaced."
    measured = [name for name in DROPS[row] if name in cells]
    dropped = all(cells[name].high < own.low for name in measured)
    lifted = "oracle" not in cells or cells["oracle"].mean > own.mean
    if dropped and lifted:
        verdict = "The model uses what it draws"
    elif dropped:
        verdict = "Its answers follow what it draws, but true spans do not improve them"
    else:
        verdict = "These figures do not show that its answers follow what it draws"
    return f"- **{row}**, change in accuracy when the span is replaced, in points: {', '.join(said)}. {verdict}."


def _bar_list(bars: Sequence[Bar]) -> str:
    short = [bar for bar in bars if not bar.met]
    head = "Every target is met.\n" if not short else f"{len(bars) - len(short)} of {len(bars)} targets are met.\n"
    rows = [(b.name, f"{b.figure:.1f}", f"{b.bar:.1f}", "met" if b.met else "**missed**") for b in bars]
    return head + "\n" + markdown_table(("target (shifted style)", "measured, points", "at least", ""), rows)


def _models(result: Mapping[str, Any]) -> str:
    models = {name: dict(result.get(name) or {}) for name in ("aurora", "direct")}
    trainings = {name: model.pop("training", None) or {} for name, model in models.items()}
    rows = [("folder", *(f"`{m.get('folder', 'unknown')}`" for m in models.values()))]
    rows += [("parameters", *(f"{m['parameters']:,}" if "parameters" in m else "" for m in models.values()))]
    rows += [("weights, SHA-256", *(f"`{str(m.get('weights_sha256', ''))[:16]}`" for m in models.values()))]
    for key in dict.fromkeys(key for training in trainings.values() for key in training):
        cells = [training.get(key, "") for training in trainings.values()]
        if not any(isinstance(cell, (dict, list)) for cell in cells):
            rows.append((key.replace("_", " "), *(f"`{c}`" if key == "command" else str(c) for c in cells)))
    return markdown_table(("", "aurora", "direct baseline"), rows)


def _ending(result: Mapping[str, Any]) -> str:
    command = ((result.get("direct") or {}).get("training") or {}).get("command", DIRECT_COMMAND)
    aurora = ((result.get("aurora") or {}).get("training") or {}).get("command", AURORA_COMMAND)
    sets = "; ".join(
        f"{s['name']}, {s['style']}: {s['num_count']} about counting, {s['num_depth']} per number of points, "
        f"scenes from seed {s['first_seed']}"
        for s in result["sets"].values()
    )
    asked = "The baseline answered in this run."
    if result.get("direct_was") != "asked":
        asked = "The baseline's weights were missing: its outcomes are those that an earlier run stored."
    return (
        f"{asked} The models are trained by:\n\n"
        f"```sh\n{aurora}\n{command}\n```\n\n"
        f"Questions: {sets}. Measured in {result['minutes']} minutes on {result['processor']}, "
        f"{result['cores']} cores, Python {result['python']}, torch {result['torch']}, "
        f"commit `{str(result['commit'])[:12]}`"
        f"{' with uncommitted changes' if result['uncommitted_changes'] else ''}.\n"
    )


def comparison_page(result: Mapping[str, Any], file: str = "aurora_vs_direct.json") -> str:
    """The page of a result, as `benchmarks.aurora_vs_direct` writes it. Raises ValueError if a part is missing."""
    styles = [Comparison.from_json(data) for data in result["styles"].values()]
    shifted = next(c for c in styles if c.style == "shifted")
    names = {name: (result.get(name) or {}).get("folder", name) for name in ("aurora", "direct")}
    parts = [_INTRO.format(file=file, **names), "## Summary\n"]
    parts += ["\n".join(_gain_reading(shifted, row) for row in GAIN_BARS)]
    parts += ["\n".join(_use_reading(shifted, row) for row in shifted.interventions) + "\n"]
    parts += [_bar_list(comparison_bars(shifted))]
    for comparison in styles:
        parts += [f"## The {comparison.style} style\n", markdown_table(HEADER, accuracy_rows(comparison))]
        parts += [_REPLACED, _interventions(comparison)]
    parts += [
        "## The maps it draws\n",
        "Share of drawn and decoded depth maps that are nearest at the right marker, in %:\n",
        _drawn_maps(styles),
        "## The models\n",
        _models(result),
        _ending(result),
    ]
    return "\n".join(parts)
