"""AURORA training on a world of toys: the real recipe from end to end."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_world import make_world
from transformers import AutoModelForImageTextToText

from perception.chains import (
    ATOMIC_BOXES,
    ATOMIC_DEPTH,
    ATOMIC_MASKS,
    ATOMIC_READINGS,
    CHAIN_COUNT,
    CHAIN_DEPTH,
    DIRECT_COUNT,
    DIRECT_DEPTH,
    DIRECT_OTHER,
    TASKS,
)
from perception.evaluation.comparison import compare
from perception.evaluation.report import comparison_html, example_figures, write_report
from perception.evaluation.scenes import scene_items
from perception.model.perception_model import PerceptionModel, Prompt
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import Span
from train import finetune
from train.aurora import AuroraConfig
from train.data.curriculum import CurriculumConfig
from train.data.records import SourcesConfig
from train.data.rows import Row, RowBatches
from train.data.scenes import SceneRows, ScenesConfig, TaskMaker
from train.finetune import FinetuneResult
from train.loop.fit import FitResult, LoopConfig
from train.models.adapters import LoraSettings

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train.aurora", "accelerate.utils", "torch._dynamo", "torch.utils.tensorboard"])
STEPS, KILLED_AT = 4, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def keep_the_order(patch: pytest.MonkeyPatch) -> None:
    """An untrained tokenizer loses the order of every map; take the readings as they come."""
    patch.setattr("train.data.scenes._ATTEMPTS", 200)

    def readings(maker: TaskMaker, codes: np.ndarray, points: np.ndarray) -> np.ndarray:
        return 10 * np.random.default_rng(int(points.sum() * 1e6)).permutation(len(points))

    patch.setattr(TaskMaker, "readings", readings)


@pytest.fixture(scope="module", autouse=True)
def order_is_kept():
    with pytest.MonkeyPatch.context() as patch:
        keep_the_order(patch)
        yield


def config_for(world: dict[str, str], out: Path, **changes) -> AuroraConfig:
    loop = LoopConfig(steps=STEPS, learning_rate=1e-3, weight_decay=0.0, warmup_steps=1, num_workers=0)
    curriculum = CurriculumConfig(schedule="constant", atomic_end=0.4)
    settings = {"run_dir": str(out / "run"), "out": str(out / "model"), "batch_size": 12}
    folders = {name: world[name] for name in ("base", "depth_tokenizer")}
    data = SourcesConfig(scenes=ScenesConfig(48, world["store"]))
    return AuroraConfig(**({"loop": loop, "curriculum": curriculum, "data": data} | folders | settings | changes))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> tuple[Path, FinetuneResult]:
    """The folder of one finished training: run/ and model/ (shared, so read-only)."""
    out = tmp_path_factory.mktemp("trained")
    return out, finetune.train(config_for(world, out))


@pytest.fixture(scope="module")
def model(trained) -> PerceptionModel:
    return PerceptionModel.from_pretrained(trained[0] / "model")


def captured(world, out, **changes) -> dict:
    """The batches and the model that `train` hands to `fit`."""
    taken = {}

    def take(model, batches, loss, config, run_dir, **rest):
        taken.update(model=model, batches=batches, loss=loss, weight=rest["weight"])
        return FitResult(0, 0.0, 0.0, 0.0, None, is_main=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "fit", take)
        finetune.train(config_for(world, out, **changes))
    return taken


def scenes_of(batches: RowBatches) -> SceneRows:
    ((source, _),) = batches.sources
    assert isinstance(source, SceneRows)
    return source


@pytest.fixture(scope="module")
def taken(world, tmp_path_factory) -> dict:
    return captured(world, tmp_path_factory.mktemp("taken"))


def test_training_writes_a_stock_folder_that_answers(trained, model):
    out, result = trained
    assert np.isfinite(result.fit.final_loss) and result.fit.steps == STEPS
    stock = AutoModelForImageTextToText.from_pretrained(out / "model", dtype=torch.float32)
    assert torch.equal(stock.lm_head.weight, model.model.lm_head.weight)
    answer = model.ask(Image.new("RGB", (64, 48), "red"), "How many red cubes are there?", "chain", max_new_tokens=40)
    assert all(len(s.codes) == 4 for s in answer.spans if s.modality == "depth")
    record = json.loads((out / "model" / "training.json").read_text())
    assert record["steps"] == STEPS and record["samples_a_step"] == 12 and "--batch_size 12" in record["command"]


def test_token_names_in_a_question_stay_text(model):
    image = Image.new("RGB", (80, 80), "red")
    typed = "How many <DEPTH_START><LOC_3><INTERLEAVE> <image> are there?"
    ids = model.inputs([Prompt(image, typed)])["input_ids"][0].tolist()
    assert not set(ids) & set(model.vocabulary.ids.values())
    assert typed in model.processor.tokenizer.decode(ids)
    plain = model.inputs([Prompt(image, "How many are there?")])["input_ids"][0].tolist()
    image_id = model.model.config.image_token_id
    assert ids.count(image_id) == plain.count(image_id) == 100


def test_batches_are_functions_of_the_step_and_hold_every_task(taken):
    batches = taken["batches"]
    first, again = batches(0, 0, 1), batches(0, 0, 1)
    for part, same in zip(first, again, strict=True):
        assert all(torch.equal(part[k], same[k]) for k in part)
    assert not torch.equal(first[0]["pixel_values"], batches(1, 0, 1)[0]["pixel_values"])
    assert not torch.equal(first[0]["pixel_values"], batches(0, 1, 2)[0]["pixel_values"])
    tasks = {TASKS[t] for step in range(12) for part in batches(step, 0, 1) for t in part["task"].tolist()}
    assert tasks == set(TASKS) - {DIRECT_OTHER, ATOMIC_MASKS}  # scenes are asked of counts and depth alone


def test_only_targets_are_supervised_and_spans_are_whole(world, tmp_path):
    """Labels are the target and its end; every span in them parses; prompts hold none."""
    as_drawn = CurriculumConfig("constant", atomic_end=0.4, readings_share=0.0, foreign_maps=0.0, noisy_maps=0.0)
    batches = captured(world, tmp_path, curriculum=as_drawn)["batches"]
    vocabulary, tokenizer = batches.encoder.vocabulary, batches.encoder.processor.tokenizer
    for part in batches(3, 0, 1):
        for ids, labels, weights in zip(part["input_ids"], part["labels"], part["weights"], strict=True):
            supervised = labels >= 0
            assert torch.equal(labels[supervised], ids[supervised]) and bool((weights[supervised] > 0).all())
            assert bool((weights[~supervised] == 0).all())
            target = labels[supervised].tolist()
            assert target[-1] == tokenizer.eos_token_id
            vocabulary.parse(target)  # raises for a malformed span
            prompt = ids[: int(supervised.nonzero()[0])].tolist()
            assert not set(prompt) & set(vocabulary.ids.values())


def test_a_foreign_map_is_read_and_not_learned(world, tmp_path):
    """The chain goes through another image's map: readings and answer are the map's, and its codes weigh nothing."""
    curriculum = CurriculumConfig("constant", atomic_end=0.0, chain_share=1.0, depth_share=1.0, foreign_maps=1.0)
    made = captured(world, tmp_path, curriculum=curriculum)["batches"]
    batch = made(3, 0, 1)
    vocabulary = made.encoder.vocabulary
    depth = torch.isin(batch[0]["labels"], torch.tensor(vocabulary.code_ids("depth")))
    assert depth.any() and not batch[0]["weights"][depth].any()
    assert (batch[0]["weights"][(batch[0]["labels"] >= 0) & ~depth] > 0).all()
    example = scenes_of(made)._row(CHAIN_DEPTH, np.random.default_rng(0)).example
    text = "".join(part for part in example.target if isinstance(part, str))  # " A 63, B 41, so A."
    said = dict(re.findall(r"([A-E]) (\d+)", text))
    assert example.answer == max(said, key=lambda letter: int(said[letter]))


@pytest.mark.parametrize("task", [ATOMIC_DEPTH, ATOMIC_READINGS, CHAIN_DEPTH])
def test_a_map_from_the_image_is_learned_behind_other_maps(world, tmp_path, task):
    """Readings and conclusion are those of other images' maps, and the codes that are learned are the image's."""
    curriculum = CurriculumConfig("constant", atomic_end=0.5, foreign_maps=0.0, noisy_maps=0.0, maps_from_image=True)
    made = captured(world, tmp_path, curriculum=curriculum)["batches"]
    scenes, depth_ids = scenes_of(made), made.encoder.vocabulary.code_ids("depth")
    own = {tuple(codes) for codes in scenes.codes.reshape(-1, scenes.codes.shape[-1]).tolist()}
    for seed in range(4):
        row = scenes._row(task, np.random.default_rng(seed))
        ids, labels, weights = made.encoder.encode(row, ())
        at = [n for n, label in enumerate(labels) if label in depth_ids]
        assert [depth_ids.index(ids[n]) for n in at] == row.shown.tolist()
        assert tuple(depth_ids.index(labels[n]) for n in at) in own
        assert all(weights[n - len(ids)] > 0 for n in at)  # weights begin behind the question
        text = "".join(part for part in row.example.target if isinstance(part, str))  # " A 63, B 41, so A."
        said = {letter: int(number) for letter, number in re.findall(r"([A-E]) (\d+)", text)}
        if said:
            assert re.search(r"so ([A-E])", text).group(1) == max(said, key=said.__getitem__)


ALL_READINGS = CurriculumConfig("constant", atomic_end=1.0, depth_share=1.0, points_share=0.0, readings_share=1.0)


def reading_rows(made) -> dict[bool, Row]:
    """One row of readings of a mosaic and one of the image's own map, by whether the map is foreign."""
    scenes = scenes_of(made)
    rows = [scenes._row(ATOMIC_READINGS, np.random.default_rng(seed)) for seed in range(20)]
    return {row.map_given: row for row in rows}


