"""The example that asks a model served by vLLM, against a server that answers or refuses as vLLM does."""

from __future__ import annotations

import base64
import io
import json
import runpy
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_models import build_llava, build_tokenizer
from tiny_perception import build_depth_tokenizer, build_perception

from perception.chains import BOXES_FIRST
from perception.tokenizers.masks import MaskTokenizer
from perception.vocabulary.names import PerceptionVocabulary

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_with_vllm.py"
QUESTION = "How many cups are there?"
BOXES = "<BOX_START><LOC_1><LOC_1><LOC_8><LOC_8><BOX_END>"


class Server(HTTPServer):
    """Gives one reply to everything, and keeps what it was asked."""

    reply: tuple[int, str] = (200, "")
    asked: dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code, text = self.server.reply
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model = build_perception()
    model.depth_tokenizer = model.depth_tokenizer or build_depth_tokenizer()
    model.save_pretrained(path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """40 x 60 pixels as it is stored, 60 x 40 upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60), "teal").save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def answer(text: str | None, why: str = "stop") -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": why}]})


def run(server: Server, folder: Path, image: Path, *more: str, question: str = QUESTION) -> int:
    url = f"http://127.0.0.1:{server.server_port}"
    code: int = runpy.run_path(str(EXAMPLE))["main"]([str(folder), str(image), question, "--url", url, *more])
    return code


def test_boxes_and_maps_are_drawn(server: Server, folder: Path, photo: Path, tmp_path: Path, capsys: Any) -> None:
    server.reply = answer(f"{BOXES} so 1.")
    assert run(server, folder, photo, "--draw", str(tmp_path / "boxes.png"), "--max-new-tokens", "33") == 0
    assert "so 1." in capsys.readouterr().out
    sent = server.asked["messages"][0]["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(sent))).size == (60, 40), "the server sees the upright picture"
    assert server.asked["max_tokens"] == 33
    server.reply = answer("<DEPTH_START><DEPTH_0><DEPTH_1><DEPTH_7><DEPTH_7><DEPTH_END> so A.")
    assert (
        run(server, folder, photo, "--draw", str(tmp_path / "map.png"), question="Which point is closest, A or B?") == 0
    )
    with Image.open(tmp_path / "boxes.png") as boxes, Image.open(tmp_path / "map.png") as depth:
        assert boxes.size == depth.size == (2 * 360 + 6, 240), "the picture, and beside it what was drawn"
        assert len(boxes.getcolors(10**6)) > 2 and len(depth.crop((370, 0, 726, 240)).getcolors(10**6)) > 2


def test_masks_are_drawn_by_the_folder_s_tokenizer(server: Server, photo: Path, tmp_path: Path, capsys: Any) -> None:
    tokenizer, masks, folder = build_tokenizer(), MaskTokenizer.from_pretrained("masks-scenes-16"), tmp_path / "model"
    folder.mkdir()
    PerceptionVocabulary(mask_codes=128).extend(build_llava(tokenizer), tokenizer).save(folder)
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:35, 10:30] = True
    server.reply, words = answer(masks.to_text(masks.encode(mask))), ("--plain", "--draw", str(tmp_path / "mask.png"))
    assert run(server, folder, photo, *words) == 1
    assert "mask_tokenizer is no folder" in capsys.readouterr().err
    masks.vqvae.save_pretrained(folder / "mask_tokenizer")
    assert run(server, folder, photo, *words) == 0
    with Image.open(tmp_path / "mask.png") as drawn:
        teal, right = drawn.getpixel((120, 120)), 366
        assert drawn.size == (2 * 360 + 6, 240)
        assert drawn.getpixel((right + 120, 120)) != teal, "inside of the mask"
        assert drawn.getpixel((right + 300, 120)) == teal, "outside"


@pytest.mark.parametrize(
    ("code", "page", "said"),
    [
        (
            400,
            '{"object": "error", "message": "The model `x` does not exist."}',
            "(400): The model `x` does not exist.",
        ),
        (400, '{"error": {"message": "no such grammar\\nat line 2"}}', "(400): no such grammar at line 2"),
        (502, "<html>Bad Gateway</html>", "(502): <html>Bad Gateway</html>"),
        (404, "", "(404): Not Found"),
    ],
)
def test_why_a_server_refused(
    server: Server, folder: Path, photo: Path, capsys: Any, code: int, page: str, said: str
) -> None:
    server.reply = (code, page)
    assert run(server, folder, photo) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: http://127.0.0.1") and line.endswith(f"refused the request {said}")


def test_a_chain_is_asked_for_where_it_fits_the_question_and_the_vocabulary(
    server: Server, folder: Path, photo: Path, tmp_path: Path
) -> None:
    def asked(*args: Any, **more: str) -> str:
        server.reply = answer("so 1.")
        assert run(server, *args, **more) == 0
        return str(server.asked["messages"][0]["content"][1]["text"])

    assert asked(folder, photo) == f"{QUESTION} {BOXES_FIRST}"
    assert asked(folder, photo, question="What is this?") == "What is this?"
    tokenizer = build_tokenizer()
    PerceptionVocabulary(8, (2, 2), modalities=("depth",)).extend(build_llava(tokenizer), tokenizer).save(tmp_path)
    assert asked(tmp_path, photo, "--plain") == QUESTION


def test_no_server_no_answer_no_image(server: Server, folder: Path, photo: Path, tmp_path: Path, capsys: Any) -> None:
    def said(*args: Any, **more: str) -> str:
        assert run(*args, **more) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return str(line)

    server.reply = (200, "<html>hello</html>")
    assert "no answer of a server with OpenAI's interface" in said(server, folder, photo)
    server.reply = answer(BOXES[:30], "length")
    assert "cut off after 512 tokens; give more as --max-new-tokens" in said(server, folder, photo)
    assert "none.png does not exist" in said(server, folder, tmp_path / "none.png")
    for page in ("[]", '{"choices": ["yes"]}'):
        server.reply = (200, page)
        assert "no answer of a server with OpenAI's interface" in said(server, folder, photo)
    server.reply = answer(None)
    assert "an answer without text" in said(server, folder, photo)
    main = runpy.run_path(str(EXAMPLE))["main"]
    assert main([str(folder), str(photo), QUESTION, "--url", "http://127.0.0.1:9"]) == 1
    assert "start one with `vllm serve" in capsys.readouterr().err
