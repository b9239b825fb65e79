"""Answers are read for what was asked, whatever else a text counts or names."""

from __future__ import annotations

import pytest

from perception.answers import (
    announcements,
    final_answer,
    read_answer,
    read_count,
    read_letter,
    read_number,
    read_option,
    same_answer,
)

THINGS, POINTS = "Which is closer, the cup or the spoon?", "Which point is closest, A or B?"
CATS, PEOPLE, RED_CARS = "How many cats are there?", "How many people are there?", "How many cars are red?"
CARS, TRUCKS, CUBES = "How many cars are there?", "How many trucks do you see?", "How many red cubes are in the image?"

BUSES, KINDS = "How many buses are there?", "How many kinds of fruit are there?"


@pytest.mark.parametrize(
    ("text", "question", "count"),
    [
        ("There are 3 cars and no trucks", CARS, 3),
        ("There are 3 cars and no trucks", TRUCKS, 0),
        ("There are 3 cars and no trucks", "How many vehicles are there?", 3),
        ("no trucks but 3 cars", CARS, 3),
        ("no trucks but 3 cars", TRUCKS, 0),
        ("Cars: 3, trucks: 0", CARS, 3),
        ("Cars (3) and trucks (1)", TRUCKS, 1),
        ("The number of cars is 3 and the number of trucks is 0.", CARS, 3),
        ("There are 3 cars. There aren't any trucks.", TRUCKS, 0),
        ("There is not a single truck, only 3 cars", CARS, 3),
        ("3 cars and 2 trucks, 5 in total", "How many vehicles are there?", 5),
        ("3 cars and 2 trucks, 5 in total", CARS, 3),
        ("There are 3 cars and 1.5 m of road in the 2nd picture", CARS, 3),
        ("There are 3 cars, the red one is in front.", CARS, 3),
        ("I see 2 cars. Wait, there are 3 cars.", CARS, 3),
        ("No, there are 3 cars", CARS, 3),
        ("no fewer than 3 cars", CARS, 3),
        ("two red cubes and a ball", CUBES, 2),
        ("two red cubes and a ball", "How many balls are there?", 1),
        ("two red cubes and a ball", "How many objects are there?", 3),
        ("There are 3 red cubes and 2 blue cubes.", "How many cubes are there?", 5),
        ("There are 5 cubes: 3 red cubes and 2 blue cubes.", "How many cubes are there?", 5),
        ("4 green balls and 1 red cube", "Count the red cubes.", 1),
        ("Of the 7 objects, 3 are red cubes.", "How many objects are there?", 7),
        ("3 people and 1 dog", "How many people are there?", 3),
        ("one person and two dogs", "How many people are there?", 1),
        ("3 boxes, 2 buses", "How many buses are there?", 2),
        ("nobody", "How many people are there?", 0),
        ("a lot of cars", CARS, None),
        (" 4.", f"{CUBES} Draw their boxes first.", 4),
        ("I count 3 on the left and 2 on the right, so 5.", CARS, 5),
        # a number for all of them, and numbers of some of them
        ("In total there are 3 cats: 2 cats on the left and 1 cat on the right.", CATS, 3),
        ("There are 3 cats. 2 cats are sleeping.", CATS, 3),
        ("There are 3 cats on the sofa. 2 cats are sleeping.", CATS, 3),
        ("There are 4 people. One person is sitting.", PEOPLE, 4),
        ("There are two cats. One is sleeping and one is awake.", CATS, 2),
        ("There are 3 cats on the sofa, 2 of them are black.", CATS, 3),
        ("There are 3 cats, 2 of which are black.", CATS, 3),
        ("The number of cats is 3. 2 cats are sleeping.", CATS, 3),
        ("3 cats are visible in the image.", CATS, 3),
        # parts of one sentence are added
        ("There are 2 cats on the left and 3 cats on the right.", CATS, 5),
        ("There are 2 cats on the left and 3 on the right.", CATS, 5),
        ("2 cats on the left, a dog, and 3 cats on the right.", CATS, 5),
        ("Cats: 2 on the left, 3 on the right.", CATS, 5),
        ("I see 2 cats on the sofa. Wait, there are 3 cats on the sofa.", CATS, 3),
        # the question itself asks for some of them
        ("2 of the 5 cars are red.", RED_CARS, 2),
        ("2 of the 5 cars are red.", CARS, 5),
        ("2 of the 5 cars are red.", "How many red cars are there?", 2),
        ("None of the 5 cars are red.", RED_CARS, 0),
        ("Of the 5 cars, 2 are red.", RED_CARS, 2),
        ("There are 5 cars. 2 are red.", RED_CARS, 2),
        ("There are 5 cars. 2 are red.", CARS, 5),
        ("There are 2 cats on the left and 3 cats on the right.", "How many cats are on the left?", 2),
        ("There are 5 cats. 2 cats are in the box.", "How many cats are in the image?", 5),
        ("There are 5 people. 3 people wear hats.", "How many people are wearing hats?", 3),
        ("1 000 cars", CARS, 1000),
        # a number without a noun behind it is no part: labels of places, routes and players, ages and times
        ("There are 4 cars in lane 2.", CARS, 4),
        ("Cars 3, trucks 0", CARS, 3),
        ("Trucks 2, cars 5 and buses 7.", CARS, 5),
        ("3 cars in lane 1 and 2 cars in lane 2.", CARS, 5),
        ("3 cars in lane 1 and 2 in lane 2.", CARS, 5),
        ("**4** cars in lane **2**", CARS, 4),
        ("There are 4 vehicles in lane 2.", CARS, 4),
        ("There are no cars in lane 2.", CARS, 0),
        ("3 cars in image 1", CARS, 3),
        ("In image 1 there are 3 cars.", CARS, 3),
        ("There are two people standing on platform 9.", PEOPLE, 2),
        ("There are two on platform 9.", PEOPLE, 2),
        ("4 people are at table number 5.", PEOPLE, 4),
        ("There are 3 buses on route 45.", BUSES, 3),
        ("There are 3 buses on route-45.", BUSES, 3),
        ("There are 3 buses: 45, 46 and 47.", BUSES, 3),
        ("There are 3 buses (45, 46, 47).", BUSES, 3),
        ("There are 7 books on shelf 2.", "How many books are there?", 7),
        ("There are 4 players wearing number 10.", "How many players are there?", 4),
        ("3 clocks on the wall showing 10:10", "How many clocks are there?", 3),
        ("3 dials on the wall showing 10:10", "How many clocks are there?", 3),
        ("3 women aged 20 to 30", "How many women are there?", 3),
        ("3 ladies aged 20 to 30", "How many women are there?", 3),
        ("There are 20 to 30 people.", PEOPLE, 30),
        # a label in front names the thing
        ("Cars:\n3", CARS, 3),
        ("**Cars:** 3", CARS, 3),
        ("cars = 3 and trucks = 1", CARS, 3),
        ("| cars | 3 | trucks | 2 |", CARS, 3),
        ("1. Cars: 3\n2. Trucks: 2", TRUCKS, 2),
        ("The number of cars in lane 2 is 3.", CARS, 3),
        # numbers that are denied
        ("4 cars, not 3 cars", CARS, 4),
        ("4 cars instead of 3 cars", CARS, 4),
        ("4, not 3", CARS, 4),
        ("There is not one car, but two", CARS, 2),
        ("There aren't 3 cars, there are 4.", CARS, 4),
        ("not only 3 cars but 2 trucks", CARS, 3),
        ("The answer is not 3.", CARS, None),
        # parts in places that a last word leaves open
        ("There is 1 person in front and 2 people behind.", PEOPLE, 3),
        ("There are 3 people inside and 2 outside.", PEOPLE, 5),
        ("There are 2 people in front of a bus and 3 people behind it.", PEOPLE, 5),
        ("There are 3 birds on one branch and 2 birds on another.", "How many birds are there?", 5),
        ("There are 3 birds on a branch and 2 birds on a fence.", "How many birds are there?", 5),
        ("There are 3 apples in one bowl.", "How many apples are there?", 3),
        ("There are 5 people in 2 boats and 3 people on the shore.", PEOPLE, 8),
        # kinds of things
        ("There are 3 kinds of fruit on shelf 2.", KINDS, 3),
        ("There are 3 kinds of fruit: 4 apples, 2 pears and 1 melon.", KINDS, 3),
        ("two red cubes and a ball in lane 2", "How many objects are there?", 3),
        # totals
        ("Left: 2 cars. Right: 3 cars. Total: 5", CARS, 5),
        ("- a black car\n- a white car\nIn total: 2", CARS, 2),
        ("3 cars and 2 trucks. Total: 5", CARS, 3),
        ("Cars: 2. Total vehicles: 5", CARS, 2),
        ("1 black car and 2 white cars. Total: 3", "How many black cars are there?", 1),
        ("2 cars on the left, 3 cars on the right. Total: 5", "How many cars are on the left?", 2),
        # none
        ("I don't see any cars in the image.", CARS, 0),
        ("There don\u2019t appear to be any cars.", CARS, 0),
        ("The image does not show any trucks, only 3 cars.", CARS, 3),
        ("I don't see any more than 3 cars.", CARS, 3),
        ("I can't see any image.", CARS, None),
    ],
)
def test_the_count_of_the_thing_that_is_asked_for(text, question, count):
    assert read_count(text, question) == count == read_answer(text, "count", question)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("a dozen eggs", 12),
        ("half a dozen", 6),
        ("two dozen", 24),
        ("a couple of cups", 2),
        ("twenty three", 23),
        ("Twenty-three.", 23),
        ("two hundred and five", 205),
        ("a thousand", 1000),
        ("3 thousand", 3000),
        ("1,234", 1234),
        ("12 345 678", 12345678),
        ("in 2020 100", 100),
        ("The answer is 3. There are 4 dogs.", 3),
        ("Answer: 12\nThus the answer to the question is found.", 12),
        ("-3", -3),
        ("2.5", 2.5),
        (".5", 0.5),
        ("none that I see", 0),
        ("no doubt", None),
        ("dozens", None),
    ],
)
def test_numbers_in_digits_and_words(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize(("text", "count"), [("2.0", 2), ("2.5", None), ("-3", None), ("cannot say", None)])
def test_a_count_is_a_whole_number_from_0(text, count):
    assert read_count(text) == count


@pytest.mark.parametrize(
    ("text", "question", "letter"),
    [
        ("A is closer to the camera than B.", "Which point is closer?", "A"),
        ("(A) is closer than (B)", "Which point is closer?", "A"),
        ("B is farther than A", "Which point is closer?", "A"),
        ("B is farther than A", "Which point is farther?", "B"),
        ("A is closest, since B is behind it.", "Which point is closest?", "A"),
        ("B is not closer than A", "Which point is closer?", "A"),
        (" A 63, B 41, so B.", "Which point is closest?", "B"),
        ("A car is closer than B", "Which point is closer?", "B"),
    ],
)
def test_the_letter_that_a_comparison_makes_the_answer(text, question, letter):
    assert read_letter(text, question) == letter == read_option(text, ["a desk", "a lamp"], question)


def test_options_that_are_numbers_are_chosen_by_the_thing_asked_for():
    assert read_option("There are 3 cars and no trucks", ["0", "1", "2", "3"], CARS) == "D"
    assert read_option("There are 3 cars and no trucks", ["0", "1", "2", "3"], TRUCKS) == "A"


@pytest.mark.parametrize(
    ("text", "options", "question", "letter"),
    [
        # the announced answer, then the letter that opens the text
        ("The answer is B because option A is farther away.", "AB", POINTS, "B"),
        ("The correct answer is option B.", "AB", "", "B"),
        ("<answer> (b) </answer> not A", "AB", "", "B"),
        (r"\boxed{\text{B}}", "AB", "", "B"),
        ("**Answer:** B\nA is farther.", "AB", "", "B"),
        ("The answer is not A but B.", "AB", "", "B"),
        ("The answer is not A.", "AB", "", None),
        ("B, since A is farther.", "AB", POINTS, "B"),
        ("b) blue car", ("red car", "blue car"), "", "B"),
        # the opening letter is the subject of a sentence, or one of several
        ("Option A is closer than option B.", "AB", "", "A"),
        ("A, B and C are marked in the image. C is the closest to the camera.", "ABC", POINTS, "C"),
        ("A: 2 m, B: 1 m. B is closer.", "AB", POINTS, "B"),
        ("(A) cup: 2 m. (B) plate: 1 m. So (B).", ("cup", "plate"), POINTS, "B"),
        ("(B) is the correct answer. Option (A) is wrong.", "AB", "", "B"),
        ("So B, not A.", "AB", "", "B"),
        # comparisons
        ("The closest point is B, then A, then C.", "ABC", POINTS, "B"),
        ("B is closest, and the farthest is A.", "AB", POINTS, "B"),
        ("B is closest, and the farthest is A.", "AB", "Which point is farthest?", "A"),
        ("A is closer than B and farther than C.", "ABC", POINTS, "C"),
        ("C is the closest, B is the second closest.", "ABC", POINTS, "C"),
        ("C is the closest, A is closer than B.", "ABC", POINTS, "C"),
        ("A is closer.", "AB", "Which point is farther?", "B"),
        # the same by words
        ("The chair is closer to the camera than the table.", ("chair", "table"), "", "A"),
        ("The table is farther than the chair.", ("chair", "table"), THINGS, "A"),
        ("The table is behind the chair.", ("chair", "table"), THINGS, "A"),
        ("The closest is not the chair but the table.", ("chair", "table"), THINGS, "B"),
        ("I see the chair and the table, so the table.", ("chair", "table"), THINGS, "B"),
        ("The closest car is on the left; the farthest is on the right.", ("left", "right"), THINGS, "A"),
        ("It is red, not blue.", ("red", "blue"), "What colour is the car?", "A"),
        ("The cats are closer.", ("dogs", "cat"), THINGS, "B"),
        # whole words alone
        ("It is located on the right.", ("cat", "dog"), "", None),
        ("The described object is hard to tell.", ("bed", "sofa"), "", None),
        ("It is 15 cm.", ("5 cm", "15 cm"), "", "B"),
    ],
)
def test_the_option_that_a_text_chooses(text, options, question, letter):
    assert read_option(text, list(options), question) == letter


NEAREST, FARTHEST = "Which point is closest, A, B or C?", "Which point is farthest, A, B or C?"


@pytest.mark.parametrize(
    ("text", "nearest", "farthest"),
    [
        ("From nearest to farthest: B, A, C.", "B", "C"),
        ("Ordered from closest to farthest: B, C, A.", "B", "A"),
        ("From farthest to nearest: B, A, C.", "C", "B"),
        ("Nearest first: B, A, C.", "B", "C"),
        ("The order from nearest to farthest is B, then A, followed by C.", "B", "C"),
        ("Ordering A, B and C from the closest point to the farthest gives B, C, A.", "B", "A"),
        ("The points are B, A and C from closest to farthest.", "B", "C"),
        ("From nearest to farthest:\n1. B\n2. A\n3. C\n\nSo B is the closest.", "B", "C"),
        ("From nearest to farthest, B is first and A is last.", "B", "A"),
        ("I ordered them from nearest to farthest. B is the closest and C the farthest.", "B", "C"),
        ("Neither A nor B is closest; C is.", "C", "C"),
        ("A and B are closer than C.", None, "C"),
        ("C is farther than A and B.", None, "C"),
        ("C is closer than A and B.", "C", None),
    ],
)
def test_the_ends_of_an_order_of_points(text, nearest, farthest):
    assert read_letter(text, NEAREST) == nearest == read_option(text, list("ABC"), NEAREST)
    assert read_letter(text, FARTHEST) == farthest == read_option(text, list("ABC"), FARTHEST)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It's B, because A is far away.", "B"),
        ("I pick B since it occludes A.", "B"),
        ("It could be A because it is big. But I pick B.", "B"),
        ("Since A is bigger, it's B.", "B"),
        ("A is not it, because B is large.", "B"),
    ],
)
def test_a_point_in_the_reason_for_another_is_not_the_answer(text, letter):
    assert read_letter(text, NEAREST) == letter == read_option(text, list("ABC"), NEAREST)


