"""Depth questions about images with depth maps: which of 2 to 5 marked points is closest?

As in AURORA, markers are at least 20 pixels and 20/255 of relative depth apart. Unlike in AURORA, each letter is the
right answer equally often. Relative depth is nearness: inverse depth, min-max scaled over the measured pixels without
wild ones (`vqvae.normalisation.depth_ranges`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from perception import chains
from perception.answers import POINT_LETTERS
from perception.datasets.depth.code_files import DepthCodes
from perception.datasets.depth.files import DepthFormat, depth_files
from perception.datasets.depth.jobs import skipped_list, sources_digest, tokenize
from perception.datasets.depth.pairs import DepthPair, find_pairs, read_pairs
from perception.datasets.lines import json_lines
from perception.datasets.records import Record, RecordSet, bad_row
from perception.scenes.markers import MIN_GAP, disc_radius, smooth_mask
from perception.scenes.questions import depth_text
from perception.tokenizers.depth import readings_at
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import Span
from vqvae import VQVAE, VQVAEConfig
from vqvae.normalisation import depth_ranges

MIN_PIXELS = 20
"""Smallest distance between two markers on images of at least `FULL_SIZE` pixels per side; less on smaller images"""
FULL_SIZE = 336
_COUNTS = (2, 3, 4, 5)
_EDGE_WINDOW = 5 / 80  # of the shorter side: window around a marker that must hold no hole and no depth edge
_MARGIN = 0.08  # of the shorter side
_DRAWS = 8  # sets of points that are tried per question
_RANGE = VQVAEConfig(normalisation="relative_inverse")
_HOLE = 10.0  # nearness put into holes, so that smooth_mask sees an edge there


@dataclass(frozen=True)
class DepthRules:
    """How many depth questions are asked per image."""

    questions_per_image: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.questions_per_image < 1:
            raise ValueError(f"questions_per_image must be at least 1, got {self.questions_per_image}")


def relative_depth(depth: Tensor) -> Tensor:
    """Nearness (H, W) in [0, 1] of depth (H, W), 1 = nearest; NaN in holes, and everywhere in a flat or empty map."""
    valid = depth.isfinite() & (depth > 0)
    if not bool(valid.any()):
        return torch.full(depth.shape, torch.nan)
    near, far = (1 / depth_ranges(depth.double()[None], valid[None], _RANGE)[0]).tolist()
    if near - far <= 1e-9 * near:
        return torch.full(depth.shape, torch.nan)
    return torch.where(valid, ((1 / depth.double() - far) / (near - far)).clamp(0, 1), torch.nan).float()


def min_spacing(height: int, width: int) -> float:
    """Smallest distance in pixels between two markers: `MIN_PIXELS` scaled to the image, at least a disc plus 1."""
    rule = MIN_PIXELS * min(1.0, min(height, width) / FULL_SIZE)
    return max(rule, 2 * disc_radius(height, width) + 1)


class LetterDeck:
    """Draws the right letter of each question so that all letters are right equally often.

    Per key, every letter is drawn once, in random order, before any letter is drawn again.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._hands: dict[object, list[int]] = {}

    def draw(self, key: object, count: int) -> int:
        """Draw the index, 0 .. count - 1, of the right letter."""
        hand = self._hands.setdefault((key, count), [])
        if not hand:
            hand += self._rng.permutation(count).tolist()
        return hand.pop()


class PointChooser:
    """Chooses points for markers on one image by its depth."""

    def __init__(self, depth: Tensor, image_size: tuple[int, int]):
        """Take depth (H, W) of any resolution, and the (height, width) of the image in pixels."""
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
        """Draw points (count, 2), the nearest first; None if the draw finds no room for them."""
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
    """True if the first and nearest of points (count, 2) is not the lowest in the image: height gives no answer."""
    return bool(points[0, 1] < points[1:, 1].max())


