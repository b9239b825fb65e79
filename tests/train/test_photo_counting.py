"""Images that photographs' counting tasks are about: mostly several things of a kind, with the boxes that they show."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from photo_folder import make_photos

from perception.chains import CHAIN_COUNT
from perception.datasets.photographs import Photographs, Window
from perception.evaluation.photos import shown_items
from perception.model.folder import find_folder
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.data.curriculum import CurriculumConfig
from train.data.photos import PhotoRows, PhotosConfig, in_grid, photo_rows
from vqvae import VQVAE

RED = (220, 30, 30)
"""Colour of the cars"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Photographs:
    return Photographs(make_photos(tmp_path_factory.mktemp("photos") / "set"))


def rows(photos: Photographs, answers: int = 0) -> PhotoRows:
    tokenizer = VQVAE.from_pretrained(find_folder("depth-scenes-100")).eval()
    vocabulary = PerceptionVocabulary(tokenizer.config.codebook_size, (10, 10))
    config = PhotosConfig(str(photos.folder), image_size=96, answers=answers)
    return photo_rows(config, vocabulary, tokenizer, CurriculumConfig("constant"), "aurora", 10, 0)


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (2, 2)])
def test_boxes_of_images_in_a_grid_lie_on_the_things_that_they_are_about(photos, grid):
    parts = [photos.scene(number, 96) for number in (2, 0, 1, 2)[: grid[0] * grid[1]]]
    whole = in_grid(parts, grid, 96)
    assert whole.image.shape == (96, 96, 3)
    assert Counter(item.shape for item in whole.objects) == sum(
        (Counter(item.shape for item in part.objects) for part in parts), Counter()
    )
    corners = [(item.box_xyxy[1], item.box_xyxy[0]) for item in whole.objects]
    assert corners == sorted(corners)
    for item in whole.objects:
        x1, y1, x2, y2 = (round(96 * value) for value in item.box_xyxy)
        inside = whole.image[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float()
        if item.shape == "car":
            assert (inside - torch.tensor(RED)).abs().mean() < 25


def test_a_kind_that_is_unsure_in_one_image_of_a_grid_is_unsure_in_all(photos):
    parts = [photos.scene(0, 32), photos.scene(1, 32, Window(0, 0, 0.5, 1))]
    assert in_grid(parts, (1, 2), 32).unsure == parts[0].unsure | parts[1].unsure


def test_a_photograph_goes_together_with_others_of_its_things(photos):
    (person, car) = (photos.showing(0, np.random.default_rng(seed)) for seed in (1, 2))
    assert person == car == list(range(9))  # each shows a person and a car; the dogs are unsure
    assert photos.kinds == ("car", "dog", "person")


def test_counting_tasks_are_mostly_about_several_things(photos):
    made, rng = rows(photos), np.random.default_rng(0)
    counts = Counter()
    for _ in range(60):
        row = made._row(CHAIN_COUNT, rng)
        (span,) = (part for part in row.example.target if isinstance(part, Span))
        counts[min(2, len(span.codes) // 4)] += 1
        assert row.image.size == (96, 96)
    assert counts[2] > counts[1] > 0


def test_a_photograph_with_an_answer_stays_whole(photos):
    made, rng = rows(photos, answers=3), np.random.default_rng(0)
    targets = {str(made._row(CHAIN_COUNT, rng).example.target) for _ in range(20)}
    assert len(targets) <= 3  # one for each photograph, whose box would lie elsewhere in a part of it


def test_every_sure_thing_of_a_photograph_is_asked_about(photos):
    asked = [(item.question, item.answer) for item in shown_items(photos, 32)][:4]
    assert asked == [
        ("How many cars are there?", 1),
        ("How many people are there?", 1),
        ("How many cars are there?", 2),
        ("How many people are there?", 1),
    ]
