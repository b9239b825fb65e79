"""The Token Replacement Test: it tells models that use their thoughts from models that do not."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_perception import build_perception
from typer.testing import CliRunner

from perception import cli
from perception.chains import encode_target
from perception.evaluation.ablation import ablate, commonest_share
from perception.evaluation.replacement import LATENT_REPLACEMENTS, Case, span_replacements
from perception.evaluation.scenes import scene_items
from perception.evaluation.span_ablation import _ids, answerer, draw_cases, sayer, scene_question
from perception.model.perception_model import Prompt
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span

VOCABULARY = PerceptionVocabulary(depth_codes=8, depth_grid=(2, 2), num_locations=100)
BOXES = Span("boxes", tuple(BoxTokenizer(100).encode([[0.1, 0.1, 0.3, 0.3], [0.6, 0.2, 0.7, 0.4]])))


def put(name, cases, modality="boxes", seed=0):
    return span_replacements(VOCABULARY, modality)[name].put(cases, np.random.default_rng(seed))


def boxes_of(span: Span) -> list[tuple[int, ...]]:
    return [span.codes[i : i + 4] for i in range(0, len(span.codes), 4)]


# What is put in


def test_one_box_is_added_removed_or_moved_and_the_others_stay():
    case = Case(None, 2, BOXES)
    own = boxes_of(BOXES)
    for seed in range(20):
        added, removed, moved = (
            boxes_of(put(f"box {how}", [case], seed=seed)[0]) for how in ("added", "removed", "moved")
        )
        assert (len(added), len(removed), len(moved)) == (3, 1, 2)
        assert set(own) < set(added) and set(removed) < set(own) and len(set(own) & set(moved)) == 1
        for (new,) in (set(added) - set(own), set(moved) - set(own)):
            x1, y1, x2, y2 = new
            sizes = {(box[2] - box[0], box[3] - box[1]) for box in own}
            assert any(abs(x2 - x1 - w) <= 1 and abs(y2 - y1 - h) <= 1 for w, h in sizes), "a box of the same size"
            assert all(x2 <= box[0] or box[2] <= x1 or y2 <= box[1] or box[3] <= y1 for box in own), "on free ground"


def test_without_boxes_one_can_be_added_and_none_be_removed_or_moved():
    empty = Case(None, 0, Span("boxes", ()))
    conditions = span_replacements(VOCABULARY, "boxes")
    assert [name for name, one in conditions.items() if not one.applies(empty)] == [
        "oracle",
        "box removed",
        "box moved",
    ]
    (added,) = put("box added", [empty])
    assert len(added.codes) == 4


def test_codes_are_shuffled_repeated_or_left_out():
    depth = Case(None, "A", Span("depth", (5, 1, 2, 3)))
    (shuffled,), (first,), (markers,), (nothing,) = (
        put(name, [depth], "depth") for name in ("shuffled", "first code", "markers only", "no span")
    )
    assert Counter(shuffled.codes) == Counter(depth.own.codes)
    assert first.codes == (5, 5, 5, 5) and markers == Span("depth", ()) and nothing is None
    assert boxes_of(put("first code", [Case(None, 2, BOXES)])[0]) == [BOXES.codes[:4]] * 2
    assert "box added" not in span_replacements(VOCABULARY, "depth")


def test_another_image_s_is_never_one_s_own():
    cases = [Case(None, n, Span("depth", (n,) * 4)) for n in range(5)]
    for seed in range(10):
        moved = put("other image", cases, "depth", seed)
        assert all(span != case.own for span, case in zip(moved, cases, strict=True))
        assert Counter(moved) == Counter(case.own for case in cases)
    with pytest.raises(ValueError, match="at least two questions, got 1"):
        put("other image", cases[:1], "depth")


# Any model


def latent_cases(count: int = 80) -> list[Case[torch.Tensor]]:
    """Two classes; the latents' first feature tells them apart, in five of six cases rightly."""
    rng = np.random.default_rng(0)
    cases = []
    for n in range(count):
        truth, seen = n % 2, n % 2 if n % 6 else 1 - n % 2
        noise = torch.from_numpy(rng.standard_normal((4, 3)) * 0.1).float()
        sign = torch.tensor([2.0 * seen - 1, 0, 0])
        cases.append(Case({"seen": seen}, truth, noise + sign, torch.ones(4, 3) * (2 * truth - 1)))
    return cases


def reads_latents(cases, thoughts):
    return [None if latents is None else int(latents[:, 0].mean() > 0) for latents in thoughts]


def ignores_latents(cases, thoughts):
    return [case.question["seen"] for case in cases]


