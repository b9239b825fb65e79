"""Questions in other words than those that small models are taught."""

from __future__ import annotations

import pytest
from PIL import Image

from perception import PerceptionModel
from perception.answers import letters_in
from perception.chains import Answer
from perception.datasets.plurals import plural
from perception.evaluation.published_scores import asker
from perception.evaluation.published_sets import OPTION, PublishedItem
from perception.model.perception_model import check_places
from perception.model.shipped import shipped
from perception.model.wording import taught_words

BLINK = (
    "Two points are circled on the image, labeled by A and B beside each circle. Which point is closer to the camera?\n"
    "Select from the following choices.\n(A) A is closer\n(B) B is closer"
)
THINGS = ("cat", "person", "wine glass", "dining table")


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("How many cats do you see?", "How many cats are there?"),
        ("what number of cats is visible in this photo", "How many cats are there?"),
        ("Please count all the cats.", "How many cats are there?"),
        ("How many people can be seen in the picture?", "How many people are there?"),
        ("What is the total number of dining tables?", "How many dining tables are there?"),
        ("How many cats are there?\nSelect from the following choices.\n(A) 3\n(B) 2", "How many cats are there?"),
        ("How many cats are there?", "How many cats are there?"),
        ("How  many\tcats are there ?", "How many cats are there?"),
        ("What is the number\nof cats?", "How many cats are there?"),
        ("How many cats does the image contain?", "How many cats are there?"),
        ("Look carefully at the picture and count the cats.", "How many cats are there?"),
        ("which is nearer, A or B", "Which point is closest to the camera, A or B?"),
        (BLINK, "Which point is closest to the camera, A or B?"),
        ("which is nearer, a or b?", "Which point is closest to the camera, A or B?"),
        ("Which point is closest to the camera, (a), (b) or (c)?", "Which point is closest to the camera, A, B or C?"),
        ("Which point is closer?\nA. a\nB. point b", "Which point is closest to the camera, A or B?"),
        ("Is point A or point B farther from the camera?", "Which point is farthest from the camera, A or B?"),
        ("Name the nearest point: A vs B", "Which point is closest to the camera, A or B?"),
        ("The image shows points A and B. Who is closer?", "Which point is closest to the camera, A or B?"),
        ("Which of the markers A, B, C is furthest away?", "Which point is farthest from the camera, A, B or C?"),
    ],
)
def test_what_says_no_more_is_put_in_the_taught_words(question: str, words: str) -> None:
    assert taught_words(question, THINGS) == words
    assert taught_words(words, THINGS) == words


@pytest.mark.parametrize(
    "question",
    [
        "How many cats are asleep?",
        "How many cats are on the right?",
        "How many cats and dogs are there?",
        "How many cats are there? Only count the black ones.",
        "How many different cats are there?",
        "In the kitchen, how many cats are there?",
        "How many cats are not visible?",
        "How many cats are short?",
        "How many cats does the dog contain?",
        "Is the number of cats greater than 3?",
        "How many unicorns are there?",
        "How many are there?",
        "Which of A and B is closer to the car?",
        "Which is closest, B or C?",
        "Which marker is closest?",
        "Which is closer, A or B, and which is farther?",
        "Which is closer to the red circle, A or B?",
        "Which point is closer to C, A or B?",
        "Which is nearest to B, A or C?",
        "Is A closer than B?",
        "Is A or B closer than C?",
        "Is A or B closer to the car?",
        "Which point is closest? (A) Point B (B) Point A",
        "Which point is closest, A, B or C?\na) C\nb) A\nc) B",
        "Which point is closer, 1 or 2?\n(A) point 1\n(B) point 2",
        "Which dot is closer to the camera? (A) the red dot (B) the white dot",
        "What colour is the cat?",
        "",
    ],
)
def test_what_says_more_or_other_things_is_not(question: str) -> None:
    assert taught_words(question, THINGS) is None


FOUR = "\nA. 1\nB. Two\nC. 3 cats\nD. more than 3"
"""Options in the layout of many published sets"""