def test_what_is_learned_of_readings(world, tmp_path):
    """Places of marked points, never those of random ones; the image's own map or the conclusion, never both."""
    made = captured(world, tmp_path, curriculum=ALL_READINGS)["batches"]
    vocabulary, tokenizer = made.encoder.vocabulary, made.encoder.processor.tokenizer
    for foreign, row in reading_rows(made).items():
        ids, labels, weights = (np.array(part) for part in made.encoder.encode(replace(row, more=()), ()))
        labels = labels[-len(weights) :]
        learned = {name: weights[np.isin(labels, vocabulary.code_ids(name))] > 0 for name in ("depth", "boxes")}
        assert learned["depth"].any() == learned["depth"].all() == (not foreign)
        points = sum(isinstance(part, Span) and part.modality == "points" for part in row.example.target)
        assert learned["boxes"].tolist() == [True] * 2 * points, "points are written in the tokens of boxes"
        end = vocabulary.encode_plain(tokenizer, row.example.target[-1])
        assert labels[-len(end) - 1 :].tolist() == [*end, tokenizer.eos_token_id] and weights[-1] > 0
        assert (weights[-len(end) - 1 : -1] > 0).tolist() == [foreign] * len(end)
        _, _, weights = made.encoder.encode(row, ())
        ids = np.array(made.encoder.encode(row, ())[0])
        places = np.isin(ids[-len(weights) :], vocabulary.code_ids("boxes"))
        assert not any((np.array(weights)[places] > 0)[2 * points :])