@pytest.mark.parametrize(
    "text",
    [
        "I cannot determine which point is closest: A, B or C.",
        "I'm sorry, but I can't determine which of the points A and B is closer.",
        "I cannot tell whether A is closer or B is closer.",
        "I am unable to determine the answer: A or B.",
        "It is impossible to choose between A and B.",
        "Cannot tell (A vs B)",
        "I don't know.",
        "Both A and B are at the same distance.",
        "Unclear: A and B look equally close.",
        "A is as close as B.",
        "A is at the same distance as B.",
        "A: 2 m, B: 2 m. They are at the same distance.",
        "Neither A nor B is closer.",
        "Neither point is closer; A and B are equal.",
        "The closest points are A and B.",
        "The answer is A or B.",
        "A, B and C",
    ],
)
def test_no_point_is_read_where_none_is_chosen(text):
    assert read_letter(text, NEAREST) is None
    assert read_option(text, ["A is closest", "B is closest", "C is closest"], NEAREST) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A is closer; the others are at the same distance.", "A"),
        ("So A, as the others are equally far.", "A"),
        ("I can't see B, so A", "A"),
        ("It is hard to tell, but A seems closer.", "A"),
        ("While I can't tell the exact distances, A looks closer.", "A"),
        ("A and B look equally close, so I guess A.", "A"),
        ("Between A and B, A is closer.", "A"),
        ("Of A and B, A.", "A"),
        ("A, B, C: A is the closest", "A"),
        ("B is closer than C, and A is closest.", "A"),
        ("The farthest is B and A is nearest.", "A"),
        ("The closest is A, followed by B and C.", "A"),
        ("(A) rather than B or C.", "A"),
        ("B cannot be the closest, so A", "A"),
        ("B is not as close as A.", "A"),
    ],
)
def test_a_point_is_chosen_beside_doubts_and_lists(text, letter):
    assert read_letter(text, NEAREST) == letter == read_option(text, list("ABC"), NEAREST)


