"""Solving with a model's folder: steps, what they looked at, and their picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES
from toy_figures import make_toy_folder, toy_problems
from typer.testing import CliRunner

from perception.cli import app
from perception.interleave.chains import Look
from perception.interleave.generation import InterleavedGenerator
from perception.interleave.reasoner import Reasoner, ReasoningStep, draw_reasoning, draw_step, visual_grid
from perception.interleave.triggers import GENERATED, InterleaveSettings
from perception.interleave.visual_tokens import VisualLayout
from perception.vocabulary.names import PerceptionVocabulary
from train.data.interleaved import ChainEncoder, ChainProblem


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "model"
    make_toy_folder(path)
    return path


@pytest.fixture(scope="module")
def reasoner(folder: Path) -> Reasoner:
    return Reasoner.from_pretrained(folder)


@pytest.fixture(scope="module")
def figure() -> Image.Image:
    return Image.fromarray(toy_problems(1, 3, 64)[0].image.numpy())


def written(reasoner: Reasoner, parts: list[str | Look]) -> list[int | Look]:
    tokenizer = reasoner.perception.processor.tokenizer
    answer: list[int | Look] = []
    for part in parts:
        answer += [part] if isinstance(part, Look) else tokenizer.encode(part, add_special_tokens=False)
    return answer


def test_an_answer_is_read_into_steps_regions_and_a_value(reasoner: Reasoner, figure: Image.Image) -> None:
    answer = written(
        reasoner,
        [" Step 1:", Look((0, 5)), " angle A is 50.\nStep 2:", Look((15,)), " x = 180 - 50 = 130.\nAnswer: 130"],
    )
    scores = [np.full((4, 4), 0.25, np.float32)] * 2
    found = reasoner._read(figure, answer, scores, [2, 1], (4, 4))
    assert [step.text for step in found.steps] == ["angle A is 50.", "x = 180 - 50 = 130."]
    assert [np.argwhere(step.cells).tolist() for step in found.steps] == [[[0, 0], [1, 1]], [[3, 3]]]
    assert found.value == "130"
    assert [step.inserted for step in found.steps] == [2, 1] and found.visual_tokens == 19
    unfinished = reasoner._read(figure, answer[:6], scores, [2, 1], (4, 4))
    assert unfinished.value is None


def test_solving_looks_where_the_generator_does(folder: Path, reasoner: Reasoner, figure: Image.Image) -> None:
    # Untrained, it never writes a heading of its own: the first look stands at the start.
    looking = Reasoner(reasoner.perception, reasoner.model.selector, InterleaveSettings(heading=r"^|\n", max_looks=2))
    found = looking.solve(figure, "Find x.", max_new_tokens=12)
    assert len(found.steps) >= 1
    assert found.steps[0].cells.shape == (4, 4)
    selected = found.steps[0].scores >= looking.model.selector.config.threshold
    np.testing.assert_array_equal(found.steps[0].cells, selected)
    again = looking.solve(figure, "Find x.", max_new_tokens=12)
    assert again.text == found.text


def test_looks_at_native_resolution_show_what_they_cut_out(reasoner: Reasoner, tmp_path: Path) -> None:
    # Four colours, one per quarter: what is cut from the top right is green alone.
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:64, 64:, 1] = pixels[64:, :, 0] = 255
    large = Image.fromarray(pixels)
    settings = InterleaveSettings(heading=r"^|\n", max_looks=1, resolution="native")
    looking = Reasoner(reasoner.perception, reasoner.model.selector, settings)
    chosen = torch.zeros(16, dtype=torch.bool)
    chosen[[2, 3, 6, 7]] = True
    looking.model.selector.select = lambda scores: chosen  # type: ignore[method-assign]
    try:
        found = looking.solve(large, "Find x.", max_new_tokens=4)
    finally:
        del looking.model.selector.select
    side = looking.perception.processor.image_processor.size["height"]
    assert found.image.size == (side, side)
    (step,) = found.steps
    assert [crop.size for crop in step.crops] == [(side, side)]
    green = np.asarray(step.crops[0]).reshape(-1, 3)[:, 1]
    assert (green > 250).mean() > 0.9
    assert step.inserted == 16 and found.visual_tokens == 32
    assert draw_step(found.image, step, 160).height > 300 > 160


def test_pictures_show_the_cells_and_only_them(figure: Image.Image) -> None:
    cells = np.zeros((4, 4), dtype=bool)
    cells[1, 2] = True
    step = ReasoningStep("angle A is 50.", cells, cells.astype(np.float32), 1)
    none = ReasoningStep("angle A is 50.", ~cells & cells, cells.astype(np.float32), 0)
    one, other = (np.asarray(draw_step(figure, part, 160)).astype(int) for part in (step, none))
    changed = np.abs(one - other).sum(-1) > 0
    assert changed[40:80, 80:120].mean() > 0.9
    changed[40:80, 80:120] = False
    assert not changed.any()


def test_the_command_line_prints_steps_and_draws_them(folder: Path, figure: Image.Image, tmp_path: Path) -> None:
    figure.save(tmp_path / "figure.png")
    call = ["ask", str(tmp_path / "figure.png"), "Find x.", "--mode", "interleaved"]
    done = CliRunner().invoke(app, [*call, "--model", str(folder), "--picture", str(tmp_path / "out.png"), "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout.strip().splitlines()[-1])) == {"answer", "text", "steps", "visual_tokens"}
    with Image.open(tmp_path / "out.png") as picture:
        assert min(picture.size) > 100
    chart = ["ask", "demos/examples/chart-bars-21.png", "Find A + F."]
    for chosen in (["--mode", "interleaved"], ["--model", "chart-tiny"]):  # auto takes what the model learned
        shipped = CliRunner().invoke(app, [*chart, *chosen])
        assert shipped.exit_code == 0 and "of 64 visual tokens; 1 crop of the original brought in" in shipped.stdout


def test_models_without_a_grid_or_a_selector_are_refused(reasoner: Reasoner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no grid"):
        visual_grid(reasoner.perception.model, {}, 15)
    assert visual_grid(reasoner.perception.model, {}, 16) == (4, 4)
    with pytest.raises(ValueError, match="question is empty"):
        reasoner.solve(Image.new("RGB", (32, 32)), " ")
    with pytest.raises(ValueError, match="question must be text, got NoneType"):
        reasoner.solve(Image.new("RGB", (32, 32)), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is missing"):
        Reasoner.from_pretrained("models/aurora-tiny")


@pytest.mark.parametrize(
    ("family", "size", "count"),
    [("internvl", (32, 128), 16), ("idefics3", (64, 128), 36), ("llava_onevision", (32,) * 2, 36)],
)
def test_tiles_with_a_square_number_of_tokens_are_no_grid(family: str, size: tuple[int, int], count: int) -> None:
    model, processor = FAMILIES[family](False, 0)
    if family == "idefics3":
        processor.image_processor.size = {"longest_edge": 128}  # eight tiles and the whole
    vocabulary = PerceptionVocabulary(depth_codes=4, depth_grid=(2, 2), num_locations=6).extend(
        model, processor.tokenizer
    )
    layout = VisualLayout.of(model, vocabulary.interleave_id, processor.tokenizer)
    encoder = ChainEncoder(processor, vocabulary, layout, InterleaveSettings())
    inputs = encoder.inputs([ChainProblem(np.zeros((*size, 3), np.uint8), "Find x.", "")])
    assert int((inputs["input_ids"] == layout.image_id).sum()) == count
    with pytest.raises(ValueError, match=f"{count} visual tokens that form no grid .*crop_to_patches=False"):
        visual_grid(model, inputs, count)


def test_a_page_of_a_solution_without_steps(reasoner: Reasoner, figure: Image.Image) -> None:
    found = reasoner._read(figure, written(reasoner, [" nothing"]), [], [], (4, 4))
    assert draw_reasoning(found).size[0] > 100
    assert found.steps == ()
    settings = InterleaveSettings(trigger=GENERATED)
    assert isinstance(InterleavedGenerator(reasoner.model, settings).settings, InterleaveSettings)
    assert torch.is_tensor(reasoner.model.selector.embedding)
