"""Held-out data of a fine-tuning: kept apart, measured, answered and drawn; epochs, the best weights, long rows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_families import save_family
from tiny_models import build_llava, build_tokenizer
from tiny_records import STEPS, config_for, make_records_world, same_weights, write_questions

from perception import chains
from perception.chains import Answer
from perception.datasets.images import ImageFile
from perception.datasets.records import Record, RecordSet
from perception.evaluation.held_out import AnsweredExample, figures, held_out_picture
from perception.model.perception_model import PerceptionModel
from perception.vocabulary.names import PerceptionVocabulary, Span
from train import finetune
from train.data.held_out import EvaluationConfig, chosen, split, unseen
from train.data.photos import PhotosConfig
from train.data.records import SourcesConfig
from train.data.scenes import ScenesConfig
from train.loop.progress import read_held_out
from train.models import quantized
from train.models.adapters import LoraSettings
from vqvae import VQVAE

pytest.importorskip("accelerate")
LOOK = EvaluationConfig(share=0.25, asked=6, pictures=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records_world(tmp_path_factory.mktemp("world"))


def direct(name: str, task: str = chains.DIRECT_OTHER) -> Record:
    return Record(ImageFile(Path(name)), chains.direct(task, "How many?", "2"), name)


# The split


def test_no_image_is_both_trained_on_and_held_out() -> None:
    records = [direct(f"{n // 3}.png") for n in range(60)]
    kept, held = split(records, 0.1)
    assert len({r.image for r in held}) == 2 and len(held) == 6 and len(kept) == 54
    assert not {r.image for r in kept} & {r.image for r in held}
    more = split([*records, *(direct(f"new-{n}.png") for n in range(20))], 0.1)[1]
    assert {r.image for r in held} & {r.image for r in more}, "the same images stay held out where data are added"
    assert split(records, 0.0) == (tuple(records), ())
    files = [ImageFile(Path(f"{n}.png")) for n in range(12)]
    pairs = [replace(direct(f"{n}.png"), images=(files[n], files[n + 1])) for n in range(0, 12, 2)]
    kept, held = split([*records, *pairs, replace(direct("text"), image=None, images=())], 0.1)
    assert not {i for r in kept for i in r.all_images} & {i for r in held for i in r.all_images}
    assert any(r.images for r in held) and any(not r.all_images for r in kept)
    with pytest.raises(ValueError, match=r"evaluation.share 0.5 of 1 image leaves none to train on; give more images"):
        split(records[:3], 0.5)


def test_images_of_one_name_in_many_folders_are_held_out_at_random() -> None:
    """And they are the same ones where the folders move."""
    chosen_folders = []
    for root in ("data", "elsewhere/data"):
        held = split([direct(f"{root}/video-{n:02d}/frames/1.png") for n in range(40)], 0.25)[1]
        chosen_folders.append({r.image.path.parts[-3] for r in held if r.image})
    assert len(chosen_folders[0]) == 10 and chosen_folders[0] == chosen_folders[1]
    assert len(chosen_folders[0] & {f"video-{n:02d}" for n in range(10)}) < 7, "not the first ones"


def test_two_paths_of_one_image_are_one_image(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path)
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    folders = (tmp_path, tmp_path / "tables" / "..", tmp_path / "linked")
    records = [direct(str(folder / f"{number}.png")) for folder in folders for number in range(20)]
    kept, held = split(records, 0.12)
    assert len(held) == 6 and len(kept) == 54, "two images of 20, not seven of 60"
    assert len({r.image.path.resolve() for part in (kept, held) for r in part if r.image}) == 20
    assert not {r.image.path.resolve() for r in kept if r.image} & {r.image.path.resolve() for r in held if r.image}


def test_copies_of_one_picture_are_one_image(tmp_path: Path) -> None:
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.bmp")  # all of one size in bytes
        (tmp_path / f"copy-{number}.bmp").write_bytes((tmp_path / f"{number}.bmp").read_bytes())
    records = [direct(str(tmp_path / f"{name}{number}.bmp")) for name in ("", "copy-") for number in range(20)]
    kept, held = split(records, 0.12)
    assert len(held) == 4 and len(kept) == 36, "two images of 20, each with its copy"
    trained = [record.image for record in records[:20] if record.image]
    with pytest.raises(ValueError, match=r"copy-0.bmp is trained on, too"):
        unseen(RecordSet((records[20],)), trained, skip_bad=False)
    other = direct(str(tmp_path / "other.bmp"))
    Image.new("RGB", (8, 8), "white").save(tmp_path / "other.bmp")
    assert unseen(RecordSet((other,)), trained, skip_bad=False).records == (other,)


def test_files_that_hold_out_what_is_trained_on_are_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    vqvae = VQVAE.from_pretrained(world / "depth").eval()
    same, other = world / ".." / world.name / "questions.csv", write_questions(tmp_path / "other", 100)
    for own, on_bad_row, said in (
        (
            (same,),
            "skip",
            r"all images of evaluation.data are trained on, too; the first: .* give evaluation.data.counts_split val\)",
        ),
        ((other, same), "stop", r"questions.csv, line 2: .*0.png is trained on, too; hold out other images"),
    ):
        look = EvaluationConfig(data=SourcesConfig(own=tuple(map(str, own))))
        with pytest.raises(ValueError, match=said):
            finetune.read_data(config_for(world, tmp_path, evaluation=look, on_bad_row=on_bad_row), vqvae)
    look = EvaluationConfig(data=SourcesConfig(own=(str(same), str(other))))
    found, held = finetune.read_data(config_for(world, tmp_path, evaluation=look), vqvae)
    assert len(held.records) == 32 and {r.image.path.parent for r in held.records if r.image} == {other.parent}
    assert len(found.skipped) == 32 and all("is trained on, too" in line for line in found.skipped)


def test_tasks_take_turns_where_few_are_chosen() -> None:
    records = [direct("a"), *(direct("b", chains.DIRECT_COUNT) for _ in range(50))]
    few = chosen(records, 4)
    assert len(few) == 4 and sum(r.example.task == chains.DIRECT_OTHER for r in few) == 1
    assert chosen(records, 4) == few and len(chosen(records, 99)) == 51


# Figures


def test_figures_of_answers_written_by_hand() -> None:
    box, other, points = (
        Span("boxes", (0, 0, 50, 50)),
        Span("boxes", (60, 60, 80, 80)),
        Span("points", (10, 10, 50, 50)),
    )
    image = Image.new("RGB", (8, 8))
    both = Span("boxes", box.codes + other.codes)
    counted = chains.chain_count("How many cups are there?", both)
    said = chains.direct(chains.DIRECT_OTHER, "What colour is it?", "Green")
    answered = [
        AnsweredExample(image, counted, Answer("2.", (both,), 2)),
        AnsweredExample(image, counted, Answer("1.", (box,), 1)),
        AnsweredExample(image, said, Answer("green.", (), "green.")),
        AnsweredExample(image, chains.atomic_points(points), Answer("", (Span("points", (12, 8, 90, 50)),), None)),
    ]
    found = figures(answered, 100)
    assert found.pop("boxes_f1") == pytest.approx(2 * 3 / (3 + 4))
    assert found == {"accuracy/chain_count": 0.5, "accuracy/direct_other": 1.0, "points_found": 0.5}
    assert answered[3].correct is None and figures([], 100) == {}


@pytest.mark.parametrize(
    ("question", "answer", "value", "right"),
    [
        ("What is on the table?", "none", None, False),
        ("How many cats are there?", "three", 3, True),
        ("How many cats are there?", "3 cats", 3, True),
        ("How many cats are there?", "three", 4, False),
        ("Which point is closest, A or B?", "(B)", "B", True),
        ("Which point is closest, A or B?", "Point B", "B", True),
        ("Which point is closest, A or B?", "Point B", "A", False),
    ],
)
def test_answers_of_the_data_are_read_as_the_model_s_are(question: str, answer: str, value: Any, right: bool) -> None:
    example = chains.direct(chains.direct_task(question), question, answer)
    assert AnsweredExample(Image.new("RGB", (8, 8)), example, Answer("", (), value)).correct is right


@pytest.mark.parametrize(
    ("question", "answer"), [("Which is closer, the cup or the spoon?", "Cup"), ("Which is closest, A, B or C?", "B")]
)
def test_a_target_that_is_read_back_is_right(question: str, answer: str) -> None:
    example = chains.direct(chains.direct_task(question), question, answer)
    tokenizer = build_tokenizer()
    vocabulary = PerceptionVocabulary().extend(build_llava(tokenizer), tokenizer)
    ids = chains.encode_target(tokenizer, vocabulary, example.target)
    read = chains.read_ids(tokenizer, vocabulary, ids, chains.kind_of_question(question), question)
    assert AnsweredExample(Image.new("RGB", (8, 8)), example, read).correct


def test_a_map_is_compared_by_its_order(world: Path) -> None:
    vqvae = VQVAE.from_pretrained(world / "depth").eval()
    given = Span("depth", (0, 7, 3, 1))
    asked = chains.atomic_depth(given)
    image = Image.new("RGB", (8, 8))
    same, none = (AnsweredExample(image, asked, Answer("", spans, None)) for spans in ((given,), ()))
    assert figures([same], 100, vqvae) == {"map_order": 1.0} and figures([none], 100, vqvae) == {"map_order": 0.0}
    other = AnsweredExample(image, asked, Answer("", (Span("depth", (7, 0, 1, 3)),), None))
    assert 0 < figures([other], 100, vqvae)["map_order"] < 1


# Runs


def test_a_run_is_measured_on_images_that_it_does_not_see(world: Path, tmp_path: Path) -> None:
    """Loss and accuracy by task every n steps, a page of what is drawn, and the best weights as a model."""
    config = config_for(world, tmp_path, evaluation=LOOK, evaluate_every=2)
    result = finetune.train(config)
    assert result.records + result.held_out == 8 * 4 + 8 and result.held_out > 0
    past = read_held_out(tmp_path / "run")
    assert [step for step, _ in past] == [2, 4]
    names = set(past[-1][1])
    assert {"loss", "loss/chain_count", "accuracy/chain_count", "accuracy/direct_count", "boxes_f1"} <= names
    assert all(0 <= value <= 1 for name, value in past[-1][1].items() if not name.startswith("loss"))
    best = min(past, key=lambda one: one[1]["loss"])
    assert (result.fit.best_step, result.fit.best_loss) == (best[0], pytest.approx(best[1]["loss"]))
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["evaluation"].pop("records") == result.held_out
    assert record["evaluation"] == {name: round(value, 4) for name, value in past[-1][1].items()}
    page = (tmp_path / "run" / "held_out.html").read_text()
    assert "Held-out data after 4 steps" in page and page.count("<figure>") == 3
    assert "above what the model draws, below what the data have" in page
    assert f"lowest loss on {result.held_out} held-out records" in finetune.report(result)
    finetune.main(["--config", str(_yaml(tmp_path, config)), "--export", "best", "--out", str(tmp_path / "best")])
    record = json.loads((tmp_path / "best" / "training.json").read_text())
    assert record["steps"] == best[0] and record["evaluation"]["loss"] == round(best[1]["loss"], 4)
    assert PerceptionModel.from_pretrained(tmp_path / "best").vocabulary.num_locations == 10
    again = finetune.train(config)
    assert again.fit.resumed_from == STEPS and finetune.report(again) == finetune.report(result)


def _yaml(folder: Path, config: finetune.FinetuneConfig) -> Path:
    """The configuration as a file of settings."""
    import yaml

    changed = {n: v for n, v in finetune.flatten(config).items() if v != finetune.flatten(finetune.FinetuneConfig())[n]}
    (folder / "config.yaml").write_text(yaml.safe_dump(changed))
    return folder / "config.yaml"


@pytest.mark.parametrize("lora", [LoraSettings(), LoraSettings(4, 8)])
def test_looking_at_held_out_files_changes_nothing(world: Path, tmp_path: Path, lora: LoraSettings) -> None:
    if lora.rank:
        pytest.importorskip("peft")
    changes: dict = {"lora": lora, "train_rows": "new", "steps": 2}
    if lora.rank:
        changes["base_precision"] = "bf16"
    (tmp_path / "other").mkdir()
    data = SourcesConfig(own=(str(write_questions(tmp_path / "other", 100)),))
    look = EvaluationConfig(data=data, asked=5, pictures=0)
    seen = finetune.train(config_for(world, tmp_path / "seen", evaluation=look, **changes))
    unseen = finetune.train(config_for(world, tmp_path / "unseen", **changes))
    assert (seen.records, seen.held_out, unseen.held_out) == (40, 32, 0)
    assert len(read_held_out(tmp_path / "seen" / "run")) == 2, "ten times a run, or at each of fewer steps"
    assert seen.losses == unseen.losses and same_weights(tmp_path / "seen" / "model", tmp_path / "unseen" / "model")


def test_a_run_stops_early_and_ends_with_its_best_weights(world: Path, tmp_path: Path) -> None:
    config = config_for(
        world, tmp_path, evaluation=replace(LOOK, asked=0), evaluate_every=1, patience=1, learning_rate=1.0, steps=9
    )
    result = finetune.train(config)
    assert result.fit.best_step < result.fit.steps < 9
    finetune.export(replace(config, export="best", out=str(tmp_path / "best")))
    assert same_weights(tmp_path / "best", tmp_path / "model")
    assert not (tmp_path / "run" / "held_out.html").exists()


def test_epochs_are_passes_over_the_records(world: Path, tmp_path: Path) -> None:
    config = config_for(world, tmp_path, steps=1000, epochs=0.5)
    assert finetune.train(config).fit.steps == 3, "half of 40 records, 8 rows per step"
    command = json.loads((tmp_path / "model" / "training.json").read_text())["command"]
    assert "--loop.steps 3 " in command and "--epochs" not in command
    assert finetune.train(config).fit.resumed_from == 3


def test_long_rows_are_left_out_and_named(world: Path, tmp_path: Path) -> None:
    config = config_for(world, tmp_path, max_length=60, steps=1, on_bad_row="stop")
    with pytest.raises(ValueError, match=r"has \d+ tokens, .* limit is 60 \(max_length"):
        finetune.train(config)
    result = finetune.train(replace(config, on_bad_row="skip"))
    lines = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert 0 < len(lines) == 40 - result.records == result.skipped
    assert all(re.match(r"(questions.csv, line|map) \d+: \w+ .* tokens, .* limit is 60", line) for line in lines)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluate_every": 2}, "evaluate_every (2) needs held-out data; set evaluation.share"),
        ({"data": SourcesConfig(scenes=ScenesConfig(8)), "evaluation": LOOK}, "share is of the records' images, and"),
        ({"data": SourcesConfig(scenes=ScenesConfig(8)), "epochs": 2}, "epochs are passes over records, and scenes"),
        ({"epochs": 0}, "epochs must be above 0 or none, got 0"),
        ({"epochs": 2, "steps": 7}, "epochs (2) and loop.steps (7) both say how long to train; give one"),
        ({"max_length": 0}, "max_length must be at least 1 or none, got 0"),
        ({"lora": LoraSettings(4, tower=True), "tower_lr_ratio": 0.1}, "lora.tower adapts a frozen tower"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(world: Path, tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        config_for(world, tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_bad_held_out_settings_are_refused(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, said in (
        ({"share": 1.0}, "evaluation.share must be at least 0 and below 1, got 1.0"),
        ({"asked": -1}, "evaluation.asked must not be negative"),
        ({"data": SourcesConfig(scenes=ScenesConfig(8))}, "takes records, not scenes"),
        ({"data": SourcesConfig(photos=PhotosConfig("photos"))}, "takes records, not photographs"),
    ):
        with pytest.raises(ValueError, match=said):
            EvaluationConfig(**settings)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="held-out data need the whole model on a device"):
        finetune.train(config_for(world, tmp_path, evaluation=LOOK))


def test_codes_of_a_tokenizer_that_is_not_there_are_not_drawn(world: Path, tmp_path: Path) -> None:
    """As AURORA's: the page shows the image, and the order of maps is not measured."""
    records = RecordSet.read(world / "records.jsonl").records
    RecordSet(tuple(replace(r, tokenizer="") for r in records)).write(tmp_path / "codes.jsonl")
    data = SourcesConfig(records=(str(tmp_path / "codes.jsonl"),))
    changes = {"depth_tokenizer": "", "depth_codes": 8, "depth_side": 2, "new_rows": "mean", "steps": 1}
    finetune.train(config_for(world, tmp_path, data=data, evaluation=EvaluationConfig(share=0.5), **changes))
    ((_, found),) = read_held_out(tmp_path / "run")
    assert "loss/atomic_depth" in found and "map_order" not in found
    assert (tmp_path / "run" / "held_out.html").read_text().count("<figure>") == 4