def test_a_map_is_read_at_many_points(world, tmp_path):
    made = captured(world, tmp_path, curriculum=ALL_READINGS)["batches"]
    vocabulary, row = made.encoder.vocabulary, reading_rows(made)[True]
    (more,) = row.more
    read = more.target
    sets: list[list] = [[]]
    for part, after in zip(read, read[1:], strict=False):  # " A", point, " 34, B", point, " 56, so B.", " A", ...
        if isinstance(part, Span):
            value, _, closing = after.strip().partition(",")
            sets[-1].append((PointTokenizer(vocabulary.num_locations).decode(part.codes), int(value)))
            sets += [[]] if "so" in closing else []
    assert sum(map(len, sets)) >= 10 and not sets.pop()
    for pairs in sets:
        places = np.concatenate([place for place, _ in pairs]).astype(np.float32)
        assert [value for _, value in pairs] == scenes_of(made).maker.readings(row.shown, places).tolist()


def test_each_set_of_readings_ends_with_the_nearest(world, tmp_path):
    """The reading part has the form of a depth chain's, so a model learns to conclude without an answer."""
    for row in reading_rows(captured(world, tmp_path, curriculum=ALL_READINGS)["batches"]).values():
        parts = [part for example in (row.example, *row.more) for part in example.target]
        text = "".join(part for part in parts if isinstance(part, str))
        sets = re.findall(r"((?: [A-E] \d+,)+) so ([A-E])\.", text)
        assert set(re.findall(r"\b[A-E]\b", row.example.question)) == set(re.findall(r"([A-E]) \d", sets[0][0]))
        assert len(sets) >= 3 and "".join(f"{read} so {nearest}." for read, nearest in sets) == text
        for read, nearest in sets:
            values = {letter: int(value) for letter, value in re.findall(r"([A-E]) (\d+)", read)}
            assert list(values) == list("ABCDE"[: len(values)]) and values[nearest] == max(values.values())


