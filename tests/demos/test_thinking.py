"""What the tabs do without Gradio: thoughts that stream, thoughts that are edited, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from demos import counting, depth, tokenizing
from demos.guards import MAX_QUESTION, Refused, read_depth_map, read_image, read_question
from demos.handlers import EXAMPLES, scene_examples
from demos.pictures import nearness_so_far
from demos.thoughts import OpenSpan, last, rethink, think
from perception.model.perception_model import PerceptionModel, Prompt
from perception.model.shipped import shipped
from perception.tokenizers.depth import DepthTokenizer
from perception.tokenizers.masks import MaskTokenizer
from perception.vocabulary.names import Span

QUESTION = "How many objects are there?"
POINTS = [(0.3, 0.3), (0.7, 0.75)]


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return PerceptionModel.from_pretrained("models/aurora-tiny")


@pytest.fixture(scope="module")
def tokenizer(model: PerceptionModel) -> DepthTokenizer:
    return depth.depth_tokenizer(model)


def test_a_thought_grows_and_ends_as_the_plain_answer(model: PerceptionModel) -> None:
    image = read_image(scene_examples()[3])
    steps = list(think(model, image, QUESTION, "chain"))
    drawn = [len(step.span("boxes").codes) for step in steps if step.span("boxes") is not None]
    assert drawn == sorted(drawn)
    assert any(isinstance(step.span("boxes"), OpenSpan) for step in steps)
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    plain = model.ask(np.asarray(image), QUESTION, mode="chain")
    assert steps[-1].value == plain.value
    assert steps[-1].span("boxes") == plain.spans[0]


def test_the_same_span_again_gives_the_same_answer_and_another_one_another(model: PerceptionModel) -> None:
    end = last(think(model, read_image(scene_examples()[3]), QUESTION, "chain"))
    span = end.span("boxes")
    assert isinstance(span, Span)
    assert last(rethink(model, end, span)).value == end.value
    fewer = last(rethink(model, end, Span("boxes", span.codes[:-4])))
    assert fewer.value == end.value - 1
    assert fewer.span("boxes").codes == span.codes[:-4]


def test_the_caption_says_that_the_number_and_the_boxes_differ(
    model: PerceptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = last(think(model, read_image(scene_examples()[3]), QUESTION, "chain"))
    assert end.warning == "" and "agree" not in counting._view(model, end).answer
    drawn = len(end.span("boxes").codes) // 4
    ids = [
        *model.vocabulary.span_ids(end.span("boxes")),
        *model.vocabulary.encode_plain(model.processor.tokenizer, " 9."),
    ]
    monkeypatch.setattr(model, "stream_ids", lambda prompt: iter([ids]))
    other = counting._view(model, last(think(model, end.image, QUESTION, "chain")))
    assert other.answer == (
        f"9 (boxes drawn: {drawn}). 9 said, {drawn} boxes drawn. The model "
        "is unsure: it gives this answer a probability of 0 %"
    )


def test_the_depth_caption_says_that_the_letter_and_the_map_differ(
    model: PerceptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, end = depth.judge(model, str(scene_examples()[-1]), POINTS)
    assert end.thought.caution == "" and end.thought.confidence > 0.5
    monkeypatch.setattr(model, "confidence", lambda prompt, ids: 0.25)
    stream = model.stream_ids

    def other_letter(prompt: Prompt) -> Iterator[list[int]]:
        ids = list(stream(prompt))[-1]
        a, b = (model.vocabulary.encode_plain(model.processor.tokenizer, f" {letter}")[-1] for letter in "AB")
        place = max((n for n, token in enumerate(ids) if token == b), default=None)
        # Asked directly, the model may say A by itself.
        yield ids if place is None else [*ids[:place], a, *ids[place + 1 :]]

    monkeypatch.setattr(model, "stream_ids", other_letter)
    *_, other = depth.judge(model, str(scene_examples()[-1]), POINTS)
    assert other.answer.startswith("A is closest")
    said = r"A said, readings A \d+, B \d+\. The model is unsure: .* 25 %$"
    assert re.search(said, other.answer)


def test_an_unfinished_thought_cannot_be_edited(model: PerceptionModel) -> None:
    begun = next(think(model, read_image(scene_examples()[3]), QUESTION, "chain"))
    with pytest.raises(ValueError, match="still being written"):
        next(rethink(model, begun, Span("boxes", (1, 2, 3, 4))))


def test_what_a_model_cannot_draw_or_did_not_draw_is_refused_in_words(
    model: PerceptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    thought = replace(last(think(model, read_image(scene_examples()[3]), QUESTION, "direct")), parts=(" 3.",))
    with pytest.raises(Refused, match="drew no boxes"):
        next(counting.recount(model, thought, [[0.1, 0.1, 0.5, 0.5]]))
    without_boxes = replace(model.vocabulary, modalities=("depth", "points"), ids={})
    monkeypatch.setattr(model, "vocabulary", without_boxes)
    with pytest.raises(Refused, match="no tokens for boxes"):
        next(counting.count(model, str(scene_examples()[3]), QUESTION))


def test_boxes_are_added_in_any_order_of_corners_and_deleted_from_within() -> None:
    none = np.zeros((0, 4))
    one = counting.with_box(none, (0.6, 0.5), (0.2, 0.1))
    np.testing.assert_allclose(one, [[0.2, 0.1, 0.6, 0.5]])
    inner = counting.with_box(one, (0.3, 0.2), (0.4, 0.3))
    np.testing.assert_allclose(counting.without_box(inner, (0.35, 0.25)), one)
    with pytest.raises(Refused, match="same place"):
        counting.with_box(one, (0.5, 0.5), (0.5, 0.5))
    with pytest.raises(Refused, match="no box"):
        counting.without_box(one, (0.9, 0.9))


def test_dragged_boxes_replace_their_own_or_are_new() -> None:
    boxes = np.array([[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]])
    moved = counting.with_dragged(boxes, '{"index": 1, "box_xyxy": [0.6, 0.4, 1.2, 0.8], "at": 5}')
    np.testing.assert_allclose(moved, [boxes[0], [0.6, 0.4, 1, 0.8]])
    new = counting.with_dragged(boxes, '{"index": -1, "box_xyxy": [0, 0, 0.1, 0.1]}')
    np.testing.assert_allclose(new, [*boxes, [0, 0, 0.1, 0.1]])
    for bad in (
        "",
        "[]",
        "nonsense",
        '{"index": 2, "box_xyxy": [0, 0, 1, 1]}',
        '{"index": true, "box_xyxy": [0, 0, 1, 1]}',
        '{"index": 0, "box_xyxy": [0, 0, 1]}',
        '{"index": 0, "box_xyxy": [0, 0, 1, NaN]}',
        '{"index": 0, "box_xyxy": "wide"}',
        '{"index": 0, "box_xyxy": [0.5, 0.5, 0.5, 0.9]}',
    ):
        with pytest.raises(Refused, match="drag"):
            counting.with_dragged(boxes, bad)


def test_a_map_edited_around_a_point_makes_it_the_closest(model: PerceptionModel) -> None:
    *_, end = depth.judge(model, str(scene_examples()[-1]), POINTS)
    assert end.answer.startswith("B is closest")
    cell = depth.cell_at(model, POINTS[0])
    *_, edited = depth.rejudge(model, end.thought, cell, code=127, reach=1)
    assert edited.answer.startswith("A is closest") and "near to far: A (" in edited.answer
    assert depth.code_at(model, edited.thought, cell) == 127
    far = (cell[0] + 4, cell[1] + 4)
    assert depth.code_at(model, edited.thought, far) == depth.code_at(model, end.thought, far)


def test_more_tokens_of_a_nested_tokenizer_keep_more() -> None:
    nested = DepthTokenizer.from_pretrained(shipped("depth-scenes-100-nested"))
    path = str(sorted(EXAMPLES.glob("depth-*.png"))[0])
    found = tokenizing.compare_budgets(nested, path)
    assert [one.tokens for one in found] == list(tokenizing.budgets_of(nested)) == [4, 9, 16, 36, 64, 100]
    lost = [one.figures["abs_rel"] for one in found]
    assert lost[0] > 1.5 * lost[-1] and lost[-1] < 0.08
    whole = tokenizing.tokenize(nested, path, budget=100)
    assert whole.figures["abs_rel"] == lost[-1]


def test_a_map_fills_in_row_by_row(tokenizer: DepthTokenizer) -> None:
    empty = nearness_so_far(None, tokenizer)
    assert np.isnan(empty).all()
    half = nearness_so_far(OpenSpan("depth", (5,) * 50), tokenizer)
    assert np.isfinite(half[:40]).all()
    assert np.isnan(half[40:]).all()


@pytest.mark.parametrize(
    ("places", "words"),
    [([(0.1, 0.1)], "two points"), ([(0.1, 0.1), (0.12, 0.1)], "too close"), ([(0.1, 0.1), (1.2, 0.1)], r"\[0, 1\]")],
)
def test_points_that_cannot_be_asked_about(model: PerceptionModel, places: list, words: str) -> None:
    with pytest.raises(Refused, match=words):
        list(depth.judge(model, str(scene_examples()[0]), depth.checked_points(places)))


def test_true_depth_is_known_of_examples_alone(tmp_path: Path) -> None:
    assert depth.true_map(str(scene_examples()[0])) is not None
    for name in (
        "mine.png",
        f"my-{scene_examples()[0].name}",
        scene_examples()[0].name,
        f"scene-standard-{'9' * 20}.png",
    ):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        assert depth.true_map(str(tmp_path / name)) is None


def test_a_map_becomes_tokens_and_comes_back(tokenizer: DepthTokenizer) -> None:
    view = tokenizing.tokenize(tokenizer, str(sorted(EXAMPLES.glob("depth-*.png"))[0]))
    assert view.figures["delta1"] > 0.9
    assert tokenizer.from_text(view.text) == view.codes.ravel().tolist()
    assert tokenizing.detokenize(tokenizer, view.text).size == tokenizing.detokenize(tokenizer, f" {view.text}\n").size
    for text in ("", "<DEPTH_START><DEPTH_1>", "hello", "x" * 30_000):
        with pytest.raises(Refused):
            tokenizing.detokenize(tokenizer, text)


def test_a_mask_becomes_tokens_and_comes_back(tmp_path: Path) -> None:
    tokenizer = MaskTokenizer.from_pretrained(shipped("masks-scenes-16"))
    examples = sorted(EXAMPLES.glob("mask-*.png"))
    assert len(examples) == 2
    for path in examples:
        view = tokenizing.tokenize_mask(tokenizer, str(path))
        assert view.figures["IoU of the decoded mask"] > 0.9 > view.figures["IoU of its box alone"] > 0.3
        assert tokenizer.num_codes == len(tokenizer.from_text(view.text)) == 4 + view.figures["codes of the mask"]
        assert view.original.size == view.decoded.size and view.original.tobytes() != view.decoded.tobytes()
    ones = np.zeros((60, 80), dtype=np.uint8)
    ones[10:40, 20:60] = 1  # as data sets write masks: 0 and 1
    Image.fromarray(ones).save(tmp_path / "ones.png")
    view = tokenizing.tokenize_mask(tokenizer, str(tmp_path / "ones.png"))
    assert view.figures["IoU of its box alone"] == 1 and view.text.startswith("<MASK_START><LOC_")
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    for upload, words in ((None, "choose a mask"), (str(tmp_path / "black.png"), "the picture is black")):
        with pytest.raises(Refused, match=words):
            tokenizing.tokenize_mask(tokenizer, upload)


def test_uploads_that_are_refused(tmp_path: Path) -> None:
    whole = scene_examples()[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("1", (8000, 6000)).save(tmp_path / "huge.png")
    (tmp_path / "heavy.png").write_bytes(bytes(21 * 2**20))
    for name, words in (("cut", "damaged"), ("huge", "megapixels"), ("heavy", "20 MB")):
        with pytest.raises(Refused, match=words):
            read_image(tmp_path / f"{name}.png")
    with pytest.raises(Refused, match="no image"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(Refused, match="gone"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(Refused, match="choose"):
        read_image(None)


def test_depth_maps_that_are_refused_and_inverse_ones(tmp_path: Path) -> None:
    values = np.linspace(1, 5, 48, dtype=np.float32).reshape(6, 8)
    np.save(tmp_path / "map.npy", values)
    depth_map = read_depth_map(tmp_path / "map.npy", inverse=False)
    np.testing.assert_allclose(1 / read_depth_map(tmp_path / "map.npy", inverse=True), depth_map, rtol=1e-6)
    cases = {
        "objects.npy": np.array([{"a": 1}], dtype=object),
        "flat.npy": np.ones(5),
        "empty.npy": np.zeros((0, 4)),
        "holes.npy": np.full((4, 4), np.nan),
    }
    for name, array in cases.items():
        np.save(tmp_path / name, array, allow_pickle=True)
        with pytest.raises(Refused):
            read_depth_map(tmp_path / name, inverse=False)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "map.npy").read_bytes()[:100])
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")
    for name in ("cut.npy", "colour.png", "map.txt"):
        (tmp_path / "map.txt").write_text("1 2")
        with pytest.raises(Refused):
            read_depth_map(tmp_path / name, inverse=False)


def test_questions() -> None:
    assert read_question("  How many? ") == "How many?"
    for text in (None, "", "x" * (MAX_QUESTION + 1)):
        with pytest.raises(Refused):
            read_question(text)
