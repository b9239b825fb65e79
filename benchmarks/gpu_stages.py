"""The stages of `benchmarks.on_gpu`: what each measures or trains, its budget, and its size in a rehearsal.

Parts import what they need when they run, since a package that a machine lacks must fail its own part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import gpu_assembly, gpu_photos
from benchmarks.gpu_training import Part, Place, figures, pack, speed, speed_of, steps_in, train_home, trained, workers
from train.loop.provenance import ROOT

if TYPE_CHECKING:
    from train.aurora import AuroraConfig
    from train.memory_plan import ModelShape
    from train.tower import TowerConfig

MODEL = str(ROOT / "models" / "aurora-tiny")


@dataclass(frozen=True)
class Stage:
    """Measurements that share a process."""

    name: str
    seconds: float
    """Most seconds over all calls"""
    parts: Mapping[str, Part]
    chained: bool = False
    """True if a part needs those before it: one that fails takes the rest with it"""


class _Outcomes:
    """A plugin of pytest that notes how each test ended."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.skipped: list[str] = []
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed[report.nodeid] = str(report.longreprtext).strip().rpartition("\n")[2]
        elif report.skipped:
            self.skipped.append(report.nodeid)
        elif report.when == "call":
            self.passed.append(report.nodeid)


def device_tests(file: str, chosen: str, place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    """How each test of a file that is marked `gpu` ends; `chosen` selects some by name for a rehearsal."""
    import pytest

    outcomes = _Outcomes()
    words = ["-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / file)]
    code = pytest.main([*words, "-k", chosen] if place.small else words, plugins=[outcomes])
    return {"exit_code": int(code), **vars(outcomes)}


PERCEPTION = (
    "--base perception-tiny --tower_lr_ratio 0 --curriculum.schedule constant --curriculum.atomic_end 1.0 "
    "--curriculum.depth_share 0.75 --curriculum.points_share 0.05 --curriculum.readings_share 0.6 "
    "--curriculum.noisy_maps 0.5 --curriculum.box_turns 3 --loop.schedule wsd --loop.decay_share 0.25"
)
"""More of what `models/perception-tiny` was trained with last; the tower has had a training of its own"""
ANSWERS = (
    "--data.scenes.varied 0.5 --curriculum.schedule constant --curriculum.atomic_end 0.4 "
    "--curriculum.chain_share 0.95 --curriculum.depth_share 0.4 --curriculum.points_share 0.05 "
    "--curriculum.readings_share 0.15 --curriculum.box_turns 2 --curriculum.foreign_maps 0.25 "
    "--loop.learning_rate 0.0008 --loop.schedule wsd --loop.decay_share 0.4"
)
"""The mixture that `models/aurora-tiny` ended with"""
DIRECT = (
    "--arm direct --data.scenes.varied 0.5 --curriculum.depth_share 0.4 --loop.learning_rate 0.0008 --loop.schedule wsd"
)
"""The baseline of `benchmarks.aurora_vs_direct`"""
TRAINING_SECONDS = 900.0
"""For the steps of all four runs together"""
_OF_TOWER, _PERCEPTION = 0.2, 0.62
"""The tower's share of that time, and the share of `perception` in the steps of the language model that draws"""
BATCHES = (16, 64, 256)
PAYS = 1.5
"""A batch four times as large pays if it raises the rows per second by this factor"""


def run_config(place: Place, name: str, words: str, batch_size: int, steps: int) -> AuroraConfig:
    """Settings of a run in the stage's folder."""
    from train.aurora import AuroraConfig
    from train.loop.command_line import parse_config

    folder, scenes = place.folder / name, 48 if place.small else 40_000
    batch_size = min(batch_size, 2) if place.small else batch_size
    given = f"--out {folder / 'model'} --run_dir {folder} --batch_size {batch_size} --loop.steps {steps}"
    given += f" --data.scenes.count {scenes} --data.scenes.store {place.folder / 'scenes'} --loop.warmup_steps 0.03"
    given += f" --loop.num_workers {workers()} --loop.log_every {1 if place.small else 10}"
    return parse_config(AuroraConfig, [*given.split(), *words.split()])


def tower_config(place: Place, steps: int = 1) -> TowerConfig:
    """Settings of the training of perception-tiny's tower, whose heads find what the language model then says."""
    from train.loop.fit import LoopConfig
    from train.tower import TowerConfig

    loop = LoopConfig(
        steps,
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup_steps=0.03,
        schedule="wsd",
        decay_share=0.4,
        num_workers=workers(),
    )
    scenes, batch_size = (48, 2) if place.small else (40_000, 256)
    return TowerConfig(
        str(place.folder / "tower"), "perception-tiny", str(place.folder / "scenes"), scenes, batch_size, loop
    )


def time_tower(place: Place, found: Mapping[str, Any]) -> dict[str, float]:
    from train.tower import train

    config = tower_config(place)

    def run(folder: Path, steps: int) -> None:
        loop = replace(config.loop, steps=steps, log_every=1, checkpoint_every_seconds=1e9)
        train(replace(config, run_dir=str(folder), loop=loop))

    return speed(run, config.batch_size, place.small)


def train_tower(place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    """Train or resume the tower and bring its model home: the next one holds it."""
    from train.tower import train

    steps = 2
    if not place.small:
        steps = steps_in(_OF_TOWER * TRAINING_SECONDS, found["speed of the tower"]["steps_per_second"])
    config = tower_config(place, steps)
    fitted = train(config)
    pack(Path(config.run_dir) / "model", place.home / "tower.tar")
    return {"batch_size": config.batch_size, **figures(fitted)}


def make_scenes(place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    """Render the scenes and encode their depth maps, once for all runs."""
    from train.data.scenes import depth_codes
    from vqvae import VQVAE

    config = run_config(place, "none", PERCEPTION, 2, 1)
    store = config.data.scenes.build()
    depth_codes(store, VQVAE.from_pretrained(ROOT / config.depth_tokenizer).eval())
    return {"scenes": len(store)}


def time_batch(batch_size: int, place: Place, found: Mapping[str, Any]) -> dict[str, float]:
    """Steps and rows per second of the perception recipe."""
    return speed_of(run_config(place, "none", PERCEPTION, batch_size, 1), place.small)


def batch_that_pays(found: Mapping[str, Any]) -> int:
    """The largest batch up to which each larger one paid. Raises ValueError if none was timed."""
    timed = [size for size in BATCHES if f"batch of {size}" in found]
    if not timed:
        raise ValueError("no batch was timed, so the number of steps is unknown; see the failed parts before this one")
    best = timed[0]
    for size in timed[1:]:
        if found[f"batch of {size}"]["rows_per_second"] < PAYS * found[f"batch of {best}"]["rows_per_second"]:
            break
        best = size
    return best


def time_baseline(place: Place, found: Mapping[str, Any]) -> dict[str, float]:
    """Steps and rows per second of the baseline, whose rows are shorter, at the batch that pays."""
    return speed_of(run_config(place, "none", DIRECT, batch_that_pays(found), 1), place.small)


def planned_steps(found: Mapping[str, Any]) -> dict[str, int]:
    """Steps of each run of a language model: the baseline takes as many as the two that draw together."""
    drawing = found[f"batch of {batch_that_pays(found)}"]["steps_per_second"]
    seconds_of_both = 1 / drawing + 1 / found["speed of the baseline"]["steps_per_second"]
    steps = steps_in((1 - _OF_TOWER) * TRAINING_SECONDS, 1 / seconds_of_both)
    perception = max(1, round(_PERCEPTION * steps))
    return {"perception": perception, "answers": max(1, steps - perception), "direct": steps}


def train_run(name: str, words: str, place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    """Train or resume a run and bring its model home."""
    steps = 2 if place.small else planned_steps(found)[name]
    config = run_config(place, name, words, batch_that_pays(found), steps)
    before = {"perception": "tower", "answers": "perception"}.get(name)
    if before is not None:
        config = replace(config, base=str(trained(place, before)))
    return train_home(config, place.home / f"{name}.tar")


def on_model(measure: Callable[..., Any], place: Place, found: Mapping[str, Any]) -> Any:
    """A measurement of the shipped model on the device."""
    from perception.model.perception_model import PerceptionModel

    return measure(PerceptionModel.from_pretrained(MODEL, place.device), place.small)


def decoding_race(kind: str, batch_size: int, batches: int, model: Any, small: bool) -> dict[str, Any]:
    from benchmarks.generation_speed import race

    if small:  # answers to counting questions are short
        return race(model, kind if batch_size == 1 else "count", min(batch_size, 2), 2, sweeps=(2,))
    return race(model, kind, batch_size, batches)


def grammar_share(model: Any, small: bool) -> dict[str, float]:
    from benchmarks.generation_speed import grammar_share

    return grammar_share(model, 2, 4) if small else grammar_share(model)


def same_ids(model: Any, small: bool) -> dict[str, int]:
    from benchmarks.generation_speed import same_ids

    return same_ids(model, 2, 1) if small else same_ids(model, 400, 50)


def decoding_agreement(precision: str, place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    from benchmarks.generation_speed import agreement

    if place.small:  # half precision is slow on many CPUs
        return agreement(MODEL, 2, 2, place.device, ["float32"])[0]
    return agreement(MODEL, 32, 8, place.device, [precision])[0]


def decoding_compiled(mode: str, place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    """Both ways of decoding compiled, in one of the modes of `torch.compile`; not compiled in a rehearsal."""
    from benchmarks.generation_speed import compiled_race

    settings = {"backend": "eager"} if place.small else {"mode": mode}
    return compiled_race(MODEL, 1, 1 if place.small else 20, place.device, **settings)


def window_costs(shape: str, place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    from benchmarks.generation_speed import bandwidth, shape_costs

    read = bandwidth(place.device, 8 if place.small else 2048)
    windows, repeats = ((1, 8), 1) if place.small else ((1, 8, 16, 32), 20)
    shape = "135M (SmolLM2)" if place.small else shape
    return {"bandwidth_gb_s": round(read / 1e9, 1), **shape_costs(shape, windows, repeats, read, place.device)}


def tokenizer_races(place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    from benchmarks.tokenizer_speed import measure

    return measure(2, (1,), scenes=4) if place.small else measure(12)


def interleaved_race(batch_size: int, batches: int, place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    from benchmarks.interleaved_speed import race
    from perception.model.shipped import shipped
    from train.interleave import read_interleaved

    folder = read_interleaved(shipped("geometry-tiny"))
    folder.model.to(place.device).eval()
    return race(folder, 2, 2, 30) if place.small else race(folder, batch_size, batches)


def trainer_race(place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    from benchmarks.training_overhead import measure

    turns, steps, batch_size = (1, 2, 2) if place.small else (5, 10, 8)
    return measure(str(ROOT / "models" / "tiny-base"), turns, steps, batch_size)


def memory_shapes() -> dict[str, ModelShape]:
    """Random language models in the proportions of published ones, by size."""
    from train.memory_plan import ModelShape

    return {
        "0.1 B": ModelShape(576, 30, 9, 3, 1536, 49152, True),
        "1.2 B": ModelShape(2048, 16, 32, 8, 8192, 128256, True),
        "3 B": ModelShape(2048, 36, 16, 2, 11008, 151936, True),
    }


def memory_point(size: str, lora_rank: int, checkpointing: bool, place: Place, found: Mapping[str, Any]) -> Any:
    from benchmarks.training_memory import SHAPE, comparison, measured_bytes
    from train.memory_plan import RunPlan

    shape = replace(SHAPE, layers=1) if place.small else memory_shapes()[size]
    plan = RunPlan(1, 32, 16) if place.small else RunPlan(4, 512, 220)
    plan = replace(plan, lora_rank=min(lora_rank, 4) if place.small else lora_rank, checkpointing=checkpointing)
    measured = max(1.0, measured_bytes(plan, shape))  # a CPU's process keeps the peak of the points before
    return {"lora_rank": plan.lora_rank, **comparison(plan, shape, measured)}


_MEMORY = {
    f"{size}, {'LoRA' if rank else 'whole'}{', checkpointing' if checkpointing else ''}": partial(
        memory_point, size, rank, checkpointing
    )
    for size in ("3 B", "0.1 B", "1.2 B")
    for rank in (0, 128)
    for checkpointing in (True, False)
}
STAGES = (
    Stage(
        "tests",
        120,
        {
            "training": partial(device_tests, "tests/train/test_training_on_device.py", "idefics3 or sdpa"),
            "perception": partial(device_tests, "tests/perception/test_on_device.py", "codes and not nested"),
        },
    ),
    Stage(
        "training",
        TRAINING_SECONDS + 160,
        {
            "scenes": make_scenes,
            "speed of the tower": time_tower,
            "tower": train_tower,
            **{f"batch of {size}": partial(time_batch, size) for size in BATCHES},
            "speed of the baseline": time_baseline,
            "perception": partial(train_run, "perception", PERCEPTION),
            "answers": partial(train_run, "answers", ANSWERS),
            "direct": partial(train_run, "direct", DIRECT),
        },
    ),
    Stage(
        "photos",
        gpu_photos.PHOTO_SECONDS + 260,
        {
            "views": gpu_photos.make_views,
            "speed of the neck": gpu_photos.time_neck,
            "tower": gpu_photos.train_tower,
            "speed": gpu_photos.time_words,
            **{name: partial(gpu_photos.train_words, name) for name in ("photo-base", "photo-tiny")},
        },
        chained=True,
    ),
    Stage(
        "generation_speed",
        150,
        {
            "depth, batch of 1": partial(on_model, partial(decoding_race, "depth", 1, 16)),
            "depth, batch of 8": partial(on_model, partial(decoding_race, "depth", 8, 8)),
            "depth, batch of 32": partial(on_model, partial(decoding_race, "depth", 32, 4)),
            "same ids": partial(on_model, same_ids),
            **{f"window, {shape}": partial(window_costs, shape) for shape in ("135M (SmolLM2)", "1.2B (Llama 3.2)")},
            "grammar": partial(on_model, grammar_share),
            **{f"agreement, {name}": partial(decoding_agreement, name) for name in ("float16", "float32", "bfloat16")},
            "count, batch of 8": partial(on_model, partial(decoding_race, "count", 8, 8)),
            "compiled": partial(decoding_compiled, "default"),
            "compiled, CUDA graphs": partial(decoding_compiled, "reduce-overhead"),
        },
    ),
    Stage("tokenizer_speed", 40, {"races": tokenizer_races}),
    Stage(
        "interleaved_speed",
        60,
        {"batch of 8": partial(interleaved_race, 8, 10), "batch of 1": partial(interleaved_race, 1, 10)},
    ),
    Stage("training_overhead", 65, {"trainers": trainer_race}),
    Stage(
        "assembly",
        gpu_assembly.ASSEMBLY_SECONDS + 100,
        {
            "base": gpu_assembly.join_parts,
            "records": gpu_assembly.write_records,
            "speed": gpu_assembly.time_arm,
            **{arm: partial(gpu_assembly.train_arm, arm) for arm in ("align", "direct", "aurora")},
            "answers": gpu_assembly.ask_both,
        },
        chained=True,
    ),
    Stage("training_memory", 70, _MEMORY),
)
