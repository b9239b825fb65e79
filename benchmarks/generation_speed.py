"""How fast are answers that draw first? `python -m benchmarks.generation_speed`.

Ours (several tokens a forward, `perception.decoding`) against transformers' `generate`: plain under the same grammar,
with prompt lookup (its assisted decoding without a second model; batches of one only), and without a grammar. The depth
and the counting question on held-out scenes of the shifted look, batches of 1, 8 and 32; every figure is a ratio to
plain constrained `generate` in the same run, whose questions alternate between the two. Besides: on how many of 1,000
questions the ids are the same, the share of a step that the grammar takes, and peak memory. Written to
`benchmarks/results/generation_speed.json`; about fifteen minutes on two cores.

With --check it asks fewer questions, prints one line a bar, writes nothing, and exits 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.bars import Bar, all_met
from perception.chains import prompt_for
from perception.decoding import DecodingTrace
from perception.evaluation.scenes import scene_items
from perception.model import PerceptionModel, Prompt
from perception.span_processor import SpanLogitsProcessor
from train.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "generation_speed.json"
MODEL = ROOT / "models" / "aurora-tiny"
FIRST_SEED = 95_000_000
SPEED_BARS = {("depth", 1): 4.0, ("depth", 8): 2.5}
"""Times as fast as plain constrained `generate`, by question and batch size."""
GRAMMAR_PERCENT = 2.0
"""Of a step at batch 32 that the grammar may take."""
MAX_NEW_TOKENS = 256
_PEERS = ("ours", "plain", "prompt lookup", "without a grammar")


def questions(kind: str, count: int, first_seed: int = FIRST_SEED) -> list[Prompt]:
    """`count` held-out questions of the shifted look, chains of perception: depth of 2 to 5 points, or counting."""
    each = -(-count // 4)
    items = (
        scene_items("shifted", 0, each, first_seed) if kind == "depth" else scene_items("shifted", count, 0, first_seed)
    )
    if kind == "depth":  # the four numbers of points take turns
        items = [items[i + each * group] for i in range(each) for group in range(4)]
    return [Prompt(i.image, prompt_for(i.question, "chain")[0], i.kind) for i in items[:count]]


def answer_by(model: PerceptionModel, peer: str, batch: Sequence[Prompt]) -> list[list[int]]:
    """Ids of a batch of answers, decoded in one of the ways of `_PEERS`."""
    if peer == "ours":
        return model.generate_ids(batch, MAX_NEW_TOKENS)
    if peer == "plain":
        return model.generate_ids(batch, MAX_NEW_TOKENS, fast=False)
    if peer == "prompt lookup":
        return model.generate_ids(batch, MAX_NEW_TOKENS, prompt_lookup_num_tokens=10)
    inputs = model.inputs(batch)
    out = model.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    rows: list[list[int]] = out[:, inputs["input_ids"].shape[1] :].tolist()
    return rows


def race(model: PerceptionModel, kind: str, batch_size: int, batches: int) -> dict[str, Any]:
    """Seconds of every way of decoding on the same batches, taking turns batch by batch; the first one warms up."""
    asked = questions(kind, (batches + 1) * batch_size)
    peers = [peer for peer in _PEERS if batch_size == 1 or peer != "prompt lookup"]
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    for number in range(batches + 1):
        batch = asked[number * batch_size : (number + 1) * batch_size]
        for peer in peers:
            start = time.perf_counter()
            answer_by(model, peer, batch)
            if number:
                seconds[peer].append(time.perf_counter() - start)
    ratios = {
        peer: [plain / took for plain, took in zip(seconds["plain"], seconds[peer], strict=True)] for peer in peers
    }
    trace = DecodingTrace()
    model.decoder.decode(
        model.inputs(asked[-batch_size:]),
        [model.drafts.look_up(p.question, p.kind) for p in asked[-2 * batch_size : -batch_size]],
        MAX_NEW_TOKENS,
        [model.processor.tokenizer.eos_token_id],
        trace=trace,
    )
    return {
        "question": kind,
        "batch_size": batch_size,
        "batches": batches,
        "speed_over_plain": {peer: round(sum(seconds["plain"]) / sum(seconds[peer]), 3) for peer in peers},
        "speed_quartiles": {peer: [round(q, 2) for q in statistics.quantiles(r)] for peer, r in ratios.items()},
        "seconds_an_answer": {peer: round(sum(s) / batches / batch_size, 4) for peer, s in seconds.items()},
        "forwards": trace.forwards,
        "tokens_a_row": round(trace.confirmed / batch_size, 1),
    }


def same_ids(model: PerceptionModel, count: int, batch_size: int = 25) -> dict[str, int]:
    """Of so many questions, half of each kind: how many answers have the ids of plain decoding."""
    same = 0
    for kind in ("depth", "count"):
        asked = questions(kind, count // 2, FIRST_SEED + 1_000_000)
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            pairs = zip(answer_by(model, "ours", batch), answer_by(model, "plain", batch), strict=True)
            same += sum(ours == plain for ours, plain in pairs)
    return {"questions": 2 * (count // 2), "same": same}


class _Timed(SpanLogitsProcessor):
    """Adds up the seconds that it takes."""

    spent = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        masked = super().__call__(input_ids, scores)
        self.spent += time.perf_counter() - start
        return masked


def grammar_share(model: PerceptionModel, batch_size: int = 32, steps: int = 60) -> dict[str, float]:
    """Milliseconds of a plain decoding step and of the grammar in it, and its share in percent."""
    inputs = model.inputs(questions("depth", batch_size))
    took = {}
    for tokens in (2, 2, steps):  # the first warms up, the second is the prompt's part of the third
        grammar, start = _Timed(model.grammar), time.perf_counter()
        model.model.generate(**inputs, logits_processor=[grammar], do_sample=False, max_new_tokens=tokens)
        took[tokens] = (time.perf_counter() - start, grammar.spent)
    whole, spent = ((took[steps][n] - took[2][n]) / (steps - 2) for n in (0, 1))
    return {"step_ms": 1e3 * whole, "grammar_ms": 1e3 * spent, "percent": 100 * spent / whole}


def bars(result: dict[str, Any]) -> list[Bar]:
    """Speed at batches of 1 and 8, identity, and the grammar's share."""
    found = []
    for run in result["races"]:
        key = (run["question"], run["batch_size"])
        if key in SPEED_BARS:
            name = f"{key[0]} question, batch {key[1]}: over plain constrained generate"
            found.append(Bar(name, run["speed_over_plain"]["ours"], SPEED_BARS[key], "times"))
    share = 100 * result["identity"]["same"] / result["identity"]["questions"]
    found.append(Bar(f"same ids on {result['identity']['questions']} questions", share, 100.0, "%"))
    spare = 100 - result["grammar"]["percent"]
    found.append(Bar("a step at batch 32 that is not the grammar's", spare, 100 - GRAMMAR_PERCENT, "%"))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fewer questions, the bars alone; write nothing")
    parser.add_argument("--model", default=str(MODEL), help="folder of the model")
    parser.add_argument("--window", type=int, help="tokens of a row fed to a forward at most")
    arguments = parser.parse_args(argv)
    model = PerceptionModel.from_pretrained(arguments.model)
    if arguments.window:
        model.decoder.window = arguments.window
    cases: list[tuple[str, int, int]] = [("depth", 1, 40), ("depth", 8, 12), ("depth", 32, 4)]
    cases += [("count", 1, 40), ("count", 8, 12), ("count", 32, 4)]
    if arguments.check:
        cases = [("depth", 1, 24), ("depth", 8, 6)]
    result = {
        **provenance(),
        "model": os.path.relpath(arguments.model, ROOT),
        "threads": torch.get_num_threads(),
        "window": model.decoder.window,
        "first_seed": FIRST_SEED,
        "races": [race(model, *case) for case in cases],
        "identity": same_ids(model, 200 if arguments.check else 1000),
        "grammar": grammar_share(model),
    }
    measured = bars(result)
    for bar in measured:
        print(bar.line())
    if not arguments.check:
        RESULT.write_text(json.dumps({**result, "bars": [bar.to_json() for bar in measured]}, indent=2) + "\n")
        print(f"written: {RESULT}")
    return int(arguments.check and not all_met(measured))


if __name__ == "__main__":
    sys.exit(main())