def test_a_model_that_follows_its_latents_is_told_from_one_that_does_not():
    cases = latent_cases()
    uses = ablate(cases, reads_latents, LATENT_REPLACEMENTS, says=reads_latents)
    does_not = ablate(cases, ignores_latents, LATENT_REPLACEMENTS, says=reads_latents)
    own = uses["own"].accuracy.mean
    assert list(uses) == list(LATENT_REPLACEMENTS) and own == pytest.approx(0.825)
    assert uses["oracle"].accuracy.mean == 1 and uses["oracle"].below_own.mean == pytest.approx(own - 1)
    for name in ("other image", "random", "zero", "no span"):
        assert uses[name].below_own.low > 0.1, name
        assert abs(does_not[name].below_own.mean) < 1e-9 and does_not[name].accuracy.mean == pytest.approx(own), name
    assert all(c.follows is None or c.follows.mean == 1 for c in uses.values())
    assert does_not["random"].follows.high < 0.7
    assert uses["no span"].unanswered == 1 and uses["no span"].follows is None
    assert len(uses["random"].answers[0]) == 3 and len(uses["zero"].answers[0]) == 1, "random ones take three seeds"
    assert commonest_share(cases) == 0.5
    json.dumps(uses["oracle"].to_json())


def test_what_cannot_be_tested_is_refused():
    cases = latent_cases(4)
    with pytest.raises(ValueError, match="needs cases and seeds, got 0 cases"):
        ablate([], reads_latents, LATENT_REPLACEMENTS)
    with pytest.raises(ValueError, match='must hold "own"'):
        ablate(cases, reads_latents, {"zero": LATENT_REPLACEMENTS["zero"]})
    with pytest.raises(ValueError, match="answer must return one value per case, 4, got 1"):
        ablate(cases, lambda cases, thoughts: [0], LATENT_REPLACEMENTS)


# A PerceptionModel


def scripted(model, follows=True, draws=True):
    """Let a tiny model draw two boxes, or a map and say "A", and then count the boxes in its answer, or say "3"."""
    vocabulary, tokenizer = model.vocabulary, model.processor.tokenizer

    def generate_ids(prompts, read):
        rows = []
        for prompt in prompts:
            ids = list(prompt.forced)
            if not ids and draws:
                span = (
                    Span("boxes", (1, 1, 3, 3, 6, 6, 8, 8)) if prompt.kind == "count" else Span("depth", (1, 7, 3, 4))
                )
                ids = vocabulary.span_ids(span)
            count = sum(token in vocabulary.code_ids("boxes") for token in ids) // 4
            said = (f" {count if follows else 3}.") if prompt.kind == "count" else " A."
            rows.append(ids + encode_target(tokenizer, vocabulary, [said]))
        return rows

    model.generate_ids = generate_ids
    return model


@pytest.fixture(scope="module")
def model():
    return build_perception()


def test_replaced_maps_are_not_drawn_anew_and_markers_alone_are_read(model):
    items = [item for item in scene_items("standard", 2, 1) if item.group in ("count", "depth-3")]
    for item in items:
        question = scene_question(model, item)
        span = Span("boxes" if item.kind == "count" else "depth", ())
        case = Case(question, question.truth, span, question.oracle)
        for read in ("decoded", "model"):
            for put_in in (span, question.oracle, None):
                answerer(model, item.kind, read)([case], [put_in])
    for allow in ((), ("points",)):
        prompts = [
            Prompt(item.image, item.question, item.kind, tuple(_ids(model, Span("depth", ())))) for item in items
        ]
        for ids in model.under(replace(model.grammar, allow=allow)).generate_ids(prompts, 40, "model"):
            drawn = {s.modality for s in model.vocabulary.parse(ids[2:]) if isinstance(s, Span)}
            assert drawn <= set(allow)
    assert model.grammar.allow != (), "the model itself stays as it was"


def test_maps_say_their_nearest_point_and_nothing_where_two_are_as_near(model):
    (item,) = [item for item in scene_items("standard", 0, 1) if item.group == "depth-3"]
    question = scene_question(model, item)
    case = Case(question, question.truth, question.oracle, question.oracle)
    same = Case(
        question.__class__(**{**vars(question), "points_xy": np.tile(np.float32([[0.3, 0.3]]), (3, 1))}), "A", case.own
    )
    says = sayer(model, "depth")
    (letter, tied, nothing) = says([case, same, case], [case.own, case.own, None])
    assert letter in ("A", "B", "C") and tied is None and nothing is None
    assert sayer(model, "count")(
        [Case(scene_question(model, scene_items("standard", 1, 0)[0]), 2, BOXES)], [BOXES]
    ) == [2]