def test_rows_of_several_turns_ask_for_other_boxes_of_the_same_scene(world, tmp_path):
    curriculum = CurriculumConfig("constant", atomic_end=1.0, box_turns=3)
    made = captured(world, tmp_path, curriculum=curriculum)["batches"]
    row = scenes_of(made)._row(ATOMIC_BOXES, np.random.default_rng(0))
    questions = [row.example.question, *(example.question for example in row.more)]
    assert 2 <= len(questions) <= 4 and len(set(questions)) == len(questions)
    ids, labels, weights = made.encoder.encode(row, ())
    assert len(ids) == len(labels) and len(weights) < len(ids)
    tokenizer, vocabulary = made.encoder.processor.tokenizer, made.encoder.vocabulary
    text = tokenizer.decode(ids)
    for question in questions:
        assert f"USER: {question} ASSISTANT:" in text.replace("USER: \n", "USER: ") or question == questions[0]
    learned = [token for token in labels if token >= 0]
    spans = [vocabulary.span_ids(example.target[0]) for example in (row.example, *row.more)]
    assert learned == [token for span in spans for token in [*span, tokenizer.eos_token_id]]
    tail = labels[len(labels) - len(weights) :]
    assert all((weight > 0) == (label >= 0) for weight, label in zip(weights, tail, strict=True))


def test_fixed_answers_are_the_same_whenever_they_are_asked(world, tmp_path):
    """With `answers` the scenes with labels are asked one question of each kind; perception uses all scenes."""
    curriculum = CurriculumConfig("constant", atomic_end=0.0, chain_share=0.0, depth_share=0.5)
    made = scenes_of(captured(world, tmp_path, arm="direct", curriculum=curriculum)["batches"])
    limited = replace(made, answers=2)
    for task in (DIRECT_COUNT, DIRECT_DEPTH):
        rows = [limited._row(task, np.random.default_rng(seed)) for seed in range(24)]
        found = {(row.image.tobytes(), row.example.question, row.example.answer) for row in rows}
        assert 1 <= len(found) <= 2
        assert len({made._row(task, np.random.default_rng(seed)).image.tobytes() for seed in range(24)}) > 4
    images = {limited._row(ATOMIC_BOXES, np.random.default_rng(seed)).image.tobytes() for seed in range(24)}
    assert len(images) > 2


def test_varied_scenes_ask_the_same_with_smaller_boxes(world, tmp_path):
    """Answers stay, boxes shrink with the image; tasks of depth see whole images."""
    made = scenes_of(captured(world, tmp_path)["batches"])
    zoomed = replace(made, varied=1.0)
    for task in (ATOMIC_BOXES, CHAIN_COUNT, DIRECT_COUNT):
        rows = [zoomed._row(task, np.random.default_rng(seed)) for seed in range(12)]
        known = {scene.tobytes() for scene in made.store.images} | {s[:, ::-1].tobytes() for s in made.store.images}
        assert not any(row.image.tobytes() in known for row in rows)
    drawn = [
        [rows._row(ATOMIC_BOXES, np.random.default_rng(s)).example.target[0].codes for s in range(24)]
        for rows in (zoomed, made)
    ]
    boxes = [np.concatenate([np.reshape(codes, (-1, 4)) for codes in spans]) for spans in drawn]
    width = [np.mean(found[:, 2] - found[:, 0]) for found in boxes]
    assert 0.5 < width[0] / width[1] < 0.95, "boxes shrink with their images"
    limited, plain = replace(zoomed, answers=2), replace(made, answers=2)
    asked = [
        [rows._row(DIRECT_COUNT, np.random.default_rng(s)).example for s in range(12)] for rows in (limited, plain)
    ]
    assert {(e.question, e.answer) for e in asked[0]} == {(e.question, e.answer) for e in asked[1]}
    rows = [made._row(DIRECT_DEPTH, np.random.default_rng(seed)) for seed in range(4)]
    same = [zoomed._row(DIRECT_DEPTH, np.random.default_rng(seed)) for seed in range(4)]
    assert [row.image.tobytes() for row in rows] == [row.image.tobytes() for row in same]
    with pytest.raises(ValueError, match=r"varied must lie in \[0, 1\], got 2"):
        ScenesConfig(count=8, varied=2)


