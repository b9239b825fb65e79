"""The supervised stages on toy figures: the same loss in any shards, frozen towers, processes without looks, kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES
from tokenizers.processors import TemplateProcessing
from toy_figures import make_toy_folder, toy_problems

from perception.interleave.chains import InterleavedModel, Look, build_batch
from perception.interleave.generation import InterleavedGenerator
from perception.interleave.reasoner import SETTINGS_FILE
from perception.interleave.selector import VisualTokenSelector
from perception.interleave.triggers import NATIVE, SEEN, HeadingTrigger, InterleaveSettings
from perception.interleave.visual_tokens import VisualLayout
from perception.model.perception_model import PerceptionModel, Prompt
from perception.vocabulary.names import PerceptionVocabulary
from train.data.geometry import GeometryData
from train.data.interleaved import REGIONS, ChainBatches, ChainEncoder, ChainProblem, ChainStep, with_regions
from train.interleave import (
    ChainLoss,
    InterleaveConfig,
    export,
    main,
    own_looks,
    read_interleaved,
    train,
)
from train.loop.command_line import command_line
from train.loop.fit import FitResult, LoopConfig
from train.models.saving import Precision, precision_of
from train.rl.answers import answer_problems, selection_f1

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train.interleave", "accelerate.utils", "torch.utils.tensorboard"])
GRID = (4, 4)
PROBLEMS = toy_problems(12, 0, 32, GRID)
LARGE = toy_problems(12, 0, 96, GRID)
"""The same problems in images that the model sees scaled down"""
LOOP = LoopConfig(steps=4, learning_rate=1e-3, num_workers=0, find_unused_parameters=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_toy_folder(folder)
    return folder


def config(start: Path, folder: Path, **more: object) -> InterleaveConfig:
    paths = {"start": str(start), "out": str(folder / "model"), "run_dir": str(folder / "run")}
    return InterleaveConfig(**paths, data=GeometryData(grid_size=4), batch_size=4, loop=LOOP, **more)  # type: ignore[arg-type]


def test_answers_look_where_generation_would(start: Path) -> None:
    folder = read_interleaved(start, InterleaveSettings())
    parts = folder.encoder.answer(PROBLEMS[0])
    ids = [part for part in parts if not isinstance(part, Look)]
    looks = [part for part in parts if isinstance(part, Look)]
    tokenizer = folder.processor.tokenizer
    trigger, before = (
        HeadingTrigger(tokenizer, folder.settings),
        [n for n, p in enumerate(parts) if isinstance(p, Look)],
    )
    assert [n for n in range(len(ids) + 1) if trigger.fires(ids[:n])] == [n - k for k, n in enumerate(before)]
    assert [look.tokens for look in looks] == [step.tokens for step in PROBLEMS[0].steps]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.endswith(f"\nAnswer: {PROBLEMS[0].answer}")
    labels, number = folder.encoder.counts(PROBLEMS[0])
    batch = folder.encoder.batch(PROBLEMS[:1])
    assert (labels, number) == (batch.num_labels, batch.num_looks)


def test_the_token_behind_a_look_is_supervised_unless_the_paper_s_rule_is_asked_for(start: Path) -> None:
    ours = read_interleaved(start, InterleaveSettings()).encoder
    paper = replace(ours, next_token=False)
    for problem in PROBLEMS[:3]:
        assert ours.batch([problem]).num_labels == paper.batch([problem]).num_labels + len(problem.steps)
        assert paper.counts(problem)[0] == paper.batch([problem]).num_labels


@pytest.mark.parametrize("regions", sorted(REGIONS))
def test_controls_replace_what_looks_bring_in(regions: str) -> None:
    problem = PROBLEMS[1]
    other = with_regions(problem, regions, GRID, seed=5)
    for step, changed in zip(problem.steps, other.steps, strict=True):
        own, got = set(step.tokens), set(changed.tokens)
        assert {"own": got == own, "whole": len(got) == 16, "boxes": got >= own, "random": len(got) == len(own)}[
            regions
        ]
    assert with_regions(problem, regions, GRID, seed=5) == other


def shard_losses(start: Path, num_shards: int, stage: str) -> tuple[float, list[torch.Tensor]]:
    resolution = NATIVE if stage == "native" else SEEN
    folder = read_interleaved(start, InterleaveSettings(max_looks=0 if stage == "text" else 12, resolution=resolution))
    batches = ChainBatches(folder.encoder, LARGE, 4, seed=1)
    folder.model.train().zero_grad()
    losses = []
    for shard in range(num_shards):
        loss, _ = ChainLoss(1.0)(folder.model, batches(2, shard, num_shards), 2)
        (loss / num_shards).backward()
        losses.append(float(loss.detach()))
    return sum(losses) / num_shards, [p.grad for p in folder.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("stage", ["text", "interleaved", "native"])
def test_a_batch_of_four_is_four_batches_of_one(start: Path, stage: str) -> None:
    (whole, gradients), (parts, others) = (shard_losses(start, count, stage) for count in (1, 4))
    assert parts == pytest.approx(whole, abs=1e-4)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("regions", ["own", "boxes"])
def test_some_steps_look_at_what_the_model_selects(start: Path, regions: str) -> None:
    folder = read_interleaved(start, InterleaveSettings())
    settings = replace(config(start, start, own_looks=0.5, regions=regions), loop=replace(LOOP, steps=60))
    own = own_looks(settings, folder)
    assert own is not None and own_looks(replace(settings, own_looks=0.0), folder) is None
    due = [step for step in range(60) if own.due(step)]
    assert min(due) >= 20 and 12 <= len(due) <= 28
    batch = folder.encoder.batch(PROBLEMS[:4])
    selector = folder.model.selector
    with torch.no_grad():
        selected = selector.select(folder.model(batch).scores)
        selector.config = replace(selector.config, threshold=0.5)  # an untrained one reaches it
        assert not torch.equal(selected, selector.select(folder.model(batch).scores))
        selected = selector.select(folder.model(batch).scores) & batch.candidates
    looked = own(folder.model, batch)
    brought = (looked.sources >= 0).sum(1) - (looked.visual_columns >= 0).sum(1)  # (B,)
    if regions == "own":
        assert torch.equal(brought, selected.sum((1, 2)))
    else:
        hulls = [[len(REGIONS["boxes"](look.nonzero()[:, 0].tolist(), GRID, None)) for look in row] for row in selected]
        assert brought.tolist() == [sum(row) for row in hulls]
    assert torch.equal(looked.targets, batch.targets) and looked.num_labels == batch.num_labels
    losses = {}
    for name, loss in {"true": ChainLoss(1.0), "own": ChainLoss(1.0, own)}.items():
        share = {"batch": batch, "num_labels": batch.num_labels, "num_looks": batch.num_looks, "num_shards": 1}
        losses[name] = [round(float(loss(folder.model, share, step)[0].detach()), 6) for step in (0, due[0])]
    assert losses["true"][0] == losses["true"][1] == losses["own"][0] != losses["own"][1]


def test_looks_at_native_resolution_are_trained_and_kept_with_the_model(start: Path, tmp_path: Path) -> None:
    """Both with the true regions and with the model's own."""
    found = train(config(start, tmp_path, resolution="native", look_tokens=12, own_looks=1.0), LARGE)
    assert np.isfinite(found.final_loss)
    folder = read_interleaved(tmp_path / "model")
    assert folder.settings == InterleaveSettings(resolution="native", look_tokens=12)
    batch = folder.encoder.batch(LARGE[:2])
    assert len(batch.crops["pixel_values"]) >= 2 and batch.native is not None
    brought = (batch.sources >= 0).sum(1) - (batch.visual_columns >= 0).sum(1)
    assert 0 < int(brought.max()) <= 12 * len(LARGE[0].steps)
    looking = InterleaveSettings(heading=r"^|\d", max_looks=2, resolution="native", look_tokens=5)
    (outcome,) = answer_problems(folder.model, replace(folder.encoder, settings=looking), LARGE[:1], 8)
    assert 16 <= outcome.visual_tokens <= 26


