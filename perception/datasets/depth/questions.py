"""Which of 2 to 5 marked points is closest? Asked of any image with a depth map.

AURORA's questions keep markers at least 20 pixels and 20/255 of relative depth apart; its answers are not equally often
A, B, C, ..., ours are, exactly. Relative depth is nearness: inverse depth, min-max over the pixels that were measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perception import chains
from perception.answers import POINT_LETTERS
from perception.datasets.depth.code_files import DepthCodes
from perception.datasets.depth.pairs import DepthPair
from perception.datasets.records import Record, RecordSet
from perception.scenes.markers import MIN_GAP, disc_radius, smooth_mask
from perception.scenes.questions import letters_text
from perception.tokenizers.depth import readings_at
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import Span
from vqvae import VQVAE

MIN_PIXELS = 20
"""Smallest distance between two markers, on images of `FULL_SIZE` pixels a side and more; in proportion below"""
FULL_SIZE = 336
_COUNTS = (2, 3, 4, 5)
_EDGE_WINDOW = 5 / 80  # of the shorter side: a marker's surroundings, which must hold neither hole nor depth edge
_MARGIN = 0.08  # of the shorter side
_DRAWS = 8  # sets of points that are tried for a question
_HOLE = 10.0  # in the place of holes: a jump that smooth_mask cannot miss


@dataclass(frozen=True)
class DepthRules:
    """What is asked of an image with depth."""

    questions_an_image: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.questions_an_image < 1:
            raise ValueError(f"questions_an_image must be at least 1, got {self.questions_an_image}")


def relative_depth(depth: Tensor) -> Tensor:
    """Nearness (H, W) in [0, 1] of depth (H, W), 1 = nearest; NaN in holes, and all over a flat or empty map."""
    valid = depth.isfinite() & (depth > 0)
    inverse = torch.where(valid, 1 / depth.double(), torch.nan)
    known = inverse[valid]
    if not len(known) or known.max() - known.min() <= 1e-9 * known.max():
        return torch.full(depth.shape, torch.nan)
    return ((inverse - known.min()) / (known.max() - known.min())).float()


def min_spacing(height: int, width: int) -> float:
    """Pixels of the image between any two markers: the rule above, and as many as keep their discs apart."""
    rule = MIN_PIXELS * min(1.0, min(height, width) / FULL_SIZE)
    return max(rule, 2 * disc_radius(height, width) + 1)


class LetterDeck:
    """Which letter is the right one: shuffled hands of all letters one after the other, a deck for every key.

    So of n questions each letter is right as often as any other, but for the last, unfinished hand.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._hands: dict[object, list[int]] = {}

    def draw(self, key: object, count: int) -> int:
        """Index 0 .. count - 1 of the right letter."""
        hand = self._hands.setdefault((key, count), [])
        if not hand:
            hand += self._rng.permutation(count).tolist()
        return hand.pop()


class PointChooser:
    """Places for markers on one image, by its depth."""

    def __init__(self, depth: Tensor, image_size: tuple[int, int]):
        """`depth` (H, W) of any resolution; `image_size` (height, width) of the image in pixels."""
        near = relative_depth(depth)
        h, w = near.shape
        valid = near.isfinite()
        window = max(3, round(_EDGE_WINDOW * min(h, w)) | 1)
        allowed = smooth_mask(torch.where(valid, near, _HOLE)[None], window)[0] & valid
        margin = max(1, round(_MARGIN * min(h, w)))
        inner = torch.zeros_like(allowed)
        inner[margin : h - margin, margin : w - margin] = True
        places = (allowed & inner).nonzero().numpy()  # (n, 2), row and column
        self.near = near.numpy()[places[:, 0], places[:, 1]]  # (n,)
        self.points = (places[:, ::-1] + 0.5) / np.array([w, h])  # (n, 2), x and y in [0, 1]
        self.pixels = self.points * np.array([image_size[1], image_size[0]])  # (n, 2)
        self.spacing = min_spacing(*image_size)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray | None:
        """`count` points (count, 2), the nearest first, or None where this draw finds no room for them."""
        left, chosen = np.arange(len(self.near)), []
        for _ in range(count):
            if not len(left):
                return None
            pick = int(left[rng.integers(len(left))])
            chosen.append(pick)
            apart = np.linalg.norm(self.pixels[left] - self.pixels[pick], axis=1) >= self.spacing
            left = left[apart & (np.abs(self.near[left] - self.near[pick]) >= MIN_GAP)]
        order = sorted(chosen, key=lambda place: -self.near[place])
        return self.points[order].astype(np.float32)


def is_hard(points: np.ndarray) -> bool:
    """Whether the nearest of points (count, 2), the first, is not the lowest in the image: height does not answer."""
    return bool(points[0, 1] < points[1:, 1].max())


