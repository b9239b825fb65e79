"""Measure whether training waits for data (`python -m benchmarks.scene_rendering`).

Renders scenes with two processes at 96 x 96 and at 80 x 80 pixels, including images, depth, object ids and boxes, and
runs a few steps of the real AURORA training on the shipped base to measure the share of a step that waits for its
batch. Writes `benchmarks/results/scene_rendering.json` in three minutes on two cores, which should be otherwise idle.

With --check it measures fewer scenes and steps, prints one line per target, writes nothing, and exits 1 if a target is
missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bars import Bar, all_met
from perception.scenes.render import render_scenes
from train.aurora import AuroraConfig, train
from train.loop.fit import LoopConfig
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "scene_rendering.json"
FIRST_SEED = 90_000_000
BATCH = 32
WORKERS = 2
IMAGES_A_SECOND = 200.0
WAIT_PERCENT = 10.0
"""Largest share of a step that may wait for data once the first batches are there, in percent"""
_WARM_UP = 5


def _render(job: tuple[int, str, int]) -> int:
    first, style, size = job
    return len(render_scenes(range(first, first + BATCH), style, size).seeds)


def _one_thread() -> None:
    torch.set_num_threads(1)


def rendering_rate(size: int, style: str, batches: int, repeats: int) -> dict[str, Any]:
    """Images per second of `WORKERS` processes, without start-up: the median of the repeats, and all of them."""
    rates = []
    with multiprocessing.get_context("spawn").Pool(WORKERS, _one_thread) as pool:
        pool.map(_render, [(FIRST_SEED, style, size)] * 2 * WORKERS, chunksize=1)  # imports, first allocations
        for repeat in range(repeats):
            first = FIRST_SEED + repeat * batches * BATCH
            jobs = [(first + i * BATCH, style, size) for i in range(batches)]
            start = time.perf_counter()
            rendered = sum(pool.imap_unordered(_render, jobs))
            rates.append(rendered / (time.perf_counter() - start))
    return {
        "size": size,
        "style": style,
        "images": batches * BATCH,
        "images_a_second": round(statistics.median(rates), 1),
        "repeats": [round(rate, 1) for rate in rates],
    }


def share_after(records: Sequence[dict[str, Any]], step: int) -> float:
    """Share of the time after `step` that was spent waiting.

    `records` are a run's log, whose shares are cumulative. Raises ValueError if the log does not reach beyond
    `step`.
    """
    early = max((r for r in records if r["step"] <= step), key=lambda r: r["step"], default=None)
    last = records[-1] if records else None
    if early is None or last is None or last["step"] <= early["step"]:
        raise ValueError(f"the run must log step {step} and later ones, got {[r['step'] for r in records]}; run longer")
    waited = last["wait_share"] * last["seconds"] - early["wait_share"] * early["seconds"]
    return waited / (last["seconds"] - early["seconds"])


def waiting_share(base: str, depth_tokenizer: str, steps: int, batch_size: int) -> dict[str, Any]:
    """Shares of waiting in a short real training: of all its time, and of the time after the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        config = AuroraConfig(
            base=base,
            depth_tokenizer=depth_tokenizer,
            out=f"{folder}/model",
            run_dir=f"{folder}/run",
            store=f"{folder}/scenes",
            num_scenes=512,
            first_seed=FIRST_SEED,
            batch_size=batch_size,
            loop=LoopConfig(steps=steps, learning_rate=1e-4, precision="bf16", log_every=1),
        )
        result = train(config)
        records = [json.loads(line) for line in Path(folder, "run", "log.jsonl").read_text().splitlines()]
    return {
        "steps": steps,
        "batch_size": batch_size,
        "seconds_a_step": round(result.seconds / result.steps, 3),
        "share": round(result.data_wait_share, 4),
        f"share_after_step_{_WARM_UP}": round(share_after(records, _WARM_UP), 4),
    }


def bars(result: dict[str, Any]) -> list[Bar]:
    """Targets: images per second at 96 pixels in either style, and the share of a step not spent waiting for data."""
    found = [
        Bar(
            f"{r['style']} scenes of {r['size']} x {r['size']}",
            r["images_a_second"],
            IMAGES_A_SECOND,
            "images a second",
        )
        for r in result["rendering"]
        if r["size"] == 96
    ]
    busy = 100 * (1 - result["waiting"][f"share_after_step_{_WARM_UP}"])
    return [*found, Bar("a training step not waiting for data", busy, 100 - WAIT_PERCENT, "%")]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="check the targets on fewer scenes and steps; write nothing"
    )
    parser.add_argument("--base", default=str(ROOT / "models" / "tiny-base"), help="base model of the short training")
    parser.add_argument(
        "--depth-tokenizer", default=str(ROOT / "tokenizers" / "depth-scenes-100"), help="its depth tokenizer"
    )
    parser.add_argument("--batches", type=int, help=f"batches of {BATCH} scenes per repeat (40, with --check 20)")
    parser.add_argument("--repeats", type=int, help="repeats of each rendering (5, with --check 3)")
    parser.add_argument("--steps", type=int, help="steps of the short training (30, with --check 15)")
    parser.add_argument("--batch-size", type=int, default=32, help="its batch size")
    arguments = parser.parse_args(argv)
    batches = arguments.batches or (20 if arguments.check else 40)
    repeats = arguments.repeats or (3 if arguments.check else 5)
    steps = arguments.steps or (15 if arguments.check else 30)
    if steps <= _WARM_UP:
        parser.error(f"--steps must be above {_WARM_UP}: the first steps wait for the first batches")
    cases = [(96, "standard"), (96, "shifted")] + ([] if arguments.check else [(80, "standard"), (80, "shifted")])
    result = {
        **provenance(),
        "load_average": round(os.getloadavg()[0], 1),
        "workers": WORKERS,
        "first_seed": FIRST_SEED,
        "rendering": [rendering_rate(size, style, batches, repeats) for size, style in cases],
        "waiting": waiting_share(arguments.base, arguments.depth_tokenizer, steps, arguments.batch_size),
    }
    measured = bars(result)
    for bar in measured:
        print(bar.line())
    if not arguments.check:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps({**result, "bars": [bar.to_json() for bar in measured]}, indent=2) + "\n")
        print(f"written: {RESULT}")
    return int(arguments.check and not all_met(measured))


if __name__ == "__main__":
    sys.exit(main())
