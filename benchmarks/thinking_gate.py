"""Does the gate spend tokens where they change the answer? `python -m benchmarks.thinking_gate`.

Held-out counting and depth questions of both styles are answered directly and by drawing first; every price of the gate
(`perception.model.gate`) then chooses between the two, so that one run gives the whole curve of accuracy against
tokens.
Beside it: always drawing, never, an oracle that draws where only the drawn answer is right, and drawing at random as
often as the gate does, or for as many tokens. Besides, on one image: how long N questions take together.
95 % bootstrap intervals over questions. Writes `benchmarks/results/thinking_gate.json` and `docs/thinking_gate.png`;
about six minutes on one core.

With --check it asks fewer questions, prints one line a bar, writes nothing, and exits 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.bars import Bar, all_met
from perception.chains import prompt_for
from perception.decoding.drafts import DraftBook
from perception.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference
from perception.evaluation.scenes import scene_items
from perception.model.gate import FILE_NAME, ThinkingGate
from perception.model.perception_model import PerceptionModel, Prompt
from perception.scenes.render import render_scenes
from train.gate import CHAIN, DIRECT, answer_both
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "thinking_gate.json"
PLOT = ROOT / "docs" / "thinking_gate.png"
MODEL = ROOT / "models" / "aurora-tiny"
FIRST_SEED = 97_000_000
WITHIN = 1.0
"""Points that "auto" may stay below always drawing"""
KINDS = {"all": None, "counting": 0, "depth": 1}
MANY = 8
"""Questions about one image"""


def policy(answers: dict[str, Tensor], drawn: Tensor) -> dict[str, Any]:
    """Accuracy with its interval, tokens and share of drawing at `drawn` (N,), chances of drawing."""
    right, tokens, chance = answers["right"].double(), answers["tokens"].double(), drawn.double()
    correct = chance * right[:, CHAIN] + (1 - chance) * right[:, DIRECT]
    spent = chance * tokens[:, CHAIN] + (1 - chance) * tokens[:, DIRECT]
    return {
        "accuracy": _said(bootstrap_interval(correct.numpy())),
        "tokens": round(float(spent.mean()), 2),
        "drawn": round(float(chance.mean()), 4),
    }


def _said(interval: Interval) -> dict[str, float]:
    return {name: round(100 * getattr(interval, name), 2) for name in ("mean", "low", "high")}


def _outcomes(answers: dict[str, Tensor], drawn: Tensor) -> list[float]:
    chance, right = drawn.double(), answers["right"].double()
    outcomes: list[float] = (chance * right[:, CHAIN] + (1 - chance) * right[:, DIRECT]).tolist()
    return outcomes


def random_for_tokens(answers: dict[str, Tensor], tokens: float) -> float:
    """Accuracy in percent of drawing at random as often as makes so many tokens an answer."""
    right, spent = answers["right"].double().mean(0), answers["tokens"].double().mean(0)
    share = (tokens - spent[DIRECT]) / (spent[CHAIN] - spent[DIRECT])
    return float(100 * (right[DIRECT] + share * (right[CHAIN] - right[DIRECT])))


def curve(gate: ThinkingGate, answers: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Every setting of the gate on these questions, with random drawing of its share and of its tokens."""
    points = []
    for setting in gate.settings:
        drawn = torch.tensor(gate.at(setting.price).draws(answers["features"]))
        made = policy(answers, drawn)
        share = torch.full((len(drawn),), made["drawn"], dtype=torch.double)
        at_random = {"random_at_share": policy(answers, share)["accuracy"]["mean"]}
        at_random["random_at_tokens"] = round(random_for_tokens(answers, made["tokens"]), 2)
        points.append({"price": round(setting.price, 4), **made, **at_random})
    return points


def measure(gate: ThinkingGate, answers: dict[str, Tensor]) -> dict[str, Any]:
    """All policies on the questions of one style or kind."""
    drawn = torch.tensor(gate.draws(answers["features"]))
    right, full = answers["right"], torch.ones(len(drawn))
    share = torch.full((len(drawn),), float(drawn.float().mean()), dtype=torch.double)
    own, always = _outcomes(answers, drawn), _outcomes(answers, full)
    return {
        "questions": len(drawn),
        "auto": policy(answers, drawn),
        "always": policy(answers, full),
        "never": policy(answers, 0 * full),
        "oracle": policy(answers, right[:, CHAIN] & ~right[:, DIRECT]),
        "random_at_share": policy(answers, share),
        "random_at_tokens": round(random_for_tokens(answers, policy(answers, drawn)["tokens"]), 2),
        "auto_minus_always": _said(paired_difference(own, always)),
        "auto_minus_random_at_share": _said(paired_difference(own, _outcomes(answers, share))),
        "curve": curve(gate, answers),
    }


def calibration(gate: ThinkingGate, answers: dict[str, Tensor], bins: int = 10) -> dict[str, float]:
    """Expected calibration error in points of both chances: |chance - share right| over `bins` equal groups."""
    chances, _ = gate.read(answers["features"])
    errors = {}
    for name, column in (("direct", DIRECT), ("chain", CHAIN)):
        order = chances[:, column].argsort()
        groups = [
            (chances[rows, column].mean() - answers["right"][rows, column].float().mean()).abs() * len(rows)
            for rows in order.chunk(bins)
        ]
        errors[name] = round(100 * float(torch.stack(groups).sum()) / len(order), 2)
    return errors


