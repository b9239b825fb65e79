"""A merged folder in transformers' own pipeline and server: what it draws arrives, and the client draws it."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import pipeline
from transformers.utils import import_utils

from perception.chains import prompt_for
from perception.model.perception_model import PerceptionModel
from perception.vocabulary.names import Span
from train.models.saving import save_perception_model

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "examples" / "own_questions" / "scene-01.png"
QUESTION = "How many cylinders are there?"
START_SECONDS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped tiny model, saved as fine-tuning saves a merged one."""
    out = tmp_path_factory.mktemp("served") / "model"
    tiny = PerceptionModel.from_pretrained(ROOT / "models" / "aurora-tiny")
    depth = ROOT / "models" / "aurora-tiny" / "depth_tokenizer"
    save_perception_model(tiny.model, tiny.processor, tiny.vocabulary, out, depth_tokenizer=depth)
    return out


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Span]:
    return list(PerceptionModel.from_pretrained(folder).ask(IMAGE, QUESTION, "chain").spans)


def test_transformers_pipeline_draws(folder: Path, expected: list[Span]) -> None:
    asked = [{"type": "image", "path": str(IMAGE)}, {"type": "text", "text": prompt_for(QUESTION, "chain")[0]}]
    ask = pipeline("image-text-to-text", model=str(folder))
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 60}
    (said,) = ask(
        text=[{"role": "user", "content": asked}],
        return_full_text=False,
        generate_kwargs=settings,
        skip_special_tokens=False,
    )
    model = PerceptionModel.from_pretrained(folder)
    parts = model.vocabulary.parse_text(said["generated_text"].removesuffix(model.processor.tokenizer.eos_token))
    assert [part for part in parts if isinstance(part, Span)] == expected


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    if not import_utils.is_serve_available():
        pytest.skip("transformers serve needs pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = "from transformers.cli.transformers import main; main()"
    words = [sys.executable, "-c", begin, "serve", str(folder), "--device", "cpu", "--port", str(port)]
    with subprocess.Popen(words, env=os.environ | {"HF_HUB_OFFLINE": "1"}) as running:
        url, end = f"http://localhost:{port}", time.monotonic() + START_SECONDS
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{url}/health").close()
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert running.poll() is None and time.monotonic() < end, "the server did not start"
                    time.sleep(0.2)
            yield url
        finally:
            running.terminate()


@pytest.mark.slow
def test_transformers_server_draws(
    server: str, folder: Path, expected: list[Span], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "serve_with_vllm.py"))["main"]
    words = [str(folder), str(IMAGE), QUESTION, "--url", server]
    assert main([*words, "--plain", "--draw", str(tmp_path / "drawn.png")]) == 0
    assert str(expected[0]) in capsys.readouterr().out
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width > drawn.height
    assert main(words) == 1
    assert "(422): Unexpected fields" in capsys.readouterr().err, "vLLM's settings are refused, and the reason is said"