@pytest.mark.parametrize(
    "question",
    [
        "Count the number of cats in the image.",
        "Count how many cats there are.",
        "How many cats are in the given image? Output only the number.",
        f"How many cats are in the image?{FOUR}\nAnswer with the option's letter from the given choices directly.",
        f"Question: How many cats?\nOptions:{FOUR}\nPlease select the correct answer from the options above. ",
        f"How many cats?{FOUR}\nPlease answer directly with only the letter of the correct option and nothing else.",
        "Based on the image, how many cats are there? (A) One (B) Two",
        "How many cats are there? a) One b) Two",
        "How many cats are there? Note that: answer with a number directly e.g. 3. Do not include any additional text.",
        "How many cats are there? Provide a short answer.",
        "How many cat are there?",
        "How many cat(s) are there?",
    ],
)
def test_instructions_and_options_of_published_sets_say_no_more(question: str) -> None:
    assert taught_words(question, THINGS) == "How many cats are there?"


def test_what_stands_around_the_options_may_say_more() -> None:
    assert taught_words(f"How many cats are there?{FOUR}\nCount the black ones only.", THINGS) is None
    assert taught_words(f"How many cats are asleep?{FOUR}", THINGS) is None
    assert taught_words("How many cats are above?", THINGS) is None


def test_things_are_asked_for_by_the_name_that_was_taught() -> None:
    model = PerceptionModel.from_pretrained(shipped("photo-tiny"))
    other_names = {
        "persons": "people",
        "person(s)": "people",
        "humans": "people",
        "bikes": "bicycles",
        "motorbikes": "motorcycles",
        "sofas": "couches",
        "automobiles": "cars",
        "stoplights": "traffic lights",
        "tennis racquets": "tennis rackets",
        "TVs": "tvs",
        "televisions": "tvs",
        "aeroplanes": "airplanes",
        "cellphones": "cell phones",
        "hotdogs": "hot dogs",
        "computer mice": "mice",
        "knife": "knives",
        "sheep": "sheep",
    }
    for name, taught in other_names.items():
        question, words = f"How many {name} are in the image?", f"How many {taught} are there?"
        assert model.put(question, "direct") == (words, "count") and model.strange(question) == ""
    for kind in model.taught_things:
        words = f"How many {plural(kind)} are there?"
        for name in (kind, plural(kind)):
            assert taught_words(f"How many {name} are there?", model.taught_things) == words
    for narrower in ("women", "pairs of skis", "train cars", "phone books"):
        assert taught_words(f"How many {narrower} are there?", model.taught_things) is None


def test_any_thing_may_be_counted_where_none_are_listed() -> None:
    assert taught_words("Count the red cubes, please!") == "How many red cubes are there?"
    assert taught_words("How many kinds of objects are there?") is None
    assert taught_words("How many pairs of cubes do you see?") is None
    assert taught_words("How many of the cubes are visible?") == "How many cubes are there?"
    assert taught_words("Which marker is closest?", points=3) == "Which point is closest to the camera, A, B or C?"
    assert taught_words("Which is closest, A or B?", points=3) == "Which point is closest to the camera, A or B?"


AURORA = "circled on the image, labeled by letters beside each circle. Which point is the closest to the camera?"
"""The end of what AURORA's models are asked on HardBLINK"""


@pytest.mark.parametrize("question", [f"Multiple points are {AURORA}", f"3 points are {AURORA}", "Closest point?"])
def test_points_that_are_in_the_image_alone_need_no_letters(question: str) -> None:
    assert taught_words(question, (), 3) == "Which point is closest to the camera, A, B or C?"


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Which point is closest?", "Which point is closest to the camera, A or B?"),
        ("closest?", "Which point is closest to the camera, A or B?"),
        ("Which point is closest to the dog?", "Which point is closest to the dog, A or B?"),
        ("Which point is NOT the closest?", "Which point is NOT the closest, A or B?"),
        ("Which is closest, a or b?", "Which is closest, a or b?"),
    ],
)
def test_points_given_to_a_question_do_not_change_what_it_asks(question: str, asked: str) -> None:
    assert check_places([(0.1, 0.2), (0.8, 0.9)], question)[1] == asked