def ask_depth(
    pairs: Iterable[tuple[DepthPair, Tensor]],
    codes: DepthCodes,
    names: dict[DepthPair, str],
    vqvae: VQVAE,
    num_locations: int,
    rules: DepthRules = DepthRules(),
) -> RecordSet:
    """Records of image and depth pairs: maps and marked points to draw, chains and direct answers.

    The chain reads the map that its codes decode to. Where the codes have lost which point is nearest there is no
    chain, as it would contradict itself. All is a function of the pairs, their order and the seed.

    Args:
        pairs: with depth (H, W), as `read_pairs` gives them.
        codes: of all maps.
        names: of each pair's map among the codes.
        vqvae: the tokenizer that made the codes.
    """
    asker = _Asker(codes, vqvae, num_locations, np.random.default_rng((rules.seed, 0)))
    records: list[Record] = []
    skipped: list[str] = []
    for number, (pair, depth) in enumerate(pairs):
        rng = np.random.default_rng((rules.seed, 1, number))
        made = asker.ask(pair, depth, names[pair], rules.questions_an_image, rng)
        records += made
        if len(made) == 1:
            skipped.append(
                f"{pair.depth.name}, map {pair.index or 0}: no room for two points; its map is drawn, no more"
            )
    return RecordSet(tuple(records), tuple(skipped))


class _Asker:
    """What all pairs share: codes, decks of letters and of numbers of points."""

    def __init__(self, codes: DepthCodes, vqvae: VQVAE, num_locations: int, rng: np.random.Generator):
        self.codes, self.vqvae, self.fingerprint = codes, vqvae, vqvae.fingerprint()
        self.rows = {name: row for row, name in enumerate(codes.names)}
        self.points = PointTokenizer(num_locations)
        self.letters, self.counts = LetterDeck(rng), LetterDeck(rng)

    def ask(self, pair: DepthPair, depth: Tensor, name: str, questions: int, rng: np.random.Generator) -> list[Record]:
        row = self.codes.codes[self.rows[name]]
        span = Span("depth", tuple(row.tolist()))
        decoded = self.vqvae.decode(torch.from_numpy(row)[None])  # (1, S, S)
        where = f"{pair.depth.name}, map {pair.index or 0}"

        def record(example: chains.Example, marks: np.ndarray | None = None) -> Record:
            places = () if marks is None else tuple((float(x), float(y)) for x, y in marks)
            return Record(pair.image, example, where, places, self.fingerprint)

        records = [record(chains.atomic_depth(span))]
        chooser = PointChooser(depth, pair.image.size())
        for number in range(questions):
            chosen = self._choose(chooser, decoded, rng)
            if chosen is None:
                return records
            points, readings = chosen
            question = f"Which point is closest to the camera, {letters_text(len(points))}?"
            has_chain = bool((readings[1:] < readings[0]).all())
            order = self._order(len(points), self.letters.draw(has_chain, len(points)), rng)
            points, readings = points[order], readings[order]
            answer, drawn = POINT_LETTERS[order.index(0)], Span("points", tuple(self.points.encode(points)))
            if number == 0:
                records.append(record(chains.atomic_depth(span), points))
            records.append(record(chains.atomic_points(drawn), points))
            records.append(record(chains.direct(chains.DIRECT_DEPTH, question, answer), points))
            if has_chain:
                places = [Span("points", tuple(self.points.encode(point[None]))) for point in points]
                records.append(record(chains.chain_depth(question, places, span, readings.tolist(), answer), points))
        return records

    def _choose(
        self, chooser: PointChooser, decoded: Tensor, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Points, the nearest first, and what the decoded map says there; as many as there is room for.

        Of a few draws the first whose map keeps the nearest point and which is hard in half of the questions; else the
        best there was.
        """
        most, want_hard = _COUNTS[self.counts.draw("counts", len(_COUNTS))], rng.random() < 0.5
        for count in range(most, 1, -1):
            best: tuple[int, np.ndarray, np.ndarray] | None = None
            for _ in range(_DRAWS):
                points = chooser.draw(count, rng)
                if points is None:
                    continue
                readings = readings_at(decoded, points)
                merit = 2 * bool((readings[1:] < readings[0]).all()) + (is_hard(points) == want_hard)
                if best is None or merit > best[0]:
                    best = merit, points, readings
                if merit == 3:
                    break
            if best is not None:
                return best[1:]
        return None

    @staticmethod
    def _order(count: int, right: int, rng: np.random.Generator) -> list[int]:
        """A permutation of the points, the nearest (0) at place `right`."""
        order = (1 + rng.permutation(count - 1)).tolist()
        order.insert(right, 0)
        return order
