"""The stage `assembly` of `benchmarks.on_gpu`: pretrained parts joined, trained in two arms, and asked on the machine.

The recipes are those of docs/assembly.md, with batches for a GPU. The models are too large to come home, so their
answers do.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_training import Place, speed_of, steps_in, train_home, workers
from train.loop.provenance import ROOT

if TYPE_CHECKING:
    from train.finetune import FinetuneConfig

ASSEMBLY_SECONDS = 110.0
"""For the steps of the projector and of both arms together"""
_SHARES = {"align": 0.16, "direct": 0.42, "aurora": 0.42}
MOST_STEPS = 3000
_SCENES, _SHARDS = 6000, 48
_BATCH = 32
_REPLACED = 25  # questions of each task whose spans are replaced
_SMALL_TOWER, _SMALL_SIZE = "test_efficientnet", 64  # of timm, untrained


def join_parts(place: Place, found: Mapping[str, Any]) -> dict[str, int]:
    """Join the packages' weights, or in a rehearsal random ones, and return the number of parameters."""
    import torch

    from perception.model.folder import read_model
    from train.assemble import AssembleConfig, assemble

    out = place.folder / "base"
    if place.small:
        _join_small(out)
    else:
        assemble(AssembleConfig(str(out)))
    return {"parameters": read_model(out, torch.float32).num_parameters()}


def _join_small(out: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from train.assemble import join
    from train.models.saving import save_half
    from train.models.tiny import train_text_tokenizer

    tokenizer = train_text_tokenizer(["How many red cubes are there? user assistant Draw the boxes."] * 20, 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    model, processor = join(LlamaForCausalLM(config), tokenizer, _SMALL_SIZE, _SMALL_TOWER)
    out.mkdir(parents=True, exist_ok=True)
    save_half(model, out)
    processor.save_pretrained(out)


def _write_records(folder: Path, each: int, number: int) -> dict[str, int]:
    import torch

    from train.data.scene_records import SceneRecordsConfig, write_scene_records

    torch.set_num_threads(1)
    return write_scene_records(SceneRecordsConfig(str(folder / f"{number:02d}"), count=each, first_seed=number * each))


def write_records(place: Place, found: Mapping[str, Any]) -> dict[str, int]:
    """Render scenes and write their records, with all cores."""
    folder, shards = place.folder / "scenes", 1 if place.small else _SHARDS
    each = 6 if place.small else _SCENES // _SHARDS
    write = partial(_write_records, folder, each)
    if place.small:
        counts = [write(0)]
    else:
        with multiprocessing.get_context("spawn").Pool(workers()) as pool:
            counts = pool.map(write, range(shards), chunksize=1)
    return {name: sum(count[name] for count in counts) for name in counts[0]}


def arm_config(place: Place, arm: str, found: Mapping[str, Any]) -> FinetuneConfig:
    """Settings of docs/assembly.md's recipe of an arm, in the stage's folder and with batches for a GPU."""
    from train.finetune import FinetuneConfig
    from train.loop.command_line import parse_config

    recipe = parse_config(FinetuneConfig, ["--config", str(ROOT / "train" / "configs" / f"assembly_{arm}.yaml")])
    records = sorted((place.folder / "scenes").glob(f"*/{Path(recipe.data.records[0]).name}"))
    base = place.folder / "base" if arm == "align" else place.folder / "align" / "model"
    steps = 2
    if not place.small and "speed" in found:
        bought = steps_in(_SHARES[arm] * ASSEMBLY_SECONDS, found["speed"]["steps_per_second"])
        steps = min(MOST_STEPS, bought)
    loop = replace(recipe.loop, steps=steps, num_workers=1 if place.small else workers())
    return replace(
        recipe,
        base=str(base),
        out=str(place.folder / arm / "model"),
        run_dir=str(place.folder / arm),
        data=replace(recipe.data, records=tuple(str(file) for file in records)),
        batch_size=2 if place.small else _BATCH,
        length_groups=1 if place.small else 2,
        loop=loop,
    )


def time_arm(place: Place, found: Mapping[str, Any]) -> dict[str, float]:
    """Time the arm that draws, whose rows are the longest, from the base as it was joined."""
    config = replace(arm_config(place, "aurora", {}), base=str(place.folder / "base"))
    return speed_of(config, place.small)


def train_arm(arm: str, place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    return train_home(arm_config(place, arm, found), None)


def ask_both(place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    """Ask both arms held-out questions, and the one that draws with its spans replaced, as `benchmarks.assembly`."""
    from benchmarks.assembly import SETS
    from perception.evaluation.comparison import compare_with
    from perception.evaluation.scenes import evaluate_items
    from perception.model.perception_model import PerceptionModel

    asked = replace(SETS[0], num_count=2, num_depth=2) if place.small else SETS[0]
    items = asked.items()
    drawing, direct = (
        PerceptionModel.from_pretrained(place.folder / arm / "model", place.device) for arm in ("aurora", "direct")
    )
    correct = [answer.correct for answer in evaluate_items(direct, items, "direct", title="baseline")]
    comparison, _ = compare_with(asked.style, items, drawing, correct, max_replaced=2 if place.small else _REPLACED)
    return {"set": vars(asked), "comparison": comparison.to_json()}
