"""`Reasoner`: solves a problem step by step, and shows which part of the image each step selected (MINT-CoT).

reasoner = Reasoner.from_pretrained("runs/geometry/interleaved/model")
reasoning = reasoner.solve("figure.png", "Find x.")
reasoning.value, [(step.text, step.cells) for step in reasoning.steps]
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from perception.chains import check_question
from perception.interleave.chains import InterleavedModel, Look
from perception.interleave.generation import InterleavedGenerator
from perception.interleave.native import NativeImages
from perception.interleave.selector import VisualTokenSelector
from perception.interleave.triggers import GENERATED, NATIVE, InterleaveSettings
from perception.interleave.visual_tokens import VisualLayout, unwrapped
from perception.model.folder import find_folder
from perception.model.images import ImageLike, load_image
from perception.model.perception_model import PerceptionModel, Prompt

SETTINGS_FILE = "interleave_settings.json"
_ANSWER = re.compile(r"Answer:\s*(.*)", re.IGNORECASE | re.DOTALL)
_SHOWN = 320
"""Pixels of an image's longer side in a picture"""
_TEXT = 34
_GAP, _FRAME = 6, 3
"""Pixels between a picture and its crops, and of a crop's frame"""


@dataclass(frozen=True)
class ReasoningStep:
    """The text of a step, and the visual tokens that it selected."""

    text: str
    cells: NDArray[np.bool_]
    """(rows, columns) of the image's visual tokens, True where selected"""
    scores: NDArray[np.float32]
    """(rows, columns), the selector's score of each, in [0, 1]"""
    inserted: int
    """Number of visual tokens that the look brought in"""
    crops: tuple[Image.Image, ...] = ()
    """What a look at native resolution cut from the original image, in the size that the model reads"""


@dataclass(frozen=True)
class Reasoning:
    """A solution in steps."""

    image: Image.Image
    """As the model first saw it: scaled down, where its looks have native resolution"""
    text: str
    """The whole text"""
    steps: tuple[ReasoningStep, ...]
    value: str | None
    """The text after "Answer:"; None where there is none"""
    visual_tokens: int
    """Number of visual tokens that the model read: the image's, and all that looks brought in"""