def read_depth_pairs(
    depth: Path,
    images: Path | None,
    codes_file: Path,
    vqvae: VQVAE,
    num_locations: int,
    meant: DepthFormat = DepthFormat(),  # noqa: B008
    rules: DepthRules = DepthRules(),
    skip_bad: bool = False,
    remedy: str = "",
) -> RecordSet:
    """Depth records of all image and depth pairs that `find_pairs` finds (see `ask_depth`).

    The codes are read from `codes_file` if it exists and the depth files are those that it was made of, else they are
    made and written there; that job can be resumed.

    Args:
        skip_bad: name maps that cannot be used, or have no such image, in `skipped`, and go on without them.
        remedy: what errors about depth files advise, by the caller's settings (see `tokenize`).

    Raises:
        ValueError: naming a file that cannot be read, has no image or no valid depth, or differs from its image in
            proportions; if `codes_file` belongs to another tokenizer or lacks a map.
    """
    skipped = list[str]() if skip_bad else None
    pairs = find_pairs(depth, images, skipped)
    root = depth if depth.is_dir() else depth.parent
    codes = DepthCodes.read(codes_file) if codes_file.exists() else None
    if codes is None or codes.sources not in (None, sources_digest(root, depth_files(depth), meant)):
        if codes is not None:
            said = (
                f"depth files of {depth} were replaced, added or removed since {codes_file} was made, or are read "
                "otherwise now; it is made anew"
            )
            Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
        codes = tokenize(depth, codes_file, vqvae, meant, skip_bad=skip_bad, remedy=remedy)
    if codes.tokenizer != vqvae.fingerprint():
        raise ValueError(
            f"{codes_file} was made by tokenizer {codes.tokenizer}, this one is {vqvae.fingerprint()}; delete the file"
        )
    names = {pair: pair.name_in(root) for pair in pairs}
    coded = _coded(names, codes, codes_file, skipped)
    made = ask_depth(read_pairs(coded, meant, skipped), codes, names, vqvae, num_locations, rules)
    return RecordSet(made.records, (*(skipped or ()), *made.skipped))


def _coded(
    names: dict[DepthPair, str], codes: DepthCodes, codes_file: Path, skipped: list[str] | None
) -> list[DepthPair]:
    """Return the pairs whose maps have codes; say in `skipped` why the others have none, or raise ValueError."""
    coded, held = list[DepthPair](), set(codes.names)
    bad = skipped_list(codes_file)
    reasons = {line["map"]: line["reason"] for _, line in json_lines(bad)} if bad.exists() else {}
    for pair, name in names.items():
        with bad_row(skipped):
            if name in held:
                coded.append(pair)
            elif f"{name}:0" in held:
                raise ValueError(f"{pair.depth} holds several maps for one image, {pair.image}; write one map per file")
            elif reason := reasons.get(name, reasons.get(name.rpartition(":")[0])):
                raise ValueError(f"{name}: {reason}")
            else:
                raise ValueError(f"{codes_file} lacks the codes of {name}; delete the file, so that it is made again")
    return coded


def ask_depth(
    pairs: Iterable[tuple[DepthPair, Tensor]],
    codes: DepthCodes,
    names: dict[DepthPair, str],
    vqvae: VQVAE,
    num_locations: int,
    rules: DepthRules = DepthRules(),
) -> RecordSet:
    """Depth records of image and depth pairs: maps to draw, points to mark, chains, and direct answers.

    The readings of a chain are taken from the map that its codes decode to. If the codes have lost which point is
    nearest, the question gets no chain, because the chain would contradict its answer. The records depend only on the
    pairs, their order and the seed.

    Args:
        pairs: pairs with their depth (H, W), as `read_pairs` yields them.
        codes: codes of all maps.
        names: name of each pair's map in `codes`.
        vqvae: the tokenizer that made the codes.
    """
    asker = _Asker(codes, vqvae, num_locations, np.random.default_rng((rules.seed, 0)))
    records: list[Record] = []
    skipped: list[str] = []
    for number, (pair, depth) in enumerate(pairs):
        rng = np.random.default_rng((rules.seed, 1, number))
        made = asker.ask(pair, depth, names[pair], rules.questions_per_image, rng)
        records += made
        if len(made) == 1:
            skipped.append(
                f"{pair.depth.name}, map {pair.index or 0}: no room for two points, so nothing but its map is drawn"
            )
    return RecordSet(tuple(records), tuple(skipped))


class _Asker:
    """Makes the records of one pair after another, and balances letters and numbers of points over all of them."""

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
            question = depth_text(len(points))
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
        """Choose points, the nearest first, and their readings on the decoded map; None if there is no room.

        Of several draws, it takes the first whose readings keep the nearest point and which is hard (in half of the
        questions) or not; else the draw that comes closest. If there is no room for a number of points, it tries fewer.
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
        """A random order of the points with the nearest (0) at position `right`."""
        order = (1 + rng.permutation(count - 1)).tolist()
        order.insert(right, 0)
        return order