def test_what_the_model_drew_is_found(model):
    scripted_model = scripted(build_perception())
    questions = [scene_question(model, item) for item in scene_items("standard", 3, 0)]
    cases = draw_cases(scripted_model, questions, "model")
    assert [case.own.codes for case in cases] == [(1, 1, 3, 3, 6, 6, 8, 8)] * 3
    assert [case.truth for case in cases] == [question.truth for question in questions]
    assert draw_cases(scripted(build_perception(), draws=False), questions, "model") == []


# The command


@pytest.mark.parametrize("follows", [True, False])
def test_the_command_writes_results_and_a_page(follows, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_load", lambda *_: scripted(build_perception(), follows))
    args = ["ablate", "--questions", "6", "--seeds", "2", "--read", "model", "--out", str(tmp_path)]
    result = CliRunner().invoke(cli.app, args, catch_exceptions=False)
    assert result.exit_code == 0 and "box moved" in result.output
    found = json.loads((tmp_path / "scenes-model.json").read_text())
    assert (found["read"], found["seeds"], found["set"]) == ("model", [0, 1], "scenes")
    names = [f"{kind}, {style} style" for style in ("standard", "shifted") for kind in ("counting", "depth")]
    assert [test["name"] for test in found["tests"]] == names
    counting, depth = found["tests"][0]["conditions"], found["tests"][1]["conditions"]
    assert counting["own"]["accuracy"]["count"] == depth["own"]["accuracy"]["count"] == 6
    assert counting["oracle"]["accuracy"]["mean"] == 1 if follows else counting["oracle"]["below_own"]["mean"] == 0
    for name, said in (("box added", "3"), ("box removed", "1"), ("box moved", "2"), ("markers only", "0")):
        answers = [value for values in counting[name]["answers"].values() for value in values]
        assert set(map(str, answers)) == {said if follows else "3"}, name
        assert counting[name]["follows"]["mean"] == (1 if follows or said == "3" else 0), name
    assert len(counting["box added"]["answers"]["0"]) == 2 and "box added" not in depth
    page = (tmp_path / "scenes-model.html").read_text()
    assert page.count("<img ") == 2 * (12 + 9) and "The model read the maps itself" in page


def test_mistakes_of_the_command_are_one_line(tmp_path, monkeypatch, capsys):
    def said(model, *args: object) -> str:
        monkeypatch.setattr(cli, "_load", lambda *_: model)
        monkeypatch.setattr(sys, "argv", ["perception", "ablate", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert ended.value.code == 1 and captured.out == ""
        return captured.err.splitlines()[-1]

    blind = scripted(build_perception())
    blind.depth_tokenizer = None
    assert "unknown set 'coco'; known: scenes, blink-depth" in said(None, "coco")
    assert "hardblink needs --data" in said(None, "hardblink")
    assert "--data goes with a published set" in said(None, "--data", tmp_path)
    assert "no depth tokenizer" in said(blind)
    silent = scripted(build_perception(), draws=False)
    few = ("--questions", 2, "--seeds", 1, "--out", tmp_path)
    assert "drew boxes for 0 of 2 questions, so there is nothing to replace" in said(silent, "--kind", "count", *few)
    assert "drew a depth map for 0 of 2 questions" in said(silent, "--kind", "depth", *few)


def test_a_published_set_has_no_oracle(tmp_path, monkeypatch):
    rows = [
        {"question_id": n, "image": f"{n}.png", "text": "How many cars are there?", "category": "counting"}
        for n in range(4)
    ]
    answers = [{"question_id": n, "text": str(2 + n % 2), "category": "counting"} for n in range(4)]
    for name, lines in (("questions", rows), ("answers", answers)):
        (tmp_path / f"counting_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for n in range(4):
        Image.new("RGB", (40, 30), "teal").save(tmp_path / f"{n}.png")
    monkeypatch.setattr(cli, "_load", lambda *_: scripted(build_perception()))
    args = ["ablate", "blink-counting", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "1"]
    result = CliRunner().invoke(cli.app, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (test,) = json.loads((tmp_path / "out" / "blink-counting-decoded.json").read_text())["tests"]
    assert test["name"] == "counting, blink-counting" and "oracle" not in test["conditions"]
    assert test["conditions"]["own"]["accuracy"]["mean"] == 0.5 and test["conditions"]["own"]["follows"]["mean"] == 1
    assert test["conditions"]["box removed"]["answers"]["0"] == ["1"]