def test_the_learning_rate_follows_what_trains_and_its_size() -> None:
    usual = finetune.FinetuneConfig()
    lora = replace(usual, lora=LoraSettings(8, 16))
    rates = {}
    for size in (28e6, 0.4e9, 7e9, 34e9):
        model = SimpleNamespace(num_parameters=lambda size=size: size)
        rates[size] = [finetune.with_learning_rate(c, model).loop.learning_rate for c in (usual, lora)]
    assert rates == {28e6: [2e-4, 2e-4], 0.4e9: [5e-5, 2e-4], 7e9: [2e-5, 2e-4], 34e9: [2e-5, 1e-4]}
    given = replace(usual, loop=replace(usual.loop, learning_rate=0.5))
    assert finetune.with_learning_rate(given, model) is given
    with pytest.raises(ValueError, match="does not choose a learning rate; set learning_rate"):
        usual.loop.peak_rate  # noqa: B018


def test_a_picture_shows_both_drawings(world: Path, tmp_path: Path) -> None:
    finetune.train(config_for(world, tmp_path, steps=1))
    model = PerceptionModel.from_pretrained(tmp_path / "model")
    counted = chains.chain_count("How many <b>cups</b> are there?", Span("boxes", (0, 0, 5, 5)))
    image = Image.new("RGB", (32, 16))
    one = held_out_picture(model, AnsweredExample(image, counted, Answer("3.", (), 3)))
    assert one.image.size == (2 * 480 + 6, 2 * 240)
    assert "&lt;b&gt;cups" in one.caption and '<span class="wrong">3 (wrong)</span>' in one.caption


