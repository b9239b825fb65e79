"""Fine-tuning on records: any data, resumed, on two devices, and what is written."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_families import save_family
from tiny_records import ALL_KINDS, STEPS, config_for, make_records_world, picture, same_weights, write_questions

from perception import chains
from perception.chains import TASKS
from perception.datasets.boxes import resize_rule
from perception.datasets.images import ImageFile
from perception.datasets.records import Record, RecordSet
from perception.model.folder import read_processor
from perception.model.perception_model import PerceptionModel
from perception.vocabulary.names import Span
from train import finetune
from train.aurora import AuroraConfig
from train.data.curriculum import CurriculumConfig
from train.data.records import RecordPlan, SourcesConfig, available_shares, read_records
from train.data.rows import RowBatches, split_by_length
from train.data.scenes import ScenesConfig
from train.finetune import FinetuneConfig, FinetuneResult
from train.loop.command_line import flatten, parse_config
from train.loop.progress import read_log
from train.models.adapters import LoraSettings
from train.models.saving import save_perception_model

pytest.importorskip("accelerate")
STOPPED_AT = 2
ACCELERATE = Path(finetune.__file__).parent / "configs" / "accelerate"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinetuneResult]:
    out = tmp_path_factory.mktemp("trained")
    return out, finetune.train(config_for(world, out, train_rows="new", tower_lr_ratio=0.1))


# Runs


def test_a_run_writes_a_model_that_answers(world: Path, trained: tuple[Path, FinetuneResult]) -> None:
    out, result = trained
    assert result.fit.steps == STEPS and len(result.losses) == STEPS and result.losses[-1] < result.losses[0]
    assert result.records == 8 * 4 + 8
    model = PerceptionModel.from_pretrained(out / "model")
    answer = model.ask(world / "0.png", "How many cups are there?", "chain", max_new_tokens=20)
    assert all(isinstance(span, Span) for span in answer.spans)
    record = json.loads((out / "model" / "training.json").read_text())
    assert record["steps"] == STEPS and "--batch_size 8" in record["command"]
    before, after = (load_file(f / "model.safetensors") for f in (world / "llava", out / "model"))
    table = next(name for name in before if name.endswith("embed_tokens.weight"))
    assert torch.equal(after[table][: len(before[table])], before[table])
    tower = [n for n in before if "vision_tower" in n and "layers.0" in n and n.endswith("weight")]
    assert any(not torch.equal(after[n], before[n]) for n in tower)


def stop_before(step: int) -> pytest.MonkeyPatch:
    """Ends a run as it asks for a step's first batch."""
    make = RowBatches.__call__

    def make_or_stop(batches: RowBatches, at: int, shard: int, num_shards: int) -> list[dict[str, torch.Tensor]]:
        if at >= step:
            raise KeyboardInterrupt
        return make(batches, at, shard, num_shards)

    patch = pytest.MonkeyPatch()
    patch.setattr(RowBatches, "__call__", make_or_stop)
    return patch


@pytest.mark.parametrize("lora", [0, 4])
def test_a_stopped_run_ends_like_one_that_was_not(
    world: Path, trained: tuple[Path, FinetuneResult], tmp_path: Path, lora: int
) -> None:
    """And what a run left half written while it was saving is passed over."""
    changes = {"train_rows": "new", "tower_lr_ratio": 0.1 if lora == 0 else 0.0, "lora": LoraSettings(lora, 8)}
    whole = trained[0] / "model"
    if lora:
        pytest.importorskip("peft")
        whole = tmp_path / "whole" / "model"
        finetune.train(config_for(world, tmp_path / "whole", **changes))
    patch = stop_before(STOPPED_AT)
    with patch.context(), pytest.raises(KeyboardInterrupt):
        finetune.train(config_for(world, tmp_path, **changes))
    patch.undo()
    assert not (tmp_path / "model").exists()
    (tmp_path / "run" / f"checkpoint-{STOPPED_AT + 1}").mkdir()
    resumed = finetune.train(config_for(world, tmp_path, **changes))
    assert resumed.fit.resumed_from == STOPPED_AT and len(resumed.losses) == STEPS
    assert same_weights(tmp_path / "model", whole)
    if lora:
        held = load_file(tmp_path / "run" / f"checkpoint-{STEPS}" / "model.safetensors")
        assert not any("vision_tower" in name or "base_layer" in name for name in held), "what is frozen is not written"
    with pytest.raises(ValueError, match="other settings .*batch_size: 8 there, 4 now.*another run_dir"):
        finetune.train(config_for(world, tmp_path, batch_size=4, **changes))


