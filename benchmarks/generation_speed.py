"""Measure the speed of answers that draw first (`python -m benchmarks.generation_speed`).

Compares our decoding (several tokens per forward pass, `perception.decoding.decoder`) with transformers' `generate`:
plain under the same grammar, with prompt lookup (its assisted decoding without a second model; batches of one only),
and without a grammar. Asks depth and counting questions on held-out scenes of the shifted style, in batches of 1, 8 and
32. Every figure is a ratio to plain constrained `generate` in the same run, in which the ways take turns batch by
batch.

Also reports: the depth question with both ways compiled; on how many of 1,000 questions the ids are identical in
float32, and on fewer in float32, float16 and bfloat16, beside plain decoding of another batch size; accuracy of the
approximate mode against the number of sweeps; the share of a step that the grammar takes; peak memory, each way
in a process of its own; and the time of a forward pass over a window on random language models of larger shapes, beside
the lower bound set by reading their weights. Writes `benchmarks/results/generation_speed.json` in a quarter of an hour
on two cores.

With --check it asks fewer questions, prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.bars import Bar, all_met
from benchmarks.clock import now
from perception.chains import prompt_for, read_ids
from perception.decoding.cache_slots import cache_key
from perception.decoding.decoder import DecodingTrace
from perception.evaluation.bootstrap import paired_difference
from perception.evaluation.scenes import Item, scene_items
from perception.grammar.processor import SpanLogitsProcessor
from perception.model.devices import find_device
from perception.model.perception_model import PerceptionModel, Prompt
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "generation_speed.json"
MODEL = ROOT / "models" / "aurora-tiny"
FIRST_SEED = 95_000_000
SPEED_BARS = {("depth", 1): 4.0, ("depth", 8): 2.5}
"""Target speed relative to plain constrained `generate`, by question and batch size"""
GRAMMAR_PERCENT = 2.0
"""Largest share of a step at batch 32 that the grammar may take, in percent"""
APPROXIMATE_BAR = 8.0
"""Target speed relative to plain decoding, with answers at most one point worse"""
MEMORY_PERCENT = 10.0
"""Largest increase of peak memory over plain decoding, in percent"""
MAX_NEW_TOKENS = 256
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PEERS = ("ours", "plain", "prompt lookup", "without a grammar")
SWEEPS = (1, 2, 3, 4, 6, 10)
SHAPES = {
    "135M (SmolLM2)": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "1.2B (Llama 3.2)": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
"""Language models by their published sizes, with tied output layers"""
_CACHED = 160
"""Tokens before a window: a prompt with its image"""


def held_out(kind: str, count: int, first_seed: int = FIRST_SEED) -> list[Item]:
    """`count` held-out questions of the shifted style: depth of 2 to 5 points, or counting."""
    each = -(-count // 4)
    items = (
        scene_items("shifted", 0, each, first_seed) if kind == "depth" else scene_items("shifted", count, 0, first_seed)
    )
    if kind == "depth":  # the four numbers of points take turns
        items = [items[i + each * group] for i in range(each) for group in range(4)]
    return items[:count]


def questions(kind: str, count: int, first_seed: int = FIRST_SEED) -> list[Prompt]:
    """Held-out questions as prompts for chains of perception."""
    return [Prompt(i.image, prompt_for(i.question, "chain")[0], i.kind) for i in held_out(kind, count, first_seed)]


def answer_by(model: PerceptionModel, peer: str, batch: Sequence[Prompt]) -> list[list[int]]:
    """Ids of a batch of answers, decoded in one of the ways of `_PEERS`."""
    if peer == "ours":
        return model.generate_ids(batch, MAX_NEW_TOKENS)
    if peer.endswith(" sweeps"):
        return model.generate_ids(batch, MAX_NEW_TOKENS, sweeps=int(peer.split()[0]))
    if peer == "plain":
        return model.generate_ids(batch, MAX_NEW_TOKENS, fast=False)
    if peer == "prompt lookup":
        return model.generate_ids(batch, MAX_NEW_TOKENS, prompt_lookup_num_tokens=10)
    inputs = model.inputs(batch)
    out = model.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    rows: list[list[int]] = out[:, inputs["input_ids"].shape[1] :].tolist()
    return rows


def race(
    model: PerceptionModel, kind: str, batch_size: int, batches: int, sweeps: Sequence[int] | None = None
) -> dict[str, Any]:
    """Time every way of decoding on the same batches, taking turns batch by batch; the first batch warms up.

    `sweeps` are those of the approximate ways, None for SWEEPS; only depth questions in batches of one have them.
    """
    asked = questions(kind, (batches + 1) * batch_size)
    peers = [peer for peer in _PEERS if batch_size == 1 or peer != "prompt lookup"]
    if kind == "depth" and batch_size == 1:
        peers += [f"{count} sweeps" for count in (SWEEPS if sweeps is None else sweeps)]
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
        model.stop_ids,
        trace=trace,
        limits=[model.room.limits(p.question) for p in asked[-batch_size:]],
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


def compiled_race(
    folder: str, batch_size: int, batches: int, device: str | torch.device = "cpu", **settings: Any
) -> dict[str, Any]:
    """Time depth questions, ours and plain, each with and without `torch.compile` of the language model.

    The four ways take turns batch by batch, after batches that compile; `settings` are passed to `torch.compile`.
    """
    torch.compiler.reset()  # forms of another call count towards a limit
    warm = 3
    asked = questions("depth", (batches + warm) * batch_size)
    ours, plain, bare = (PerceptionModel.from_pretrained(folder, device) for _ in range(3))
    ours.compile(**settings)
    plain.model.base_model.language_model.compile(dynamic=True, **settings)
    ways = {"ours": (bare, "ours"), "plain": (bare, "plain")}
    ways |= {"ours, compiled": (ours, "ours"), "plain, compiled": (plain, "plain")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    same, first = 0, 0.0
    for number in range(batches + warm):
        batch = asked[number * batch_size : (number + 1) * batch_size]
        found = {}
        for name, (model, peer) in ways.items():
            start = time.perf_counter()
            found[name] = answer_by(model, peer, batch)
            took = time.perf_counter() - start
            if number >= warm:
                seconds[name].append(took)
            elif name == "ours, compiled":
                first = max(first, took)
        same += sum(a == b for a, b in zip(found["ours, compiled"], found["plain"], strict=True))
    return {
        "batch_size": batch_size,
        "batches": batches,
        "speed_over_plain": {name: round(sum(seconds["plain"]) / sum(some), 3) for name, some in seconds.items()},
        "seconds_an_answer": {name: round(sum(some) / batches / batch_size, 4) for name, some in seconds.items()},
        "slowest_warm_up_seconds": round(first, 1),
        "same_ids_as_plain": f"{same} of {len(asked)}",
    }


def agreement(
    folder: str,
    count: int,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    precisions: Sequence[str] = tuple(PRECISIONS),
) -> list[dict[str, Any]]:
    """Per precision, on how many of `count` questions the ids equal those of plain decoding in batches of `batch_size`:
    ours in the same batches, ours one question at a time, and plain decoding one question at a time."""
    asked = [prompt for kind in ("depth", "count") for prompt in questions(kind, count // 2, FIRST_SEED + 3_000_000)]
    rows = []
    for name in precisions:
        model = PerceptionModel.from_pretrained(folder, device, PRECISIONS[name])

        def decoded(peer: str, size: int, model: PerceptionModel = model) -> list[list[int]]:
            parts = [asked[start : start + size] for start in range(0, len(asked), size)]
            return [ids for part in parts for ids in answer_by(model, peer, part)]

        plain = decoded("plain", batch_size)
        row: dict[str, Any] = {"precision": name, "questions": len(asked), "batch_size": batch_size}
        for key, ids in {
            "ours": decoded("ours", batch_size),
            "ours_one_at_a_time": decoded("ours", 1),
            "plain_one_at_a_time": decoded("plain", 1),
        }.items():
            row[f"{key}_as_plain"] = sum(one == other for one, other in zip(ids, plain, strict=True))
        rows.append(row)
    return rows


def same_ids(model: PerceptionModel, count: int, batch_size: int = 25) -> dict[str, int]:
    """Count answers whose ids equal those of plain decoding; half of the `count` questions are of each kind."""
    same = 0
    for kind in ("depth", "count"):
        asked = questions(kind, count // 2, FIRST_SEED + 1_000_000)
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            pairs = zip(answer_by(model, "ours", batch), answer_by(model, "plain", batch), strict=True)
            same += sum(ours == plain for ours, plain in pairs)
    return {"questions": 2 * (count // 2), "same": same}


def approximate(model: PerceptionModel, count: int, batch_size: int = 25) -> list[dict[str, Any]]:
    """Accuracy on depth questions per number of sweeps, and the difference from exact decoding."""
    items = held_out("depth", count, FIRST_SEED + 2_000_000)
    prompts = [Prompt(i.image, prompt_for(i.question, "chain")[0], i.kind) for i in items]
    parts = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    exact: list[list[int]] = []
    rows, right = [], {}
    for sweeps in (None, *SWEEPS):
        ids = [row for part in parts for row in model.generate_ids(prompts[part], MAX_NEW_TOKENS, sweeps=sweeps)]
        exact = exact or ids
        answers = [read_ids(model.processor.tokenizer, model.vocabulary, row, "depth") for row in ids]
        right[sweeps] = [float(a.value == i.answer) for a, i in zip(answers, items, strict=True)]
        cells = 1 + model.vocabulary.depth_length
        pairs = zip(ids, exact, strict=True)
        same = [a == b for one, other in pairs for a, b in zip(one[1:cells], other[1:cells], strict=True)]
        row: dict[str, Any] = {"sweeps": sweeps, "questions": count, "accuracy": statistics.fmean(right[sweeps])}
        row |= {"same_codes": statistics.fmean(map(float, same))}
        if sweeps is not None:
            row["over_exact"] = vars(paired_difference(right[sweeps], right[None]))
        rows.append(row)
    return rows


def peak_memory(peer: str, model: str) -> float:
    """Peak memory, in MiB, of a separate process that answers a batch of 32; on a GPU that of the GPU."""
    command = [sys.executable, "-m", "benchmarks.generation_speed", "--model", model, "--memory-of", peer]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def bandwidth(device: torch.device, megabytes: int = 512, repeats: int = 5) -> float:
    """Memory bandwidth in bytes per second: a product of a large matrix with a vector, the best of some repeats."""
    matrix, vector = torch.ones(megabytes * 256, 1024, device=device), torch.ones(1024, device=device)
    took = []
    for _ in range(repeats):
        start = now(device)
        torch.mv(matrix, vector)
        took.append(now(device) - start)
    return matrix.numel() * matrix.element_size() / min(took)


@torch.no_grad()
def shape_costs(
    name: str, windows: Sequence[int], repeats: int, read: float, device: torch.device | None = None
) -> dict[str, Any]:
    """Median time, in ms, of a forward pass of a random bfloat16 model over a window of tokens behind a prompt.

    `read` is the memory bandwidth in bytes per second, from which the lower bound is computed.
    """
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    device = device or torch.device("cpu")
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[name], tie_word_embeddings=True)
    model = LlamaForCausalLM(config).to(device, torch.bfloat16).eval()
    cache = DynamicCache(config=config)
    model(torch.randint(100, (1, _CACHED), device=device), **{cache_key(): cache}, logits_to_keep=1)
    took: dict[int, list[float]] = {width: [] for width in windows}
    for turn in range(repeats + 1):
        for width in windows:
            start = now(device)
            model(torch.randint(100, (1, width), device=device), **{cache_key(): cache})
            if turn:
                took[width].append(1e3 * (now(device) - start))
            cache.crop(-width)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "shape": name,
        "megabytes": round(weights / 1e6),
        "floor_ms": round(1e3 * weights / read, 2),
        "forward_ms": {width: round(statistics.median(some), 2) for width, some in took.items()},
    }


class _Timed(SpanLogitsProcessor):
    """Grammar that sums the seconds it takes."""

    spent = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        start = now(scores.device)
        masked = super().__call__(input_ids, scores)
        self.spent += now(scores.device) - start
        return masked


def grammar_share(model: PerceptionModel, batch_size: int = 32, steps: int = 60) -> dict[str, float]:
    """Time of a plain decoding step and of the grammar in it, in ms, and the grammar's share in percent."""
    inputs = model.inputs(questions("depth", batch_size))
    took = {}
    for tokens in (2, 2, steps):  # the first warms up, the second is the prompt's part of the third
        grammar, start = _Timed(model.grammar), time.perf_counter()
        model.model.generate(**inputs, logits_processor=[grammar], do_sample=False, max_new_tokens=tokens)
        took[tokens] = (time.perf_counter() - start, grammar.spent)
    whole, spent = ((took[steps][n] - took[2][n]) / (steps - 2) for n in (0, 1))
    return {"step_ms": 1e3 * whole, "grammar_ms": 1e3 * spent, "percent": 100 * spent / whole}


