"""Conversations in every family of models: several images, turns, a system turn, text alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES, IM_CHAT, save_family
from tiny_models import build_llava, build_sentencepiece_processor

from perception import chains
from perception.chains import IMAGE, ChatPrompt, Example
from perception.datasets.images import ImageFile
from perception.datasets.records import Record, RecordSet
from perception.model.folder import read_model, read_processor
from perception.model.image_inputs import accepted_inputs
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.data.conversations import ConversationPrompt
from train.data.records import check_conversations
from train.data.rows import Row, RowEncoder, TokenWeights
from train.models.losses import row_losses, target_logits

SETTINGS = PerceptionVocabulary(depth_codes=8, depth_grid=(2, 2), num_locations=10)
IM = (IM_CHAT["user"], IM_CHAT["after"])
IDEFICS = ("<image>", "<|im_start|>", "User:", "<end_of_utterance>\nAssistant:")
QWEN = ("<|vision_start|><|image_pad|><|vision_end|>", "", *IM)
STYLES = {
    "llava": ("<image>\n", "", "USER: ", " ASSISTANT:"),
    "llava_onevision": ("<image>\n", "", *IM),
    "qwen2_vl": QWEN, "qwen2_5_vl": QWEN, "qwen3_vl": QWEN, "smolvlm": IDEFICS, "idefics3": IDEFICS,
    "internvl": ("<IMG_CONTEXT>\n", "", *IM),
    "gemma3": ("<start_of_image>", "{{ bos_token }}", "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
}  # fmt: skip
"""How a family writes an image, its beginning, and what stands before and after a question"""
BOXES = Span("boxes", (1, 2, 3, 4))
DIRECT = chains.direct(chains.DIRECT_COUNT, "How many <LOC_3><image> are there?", "0")
FIRST = Example(chains.DIRECT_OTHER, f"One {IMAGE} two {IMAGE} <image> which?", (" Two.",), "Two.")
SECOND = Example(chains.ATOMIC_BOXES, "Draw it.", (BOXES,), "")


def template(family: str) -> str:
    """A template that knows roles: a question ends where the answer is to begin."""
    image, begin, user, after = STYLES[family]
    part = f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    parts = f"{{% for part in message['content'] %}}{part}{{% endfor %}}"
    by_role = (
        f"{{% if message['role'] == 'user' %}}{user}{parts}{after}{{% elif message['role'] == 'system' %}}SYSTEM: "
    )
    by_role += f"{parts}\n{{% else %}}{{{{ ' ' }}}}{parts}{{{{ eos }}}}{{% endif %}}"
    return f"{begin}{{% for message in messages %}}{by_role}{{% endfor %}}"


def picture(number: int) -> Image.Image:
    size = ((40, 72), (64, 33))[number % 2]
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=STYLES)
def made(request: Any, tmp_path_factory: Any) -> SimpleNamespace:
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
    folder = save_family(request.param, tmp_path_factory.mktemp("family") / "base")
    processor, model = read_processor(folder), read_model(folder, torch.float32)
    processor.chat_template = template(request.param).replace("{{ eos }}", processor.tokenizer.eos_token)
    vocabulary = SETTINGS.extend(model, processor.tokenizer)
    prompt, accepted = ChatPrompt.from_processor(processor), accepted_inputs(model)
    encoder = RowEncoder(vocabulary, processor, prompt, TokenWeights(), accepted)
    return SimpleNamespace(family=request.param, model=model.eval(), encoder=encoder, vocabulary=vocabulary)


def learned(batch: dict[str, torch.Tensor], row: int = 0) -> list[int]:
    return [label for label in batch["labels"][row].tolist() if label >= 0]


def test_a_conversation_of_one_image_is_the_row_that_others_are(made: SimpleNamespace) -> None:
    (plain,) = made.encoder.batches([Row(picture(0), DIRECT, more=(SECOND,))], 1)
    asked = Example(DIRECT.task, f"{IMAGE}{DIRECT.question}", DIRECT.target, DIRECT.answer)
    (whole,) = made.encoder.batches([Row(None, asked, more=(SECOND,), images=(picture(0),))], 1)
    assert plain.keys() == whole.keys()
    assert all(torch.equal(plain[name], whole[name]) for name in plain)


def test_turns_and_images_stand_where_the_template_puts_them(made: SimpleNamespace) -> None:
    vocabulary, tokenizer = made.vocabulary, made.encoder.processor.tokenizer
    row = Row(None, FIRST, more=(SECOND,), images=(picture(0), picture(1)), system="Be brief <LOC_3>.")
    (batch,) = made.encoder.batches([row], 1)
    ids = batch["input_ids"][0].tolist()
    answers = [*vocabulary.encode_plain(tokenizer, " Two."), tokenizer.eos_token_id]
    answers += [*vocabulary.span_ids(BOXES), tokenizer.eos_token_id]
    assert learned(batch) == answers
    typed = [
        part for text in ("Be brief <LOC_3>.", " <image> which?") for part in vocabulary.encode_plain(tokenizer, text)
    ]
    assert set(vocabulary.span_ids(BOXES)) >= set(ids) & set(vocabulary.ids.values())  # what users type is letters
    said, places = tokenizer.decode(ids), []
    for text in ("Be brief <LOC_3>.", "One ", " two ", " <image> which?", " Two.", "Draw it."):
        places.append(said.find(text, places[-1] if places else 0))
    assert -1 not in places and places == sorted(places) and len(typed) > 2
    one, two = (made.encoder.batches([Row(picture(n), DIRECT)], 1)[0]["input_ids"][0].tolist() for n in (0, 1))
    token = max(set(one) & set(two), key=one.count)  # that of an image's patches
    assert ids.count(token) == one.count(token) + two.count(token)
    assert ids.index(token) < next(n for n, label in enumerate(batch["labels"][0].tolist()) if label >= 0)


def test_rows_with_any_number_of_images_are_trained_together(made: SimpleNamespace) -> None:
    rows = [
        Row(None, FIRST, more=(SECOND,), images=(picture(0), picture(1))),
        Row(picture(2), DIRECT),
        Row(
            None,
            Example(chains.DIRECT_OTHER, "What is a cone?", (" A body.",), "A body."),
            images=(),
            system="Be brief.",
        ),
    ]
    losses = []
    with torch.no_grad():
        for row in rows:
            losses.append(row_losses(*target_logits(made.model, made.encoder.batches([row], 1)[0])).sum())
        (batch,) = made.encoder.batches(rows, 1)
        together = row_losses(*target_logits(made.model, batch))
    order = [chains.TASKS.index(row.example.task) for row in rows]
    assert sorted(batch["task"].tolist()) == sorted(order)
    torch.testing.assert_close(together.sort().values, torch.stack(losses).sort().values, rtol=1e-3, atol=1e-4)


def test_conversations_that_a_template_refuses_are_named(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    file = ImageFile(tmp_path / "a.png")
    one = Record(file, DIRECT, "row 0")
    many = Record(file, FIRST, "row 1", images=(file, file))
    two = Record(file, DIRECT, "row 2", more=(SECOND,))
    ruled = Record(file, FIRST, "row 3", images=(file, file), system="Be brief.")
    base = save_family("llava", tmp_path / "base")
    processor = read_processor(base)
    processor.chat_template = template("llava").replace(
        "SYSTEM: ", "{{ raise_exception('System role not supported') }}"
    )
    vocabulary = SETTINGS.extend(read_model(base, torch.float32), processor.tokenizer)
    found = RecordSet((one, many, two, ruled))
    with pytest.raises(
        ValueError, match=r"^row 3: the base's chat template .* \(System role not supported\); take another"
    ):
        check_conversations(found, processor, vocabulary, skip_bad=False)
    kept = check_conversations(found, processor, vocabulary, skip_bad=True)
    assert kept.records == (one, many, two) and kept.skipped[0].startswith("row 3: ")
    assert "paligemma" not in STYLES and set(STYLES) | {"paligemma"} == set(FAMILIES)
    base = save_family("paligemma", tmp_path / "paligemma")
    processor = read_processor(base)
    vocabulary = SETTINGS.extend(read_model(base, torch.float32), processor.tokenizer)
    kept = check_conversations(found, processor, vocabulary, skip_bad=True)
    assert kept.records == (one,) and [line[:6] for line in kept.skipped] == ["row 1:", "row 2:", "row 3:"]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("image", ["<image>\n", "<image>"])
@pytest.mark.parametrize("images", [0, 1])
def test_sentencepiece_s_conversations_have_the_ids_of_the_whole_text(legacy: bool, image: str, images: int) -> None:
    processor = build_sentencepiece_processor(legacy, template("llava").replace("<image>\n", image))
    tokenizer = processor.tokenizer
    processor.chat_template = processor.chat_template.replace("{{ eos }}", tokenizer.eos_token)
    vocabulary = SETTINGS.extend(build_llava(tokenizer), tokenizer)
    shown = [picture(0)] * images
    questions = [f"{IMAGE * images}How many red cubes are there?", "12 cubes?", "Wo? \u00fc"]
    answers = ["3.", "Two of them.", "So A."]
    turns, _ = ConversationPrompt(processor, vocabulary).encode("Be brief.", questions, shown)
    ids = []
    for turn, answer in zip(turns, answers, strict=True):
        ids += [*turn.ids, *vocabulary.encode_plain(tokenizer, f" {answer}"), tokenizer.eos_token_id]

    def said(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
        return {"role": role, "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}

    messages = [said("system", "Be brief.")]
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        messages += [said("user", question.replace(IMAGE, ""), 0 if number else images), said("assistant", answer)]
    text = processor.apply_chat_template(messages)
    assert ids == processor(text=text, images=shown or None, return_tensors="pt")["input_ids"][0].tolist()