@pytest.mark.parametrize(
    ("text", "question", "letter"),
    [
        ("From nearest to farthest: the spoon, the cup.", THINGS, "B"),
        ("From nearest to farthest: the spoon, the cup.", "Which is farther, the cup or the spoon?", "A"),
        ("I cannot tell whether the cup or the spoon is closer.", THINGS, None),
        ("The cup and the spoon are equally close.", THINGS, None),
        ("The spoon is as near as the cup.", THINGS, None),
        ("The cup and the spoon are on the table. The cup is closer.", THINGS, "A"),
        ("The image shows a cup and a spoon.", "What is in the image?", None),
        ("It is a spoon, not a cup or a fork.", "What is it?", "B"),
    ],
)
def test_orders_doubts_and_lists_of_things(text, question, letter):
    assert read_option(text, ["cup", "spoon"], question) == letter


@pytest.mark.parametrize("text", [" cup.", " A chair is in front.", " Vitamin C bottle."])
def test_a_depth_question_after_things_is_answered_by_their_names(text):
    assert read_answer(text, "depth", THINGS) == text.strip()
    assert read_letter(" A chair is in front.", POINTS) is None


@pytest.mark.parametrize("question", [POINTS, "Which marker is nearest?", "Which is closest?", THINGS, ""])
def test_a_letter_alone_is_read_whatever_the_question_names(question):
    for text in (" A.", "A", "so A.", "(A)"):
        assert read_answer(text, "depth", question) == "A"
    assert read_answer(" A 63, B 41, so A.", "depth", question, lettered=True) == "A"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 12 </answer>", "12"),
        ("<answer>Answer: 12</answer>, so the answer is found in step 2", "12"),
        (r"Hence \boxed{2\sqrt{3}}.", r"2\sqrt{3}"),
        (r"x = \boxed{\frac{5}{2}}", r"\frac{5}{2}"),
        (r"\boxed{\text{B}}", "B"),
        (r"Answer: \boxed{12\text{ cm}}", "12 cm"),
        ("The correct answer is option B.", "B"),
        ("Answer: 12\nThus the answer to the question is found.", "12"),
        ("The answer to the question is 12.", "12"),
        ("We answer 3 questions, and it makes 4", "4"),
        ("The answer is **12**.", "12"),
        ("Answer: 12. Because 5 + 7.", "12"),
        ("Answer: yes.", "yes"),
        ("it makes 1,200", "1200"),
    ],
)
def test_final_answers_are_what_is_announced(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The answer is (b).", "B", True),
        ("The answer is B because A is farther.", "B", True),
        ("The answer is A or B.", "A", False),
        (r"x = \boxed{\frac{5}{2}}", "2.5", True),
        (r"x = \boxed{\frac{5}{2}}", "2", False),
        (r"Answer: 1{,}000", "1000", True),
    ],
)
def test_final_answers_are_scored(text, answer, right):
    assert same_answer(final_answer(text), answer) is right


def test_an_announcement_inside_another_is_one():
    text = r"Step 1: it is 12. Answer: \boxed{12}" + "\n<answer>The answer is 12.</answer>"
    assert [(one.mark, one.said) for one in announcements(text)] == [("words", "12"), ("tag", "12.")]
