"""Compare the time of a fine-tuning step with trl's SFTTrainer (`python -m benchmarks.training_overhead`).

`train.loop.fit`, which `train.finetune` trains with, and trl's trainer take the same steps: the same extended model
from the same weights, the same AdamW, and the same batches, made beforehand. They take turns of some steps, several
times over; a figure is the median over turns of the ratio of their step times. Either all weights train, or LoRA and
the embeddings (trl's fused output layer does not read new rows that peft trains alone). Token weights are one, so that
both must have the same losses, which the result reports. Writes `benchmarks/results/training_overhead.json` in about
five minutes on one core.

With --check it takes fewer turns, prints one line per target, writes nothing, and exits 1 if our step takes over 5 %
longer.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from benchmarks.bars import Bar, all_met
from benchmarks.clock import now
from perception.model.devices import find_device
from train.data.records import SourcesConfig, read_records
from train.data.rows import TokenWeights
from train.finetune import (
    FinetuneConfig,
    Parts,
    build_batches,
    build_parts,
    target_loss,
    target_weight,
    unbound_vocabulary,
)
from train.loop.fit import LoopConfig, fit
from train.loop.progress import read_log
from train.loop.provenance import ROOT, provenance
from train.models.adapters import LoraSettings

RESULT = ROOT / "benchmarks" / "results" / "training_overhead.json"
DATA = ROOT / "examples" / "own_questions" / "questions.csv"
MOST = 1.05
"""Longest time of our step, relative to trl's"""
VARIANTS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA and the embeddings": {"lora": LoraSettings(16, 32)},
}


class _Clock(TrainerCallback):
    """Seconds per step, including the fetching of its batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._last = now(find_device())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        end = now(find_device())
        self.seconds.append(end - self._last)
        self._last = end


def settings(base: str, steps: int, batch_size: int, **changes: Any) -> FinetuneConfig:
    """Settings with token weights of one, so that both have the same loss; a batch is one forward pass, as with trl."""
    return FinetuneConfig(
        base=base,
        data=SourcesConfig(own=(str(DATA),)),
        batch_size=batch_size,
        length_groups=1,
        weights=TokenWeights(1.0, 1.0, 1.0),
        loop=LoopConfig(
            steps=steps,
            learning_rate=1e-4,
            weight_decay=0.0,
            schedule="constant",
            betas=(0.9, 0.999),
            num_workers=0,
            log_every=1,
            checkpoint_every_seconds=1e9,
        ),
        **changes,
    )


def make_batches(config: FinetuneConfig, parts: Parts, folder: Path) -> list[dict[str, Tensor]]:
    """The batches of a run, in their order."""
    records = read_records(config.data, unbound_vocabulary(config, None), None, folder).records
    batches = build_batches(config, parts, None, records)
    return [batches(step, 0, 1)[0] for step in range(config.loop.steps)]


def steps_of_ours(config: FinetuneConfig, model: Any, batches: Sequence[dict[str, Tensor]], folder: Path) -> Any:
    """Seconds per step, and the losses."""
    run_dir = Path(tempfile.mkdtemp(dir=folder))
    fit(model, lambda step, shard, shards: batches[step], target_loss, config.loop, run_dir, weight=target_weight)
    log = read_log(run_dir)
    ends = [0.0] + [record["seconds"] for record in log]
    return [b - a for a, b in itertools.pairwise(ends)], [record["loss"] for record in log]


def steps_of_trl(
    config: FinetuneConfig, model: Any, batches: Sequence[dict[str, Tensor]], folder: Path, processor: Any
) -> Any:
    """Seconds per step, and the losses."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    extra = ("weights", "task")
    plain = [{name: value for name, value in batch.items() if name not in extra} for batch in batches]
    clock = _Clock()
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=config.loop.steps,
        per_device_train_batch_size=1,
        learning_rate=1e-4,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_steps=1,
        logging_strategy="steps",
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        seed=config.loop.seed,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"number": list(range(len(plain))), "images": [[]] * len(plain)}),
        data_collator=lambda items: dict(plain[items[0]["number"]]),
        processing_class=processor,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def race(config: FinetuneConfig, turns: int, folder: Path) -> dict[str, Any]:
    """Ratios of our step time to trl's, one per turn; the first step of a turn warms up."""
    parts = build_parts(config, None)
    batches = make_batches(config, parts, folder)
    ours, theirs, losses = list[float](), list[float](), list[tuple[float, float]]()
    for turn in range(turns):
        runs = {
            "ours": lambda: steps_of_ours(config, copy.deepcopy(parts.model), batches, folder),
            "trl": lambda: steps_of_trl(config, copy.deepcopy(parts.model), batches, folder, parts.processor),
        }
        found = {name: runs[name]() for name in (runs if turn % 2 == 0 else reversed(list(runs)))}
        ours.append(statistics.median(found["ours"][0][1:]))
        theirs.append(statistics.median(found["trl"][0][1:]))
        losses += zip(found["ours"][1], found["trl"][1], strict=True)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ours_ms": round(1e3 * statistics.median(ours), 2),
        "trl_ms": round(1e3 * statistics.median(theirs), 2),
        "largest_difference_of_losses": max(abs(a - b) for a, b in losses),
        "steps_a_turn": config.loop.steps,
    }


def measure(base: str, turns: int, steps: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """Results per variant."""
    results = {}
    for name, changes in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            config = settings(base, steps, batch_size, depth_tokenizer="", new_rows="mean")
            results[name] = race(replace(config, **changes), turns, Path(folder))
        print(f"{name}: {results[name]['ratio']} times trl's step", file=sys.stderr)
    return results


def bars(results: dict[str, dict[str, Any]]) -> list[Bar]:
    return [
        Bar(f"{name}: speed over trl's SFTTrainer", 100 / found["ratio"], 100 / MOST, "%")
        for name, found in results.items()
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer turns; write nothing")
    parser.add_argument("--base", default=str(ROOT / "models" / "tiny-base"))
    parser.add_argument("--turns", type=int, default=0, help="turns of each trainer; default 5, or 3 with --check")
    parser.add_argument("--steps", type=int, default=5, help="steps per turn")
    parser.add_argument("--batch_size", type=int, default=8)
    given = parser.parse_args(argv)
    turns = given.turns or (3 if given.check else 5)
    results = measure(given.base, turns, given.steps, given.batch_size)
    found = bars(results)
    for bar in found:
        print(bar.line())
    if not given.check:
        head = {"base": Path(given.base).name, "batch_size": given.batch_size, "turns": turns, **provenance()}
        RESULT.write_text(json.dumps({**head, "results": results}, indent=1) + "\n")
    return 0 if all_met(found) else 1


if __name__ == "__main__":
    sys.exit(main())
