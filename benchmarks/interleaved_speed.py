"""Measure the speed of interleaved generation (`python -m benchmarks.interleaved_speed`).

On the shipped model and held-out problems, in batches of 8 and 1 and greedily, compares our cached generation with the
same generation with everything recomputed for each token (`use_cache=False`), which writes the same ids in float32,
and with transformers' plain `generate` writing as many tokens plus one per look. The three take turns batch by batch,
on one thread. The processor's seconds are compared, which a busy machine affects least; on a GPU, which the processor
waits for, seconds. Also reports the largest
number of slots in the cache, beside the tokens of the longest row. Writes `benchmarks/results/interleaved_speed.json`.

With --check it takes fewer batches, prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.bars import Bar, all_met
from benchmarks.clock import now
from perception.interleave.chains import Look
from perception.interleave.generation import InterleavedGeneration, InterleavedGenerator
from perception.interleave.visual_tokens import unwrapped
from perception.model.devices import find_device
from perception.model.shipped import shipped
from train.data.geometry import GeometryData, draw_problems
from train.data.interleaved import ChainProblem
from train.interleave import InterleavedFolder, read_interleaved
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "interleaved_speed.json"
SEED = 77
RECOMPUTED_BAR = 4.0
"""Target speed relative to full recomputation, batch of 8"""
PLAIN_BAR = 0.85
"""Target share of the speed of plain `generate`, batch of 8, in percent"""
MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Turn:
    """A batch of problems, written in three ways."""

    cached: float
    recomputed: float
    plain: float
    """seconds, of the processor on a CPU"""
    tokens: int
    """Tokens written by all rows together, without those that looks brought in"""
    looks: int
    peak_slots: int
    longest: int
    """Tokens of the longest row that were fed to the model"""
    same: bool
    """True if cached and recomputed chains are the same"""


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of some work, the processor's own on a CPU, and its result."""
    clock = time.process_time if device.type == "cpu" else partial(now, device)
    start = clock()
    result = work()
    return clock() - start, result


def fed_tokens(found: InterleavedGeneration, prompts: Sequence[int], folder: InterleavedFolder) -> int:
    """Tokens of the longest row that the model has read.

    They are the prompt, all that it wrote but the last token, and what looks brought in.
    """
    layout = folder.model.layout
    lengths = []
    for answer, prompt in zip(found.answers, prompts, strict=True):
        markers = len(layout.before) + len(layout.after)
        looks = [1 + (len(p.tokens) + markers if p.tokens else 0) for p in answer if isinstance(p, Look)]
        lengths.append(prompt + sum(looks) + sum(not isinstance(p, Look) for p in answer) - 1)
    return max(lengths)


def take_turn(folder: InterleavedFolder, problems: Sequence[ChainProblem], max_new_tokens: int) -> Turn:
    device = unwrapped(folder.model.model).device
    inputs = {name: value.to(device) for name, value in folder.encoder.inputs(problems).items()}
    generator = InterleavedGenerator(folder.model, folder.settings, folder.processor.tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    cached, found = timed(lambda: generator.generate(inputs, **settings), device)
    recomputed, anew = timed(lambda: generator.generate(inputs, use_cache=False, **settings), device)
    written = [sum(not isinstance(part, Look) for part in answer) for answer in found.answers]
    looks = [sum(isinstance(part, Look) for part in answer) for answer in found.answers]
    count = max(tokens + look for tokens, look in zip(written, looks, strict=True))
    core = unwrapped(folder.model.model)
    plain, _ = timed(
        lambda: core.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, streamer=None),
        device,
    )
    prompts = inputs["attention_mask"].sum(1).tolist()
    same = found.answers == anew.answers
    return Turn(
        cached, recomputed, plain, sum(written), sum(looks), found.peak_slots, fed_tokens(found, prompts, folder), same
    )


def race(
    folder: InterleavedFolder, batch_size: int, batches: int, max_new_tokens: int = MAX_NEW_TOKENS
) -> dict[str, Any]:
    """Time the three ways on the same batches, taking turns; the first batch warms up."""
    data = GeometryData(split="test", count=(batches + 1) * batch_size, seed=SEED)
    problems = list(draw_problems(data))
    parts = [problems[n * batch_size : (n + 1) * batch_size] for n in range(batches + 1)]
    turns = [take_turn(folder, part, max_new_tokens) for part in parts][1:]
    seconds = {way: sum(getattr(turn, way) for turn in turns) for way in ("cached", "recomputed", "plain")}
    ratios = {way: [getattr(turn, way) / turn.cached for turn in turns] for way in ("recomputed", "plain")}
    return {
        "batch_size": batch_size,
        "batches": batches,
        "tokens": sum(turn.tokens for turn in turns),
        "looks": sum(turn.looks for turn in turns),
        "speed_over_recomputed": round(seconds["recomputed"] / seconds["cached"], 3),
        "speed_over_plain": round(seconds["plain"] / seconds["cached"], 3),
        "quartiles": {way: [round(q, 3) for q in statistics.quantiles(r)] for way, r in ratios.items()},
        "tokens_a_processor_second": round(sum(turn.tokens for turn in turns) / seconds["cached"], 1),
        "peak_slots": max(turn.peak_slots for turn in turns),
        "stale_slots": max(turn.peak_slots - turn.longest for turn in turns),
        "same_chains": all(turn.same for turn in turns),
    }


def bars(races: Sequence[dict[str, Any]]) -> list[Bar]:
    """Targets for a batch of 8: medians over the batches."""
    run = next(run for run in races if run["batch_size"] == 8)
    return [
        Bar("batch 8: over full recomputation", run["quartiles"]["recomputed"][1], RECOMPUTED_BAR, "times"),
        Bar("batch 8: over plain generate, %", 100 * run["quartiles"]["plain"][1], 100 * PLAIN_BAR, "%"),
        Bar("slots of the cache that no token needs", 0.0 - run["stale_slots"], 0.0, "slots"),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer batches; write nothing")
    parser.add_argument("--model", help="folder of the model; default: the shipped geometry-tiny")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = arguments.model or shipped("geometry-tiny")
    folder = read_interleaved(path)
    folder.model.to(find_device()).eval()
    races = [race(folder, 8, 9)] if arguments.check else [race(folder, 8, 20), race(folder, 1, 20)]
    found = bars(races)
    for bar in found:
        print(bar.line())
    if not arguments.check:
        record = {"model": os.path.relpath(path, ROOT), "threads": torch.get_num_threads(), "races": races}
        record |= {"bars": [bar.to_json() for bar in found], **provenance()}
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {RESULT}")
    return int(arguments.check and not all_met(found))


if __name__ == "__main__":
    sys.exit(main())
