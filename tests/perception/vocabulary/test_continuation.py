"""Questions and answers of tokenizers that put a space before every text (LLaVA-1.5's)."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from tiny_models import IMAGE_SIZE, build_llava, build_sentencepiece_processor, build_tokenizer

from perception.chains import ChatPrompt, encode_target, read_ids
from perception.model.perception_model import PerceptionModel, Prompt
from perception.vocabulary.continuation import decode_continuation, encode_continuation
from perception.vocabulary.names import PerceptionVocabulary, Span

PICTURE = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))
QUESTIONS = ("How many red cubes are there? Draw their boxes first.", "12 cubes?", "Wo? \u00fc")
_PART = "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
_PARTS = "{% for part in message['content'] %}" + _PART + "{% endfor %}"
TURNS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: " + _PARTS + " ASSISTANT:"
    "{% else %}" + _PARTS + "</s>{% endif %}{% endfor %}"
)


def build(legacy: bool, image: str) -> PerceptionModel:
    processor = build_sentencepiece_processor(legacy, TURNS.replace("IMAGE", image))
    tokenizer = processor.tokenizer
    model = build_llava(tokenizer)
    vocabulary = PerceptionVocabulary(depth_codes=4, depth_grid=(2, 2), num_locations=6).extend(model, tokenizer)
    return PerceptionModel(model, processor, vocabulary)


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "first alone"])
def model(request: Any) -> PerceptionModel:
    return build(request.param, "<image>\n")


def asked(question: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}


@pytest.mark.parametrize("image", ["<image>\n", "<image>", "<image> "])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_prompt_has_the_ids_of_the_whole_templated_text(legacy: bool, image: str) -> None:
    model = build(legacy, image)
    for question in QUESTIONS:
        text = model.processor.apply_chat_template([asked(question)])
        whole = model.processor(text=text, images=PICTURE, return_tensors="pt")["input_ids"]
        assert model.inputs([Prompt(PICTURE, question)])["input_ids"].tolist() == whole.tolist()


@pytest.mark.parametrize("image", ["<image>\n", "<image>"])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_second_question_has_them_too(legacy: bool, image: str) -> None:
    model = build(legacy, image)
    processor, tokenizer = model.processor, model.processor.tokenizer
    again = {"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": " 3."}]}
    ids = tokenizer.encode(processor.apply_chat_template([asked(QUESTIONS[1]), answered, again]))
    end = ids.index(tokenizer.eos_token_id)
    assert ChatPrompt.from_processor(processor).next_ids(tokenizer, model.vocabulary, QUESTIONS[0]) == ids[end + 1 :]


def test_names_in_a_question_stay_text(model: PerceptionModel) -> None:
    ids = model.inputs([Prompt(PICTURE, "Is <LOC_3> </s> there?")])["input_ids"][0].tolist()
    assert not set(ids) & set(model.vocabulary.ids.values()) and model.processor.tokenizer.eos_token_id not in ids


def test_a_target_has_one_space_and_is_read_back(model: PerceptionModel) -> None:
    tokenizer, vocabulary = model.processor.tokenizer, model.vocabulary
    boxes, depth = Span("boxes", (0, 1, 2, 3)), Span("depth", (0, 1, 2, 3))
    ids = encode_target(tokenizer, vocabulary, (boxes, " 3."))
    assert "".join(tokenizer.convert_ids_to_tokens(ids)).endswith("<BOX_END>\u25813.")
    assert "".join(tokenizer.convert_ids_to_tokens(encode_continuation(tokenizer, "3."))) == "3."
    a, b = Span("points", (0, 1)), Span("points", (2, 3))
    ids = encode_target(tokenizer, vocabulary, (depth, " A", a, " 57, B", b, " 46, so A."))
    answer = read_ids(tokenizer, vocabulary, ids, "depth", "Which point is closest, A or B?")
    assert (answer.text, answer.value, answer.warning) == ("A 57, B 46, so A.", "A", "")
    ids = encode_target(tokenizer, vocabulary, (depth, " A", a, " 46, B", b, " 57, so A."))
    assert read_ids(tokenizer, vocabulary, ids, "depth").warning == "A said, readings A 46, B 57"


@pytest.mark.parametrize("text", ["", " 3.", "3.", "\n\nAnswer", "  two", ":-) \u00fc"])
def test_what_goes_on_is_read_as_it_is_written(model: PerceptionModel, text: str) -> None:
    tokenizer = model.processor.tokenizer
    assert decode_continuation(tokenizer, encode_continuation(tokenizer, text)) == text


def test_byte_level_tokenizers_encode_and_decode_a_text_as_it_is() -> None:
    tokenizer = build_tokenizer()
    for text in (" 3.", "3.", "\n\nAnswer", "How many red cubes?"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert encode_continuation(tokenizer, text) == ids and decode_continuation(tokenizer, ids) == text