def test_several_images_of_a_problem_stand_in_its_prompt(start: Path) -> None:
    encoder = read_interleaved(start).encoder
    image = LARGE[0].image
    several = replace(LARGE[0], image=(image, image[:48, :48], image[48:, 48:]))
    inputs = encoder.inputs([several, LARGE[1]])
    assert (inputs["input_ids"] == encoder.layout.image_id).sum(1).tolist() == [48, 16]
    torch.testing.assert_close(inputs["pixel_values"][0], encoder.inputs([LARGE[0]])["pixel_values"][0])


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gemma3", "paligemma")])
def test_prompts_are_those_of_the_model_s_own_template_and_forward(family: str) -> None:
    """With one, two and three images; a family's template says what stands around each of them."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family](False, 0)
    vocabulary = PerceptionVocabulary(depth_codes=4, depth_grid=(2, 2), num_locations=6)
    vocabulary = vocabulary.extend(model, processor.tokenizer)
    layout = VisualLayout.of(model, vocabulary.interleave_id, processor.tokenizer)
    around = {"internvl": {"<img>", "</img>"}, "idefics3": {"<fake_token_around_image>"}}.get(family, set())
    assert around <= set(processor.tokenizer.convert_ids_to_tokens(layout.reserved)), "no answer holds these"
    encoder = ChainEncoder(processor, vocabulary, layout, InterleaveSettings("generated"))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)
    images = [(pixels[0],), (pixels[1], pixels[2, :, :40]), (pixels[3], pixels[4], pixels[5])]
    problems = [ChainProblem(own, "How many?", "3", (ChainStep("see", (0, 2)),)) for own in images]
    inputs = encoder.inputs(problems)
    for problem, ids, mask in zip(problems, inputs["input_ids"], inputs["attention_mask"], strict=True):
        content = [*[{"type": "image"}] * len(problem.images), {"type": "text", "text": problem.question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        stock = processor(text=text, images=list(problem.images), return_tensors="pt", add_special_tokens=False)
        assert ids[mask.bool()].tolist() == stock["input_ids"][0].tolist()
    looking = InterleavedModel(model, VisualTokenSelector.for_model(model), layout).eval()
    more = {"mm_token_type_ids": (inputs["input_ids"] == layout.image_id).int()} if "image_grid_thw" in inputs else {}
    with torch.no_grad():
        batch = build_batch(layout, inputs, [[5], [5], [5]], 0)
        found = model.get_output_embeddings()(looking.hidden(batch))[:, :-1]
        stock = model(**inputs, **more).logits
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(found[real], stock[real], atol=1e-5, rtol=0)
        assert looking(encoder.batch(problems)).logits.isfinite().all()
    never = InterleavedGenerator(looking, InterleaveSettings("generated", max_looks=0))
    answers = never.generate(inputs, max_new_tokens=4, do_sample=False).answers
    banned = [[i] for i in (*layout.reserved, layout.interleave_id)]
    wanted = model.generate(**inputs, **more, max_new_tokens=4, do_sample=False, bad_words_ids=banned)
    pad = model.generation_config.pad_token_id
    assert [[*answer, *[pad] * (4 - len(answer))] for answer in answers] == wanted[:, len(ids) :].tolist()
    always = InterleavedGenerator(looking, InterleaveSettings(heading="^", max_looks=1), processor.tokenizer)
    assert all(isinstance(answer[0], Look) for answer in always.generate(inputs, max_new_tokens=2).answers)


def test_the_beginning_of_sequence_stands_where_the_tokenizer_writes_it(start: Path) -> None:
    """As `PerceptionModel` asks: LLaVA-1.5's template leaves it to the tokenizer."""
    folder = read_interleaved(start)
    folder.processor.chat_template = folder.processor.chat_template.removeprefix("{{ bos_token }}")
    tokenizer = folder.processor.tokenizer
    first = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, first)]
    )
    ids = folder.encoder.inputs(PROBLEMS[:1])["input_ids"][0].tolist()
    perception = PerceptionModel(folder.model.model, folder.processor, folder.vocabulary)
    asked = perception.inputs([Prompt(Image.fromarray(PROBLEMS[0].image.numpy()), PROBLEMS[0].question)])
    assert ids == asked["input_ids"][0].tolist() and ids[0] == first and first not in ids[1:]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_model_is_saved_in_the_precision_that_it_was_read_in(start: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = read_interleaved(start)
    large = 1e5 if dtype != torch.float16 else 6e4  # float16 ends at 65,504
    folder.model.model.get_input_embeddings().weight.data[7, 0] = large
    replace(folder, precision=Precision(dtype)).save(tmp_path / "base")
    again = read_interleaved(tmp_path / "base")
    again.save(tmp_path / "out")
    assert again.precision == precision_of(tmp_path / "out")
    assert again.precision.stored == dtype
    kept = read_interleaved(tmp_path / "out").model.model.get_input_embeddings().weight[7, 0]
    assert kept.item() == pytest.approx(large, rel=0.01)


def test_settings_that_cannot_be_read_are_named(start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "model")
    (tmp_path / "model" / SETTINGS_FILE).write_text('{"trigger": "headings", "most_looks": 3}')
    with pytest.raises(ValueError, match=f"{SETTINGS_FILE}: .*unexpected keyword.*; copy the folder again"):
        read_interleaved(tmp_path / "model")


def test_the_tower_stays_and_the_rest_moves(start: Path, tmp_path: Path) -> None:
    before = read_interleaved(start).model.state_dict()
    train(config(start, tmp_path), PROBLEMS)
    after = read_interleaved(tmp_path / "model").model.state_dict()
    moved = {name for name in after if name in before and not torch.equal(after[name], before[name])}
    assert not any("vision_tower" in name for name in moved)
    assert {"selector.embedding", "selector.query.weight", "selector.log_gamma"} <= moved
    assert any("language_model.layers" in name for name in moved) and any("projector" in name for name in moved)
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["steps"] == LOOP.steps and "train.interleave" in record["command"]


def test_a_checkpoint_can_be_a_model(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every_step = replace(LOOP, checkpoint_every_seconds=0.0)
    settings = replace(config(start, tmp_path, threshold=0.6), loop=every_step)
    train(settings, PROBLEMS)
    with pytest.raises(
        ValueError, match=r"checkpoint-4 is a checkpoint of a training run, .*--export checkpoint-4 --out"
    ):
        read_interleaved(tmp_path / "run" / "checkpoint-4")
    weights = {}
    for step in (3, 4):
        out = str(tmp_path / f"exported-{step}")
        command = shlex.split(command_line("train.interleave", replace(settings, export=f"checkpoint-{step}", out=out)))
        main(command[3:])
        assert f"{step} steps of training; model: {out}" in capsys.readouterr().out
        weights[step] = read_interleaved(out).model
    finished, before = read_interleaved(tmp_path / "model"), (tmp_path / "model" / "training.json").read_text()
    assert train(settings, PROBLEMS).resumed_from == 4
    assert (tmp_path / "model" / "training.json").read_text() == before, "a finished run says the same again"
    for name, value in finished.model.state_dict().items():
        assert torch.equal(value, weights[4].state_dict()[name]), name
    assert not torch.equal(weights[3].selector.query.weight, weights[4].selector.query.weight)
    assert weights[4].selector.config.threshold == 0.6
    assert json.loads((tmp_path / "exported-3" / "training.json").read_text())["steps"] == 3
    for bad, said in (
        ({"export": "checkpoint-9"}, "no complete checkpoint-9; it has: checkpoint-3, checkpoint-4"),
        ({"export": "checkpoint-4"}, "model exists; give --out another folder for checkpoint-4"),
        ({"export": "checkpoint-4", "out": str(tmp_path / "a"), "batch_size": 2}, "batch_size: 4 there, 2 now"),
    ):
        with pytest.raises(ValueError, match=said):
            export(replace(settings, **bad))
    assert not (tmp_path / "a").exists()


def test_a_trained_folder_answers_and_other_selections_can_be_put_in(start: Path, tmp_path: Path) -> None:
    train(config(start, tmp_path, trigger="generated"), PROBLEMS)
    folder = read_interleaved(tmp_path / "model")
    assert folder.settings.trigger == "generated"
    oracle = read_interleaved(start, InterleaveSettings(heading=r"^|\d", max_looks=2))

    def choose(problem, scores, look):
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        chosen[list(problem.steps[look].tokens)] = True
        return chosen

    outcomes = answer_problems(oracle.model, oracle.encoder, PROBLEMS[:3], 12, choose=choose)
    assert [outcome.looks[0] for outcome in outcomes] == [problem.steps[0].tokens for problem in PROBLEMS[:3]]
    assert selection_f1(outcomes) == 1


def _killed(start: str, folder: str, pause: float) -> None:
    torch.set_num_threads(1)

    class Slow(list):
        def __getitem__(self, index):
            time.sleep(pause)
            return super().__getitem__(index)

    settings = config(Path(start), Path(folder))
    settings = replace(settings, loop=replace(LOOP, checkpoint_every_seconds=0.01))
    result = train(settings, Slow(PROBLEMS))
    (Path(folder) / "result.json").write_text(json.dumps([result.final_loss, result.resumed_from]))


def test_a_killed_run_ends_like_one_that_was_not(start: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = PROCESSES.Process(target=_killed, args=(str(start), str(killed), 0.1))
    process.start()
    deadline = time.monotonic() + 120
    while not list(killed.glob("run/checkpoint-*/state.json")):
        assert process.is_alive() and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (killed / "result.json").exists()
    for folder in (killed, whole):
        again = PROCESSES.Process(target=_killed, args=(str(start), str(folder), 0.0))
        again.start()
        again.join(600)
    (loss, resumed), (expected, fresh) = (json.loads((f / "result.json").read_text()) for f in (killed, whole))
    assert resumed and fresh is None and loss == expected
    one, other = (read_interleaved(f / "model").model.state_dict() for f in (killed, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


def _distributed(rank: int, port: int, start: str, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    # Shard 1 of every step never looks; shard 0 does.
    rows = [p if n % 2 == 0 else replace(p, steps=()) for n, p in enumerate(PROBLEMS[:4])]
    settings = replace(config(Path(start), Path(folder)), loop=replace(LOOP, find_unused_parameters=False, steps=2))

    class InOrder(ChainBatches):
        def rows(self, step: int) -> list[int]:
            return list(range(self.batch_size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.interleave.ChainBatches", InOrder)
        # Of a LLaVA's tower the last norm is never used: without the frozen tower this would need to be allowed for.
        result: FitResult = train(settings, rows)
    assert result.shards == 2, "the processes did not find each other"


def test_a_process_that_never_looks_does_not_hold_up_the_other(start: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        PROCESSES.Process(target=_distributed, args=(rank, port, str(start), str(tmp_path))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    moved = read_interleaved(tmp_path / "model").model.selector.query.weight
    assert not torch.equal(moved, read_interleaved(start).model.selector.query.weight)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_run_begins_with_a_stock_model_of_transformers(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = FAMILIES[family](False, 0)
    rows = len(model.get_input_embeddings().weight)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "stock")
    grid = {"llava": (4, 4), "qwen2_vl": (2, 2)}[family]
    problems = toy_problems(4, 0, 32, grid)
    settings = replace(config(tmp_path / "stock", tmp_path), batch_size=2, loop=replace(LOOP, steps=2))
    train(settings, problems)
    folder = read_interleaved(tmp_path / "model")
    assert folder.model.layout.interleave_id >= rows - 1 and folder.settings == InterleaveSettings()
    assert len(answer_problems(folder.model, folder.encoder, problems[:1], 4)) == 1
    (tmp_path / "model" / "perception_vocabulary.json").unlink()
    with pytest.raises(ValueError, match="perception_vocabulary.json missing"):
        read_interleaved(tmp_path / "model")


def test_a_grid_that_is_not_the_model_s_is_refused(start: Path, tmp_path: Path) -> None:
    """Its cells would be others: a smaller grid's numbers are all there in a larger one."""
    data = GeometryData(count=4, image_size=64, grid_size=2, store=str(tmp_path / "store"))
    settings = replace(config(start, tmp_path), data=data, loop=replace(LOOP, steps=1))
    with pytest.raises(
        ValueError, match=r"data.grid_size \(2\) x 2, .*64\) pixels as 4 x 4 .* set data.grid_size to 4"
    ):
        train(settings)
    assert not (tmp_path / "store").exists()
    assert train(replace(settings, data=replace(data, grid_size=4))).steps == 1


def test_settings_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match=r"own_looks \(0.5\) needs a model that selects tokens, and stage text"):
        InterleaveConfig(stage="text", own_looks=0.5)
    with pytest.raises(ValueError, match=r"unknown regions 'circles'; known: own, boxes, whole, random"):
        with_regions(PROBLEMS[0], "circles", GRID, 0)
    with pytest.raises(ValueError, match=r"batch_size \(4\) must be a multiple of the shards of a step \(3"):
        ChainBatches(None, PROBLEMS, 4, 0).shares(0, 0, 3)  # type: ignore[arg-type]


def test_a_step_reads_each_problem_once(start: Path) -> None:
    """However many shards of it there are: images of files are decoded when they are read."""

    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    encoder = read_interleaved(start).encoder
    batches = ChainBatches(encoder, Counted(PROBLEMS), 4, 0)
    shards = [batches(step, shard, 4) for step in (0, 1) for shard in range(4)]
    assert Counted.reads == 8
    whole = ChainBatches(encoder, PROBLEMS, 4, 0)(1, 0, 1)
    assert shards[-1]["num_labels"] == whole["num_labels"] == sum(one["batch"].num_labels for one in shards[4:])


def test_every_epoch_has_every_problem_once() -> None:
    batches = ChainBatches(None, PROBLEMS, 4, 0)  # type: ignore[arg-type]
    epochs = [[row for step in range(start, start + 3) for row in batches.rows(step)] for start in (0, 3)]
    assert all(sorted(rows) == list(np.arange(12)) for rows in epochs) and epochs[0] != epochs[1]