def visual_grid(model: Any, inputs: Mapping[str, Any], count: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of one image's visual tokens.

    Args:
        inputs: the processor's outputs for a prompt with that image only.
        count: number of its visual tokens.

    Raises:
        ValueError: where the tokens do not form a grid over the image (packed or tiled images).
    """
    core = unwrapped(model)
    grid, pixels = inputs.get("image_grid_thw"), inputs.get("pixel_values")
    # Tiles and packed features may happen to have a square number of tokens.
    is_tiled = grid is None and pixels is not None and math.prod(pixels.shape[:-3]) > 1
    if grid is not None:
        merge = core.config.vision_config.spatial_merge_size
        rows, columns = (int(side) // merge for side in grid[0, 1:])
    else:
        rows = columns = math.isqrt(count)
    if is_tiled or rows * columns != count:
        raise ValueError(
            f"{type(core).__name__} reads this image as {count} visual tokens that form no grid over it; regions can "
            "be shown for models with one square or one resized image (LLaVA-1.5, Qwen-VL), and for others whose "
            "processor makes one view of an image: do_image_splitting=False (SmolVLM, Idefics3), "
            "crop_to_patches=False (InternVL)"
        )
    return rows, columns


class Reasoner:
    """A perception model with a selector of visual tokens."""

    def __init__(self, perception: PerceptionModel, selector: VisualTokenSelector, settings: InterleaveSettings):
        """Raise ValueError where the selector was made for another model."""
        self.perception = perception
        self.settings = settings
        tokenizer = perception.processor.tokenizer
        layout = VisualLayout.of(perception.model, perception.vocabulary.interleave_id, tokenizer)
        self.model = InterleavedModel(perception.model, selector.to(perception.model.device), layout).eval()
        self._generator_settings = {"tokenizer": tokenizer, "vocabulary": perception.vocabulary}

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Reasoner:
        """Load a folder written by `train.interleave` or `train.reinforce`, or a model of the hub.

        Raises:
            ValueError: naming the file that is missing, half written, or of another model.
        """
        folder = find_folder(path)
        perception = PerceptionModel.from_pretrained(folder, device, dtype)
        selector = VisualTokenSelector.load(folder, perception.model)
        return cls(perception, selector, read_settings(folder))

    def solve(self, image: ImageLike, question: str, max_new_tokens: int = 200) -> Reasoning:
        """Solve one problem with greedy decoding.

        Raises:
            ValueError: for a bad image, an empty question, or a model whose visual tokens form no grid.
        """
        check_question(question)
        loaded = load_image(image)
        inputs = self.perception.inputs([Prompt(loaded, question.strip())])
        count = int((inputs["input_ids"] == self.model.layout.image_id).sum())
        grid = visual_grid(self.perception.model, inputs, count)
        generator = InterleavedGenerator(self.model, self.settings, **self._generator_settings)
        native = None
        if self.settings.resolution == NATIVE:
            processor, image_id = self.perception.processor.image_processor, self.model.layout.image_id
            native = NativeImages(processor, [[loaded]], inputs, image_id, self.settings.look_tokens)
        found = generator.generate(inputs, native=native, max_new_tokens=max_new_tokens, do_sample=False)
        scores = [score.sigmoid().float().cpu().numpy().reshape(grid) for score in found.look_scores[0]]
        return self._read(loaded, found.answers[0], scores, found.inserted[0], grid, native)

    def _read(
        self,
        image: Image.Image,
        answer: Sequence[int | Look],
        scores: Sequence[Any],
        inserted: Sequence[int],
        grid: tuple[int, int],
        native: NativeImages | None = None,
    ) -> Reasoning:
        tokenizer = self.perception.processor.tokenizer
        text, places, looks = "", list[int](), list[Look]()
        ids: list[int] = []
        for part in answer:
            if isinstance(part, Look):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                places.append(len(text))
                looks.append(part)
            else:
                ids.append(part)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        steps = []
        for number, (place, look) in enumerate(zip(places, looks, strict=True)):
            end = places[number + 1] if number + 1 < len(places) else len(text)
            cells = np.zeros(grid[0] * grid[1], dtype=bool)
            cells[list(look.tokens)] = True
            crops = native.pictures(0, look.tokens) if native is not None else ()
            said = self._said(text[place:end])
            steps.append(ReasoningStep(said, cells.reshape(grid), scores[number], inserted[number], crops))
        marked = list(_ANSWER.finditer(text))
        value = marked[-1].group(1).strip() if marked else ""
        shown = image if native is None else native.seen(0)
        return Reasoning(shown, text.strip(), tuple(steps), value or None, grid[0] * grid[1] + sum(inserted))

    def _said(self, part: str) -> str:
        """A step's text without the next step's heading and without the answer."""
        if self.settings.trigger != GENERATED:
            part = re.sub(rf"(?:{self.settings.heading})\s*$", "", part)
        return _ANSWER.sub("", part).strip()


def read_settings(folder: Path) -> InterleaveSettings:
    """Read when a folder's model looks; the paper's rule where there is no file. Raises ValueError for a bad file."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        return InterleaveSettings()
    try:
        return InterleaveSettings(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; copy the folder again") from error


def _enlarged(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    return image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def draw_step(image: Image.Image, step: ReasoningStep, side: int = _SHOWN) -> Image.Image:
    """Draw the image with the selected cells of a step highlighted and the rest pale, and its crops below."""
    picture = _enlarged(image, side)
    cells = Image.fromarray(np.where(step.cells, 255, 0).astype(np.uint8))
    mask = cells.resize(picture.size, Image.Resampling.NEAREST)
    pale = Image.blend(picture, Image.new("RGB", picture.size, (235, 238, 245)), 0.55)
    lit = Image.blend(picture, Image.new("RGB", picture.size, (255, 190, 60)), 0.38)
    out = Image.composite(lit, pale, mask)
    canvas = ImageDraw.Draw(out)
    rows, columns = step.cells.shape
    for row, column in np.argwhere(step.cells).tolist():
        box = [column * out.width / columns, row * out.height / rows]
        box += [(column + 1) * out.width / columns - 1, (row + 1) * out.height / rows - 1]
        canvas.rectangle(box, outline=(200, 110, 0))
    return _with_crops(out, step.crops) if step.crops else out


def _with_crops(picture: Image.Image, crops: Sequence[Image.Image]) -> Image.Image:
    """Draw crops in a square grid below a picture, in frames of the colour of its selected cells."""
    columns, side = math.ceil(math.sqrt(len(crops))), picture.width
    rows, pitch = -(-len(crops) // columns), side // columns
    page = Image.new("RGB", (side, picture.height + _GAP + rows * pitch), "white")
    page.paste(picture, (0, 0))
    for number, crop in enumerate(crops):
        row, column = divmod(number, columns)
        shown = ImageOps.expand(_enlarged(crop, pitch - 2 * _FRAME), _FRAME, (200, 110, 0))
        page.paste(shown, (column * pitch, picture.height + _GAP + row * pitch))
    return page


def draw_reasoning(reasoning: Reasoning) -> Image.Image:
    """Draw the steps side by side, each picture above its text, and the answer below."""
    shown = [draw_step(reasoning.image, step) for step in reasoning.steps] or [_enlarged(reasoning.image, _SHOWN)]
    words = [step.text for step in reasoning.steps] or [reasoning.text]
    width, height = shown[0].width, max(picture.height for picture in shown)
    page = Image.new("RGB", (len(shown) * (width + 8) - 8, height + 3 * _TEXT), "white")
    canvas = ImageDraw.Draw(page)
    for number, (picture, text) in enumerate(zip(shown, words, strict=True)):
        left = number * (width + 8)
        page.paste(picture, (left, 0))
        for line, part in enumerate(_lines(f"{number + 1}. {text}", width, canvas)[:2]):
            canvas.text((left + 4, height + 6 + line * 22), part, fill="black", font_size=16)
    said = "no answer could be read" if reasoning.value is None else f"Answer: {reasoning.value}"
    canvas.text((4, height + 2 * _TEXT + 2), said, fill="black", font_size=20)
    return page


def _lines(text: str, width: int, canvas: ImageDraw.ImageDraw) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if canvas.textlength(longer, font_size=16) <= width - 8:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