@pytest.mark.parametrize("question", ["What colour is the nearest car?", "Where is the nearest exit?", "Is it a dog?"])
def test_points_go_with_questions_of_depth_alone(question: str) -> None:
    with pytest.raises(ValueError, match="points go with a question of depth"):
        check_places([(0.1, 0.2), (0.8, 0.9)], question)


def test_a_small_a_is_an_article_but_in_a_list_of_letters() -> None:
    assert letters_in("Is a dog or a cat closer?") == letters_in("Is it near, e.g. a car?") == set()
    assert letters_in("a or b") == {"A", "B"} and letters_in("is it (a), (c) or d?") == {"A", "C", "D"}


def test_drawings_of_what_was_not_taught_are_told() -> None:
    model = PerceptionModel.from_pretrained(shipped("photo-tiny"))
    for known in ("Draw the boxes of the cats.", "draw boxes of sofas", "Draw the depth map."):
        assert model.strange(known) == ""
    assert "none is called 'unicorn'" in model.strange("Draw the boxes of the unicorns.")
    assert model.strange("Draw the mask of the cat.") == "the model has no tokens for masks"


def test_an_answer_that_the_question_does_not_name_is_taken_back() -> None:
    model = PerceptionModel.from_pretrained(shipped("photo-tiny"))
    given = Answer("so B.", (), "B")
    assert model.judged(given, "Which point is closest, A or B?", "depth") == given
    judged = model.judged(given, "Which point is closest, A or C?", "depth")
    assert judged.value is None and "the answer was B, and the question is about A and C" in judged.warning
    assert model.strange("Which point is closest?", 3) == "" and "says more" in model.strange("Which point is closest?")


@pytest.mark.parametrize("question", ["What number of cats do you see?", "count the cats", "How many cats are shown?"])
def test_the_shipped_model_counts_a_cat_in_other_words(question: str) -> None:
    model = PerceptionModel.from_pretrained(shipped("photo-tiny"))
    answer = model.ask("demos/examples/photo-chelsea.jpg", question)
    assert answer.value == 1 and len(answer.spans) == 1
    assert model.put(question, "chain") == model.put("How many cats are there?", "auto")


def test_the_answer_warns_where_the_question_says_more() -> None:
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    picture = "demos/examples/scene-standard-70000008.png"
    plain, more = model.ask_many(picture, ["Count the objects.", "How many objects are behind the cone?"])
    assert (plain.value, plain.warning) == (3, "")
    assert "the question 'How many cubes are there?' alone, and this one says" in more.warning
    assert "A or B?" in model.ask(picture, "Which marker is closest?").warning
    model.taught = ()
    assert model.put("Count the objects.", "direct") == ("Count the objects.", "count")


def test_published_questions_are_put_in_the_taught_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    put: list[str] = []
    monkeypatch.setattr(model, "answer", lambda prompts, _: put.extend(p.question for p in prompts) or [])

    class Kept:
        def load(self) -> Image.Image:
            return Image.new("RGB", (80, 80))

    texts = {BLINK: ("A is closer", "B is closer"), "Which lettered point is nearest?": ("A", "B", "C")}
    items = [PublishedItem(str(n), "depth", Kept(), q, "A", OPTION, o) for n, (q, o) in enumerate(texts.items())]  # type: ignore[arg-type]
    asker(model, "direct", 8)(items)
    assert put == ["Which point is closest to the camera, A or B?", "Which point is closest to the camera, A, B or C?"]


def test_the_farthest_point_has_a_value_from_models_that_learned_it_alone() -> None:
    asked, points = "Which point is farthest?", [(0.2, 0.9), (0.6, 0.2)]
    scene = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    answer = scene.ask("demos/examples/scene-standard-70000008.png", asked, points=points)
    assert answer.value is None and answer.warning.endswith("alone, and this question asks for the farthest")
    photo = PerceptionModel.from_pretrained(shipped("photo-tiny"))
    answer = photo.ask("demos/examples/photo-chelsea.jpg", asked, points=[(0.58, 0.8), (0.9, 0.1)])
    assert answer.value == "B" and "farthest" not in answer.warning
    assert "count and depth alone" in photo.ask("demos/examples/photo-chelsea.jpg", "What colour is it?").warning