# QLoRA


def test_qlora_is_refused_without_what_it_needs(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="base_precision nf4 is for LoRA, and lora.rank is 0"):
        config_for(world, tmp_path, base_precision="nf4")
    config = config_for(world, tmp_path, base_precision="nf4", lora=LoraSettings(4, 8))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="nf4 needs an NVIDIA GPU, and none is found; take base_precision bf16"):
        finetune.train(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="nf4 needs bitsandbytes; pip install bitsandbytes, or take"):
        finetune.train(config)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_qlora_trains_beside_4_bits_and_is_merged_into_the_base(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """On bitsandbytes' CPU kernels, where it is installed: resumed, and merged into weights that were never rounded."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    monkeypatch.setattr(finetune, "check_quantizing", lambda: None)
    base = save_family(family, tmp_path / "base", tied=family != "llava")
    changes: dict = {"base": str(base), "lora": LoraSettings(4, 8), "train_rows": "new", "steps": 2}
    config = config_for(world, tmp_path, base_precision="nf4", evaluation=LOOK, **changes)
    model = finetune.build_parts(config, None).model
    kinds = {type(m).__name__ for n, m in model.named_modules() if n.endswith("base_layer") and "q_proj" in n}
    assert kinds == {"Linear4bit"}
    result = finetune.train(config)
    plain = finetune.train(config_for(world, tmp_path / "plain", base_precision="bf16", evaluation=LOOK, **changes))
    assert result.losses == pytest.approx(plain.losses, rel=0.2) and result.losses != plain.losses
    finetune.export(replace(config, export="checkpoint-2", out=str(tmp_path / "exported")))
    assert same_weights(tmp_path / "exported", tmp_path / "model")
    mine, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "model", tmp_path / "plain" / "model"))
    assert mine.keys() == theirs.keys()
    still = [n for n in mine if "vision_tower" in n or "visual.blocks" in n]
    assert still and all(torch.equal(mine[n], theirs[n]) for n in still)
    moved = [n for n in mine if "q_proj" in n and "vis" not in n]
    assert moved and all((mine[n] - theirs[n]).abs().max() < 0.1 for n in moved)
