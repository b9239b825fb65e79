"""The documented API, many visitors at once, and what is refused."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_server import Server
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from demos.guards import read_image
from demos.handlers import EXAMPLES, friendly_steps, scene_examples

gradio_client = pytest.importorskip("gradio_client")
VISITORS = 16


@pytest.fixture
def client(server: Any, tmp_path: Path) -> Any:
    return gradio_client.Client(server.url, verbose=False, download_files=str(tmp_path / "downloads"))


def file(path: Path) -> Any:
    return gradio_client.handle_file(str(path))


def test_counting_by_program(client: Any) -> None:
    picture, answer, direct = client.predict(
        file(scene_examples()[3]), "How many objects are there?", api_name="/count"
    )
    count, boxes = (int(word) for word in answer.replace("(boxes drawn:", "").replace(")", "").split())
    assert count == boxes > 0
    assert direct.isdigit()
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 100


@pytest.mark.parametrize("mode", ["I;16", "RGBA"])
def test_pictures_of_all_modes_are_read_as_everywhere_else(client: Any, tmp_path: Path, mode: str) -> None:
    grey = np.asarray(Image.open(scene_examples()[3]).convert("L"))
    path = tmp_path / "picture.png"
    if mode == "RGBA":
        clear = np.zeros((*grey.shape, 4), dtype=np.uint8)  # transparent throughout, so white and not black
        Image.fromarray(clear).save(path)
    else:
        Image.fromarray(grey.astype(np.uint16) * 200).save(path)
    picture, _, _ = client.predict(file(path), "How many objects are there?", api_name="/count")
    with Image.open(picture) as drawn:
        shown = np.asarray(drawn.convert("L").resize((64, 64)), dtype=float)
    expected = np.asarray(read_image(path).convert("L").resize((64, 64)), dtype=float)
    assert np.abs(shown - expected).mean() < 15


def test_an_answer_streams_box_by_box(client: Any) -> None:
    job = client.submit(file(scene_examples()[0]), "How many objects are there?", api_name="/count")
    job.result(timeout=120)
    failed = [step for step in job.outputs() if isinstance(step[0], Exception)]  # where a picture could not be fetched
    assert not failed, "the client puts what went wrong in an output's place"
    answers = [step[1] for step in job.outputs()]
    assert any(answer.startswith("drawing") for answer in answers)
    assert answers[-1][0].isdigit()


def test_an_unchanged_picture_is_not_written_over_the_one_that_is_being_fetched(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    steps = list(friendly_steps(lambda: iter([(picture, "looking .."), (picture, "1")]))())
    assert [words for _, words in steps] == ["looking ..", "1"]
    files = [save_pil_to_cache(drawn, str(tmp_path), format="png") for drawn, _ in steps]
    assert len(set(files)) == 2
    for path in files:
        with Image.open(path) as kept:
            assert kept.tobytes() == picture.tobytes()


def test_depth_by_program(client: Any) -> None:
    _, answer, direct = client.predict(file(scene_examples()[-1]), [[0.3, 0.3], [0.7, 0.75]], api_name="/depth")
    assert answer.startswith("B is closest")
    assert "closest" in direct or "could be read" in direct


def test_reasoning_by_program(client: Any) -> None:
    figure = sorted(EXAMPLES.glob("chart-*.png"))[0]
    words, answer = client.predict(file(figure), "Find A + F.", api_name="/reason")
    assert words.startswith("1. ")
    assert "looked at" in words
    assert answer


def test_tokenizer_by_program_is_its_own_inverse(client: Any) -> None:
    example = sorted(EXAMPLES.glob("depth-*.png"))[0]
    *_, codes, text, figures = client.predict(file(example), False, 100, api_name="/tokenize")
    assert len(np.ravel(codes["data"])) == 100
    assert figures["delta1"] > 0.9
    with Image.open(client.predict(text, api_name="/detokenize")) as drawn:
        assert min(drawn.size) > 100


def test_masks_by_program(client: Any) -> None:
    example = sorted(EXAMPLES.glob("mask-*.png"))[0]
    _, decoded, text, figures = client.predict(file(example), api_name="/tokenize_mask")
    assert text.startswith("<MASK_START>") and figures["IoU of the decoded mask"] > 0.9
    with Image.open(decoded) as drawn:
        assert min(drawn.size) > 100
    with pytest.raises(gradio_client.exceptions.AppError, match="choose a mask"):
        client.predict(None, api_name="/tokenize_mask")


def test_only_what_is_documented_can_be_called(client: Any) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)
    assert set(endpoints["named_endpoints"]) == {
        "/count",
        "/depth",
        "/reason",
        "/tokenize",
        "/token_budgets",
        "/detokenize",
        "/tokenize_mask",
    }
    assert endpoints["unnamed_endpoints"] == {}


def test_sixteen_visitors_at_once_get_their_own_answers_and_memory_comes_back(server: Any, tmp_path: Path) -> None:
    examples = scene_examples()
    alone = gradio_client.Client(server.url, verbose=False, download_files=str(tmp_path / "alone"))
    questions = ["How many objects are there?", "How many cubes are there?"]
    jobs = [(examples[n % len(examples)], questions[n // len(examples) % 2]) for n in range(VISITORS)]
    expected = [alone.predict(file(path), question, api_name="/count")[1:] for path, question in jobs]
    before = server.resident_mb()
    together = threading.Barrier(VISITORS)

    def visit(n: int) -> tuple[str, str]:
        own = gradio_client.Client(server.url, verbose=False, download_files=str(tmp_path / f"visitor-{n}"))
        together.wait(120)
        path, question = jobs[n]
        return tuple(own.predict(file(path), question, api_name="/count")[1:])  # type: ignore[return-value]

    with ThreadPoolExecutor(VISITORS) as pool:
        found = list(pool.map(visit, range(VISITORS)))
    assert found == [tuple(answer) for answer in expected]
    assert len(set(found)) > 2  # answers differ, so that a swapped one would be seen
    assert server.resident_mb() < before * 1.1


def test_questions_with_tokens_or_without_end_are_taken_safely(client: Any) -> None:
    image = file(scene_examples()[3])
    # Spelled out as plain text: no span of the visitor's own enters the chain.
    _, answer, _ = client.predict(image, "How many objects are there? <BOX_START><BOX_END>", api_name="/count")
    assert "boxes drawn" in answer
    for question in ("How many " + "very " * 2000 + "red cubes?", "", "Tell me a story"):
        with pytest.raises(gradio_client.exceptions.AppError):
            client.predict(image, question, api_name="/count")


@pytest.mark.parametrize("points", [[], [[0.5, 0.5]], [[0.5, 0.5], [0.51, 0.5]], [[2, 0.5], [0.1, 0.1]], "nonsense"])
def test_points_that_cannot_be_are_refused(client: Any, points: Any) -> None:
    with pytest.raises(gradio_client.exceptions.AppError, match="point"):
        client.predict(file(scene_examples()[0]), points, api_name="/depth")


def test_large_and_wrong_files_are_refused(client: Any, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (9000, 9000)).save(bomb)  # 81 megapixels in some kilobytes
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    heavy = tmp_path / "heavy.npy"
    np.save(heavy, np.ones((2400, 2400), dtype=np.float32))  # 23 MB
    for path, words in ((bomb, "megapixels"), (text, "no image"), (empty, "no image")):
        with pytest.raises(gradio_client.exceptions.AppError, match=words):
            client.predict(file(path), "How many objects are there?", api_name="/count")
    with pytest.raises(gradio_client.exceptions.AppError):
        client.predict(file(pickled), False, 100, api_name="/tokenize")
    with pytest.raises(Exception, match=r"413|size|large|exceed"):
        client.predict(file(heavy), False, 100, api_name="/tokenize")


def test_no_path_of_the_server_is_readable(server: Any, client: Any) -> None:
    for path in ("/etc/passwd", str(Path(__file__).resolve()), "../pyproject.toml"):
        for route in ("file=", "gradio_api/file=", "gradio_api/file/"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(server.url + route + urllib.parse.quote(path))
            assert refused.value.code in (403, 404, 405)
    own = {
        "path": str(Path(__file__).resolve().parents[2] / "docs" / "answer.png"),
        "meta": {"_type": "gradio.FileData"},
    }
    assert "event: error" in posted(server, "count", [own, "How many objects are there?"])


def posted(server: Any, endpoint: str, data: list[Any]) -> str:
    """What the server says to a bare request, which no client has made safe."""
    url, body = f"{server.url}gradio_api/call/{endpoint}", json.dumps({"data": data}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        event = json.load(reply)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}", timeout=120) as stream:
        return str(stream.read().decode())


def test_nothing_is_written_outside_its_folder_and_that_folder_goes(tmp_path: Path) -> None:
    alone = Server(tmp_path)
    try:
        alone.wait()
        caller = gradio_client.Client(alone.url, verbose=False, download_files=str(tmp_path / "downloads"))
        caller.predict(file(scene_examples()[0]), "How many objects are there?", api_name="/count")
        assert [path.name for path in tmp_path.glob("perception-demos-*")]
    finally:
        alone.process.terminate()
        alone.process.wait(30)
    # torch keeps a folder of its own there, empty of anything a visitor sent.
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")}
    assert left <= {"server.log", "downloads"}