def test_a_stopped_run_goes_on_from_a_copy_of_its_folder(
    world: Path, trained: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    """As docs/share.md moves it: the hub's client leaves a folder of its own in the copy."""
    changes = {"train_rows": "new", "tower_lr_ratio": 0.1}
    patch = stop_before(STOPPED_AT)
    with patch.context(), pytest.raises(KeyboardInterrupt):
        finetune.train(config_for(world, tmp_path / "here", **changes))
    patch.undo()
    shutil.copytree(tmp_path / "here" / "run", tmp_path / "there" / "run")
    shutil.rmtree(tmp_path / "here")
    (tmp_path / "there" / "run" / ".cache" / "huggingface").mkdir(parents=True)
    resumed = finetune.train(config_for(world, tmp_path / "there", **changes))
    assert resumed.fit.resumed_from == STOPPED_AT
    assert same_weights(tmp_path / "there" / "model", trained[0] / "model")


def command(config: FinetuneConfig, processes: int) -> list[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*words, "-m", *finetune.command_line("train.finetune", config).split()[2:]]


def test_two_processes_equal_one_with_twice_the_batch(world: Path, tmp_path: Path) -> None:
    """As `torchrun` starts them: the same losses and weights, but for rounding."""
    two = config_for(world, tmp_path / "two", batch_size=4, steps=3, length_groups=2)
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {})
    root = Path(finetune.__file__).parents[1]
    done = subprocess.run(command(two, 2), capture_output=True, text=True, timeout=540, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done: ") == 1
    one = finetune.train(config_for(world, tmp_path / "one", batch_size=8, steps=3, length_groups=2))
    losses = [record["loss"] for record in read_log(tmp_path / "two" / "run")]
    assert np.allclose(losses, one.losses, rtol=1e-5)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[n], b[n], atol=2e-4) for n in a)


def test_accumulation_and_groups_change_nothing(world: Path, tmp_path: Path) -> None:
    """A batch in one forward, in eight, or in two, with checkpointing of activations or without."""
    settings = [
        {"length_groups": 1},
        {"length_groups": 8},
        {"batch_size": 4, "gradient_accumulation": 2, "gradient_checkpointing": True},
    ]
    runs = [finetune.train(config_for(world, tmp_path / str(n), steps=2, **s)) for n, s in enumerate(settings)]
    assert all(np.allclose(run.losses, runs[0].losses, rtol=1e-5) for run in runs)
    assert runs[1].padding_share == 0.0 < runs[0].padding_share


def test_a_finished_run_that_is_started_again_says_the_same(
    world: Path, trained: tuple[Path, FinetuneResult], capsys: pytest.CaptureFixture[str]
) -> None:
    out, result = trained
    before = {path.name: path.read_bytes() for path in (out / "model").glob("*.*")}
    again = finetune.train(config_for(world, out, train_rows="new", tower_lr_ratio=0.1))
    assert again.fit.resumed_from == STEPS and finetune.report(again) == finetune.report(result)
    assert 0 < again.padding_share < 0.5 and again.losses == result.losses
    assert {path.name: path.read_bytes() for path in (out / "model").glob("*.*")} == before