def several_questions(model: PerceptionModel, images: int = 12) -> dict[str, Any]:
    """Seconds of `MANY` direct and drawn counting questions about an image: one by one, one by one on a seen image, and
    in one batch; ways take turns image by image, the first warms up."""
    texts = [f"How many {color} objects are there?" for color in ("red", "green", "blue", "yellow")] * (MANY // 4)
    ways = ("one by one", "one by one, seen", "ask_many")
    result: dict[str, Any] = {"questions": MANY, "images": images}
    for mode in ("direct", "chain"):
        seconds, same = dict.fromkeys(ways, 0.0), 0
        pictures = render_scenes(range(FIRST_SEED + 900_000, FIRST_SEED + 900_001 + images)).images
        for number, picture in enumerate(pictures):
            given: list[list[Any]] = []
            for way in ways:
                model.drafts = DraftBook()  # else the second way would draft from the first one's answers
                start = time.perf_counter()
                if way == "one by one":
                    made = [model.answer([_prompt(picture, text, mode)])[0] for text in texts]
                elif way == "ask_many":
                    made = model.ask_many(picture, texts, mode)
                else:
                    seen = model.look(picture)
                    made = [model.ask(seen, text, mode) for text in texts]
                seconds[way] += (time.perf_counter() - start) * (number > 0)
                given.append([(answer.text, answer.spans) for answer in made])
            same += int(given[0] == given[1] == given[2])
        result[mode] = {
            "times_as_fast": {way: round(seconds["one by one"] / took, 2) for way, took in seconds.items()},
            "images_with_the_same_answers": f"{same} of {images + 1}",
        }
    return result


def _prompt(picture: Tensor, text: str, mode: str) -> Prompt:
    asked, kind = prompt_for(text, mode)
    return Prompt(picture, asked, kind)


def bars(styles: dict[str, dict[str, Any]]) -> list[Bar]:
    found = []
    for style, kinds in styles.items():
        own = kinds["all"]
        found.append(Bar(f"{style} style: auto minus always drawing", own["auto_minus_always"]["mean"], -WITHIN))
        saved = own["always"]["tokens"] - own["auto"]["tokens"]
        found.append(Bar(f"{style} style: tokens an answer that auto saves", saved, 0.01, "tokens"))
        over = own["auto_minus_random_at_share"]["mean"]
        found.append(Bar(f"{style} style: auto minus random drawing of the same share", over, 0.01))
        middle = [point for point in own["curve"] if 0.1 <= point["drawn"] <= 0.9]
        gaps = [point["accuracy"]["mean"] - point["random_at_tokens"] for point in middle]
        name = f"{style} style: mean over prices that draw 10 to 90 %, minus random drawing for the same tokens"
        found.append(Bar(name, sum(gaps) / max(1, len(gaps)), 0.01))
    return found


def plot(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6.6), layout="constrained")
    for row, (style, kinds) in enumerate(result["styles"].items()):
        for axis, (kind, own) in zip(axes[row], kinds.items(), strict=True):
            points = own["curve"]
            tokens = [point["tokens"] for point in points]
            axis.fill_between(
                tokens,
                [p["accuracy"]["low"] for p in points],
                [p["accuracy"]["high"] for p in points],
                color="tab:blue",
                alpha=0.15,
                lw=0,
            )
            axis.plot(tokens, [p["accuracy"]["mean"] for p in points], color="tab:blue", label="gate, all prices")
            ends = [own["never"], own["always"]]
            axis.plot(
                [e["tokens"] for e in ends], [e["accuracy"]["mean"] for e in ends], ":", color="grey", label="random"
            )
            for name, marker, color in (
                ("auto", "o", "tab:blue"),
                ("always", "s", "tab:red"),
                ("never", "v", "tab:green"),
                ("oracle", "*", "tab:purple"),
            ):
                axis.plot(own[name]["tokens"], own[name]["accuracy"]["mean"], marker, ms=8, color=color, label=name)
            axis.set(title=f"{kind}, {style} style", xlabel="tokens an answer", ylabel="right, %")
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(PLOT, dpi=90)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer questions; write nothing")
    parser.add_argument("--model", default=str(MODEL), help="folder of the model")
    arguments = parser.parse_args(argv)
    model = PerceptionModel.from_pretrained(arguments.model)
    if model.gate is None:
        raise ValueError(f"{arguments.model} has no {FILE_NAME}; train one with `python -m train.gate --model FOLDER`")
    num_count, num_depth = (150, 40) if arguments.check else (500, 125)
    styles: dict[str, dict[str, Any]] = {}
    errors = {}
    for style in ("standard", "shifted"):
        answers = answer_both(model, scene_items(style, num_count, num_depth, FIRST_SEED))
        errors[style] = calibration(model.gate, answers)
        styles[style] = {}
        for name, depth in KINDS.items():
            rows = torch.ones_like(answers["depth"]) if depth is None else answers["depth"] == bool(depth)
            styles[style][name] = measure(model.gate, {key: value[rows] for key, value in answers.items()})
    measured = bars(styles)
    for bar in measured:
        print(bar.line())
    if not arguments.check:
        result = {
            **provenance(),
            "model": os.path.relpath(arguments.model, ROOT),
            "threads": torch.get_num_threads(),
            "first_seed": FIRST_SEED,
            "price": model.gate.price,
            "styles": styles,
            "calibration_error": errors,
            "several_questions": several_questions(model),
            "bars": [bar.to_json() for bar in measured],
        }
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        plot(result)
        print(f"written: {RESULT} and {PLOT}")
    return int(arguments.check and not all_met(measured))


if __name__ == "__main__":
    sys.exit(main())