def bars(result: dict[str, Any]) -> list[Bar]:
    """Targets: speed at batches of 1 and 8, identity of the ids, and the grammar's share."""
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
    if "memory_mb" in result:
        more = 100 * (result["memory_mb"]["ours"] / result["memory_mb"]["plain"] - 1)
        found.append(Bar("peak memory at batch 32, room to a tenth above plain", MEMORY_PERCENT - more, 0.0, "points"))
    found.append(
        Bar("approximate mode within a point: over plain", _approximate_speed(result), APPROXIMATE_BAR, "times")
    )
    return found


def _approximate_speed(result: dict[str, Any]) -> float:
    """Speed of the fastest way, exact decoding included, that loses at most one point."""
    speeds = next(r["speed_over_plain"] for r in result["races"] if (r["question"], r["batch_size"]) == ("depth", 1))
    near = [row["sweeps"] for row in result["approximate"] if row.get("over_exact", {"mean": 0.0})["mean"] >= -0.01]
    return max(speeds["ours" if sweeps is None else f"{sweeps} sweeps"] for sweeps in near)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer questions; write nothing")
    parser.add_argument("--model", default=str(MODEL), help="folder of the model")
    parser.add_argument("--window", type=int, help="most tokens per row in one forward pass")
    parser.add_argument(
        "--memory-of", choices=("ours", "plain"), help="answer one batch, print the peak memory of this process in MiB"
    )
    arguments = parser.parse_args(argv)
    device = find_device()
    model = PerceptionModel.from_pretrained(arguments.model, device)
    if arguments.window:
        model.decoder.window = arguments.window
    if arguments.memory_of:
        answer_by(model, arguments.memory_of, questions("depth", 32))
        of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else of_process / 1024)
        return 0
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
        "approximate": approximate(model, 100 if arguments.check else 600),
        "grammar": grammar_share(model),
        "memory_mb": {peer: round(peak_memory(peer, arguments.model)) for peer in ("plain", "ours")},
    }
    if not arguments.check:
        read = bandwidth(device)
        result["bandwidth_gb_s"] = round(read / 1e9, 1)
        result["agreement"] = agreement(arguments.model, 100, device=device)
        result["compiled"] = [compiled_race(arguments.model, *case, device=device) for case in ((1, 30), (8, 8))]
        result["shapes"] = [shape_costs(name, (1, 8, 16, 32), 7, read, device) for name in SHAPES]
    measured = bars(result)
    for bar in measured:
        print(bar.line())
    if not arguments.check:
        RESULT.write_text(json.dumps({**result, "bars": [bar.to_json() for bar in measured]}, indent=2) + "\n")
        print(f"written: {RESULT}")
    return int(arguments.check and not all_met(measured))


if __name__ == "__main__":
    sys.exit(main())