def test_more_answers_than_scenes_are_refused():
    with pytest.raises(ValueError, match="answers must lie between 0 and the 8 scenes, got 9"):
        ScenesConfig(count=8, answers=9)


def test_maps_to_be_read_are_pieced_together(taken):
    """Each cell of a mosaic is some map's, and most mosaics are of several: one cannot be told from the others."""
    batches = scenes_of(taken["batches"])
    maps = np.broadcast_to(np.arange(len(batches.store))[None, :, None], batches.codes.shape)  # map n holds n
    mosaics = [replace(batches, codes=maps)._mosaic(np.random.default_rng(seed)) for seed in range(40)]
    assert all(m.shape == batches.codes.shape[2:] and np.isin(m, maps).all() for m in mosaics)
    assert np.mean([len(set(m.tolist())) > 1 for m in mosaics]) > 0.5


def test_a_noisy_map_is_drawn_as_it_should_be_and_read_as_it_stands(world, tmp_path):
    curriculum = CurriculumConfig(
        "constant", atomic_end=0.0, chain_share=1.0, depth_share=1.0, foreign_maps=0.0, noisy_maps=1.0
    )
    made = captured(world, tmp_path, curriculum=curriculum)["batches"]
    depth_ids = made.encoder.vocabulary.code_ids("depth")
    differ = 0
    for seed in range(8):  # how many codes are hit is drawn too
        row = scenes_of(made)._row(CHAIN_DEPTH, np.random.default_rng(seed))
        drawn = next(part for part in row.example.target if isinstance(part, Span) and part.modality == "depth")
        differ += tuple(row.shown) != drawn.codes
        ids, labels, _ = made.encoder.encode(row, ())
        assert [depth_ids.index(i) for i in ids if i in depth_ids] == row.shown.tolist()
        assert [depth_ids.index(i) for i in labels if i in depth_ids] == list(drawn.codes)
    assert differ


def test_the_baseline_sees_direct_tasks_only(world, tmp_path):
    batches = captured(world, tmp_path, arm="direct")["batches"]
    parts = [part for step in range(4) for part in batches(step, 0, 1)]
    assert {TASKS[t] for part in parts for t in part["task"].tolist()} == {"direct_count", "direct_depth"}
    ours = set(batches.encoder.vocabulary.ids.values())
    assert not any(ours & set(part["input_ids"].flatten().tolist()) for part in parts)


def test_a_batch_in_halves_has_the_loss_of_the_batch_in_one(taken):
    model, parts = taken["model"].eval(), taken["batches"](0, 0, 1)
    width = max(p["input_ids"].shape[1] for p in parts)
    padding = {"input_ids": 0, "labels": -100, "attention_mask": 0, "weights": 0.0}
    whole = {}
    for name in parts[0]:
        rows = [p[name] for p in parts]
        if name in padding:
            rows = [torch.nn.functional.pad(r, (0, width - r.shape[1]), value=padding[name]) for r in rows]
        whole[name] = torch.cat(rows)
    weights = torch.stack([taken["weight"](part) for part in parts])
    with torch.no_grad():
        halves = torch.stack([taken["loss"](model, part, 0)[0] for part in parts])
        assert torch.allclose((halves * weights).sum() / weights.sum(), taken["loss"](model, whole, 0)[0], rtol=1e-5)


