"""Answers are read for what was asked, whatever else a text counts or names."""

from __future__ import annotations

import pytest

from perception.answers import read_answer, read_count, read_letter, read_number, read_option

CARS, TRUCKS, CUBES = "How many cars are there?", "How many trucks do you see?", "How many red cubes are in the image?"


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
