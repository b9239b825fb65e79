"""The command line on a tiny random model."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_perception import build_perception
from typer.testing import CliRunner

from perception import cli
from perception.chains import Answer
from perception.model.perception_model import PerceptionModel
from perception.vocabulary.names import PerceptionVocabulary

QUESTION = "How many red cubes are there?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("model")
    build_perception().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    Image.new("RGB", (64, 48), "red").save(path)
    return path


def run(*args: object) -> str:
    """Standard output of a call that goes well."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(monkeypatch, capsys, *args: object) -> str:
    """The one line that `main` prints for a mistake of the user's, with exit code 1."""
    monkeypatch.setattr(sys, "argv", ["perception", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 1 and captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("command", ["ask", "info", "evaluate"])
def test_every_command_has_help(command):
    assert command in run("--help")
    assert "--model" in run(command, "--help")


@pytest.mark.parametrize("mode", ["chain", "direct", "auto"])
def test_ask_answers(folder, picture, mode):
    lines = run("ask", picture, QUESTION, "--model", folder, "--mode", mode).splitlines()
    assert any(line.startswith("said:") for line in lines) and lines[-1]


def test_auto_says_what_it_chose(folder, picture):
    said = run("ask", picture, QUESTION, "-m", folder, "--mode", "auto")
    assert "auto chose to draw first" in said
    assert "auto chose to answer at once" in run("ask", picture, "What is this?", "-m", folder)
    assert "auto chose" not in run("ask", picture, QUESTION, "-m", folder, "--mode", "chain")


def test_ask_about_points_of_ones_own(folder, picture, tmp_path, monkeypatch, capsys):
    def ask(self, image, question, mode, points, **_):
        return Answer(f"{question} {points}", (), "A", "chain")

    monkeypatch.setattr(PerceptionModel, "ask", ask)
    words = ("ask", picture, "Which is closest?", "-m", folder, "--point", "0.2,0.9", "--point", "0.7,.4")
    assert "said: Which is closest? [(0.2, 0.9), (0.7, 0.4)]" in run(*words, "--draw", tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").exists()
    assert "--point takes X,Y, such as 0.2,0.9, got '3'" in error_of(
        monkeypatch, capsys, "ask", picture, QUESTION, "-m", folder, "--point", "3"
    )


def test_ask_says_that_the_number_and_the_boxes_differ(folder, picture, monkeypatch):
    from perception.model.perception_model import PerceptionModel

    monkeypatch.setattr(PerceptionModel, "ask", lambda *_, **__: Answer("3.", (), 3, "chain", "3 said, 2 boxes drawn"))
    assert "warning: 3 said, 2 boxes drawn" in run("ask", picture, QUESTION, "-m", folder)
    assert json.loads(run("ask", picture, QUESTION, "-m", folder, "--json"))["warning"] == "3 said, 2 boxes drawn"


def test_ask_as_json_is_json_alone_and_draws(folder, picture, tmp_path):
    drawn = tmp_path / "drawn.png"
    said = run("ask", picture, QUESTION, "-m", folder, "--json", "--draw", drawn)
    answer = json.loads(said)
    assert answer.keys() == {"answer", "text", "spans", "mode", "warning", "confidence"}
    assert all(span.keys() == {"modality", "codes"} for span in answer["spans"])
    with Image.open(drawn) as image:
        assert image.height == 240
    Image.new("RGB", (900, 600), "red").save(tmp_path / "photo.png")
    run("ask", tmp_path / "photo.png", QUESTION, "-m", folder, "--json", "--draw", drawn)
    with Image.open(drawn) as image:
        assert image.height == 480, "of a photograph more can be seen"


def test_device_precision_and_room_are_options(folder, picture, monkeypatch):
    loaded, load = [], PerceptionModel.from_pretrained.__func__

    def noted(cls, path, device="cpu", dtype=torch.float32):
        loaded.append((torch.device(device), dtype))
        return load(cls, path, device, dtype)

    monkeypatch.setattr(PerceptionModel, "from_pretrained", classmethod(noted))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    short = ("--device", "cpu", "--dtype", "bfloat16", "--max-new-tokens", 1)
    text = json.loads(run("ask", picture, "What is this?", "-m", folder, "--json", *short))["text"]
    whole = json.loads(run("ask", picture, "What is this?", "-m", folder, "--json"))["text"]
    assert len(text) < len(whole)
    run("evaluate", "-m", folder, "--num-count", 1, "--num-depth", 1, "--mode", "direct", *short)
    cpu = torch.device("cpu")
    assert loaded == [(cpu, torch.bfloat16), (cpu, torch.float32), (cpu, torch.bfloat16)]


def test_a_device_or_precision_that_is_not_there(folder, picture, monkeypatch, capsys):
    for command in (("ask", picture, QUESTION), ("evaluate",)):
        said = error_of(monkeypatch, capsys, *command, "-m", folder, "--device", "cuda:99")
        assert "device 'cuda:99' cannot be used here" in said
        said = error_of(monkeypatch, capsys, *command, "-m", folder, "--dtype", "half")
        assert "unknown dtype 'half'; known: float32, float16, bfloat16" in said


def test_info_describes_the_model(folder):
    said = run("info", "--model", folder)
    assert "LlavaForConditionalGeneration" in said and "8 on a grid of (2, 2)" in said and "10" in said


def test_info_says_nothing_of_tokens_that_a_model_has_not(folder, monkeypatch):
    model = build_perception()
    model.vocabulary = PerceptionVocabulary(naming="paligemma", modalities=("boxes",))
    monkeypatch.setattr(cli, "_load", lambda *_: model)
    said = run("info", "--model", folder)
    assert "location bins" in said and "depth codes" not in said


def test_evaluate_prints_every_group(folder):
    said = run("evaluate", "-m", folder, "--num-count", 2, "--num-depth", 1, "--mode", "direct", "--style", "shifted")
    assert all(name in said for name in ("count", "depth-2", "depth-3", "depth-4", "depth-5"))


def test_mistakes_are_one_line_and_exit_code_1(folder, picture, tmp_path, monkeypatch, capsys):
    text = tmp_path / "notes with a rather long name, so that the line would be wrapped at eighty columns.png"
    text.write_text("not an image")

    def said(*args: object) -> str:
        return error_of(monkeypatch, capsys, *args)

    assert "not an image" in said("ask", text, QUESTION, "-m", folder)
    assert "does not exist" in said("ask", tmp_path / "none.png", QUESTION, "-m", folder)
    assert "is an address; fetch the image" in said("ask", "https://a.org/b.png", QUESTION, "-m", folder)
    assert "question is empty" in said("ask", picture, " ", "-m", folder)
    assert "direct, auto, interleaved" in said("ask", picture, QUESTION, "-m", folder, "--mode", "fast")
    assert "is not a folder" in said("ask", picture, QUESTION, "-m", folder, "--draw", tmp_path / "no" / "a.png")
    assert "does not exist" in said("info", "-m", tmp_path / "nothing")
    assert "config.json" in said("info", "-m", tmp_path)
    assert "--model is empty" in said("info", "-m", "")  # as "$MODEL" gives where MODEL is not set
    assert "shifted" in said("evaluate", "-m", folder, "--style", "sepia", "--num-count", 1, "--num-depth", 1)


def test_options_that_would_be_ignored_are_refused(folder, tmp_path, monkeypatch, capsys):
    def said(*args: object) -> str:
        return error_of(monkeypatch, capsys, *args)

    assert "--out and --batch-size go with a set" in said("evaluate", "-m", folder, "--out", "out", "--batch-size", 16)
    table = tmp_path / "questions.csv"
    assert "--num-count goes with rendered scenes" in said("evaluate", "own", "--data", table, "--num-count", 200)
    assert "--steps goes with --diffusion" in said("detokenize", "codes.npy", "--out", tmp_path, "--steps", 4)


def test_a_long_thin_picture_is_drawn_at_a_size_that_files_can_have(tmp_path):
    image, drawn = tmp_path / "thin.png", tmp_path / "drawn.jpg"
    Image.new("RGB", (200, 1), "red").save(image)
    run("ask", image, "Which point is closest?", "--point", "0.1,0.5", "--point", "0.9,0.5", "--draw", drawn)
    with Image.open(drawn) as opened:
        assert opened.width < 16_384  # the limit of WebP


def test_a_process_of_its_own_says_the_error_and_ends_with_1(tmp_path):
    """As the shell sees it. The image is read before any model is, so a mistake costs no waiting."""
    image = tmp_path / "none.png"
    command = [sys.executable, "-m", "perception.cli", "ask", str(image), QUESTION]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr == f"error: {image} does not exist or is not a file; give the path of an image\n"


def test_version():
    assert run("--version").strip() == version("perception-tokens")


def test_export_tokenizer_writes_two_programs(tmp_path, monkeypatch, capsys):
    from vqvae import VQVAE, VQVAEConfig

    tokenizer, out = tmp_path / "tokenizer", tmp_path / "out"
    VQVAE(VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)).save_pretrained(
        tokenizer
    )
    said = run("export-tokenizer", "-t", tokenizer, "--out", out, "--format", "torch")
    assert said.startswith("encoder.pt2, decoder.pt2: ")
    assert sorted(path.name for path in out.iterdir()) == ["decoder.pt2", "encoder.pt2"]
    wrong = error_of(monkeypatch, capsys, "export-tokenizer", "-t", tokenizer, "-o", out, "--format", "x")
    assert wrong == "error: unknown form 'x'; known: onnx, torch"


def test_a_drawing_alone_is_no_failed_answer(tmp_path):
    said = run(
        "ask", "demos/examples/scene-standard-70000008.png", "Draw the depth map.", "--draw", tmp_path / "map.png"
    )
    assert "drew a depth map, codes: 100" in said and (tmp_path / "map.png").exists()
    assert "no answer" not in said and "auto chose" not in said and "said:" not in said


def test_points_are_drawn_on_images_of_any_size(tmp_path):
    for width, height in ((1, 1), (4, 400)):
        Image.new("RGB", (width, height), "blue").save(tmp_path / "small.png")
        points = ("--point", "0.3,0.2", "--point", "0.6,0.9")
        run("ask", tmp_path / "small.png", "Which point is closest?", *points, "--draw", tmp_path / "drawn.png")
        assert min(Image.open(tmp_path / "drawn.png").size) >= 16


@pytest.mark.parametrize("name", ["drawn.xyz", "drawn", "."])
def test_a_name_of_no_picture_is_refused_before_the_model_is_asked(picture, name, tmp_path, monkeypatch, capsys):
    said = error_of(monkeypatch, capsys, "ask", picture, QUESTION, "--model", "nowhere", "--draw", tmp_path / name)
    assert "is no name of a picture; end it in .png or .jpg" in said