def test_a_rerun_keeps_the_model_whatever_is_lost(
    world: Path, trained: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    """The report comes from the model's own record where the log is gone; another run's model is replaced."""
    shutil.copytree(trained[0], tmp_path / "copy")
    changes: dict = {"train_rows": "new", "tower_lr_ratio": 0.1}
    config = config_for(world, tmp_path / "copy", **changes)
    (tmp_path / "copy" / "run" / "log.jsonl").unlink()
    written = (tmp_path / "copy" / "model" / "training.json").stat().st_mtime_ns
    again = finetune.train(replace(config, loop=replace(config.loop, num_workers=1)))
    assert finetune.report(again) == finetune.report(trained[1])
    assert (tmp_path / "copy" / "model" / "training.json").stat().st_mtime_ns == written
    (tmp_path / "copy" / "model" / "training.json").write_text('{"steps": 4, "final_loss": 0.0}')
    assert "padding" not in finetune.report(finetune.train(config)), "what is not known is not said"
    record = json.loads((tmp_path / "copy" / "model" / "training.json").read_text())
    assert record["final_loss"] == round(trained[1].fit.final_loss, 4) and record["padding_share"] is None


def test_data_that_changed_under_a_run_are_refused(world: Path, tmp_path: Path) -> None:
    """Answers, boxes, images: whatever a record teaches."""
    data = tmp_path / "data"
    data.mkdir()
    write_questions(data)
    config = config_for(world, tmp_path, data=SourcesConfig(own=(str(data / "questions.csv"),)), steps=1, batch_size=2)
    finetune.train(config)
    text = (data / "questions.csv").read_text()
    (data / "questions.csv").write_text(text.replace("green", "red"))
    with pytest.raises(ValueError, match=r"data_digest: '\d+ records, \w+' there, '\d+ records, \w+' now"):
        finetune.train(config)
    (data / "questions.csv").write_text(text)
    picture(data / "0.png", 1)
    with pytest.raises(ValueError, match="data_digest"):
        finetune.train(config)
    picture(data / "0.png", 0)
    assert finetune.train(config).fit.resumed_from == 1


@pytest.mark.parametrize("changes", [{"lora": LoraSettings(4, 8)}, {"ema_decay": 0.9}])
def test_every_checkpoint_can_be_a_model(
    world: Path, tmp_path: Path, changes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported, the last one is the finished model; an earlier one is what a run of so many steps would be."""
    if "lora" in changes:
        pytest.importorskip("peft")
        save_family("qwen2_vl", tmp_path / "base", tied=True)
        changes = changes | {"base": str(tmp_path / "base")}
    config = config_for(world, tmp_path, **changes)
    finetune.train(config)
    with pytest.raises(ValueError, match=r"checkpoint of a training run, not a model; .*--export checkpoint-4 --out"):
        PerceptionModel.from_pretrained(tmp_path / "run" / "checkpoint-4")
    steps = {}
    for step in (STEPS - 1, STEPS):
        named = replace(config, export=f"checkpoint-{step}", out=str(tmp_path / f"exported-{step}"))
        words = finetune.command_line("train.finetune", named)
        finetune.main(shlex.split(words)[3:])
        assert f"{step} steps of training; model: {named.out}" in capsys.readouterr().out
        model = PerceptionModel.from_pretrained(named.out)
        assert model.depth_tokenizer is not None and model.vocabulary.num_locations == 10
        steps[step] = json.loads((Path(named.out) / "training.json").read_text())
        assert same_weights(Path(named.out), tmp_path / "model") == (step == STEPS)
    assert [record["steps"] for record in steps.values()] == [STEPS - 1, STEPS]
    for bad, said in (
        (
            {"export": "checkpoint-9", "out": str(tmp_path / "a")},
            "no complete checkpoint-9; it has: checkpoint-3, checkp",
        ),
        ({"export": "checkpoint-4"}, "model exists; give --out another folder for checkpoint-4"),
        (
            {"export": "checkpoint-4", "out": str(tmp_path / "a"), "num_locations": 11},
            "num_locations: 10 there, 11 now",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            finetune.main(shlex.split(finetune.command_line("train.finetune", replace(config, **bad)))[3:])
        assert re.search(said, str(stopped.value)) and "\n" not in str(stopped.value)
    assert not (tmp_path / "a").exists()


def test_rows_longer_than_the_model_s_positions_are_refused_before_training(world: Path, tmp_path: Path) -> None:
    """The record is named, with both numbers, whether its text is long or its image is large."""
    long = Record(ImageFile(world / "0.png"), chains.direct("direct_other", "What is it? " * 900, "a cup"), "row 7")
    RecordSet((*RecordSet.read(world / "records.jsonl").records, long)).write(tmp_path / "long.jsonl")
    data = SourcesConfig(records=(str(tmp_path / "long.jsonl"),))
    config = config_for(world, tmp_path, on_bad_row="stop", data=data)
    with pytest.raises(ValueError, match=r"row 7: direct_other .* has \d{4,} tokens, .* the limit is 2048"):
        finetune.train(config)
    assert not (tmp_path / "run").exists()
    base = save_family("qwen2_vl", tmp_path / "qwen")
    settings = json.loads((base / "config.json").read_text())
    settings["text_config"]["max_position_embeddings"] = 40
    (base / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"map \d: .* has \d+ tokens, .* the limit is 40"):
        data = SourcesConfig(records=(str(world / "records.jsonl"),))
        finetune.train(config_for(world, tmp_path, on_bad_row="stop", base=str(base), data=data))
    scenes = SourcesConfig(scenes=ScenesConfig(8, str(tmp_path / "scenes")))
    with pytest.raises(ValueError, match=r"has \d+ tokens, .* the limit is 40"):
        finetune.train(
            config_for(world, tmp_path, on_bad_row="stop", base=str(base), data=scenes, curriculum=CurriculumConfig())
        )


def test_a_run_s_start_shows_no_bars_or_warnings(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    finetune.train(config_for(world, tmp_path, steps=1, gradient_checkpointing=True))
    out, err = capfd.readouterr()
    assert not re.search("Loading weights|Writing model|FutureWarning", out + err)


def test_two_sharded_processes_equal_one_with_twice_the_batch(world: Path, tmp_path: Path) -> None:
    """FSDP2, as `accelerate launch` asks for it: stopped after two steps, resumed, and gathered at the end."""
    two = config_for(world, tmp_path / "two", batch_size=4, steps=3, length_groups=2)
    root = Path(finetune.__file__).parents[1]
    environment = os.environ | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    run: dict = {"capture_output": True, "text": True, "timeout": 540, "cwd": root, "env": environment}
    done = subprocess.run(command(two, 2), **run)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(tmp_path / "two" / "run" / "checkpoint-3")
    whole = load_file(tmp_path / "two" / "model" / "model.safetensors")
    names = {path.name for path in (tmp_path / "two" / "run" / "checkpoint-2").iterdir()}
    parts = {f"{kind}-{n}of2.safetensors" for kind in ("model", "optimizer") for n in (1, 2)}
    assert names == parts | {"state.json"}, "nothing is pickled"
    done = subprocess.run(command(two, 2), **run)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("done: 3 steps") == 1
    resumed = load_file(tmp_path / "two" / "model" / "model.safetensors")
    finetune.export(replace(two, export="checkpoint-3", out=str(tmp_path / "exported")))
    assert same_weights(tmp_path / "exported", tmp_path / "two" / "model"), "the shards are put together"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole), "bit for bit"
    one = finetune.train(config_for(world, tmp_path / "one", batch_size=8, steps=3, length_groups=2))
    assert np.allclose([r["loss"] for r in read_log(tmp_path / "two" / "run")], one.losses, rtol=1e-5)
    expected = load_file(tmp_path / "one" / "model" / "model.safetensors")
    assert whole.keys() == expected.keys()
    assert all(torch.allclose(whole[n], expected[n], atol=2e-4) for n in expected)
    assert PerceptionModel.from_pretrained(tmp_path / "two" / "model").vocabulary.num_locations == 10


def test_launches_that_are_not_supported_are_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match=r"does not run under DeepSpeed; launch with FSDP2.*fsdp2_8gpu.yaml"):
        finetune.train(config_for(world, tmp_path))
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="shards with FSDP2, got fsdp_version 1"):
        finetune.train(config_for(world, tmp_path))
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="train_rows=new without LoRA needs whole tables"):
        finetune.train(config_for(world, tmp_path, train_rows="new"))


def test_scenes_and_records_train_together(world: Path, tmp_path: Path) -> None:
    """Half of a batch is of each; the baseline's answers are direct ones."""
    scenes = ScenesConfig(8, str(tmp_path / "scenes"))
    curriculum = CurriculumConfig("constant", atomic_end=0.5, depth_share=0.0)
    for arm in ("aurora", "direct"):
        config = config_for(world, tmp_path / arm, curriculum=curriculum, arm=arm, steps=1)
        config = replace(config, data=replace(config.data, scenes=scenes))
        result = finetune.train(config)
        assert (result.scenes, result.records) == (8, 40)
        seen = {name for record in read_log(tmp_path / arm / "run") for name in record["losses"]} - {"padding"}
        assert all(name.startswith("direct") for name in seen) == (arm == "direct")


def test_aurora_s_settings_are_a_preset_of_this_recipe() -> None:
    changed = {f for f, v in flatten(AuroraConfig()).items() if v != flatten(FinetuneConfig())[f]}
    assert {"data.scenes.count", "tower_lr_ratio", "loop.steps"} <= changed
    assert flatten(AuroraConfig()).keys() == flatten(FinetuneConfig()).keys()
    assert finetune.command_line(AuroraConfig.recipe, AuroraConfig()) == "python -m train.aurora"


def test_packed_patches_train_with_lora(world: Path, tmp_path: Path) -> None:
    """Qwen's images have as many tokens as their size asks for; groups of like length waste under a tenth."""
    pytest.importorskip("peft")
    save_family("qwen2_vl", tmp_path / "qwen", tied=True)
    config = config_for(world, tmp_path, base=str(tmp_path / "qwen"), lora=LoraSettings(4, 8), train_rows="new")
    result = finetune.train(config)
    assert result.padding_share < 0.1
    assert PerceptionModel.from_pretrained(tmp_path / "model").vocabulary.num_locations == 10


def test_aurora_s_files_train_as_they_are(world: Path, tmp_path: Path) -> None:
    depth = "<DEPTH_START>" + "<DEPTH_5>" * 100 + "<DEPTH_END>"
    box = "(<PIXEL_3>,<PIXEL_20>,<PIXEL_110>,<PIXEL_300>)"
    said = [("What is the depth map?", depth), ("How many cats are there?", f"Boxes: {box}. So there are 1.")]
    entries = []
    for number, (question, answer) in enumerate(said):
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        entries.append({"id": str(number), "image": "0.png", "conversations": turns})
    (tmp_path / "aurora.json").write_text(json.dumps(entries))
    data = SourcesConfig(aurora=(str(tmp_path / "aurora.json"),), aurora_images=str(world))
    changes = {"naming": "aurora", "num_locations": 336, "depth_tokenizer": "", "steps": 1, "batch_size": 2}
    result = finetune.train(config_for(world, tmp_path, data=data, **changes))
    model = PerceptionModel.from_pretrained(tmp_path / "model")
    assert result.records == 2 and model.vocabulary.naming == "aurora" and model.depth_tokenizer is None


# Batches


def test_the_shortest_way_to_cut_rows_by_length() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = rng.integers(1, 40, size=int(rng.integers(1, 8))).tolist()
        groups = int(rng.integers(1, len(lengths) + 1))
        cut = split_by_length(lengths, groups)
        assert sorted(i for group in cut for i in group) == list(range(len(lengths)))
        assert len(cut) == groups and all(cut)
        ordered = sorted(lengths)
        ways = itertools.combinations(range(1, len(lengths)), groups - 1)
        costs = [sum((b - a) * ordered[b - 1] for a, b in itertools.pairwise((0, *w, len(lengths)))) for w in ways]
        assert sum(len(group) * max(lengths[i] for i in group) for group in cut) == min(costs)
    with pytest.raises(ValueError, match="2 rows cannot be cut into 3 groups"):
        split_by_length([1, 2], 3)


LLAVA_IMAGE, DEPTH_SPAN = 576, 102
REALISTIC = {  # tokens of a prompt and of what is answered, on LLaVA-1.5's images
    "atomic_depth": (20, DEPTH_SPAN + 1),
    "atomic_boxes": (22, 30),
    "chain_depth": (75, DEPTH_SPAN + 70),
    "chain_count": (40, 45),
    "direct_depth": (60, 4),
    "direct_count": (18, 3),
}


@pytest.mark.parametrize("image", ["llava", "qwen"])
def test_realistic_lengths_are_padded_by_less_than_a_tenth(image: str) -> None:
    """Images of one size, as LLaVA-1.5 has them, or of 256 to 1,280 tokens each, as Qwen-VL has them."""
    rng = np.random.default_rng(0)
    tasks = [task for task in REALISTIC for _ in range(200)]
    plan = RecordPlan.draw(tasks, CurriculumConfig(), steps=60, rows_a_step=16, seed=0)
    pixels = np.full(len(tasks), LLAVA_IMAGE) if image == "llava" else rng.uniform(256, 1280, len(tasks)).astype(int)
    lengths = {}
    for number, task in enumerate(tasks):
        prompt, answer = REALISTIC[task]
        lengths[number] = int(pixels[number] + prompt + rng.integers(0, 12) + answer * rng.uniform(0.9, 1.1))
    real = slots = 0
    for rows in plan.rows:
        here = [lengths[n] for n in rows]
        for group in split_by_length(here, FinetuneConfig().length_groups):
            real += sum(here[n] for n in group)
            slots += len(group) * max(here[n] for n in group)
    assert 1 - real / slots < 0.1


def test_plans_deal_every_record_before_any_comes_again() -> None:
    tasks = ["atomic_depth"] * 5 + ["chain_depth"] * 3 + ["direct_other"] * 2
    plan = RecordPlan.draw(tasks, CurriculumConfig(), steps=40, rows_a_step=6, seed=0)
    assert np.array_equal(plan.rows, RecordPlan.draw(tasks, CurriculumConfig(), 40, 6, 0).rows)
    assert not np.array_equal(plan.rows, RecordPlan.draw(tasks, CurriculumConfig(), 40, 6, 1).rows)
    for members in (range(5), range(5, 8), range(8, 10)):
        dealt = plan.rows[np.isin(plan.rows, members)]
        for start in range(0, len(dealt) - len(members), len(members)):
            assert set(dealt[start : start + len(members)]) == set(members)
    assert set(plan.rows[0]) <= set(range(5)) and (plan.rows[-10:] >= 5).mean() > 0.6  # atomic first


def test_what_data_lack_goes_to_what_they_have() -> None:
    schedule = CurriculumConfig("constant", atomic_end=0.2, chain_share=0.75)
    assert np.allclose(available_shares(schedule, 0.5, [True] * 3), [0.2, 0.6, 0.2])
    assert np.allclose(available_shares(schedule, 0.5, [True, False, True]), [0.5, 0, 0.5])
    assert np.allclose(
        available_shares(CurriculumConfig(), 0.0, [False, False, True]), [0, 0, 1]
    )  # atomic alone asked for
    with pytest.raises(ValueError, match="no records to train on"):
        RecordPlan.draw([], schedule, 1, 1, 0)
    assert set(TASKS) == {task for kind in ("atomic", "chain", "direct") for task in TASKS if task.startswith(kind)}


# Settings and files


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_settings(path: Path) -> None:
    """No key is unknown to it, and what is asked for is what its launcher hands on."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    given = yaml.safe_load(path.read_text())
    assert load_config_from_file(str(path)).num_processes == given["num_processes"]
    words = ["--config_file", str(path), "--main_process_ip", "10.0.0.1", "--machine_rank", "0", "-m", "train.finetune"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert arguments.num_machines == given["num_machines"] and arguments.mixed_precision == "bf16"
    assert arguments.use_fsdp == ("fsdp" in path.stem) and arguments.use_deepspeed == ("zero3" in path.stem)
    known = set(vars(launch_command_parser().parse_args(["a.py"])))
    asked = given.get("fsdp_config", {}) | given.get("deepspeed_config", {})
    assert set(asked) <= known
    assert {name: getattr(arguments, name) for name in asked} == asked


def test_the_example_in_the_docs_parses() -> None:
    line = re.search(r"python -m train.finetune (.*)", finetune.__doc__ or "")
    assert line
    config = parse_config(FinetuneConfig, line[1].split())
    assert config.data.own == ("questions.csv",) and config.base == "models/tiny-base"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_rows": "some"}, "unknown train_rows 'some'; known: all, new"),
        ({"arm": "both"}, "unknown arm 'both'; known: aurora, direct"),
        ({"naming": "ours"}, "unknown naming 'ours'; known: default, aurora"),
        ({"base_precision": "fp8"}, "unknown base_precision 'fp8'; known: fp32, bf16"),
        ({"precision": "fp8"}, "unknown precision 'fp8'; known: bf16, fp32"),
        ({"only_projector": True, "train_rows": "new"}, "only_projector trains nothing else, .*train_rows new"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"new_rows": "codebook", "depth_tokenizer": ""}, "new_rows=codebook needs"),
    ],
)
def test_bad_settings_are_refused(world: Path, tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_for(world, tmp_path, **change)


def test_records_of_other_sizes_or_tokenizers_are_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data: give data.own"):
        finetune.train(config_for(world, tmp_path, data=SourcesConfig()))
    with pytest.raises(ValueError, match="map 0: .*make the records for this vocabulary's sizes"):
        finetune.train(config_for(world, tmp_path, depth_tokenizer="", depth_codes=4, depth_side=2))
    found = RecordSet.read(world / "records.jsonl")
    foreign = RecordSet(tuple(replace(record, tokenizer="another") for record in found.records))
    foreign.write(tmp_path / "foreign.jsonl")
    data = SourcesConfig(records=(str(tmp_path / "foreign.jsonl"),))
    with pytest.raises(ValueError, match="map 0: its depth codes are of tokenizer another"):
        finetune.train(config_for(world, tmp_path, data=data))
    with pytest.raises(ValueError, match="data.counts needs data.counts_images"):
        SourcesConfig(counts=("a.json",))
    with pytest.raises(ValueError, match="data.counts_split 'val' is for data.counts_layout yolo"):
        SourcesConfig(counts=("a.json",), counts_images="images", counts_split="val")
    assert "data.counts_split" not in finetune.deciding(config_for(world, tmp_path)), "old runs can be resumed"


def write_rows(folder: Path, *rows: dict[str, object]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def chat(*texts: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(texts)], **more}


def test_rows_that_cannot_be_used_are_named_and_the_run_goes_on(world: Path, tmp_path: Path, capsys: Any) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "2.png").write_text("<html>not found</html>")
    rows = [chat("What?", "A cup.", images=["0.png"]), chat("<image><image>What?", "A cup.", images=["1.png"])]
    rows += [chat("What?", "A lamp.", images=["2.png"]), chat("What?", "A lamp.", images=["1.png"])]
    data = SourcesConfig(dataset=(write_rows(tmp_path, *rows),))
    settings = {"data": data, "steps": 1, "batch_size": 2}
    result = finetune.train(config_for(world, tmp_path, **settings))
    assert (result.records, result.skipped) == (2, 2)
    places, page = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert places == "rows.jsonl, line 2: 2 image placeholders and 1 images; correct or remove the row"
    assert page.startswith("rows.jsonl, line 3: ") and "2.png is not an image" in page
    assert f"left out of the data: 2 entries, see {tmp_path / 'run' / 'skipped.txt'}; the first: {places}" in (
        capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="^rows.jsonl, line 2: 2 image placeholders and 1 images"):
        finetune.train(config_for(world, tmp_path / "other", on_bad_row="stop", **settings))
    data = SourcesConfig(dataset=(write_rows(tmp_path, rows[2]),))
    with pytest.raises(
        ValueError, match=r"^no row can be used; the first of 1: rows\.jsonl, line 1: .*2\.png is not an"
    ):
        finetune.train(config_for(world, tmp_path / "other", **(settings | {"data": data})))


def test_conversations_train_as_they_are(world: Path, tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / f"{number}.png", number)
    base = save_family("qwen2_5_vl", tmp_path / "qwen")
    processor = read_processor(base)
    grid = processor.image_processor(Image.open(tmp_path / "0.png"), return_tensors="np")["image_grid_thw"][0]
    height, width = (int(side) * processor.image_processor.patch_size for side in grid[1:])
    box = {"bbox": [[0, 0, width, height / 2]]}
    rows = [chat("<image>Where?", "<bbox>", images=["0.png"], objects=box), chat("What is a cone?", "A body.")]
    rows += [chat("One <image> two <image>, which?", "Two.", "Why?", "It is.", images=["0.png", "1.png"])]
    data = SourcesConfig(dataset=(write_rows(tmp_path, *rows),), boxes_format="xyxy-resized")
    settings = {"base": str(base), "data": data, "steps": 2, "batch_size": 3, "curriculum": ALL_KINDS}
    result = finetune.train(config_for(world, tmp_path, **settings))
    assert (result.records, result.skipped, len(result.losses)) == (3, 0, 2)
    vocabulary = finetune.unbound_vocabulary(config_for(world, tmp_path), None)
    rule = resize_rule(processor)
    found = read_records(data, vocabulary, None, tmp_path, resize=rule).records
    assert found[0].example.target == (Span("boxes", (0, 0, 9, 5)),)
    direct = config_for(world, tmp_path, arm="direct", **settings)
    batches = finetune.build_batches(direct, finetune.build_parts(direct, None), None, found)
    assert [len(source.records) for source, _ in batches.sources] == [2]
    settings |= {"base": str(world / "llava")}
    with pytest.raises(ValueError, match="boxes_format xyxy-resized needs the processor of a model that resizes"):
        finetune.train(config_for(world, tmp_path / "llava", **settings))


def test_a_full_disk_leaves_the_model_that_was_there(trained: tuple[Path, FinetuneResult], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "model", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("a card")
    model = PerceptionModel.from_pretrained(tmp_path / "model")
    parts: tuple = (model.model, model.processor, model.vocabulary, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").glob("*.*")}

    def fails(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_perception_model(*parts, {"steps": 1}, write_more=fails)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").glob("*.*")} == before
    save_perception_model(*parts, {"steps": 1})
    assert json.loads((tmp_path / "model" / "training.json").read_text()) == {"steps": 1}
    assert (tmp_path / "model" / "README.md").read_text() == "a card"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