def test_only_new_rows_move_where_asked(world, tmp_path):
    finetune.train(config_for(world, tmp_path, train_rows="new"))
    before = load_file(Path(world["base"]) / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    name = next(n for n in before if n.endswith("embed_tokens.weight"))
    old = before[name].shape[0]
    assert torch.equal(after[name][:old], before[name])
    fresh = PerceptionModel.from_pretrained(tmp_path / "model")
    assert after[name].shape[0] == old + len(fresh.vocabulary.tokens)
    projector = next(n for n in before if "projector" in n and n.endswith("weight"))
    assert not torch.equal(after[projector], before[projector])


def test_lora_merges_into_a_stock_folder(world, tmp_path):
    pytest.importorskip("peft")
    config = config_for(world, tmp_path, lora=LoraSettings(rank=4, alpha=8), tower_lr_ratio=0.0, train_rows="new")
    finetune.train(config)
    model = PerceptionModel.from_pretrained(tmp_path / "model")
    before = load_file(Path(world["base"]) / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert not any("lora" in name for name in after)
    moved = [n for n in before if n.endswith("q_proj.weight") and "language_model" in n]
    assert moved and all(not torch.equal(after[n], before[n]) for n in moved)
    tower = [n for n in before if "vision_tower" in n and before[n].is_floating_point()]
    assert tower and all(torch.equal(after[n], before[n]) for n in tower)
    table = next(n for n in before if n.endswith("embed_tokens.weight"))
    assert torch.equal(after[table][: len(before[table])], before[table])
    assert model.vocabulary.is_bound


def _die_at(world: dict[str, str], out: Path) -> None:
    """Trains with a checkpoint after every step, and is killed with SIGKILL as it asks for batch KILLED_AT."""
    make = RowBatches.__call__

    def make_or_die(batches: RowBatches, step: int, rank: int, ranks: int) -> list[dict[str, torch.Tensor]]:
        if step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(batches, step, rank, ranks)

    patch = pytest.MonkeyPatch()
    keep_the_order(patch)
    patch.setattr(RowBatches, "__call__", make_or_die)
    loop = LoopConfig(**(vars(config_for(world, out).loop) | {"checkpoint_every_seconds": 0.0}))
    finetune.train(config_for(world, out, loop=loop))


def test_a_killed_run_ends_like_one_that_was_not(world, trained, tmp_path):
    process = PROCESSES.Process(target=_die_at, args=(world, tmp_path))
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "model").exists()
    resumed = finetune.train(config_for(world, tmp_path))
    whole, result = trained
    assert resumed.fit.resumed_from == KILLED_AT
    assert resumed.fit.final_loss == result.fit.final_loss  # bit for bit
    for file in (f"run/checkpoint-{STEPS}/model.safetensors", "model/model.safetensors"):
        mine, theirs = load_file(tmp_path / file), load_file(whole / file)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_two_processes_train_one_model(world, tmp_path):
    """As `torchrun` starts them on a CPU: the samples of both go into every step, and one of them writes."""
    out = tmp_path / "model"
    settings = {"run_dir": tmp_path / "run", "out": out, "data.scenes.count": 48, "batch_size": 3, "arm": "direct"}
    settings |= {"loop.steps": 2, "loop.warmup_steps": 0, "loop.num_workers": 0, "data.scenes.store": world["store"]}
    settings |= {name: world[name] for name in ("base", "depth_tokenizer")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "train.aurora"]
    command += [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else None
    root = Path(finetune.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done: ") == 1
    assert json.loads((out / "training.json").read_text())["samples_a_step"] == 6
    assert PerceptionModel.from_pretrained(out).vocabulary.depth_codes == 8


def test_comparison_and_report(model, tmp_path):
    items = scene_items("standard", 3, 1)
    comparison, chain, direct = compare("standard", items, model, model)
    json.dumps(comparison.to_json())
    assert comparison.accuracy["counting"]["chain"].count == 3
    assert set(comparison.interventions["counting"]) == {"own", "oracle", "other image", "shuffled", "random"}
    figures = example_figures(model, items, chain, direct, each=1)
    page = write_report(tmp_path / "r.html", "t", "i", [comparison_html(comparison), figures]).read_text()
    assert page.count("<figure>") == len(figures) == 5 and "counting" in page


@pytest.mark.parametrize(
    ("part", "file", "said"),
    [
        (
            "base",
            "config.json",
            "not a finished base model: config.json missing; train one with .*train.base",
        ),
        ("base", "model.safetensors", "model.safetensors is half written.*copy the whole folder anew"),
        ("depth_tokenizer", "model.safetensors", "model.safetensors is cut short.*fetch it anew"),
    ],
)
def test_half_written_folders_are_named_before_anything_is_made(world, tmp_path, part, file, said):
    folder = tmp_path / "copy"
    shutil.copytree(world[part], folder)
    data = (folder / file).read_bytes()
    (folder / file).unlink() if file == "config.json" else (folder / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=said):
        finetune.train(config_for(world | {part: str(folder), "store": str(tmp_path / "store")}, tmp_path))
    assert not (tmp_path / "store").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["base", "depth_tokenizer"])
def test_missing_folders_are_named(world, tmp_path, part):
    with pytest.raises(ValueError, match="models/none is not a local folder"):
        finetune.train(config_for(world | {part: "models/none"}, tmp_path))


def test_bad_settings_name_the_known_ones(world, tmp_path):
    with pytest.raises(ValueError, match="unknown arm 'both'; known: aurora, direct"):
        config_for(world, tmp_path, arm="both")
    with pytest.raises(ValueError, match="unknown train_rows 'some'; known: all, new"):
        config_for(world, tmp_path, train_rows="some")
