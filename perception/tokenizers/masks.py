"""`MaskTokenizer`: the mask of one thing as the locations of its box and the codes of a small VQVAE inside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from perception.model.images import load_image
from perception.tokenizers.locations import as_places, draw_label, mark_color, text_to_codes, to_bins
from perception.vocabulary.names import PerceptionVocabulary, Span
from perception.vocabulary.spans import BOX_OF_MASK

if TYPE_CHECKING:
    from vqvae import VQVAE

INSIDE, OUTSIDE = 1.0, 2.0
"""What a mask is to the VQVAE: depth 1 inside and depth 2 outside. Its normalisation is "metric" between the two, so
that nearness is the mask itself, whatever else is in the crop."""
_TINT = 0.5


def mask_depth(masks: Any) -> Tensor:
    """Depth, of any shape, that a VQVAE takes for masks in [0, 1] of the same shape."""
    return OUTSIDE - torch.as_tensor(masks, dtype=torch.float32)


def as_mask(value: Any, may_be_empty: bool = False) -> NDArray[np.bool_]:
    """A mask (H, W), array or tensor of 0 and 1, as an array of bool. Raises ValueError for anything else."""
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    if array.ndim != 2 or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"a mask must be (H, W) of 0 and 1, got shape {array.shape} of {array.dtype}; compare ids with the thing's"
        )
    if not may_be_empty and not array.any():
        raise ValueError("the mask is empty; leave things without a visible pixel out")
    return array.astype(bool)


def as_box(value: Any) -> NDArray[np.float64]:
    """A box (4,), xyxy in [0, 1]. Raises ValueError for anything else."""
    box = as_places([value], 4, "boxes")[0]  # (4,)
    if (box[2:] < box[:2]).any():
        raise ValueError(f"a box must have x2 >= x1 and y2 >= y1, got {box.tolist()}; turn x, y, w, h into corners")
    return box


def tight_box(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Box (4,), xyxy in [0, 1], around the pixels of a mask (H, W), which has some."""
    (height, width), (rows, columns) = mask.shape, mask.nonzero()
    corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return corners / (width, height, width, height)


def mask_iou(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks (H, W), from 0 to 1; 1 if both are empty."""
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else 1.0


def pixel_box(bins: NDArray[np.int64], size: tuple[int, int], num_locations: int) -> tuple[int, int, int, int]:
    """Pixels x1, y1, x2, y2 of a box in bins (4,) of an image (height, width); the ends are excluded.

    Each side is the pixel edge nearest to its bin's centre. Where bins are wider than a pixel, and both sides lie in
    one or in neighbouring ones, that would cut off much: the box then reaches to the outer edges of these bins. It has
    at least one pixel each way.
    """
    (x1, x2), (y1, y2) = (
        _pixel_side(int(low), int(high), length, num_locations)
        for low, high, length in zip(bins[:2], bins[2:], size[::-1], strict=True)
    )
    return x1, y1, x2, y2


def _pixel_side(low: int, high: int, length: int, num_locations: int) -> tuple[int, int]:
    """First pixel and the one behind the last, of `length`, from bin `low` to bin `high`."""
    if high - low <= 1 and length > num_locations:
        return low * length // num_locations, -(-(high + 1) * length // num_locations)
    first, end = (int((place + 0.5) / num_locations * length + 0.5) for place in (low, high))
    first = min(first, length - 1)
    return first, max(end, first + 1)


def crop_mask(mask: NDArray[np.bool_], bins: NDArray[np.int64], num_locations: int) -> Tensor:
    """The part (h, w) of a mask (H, W) inside a box in bins (4,), float32."""
    x1, y1, x2, y2 = pixel_box(bins, (mask.shape[0], mask.shape[1]), num_locations)
    return torch.from_numpy(mask[y1:y2, x1:x2].astype(np.float32))


class MaskTokenizer:
    """Converts the mask of one thing to codes and back: the location bins of its box, then codes of the mask inside it.

    The mask is cropped by the box as its bins say it, which is the box that it is decoded into, and resized for the
    VQVAE. In images of less than 100 pixels a side, 100 bins tell every pixel's edge; in larger ones a strip of up to
    half a bin may be cut off at a side of a box that is wider than two bins.
    """

    modality = "masks"

    def __init__(self, vqvae: VQVAE, num_locations: int = 100):
        config = vqvae.config
        if (config.normalisation, config.min_depth, config.max_depth) != ("metric", INSIDE, OUTSIDE):
            raise ValueError(
                f"a tokenizer of masks has 'metric' normalisation from {INSIDE:g} to {OUTSIDE:g}, and this one has "
                f"{config.normalisation!r}, {config.min_depth} to {config.max_depth}; use masks-scenes-16, or train "
                "one with train.mask_tokenizer"
            )
        self.vqvae = vqvae.eval()
        self.num_locations = num_locations
        self.vocabulary = PerceptionVocabulary(
            num_locations=num_locations, mask_codes=config.codebook_size, mask_length=config.num_codes
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, num_locations: int = 100) -> MaskTokenizer:
        """Load a VQVAE's folder, a hub repository, or what ships by its bare name: "masks-scenes-16".

        Raises:
            ValueError: where it cannot be read, or is a tokenizer of depth maps.
        """
        from perception.model.shipped import find_shipped
        from vqvae import VQVAE

        return cls(VQVAE.from_pretrained(find_shipped(path) or path), num_locations)

    @property
    def num_codes(self) -> int:
        """Number of codes of a mask, those of its box included."""
        return self.vocabulary.lengths[self.modality]

    def encode(self, mask: Any, box_xyxy: Any = None) -> list[int]:
        """Codes (num_codes,) of a mask (H, W), array or tensor of 0 and 1.

        Args:
            box_xyxy: (4,) in [0, 1]; None for the tight box around the mask.

        Raises:
            ValueError: for a mask that is not (H, W) of 0 and 1, or is empty; for a box that is not four numbers in
                [0, 1], has x2 < x1 or y2 < y1, or misses the mask.
        """
        mask = as_mask(mask)  # (H, W)
        box = as_box(tight_box(mask) if box_xyxy is None else box_xyxy)  # (4,)
        bins = to_bins(box, self.num_locations)  # (4,)
        crop = crop_mask(mask, bins, self.num_locations)  # (h, w)
        if not crop.any():
            raise ValueError(f"the box {box.tolist()} holds no pixel of the mask; give the mask's own box, or none")
        codes = self.vqvae.encode(mask_depth(crop)[None].to(self.vqvae.codebook.device))  # (1, 4, 4)
        return [*bins.tolist(), *self.vqvae.to_sequence(codes)[0].tolist()]

    def decode(self, codes: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Mask (height, width) of codes (num_codes,); False outside of its box.

        Args:
            size: height and width of the image.

        Raises:
            ValueError: for codes that are not integers, too few or many, or out of range, or whose box has x2 < x1 or
                y2 < y1.
        """
        self.vocabulary.check_span(Span(self.modality, tuple(codes)))
        bins = np.asarray(codes[:BOX_OF_MASK])
        if (bins[2:] < bins[:2]).any():
            raise ValueError(
                f"the box of a mask must have x2 >= x1 and y2 >= y1, got bins {bins.tolist()}; generate with "
                "SpanGrammar(ordered_boxes=True), or drop such masks"
            )
        x1, y1, x2, y2 = pixel_box(bins, size, self.num_locations)
        own = torch.tensor([list(codes[BOX_OF_MASK:])], device=self.vqvae.codebook.device)  # (1, K)
        inside = self.vqvae.decode(own, size=(y2 - y1, x2 - x1))[0] >= 0.5  # (h, w)
        mask = np.zeros(size, dtype=bool)
        mask[y1:y2, x1:x2] = inside.cpu().numpy()
        return mask

    def to_text(self, codes: Sequence[int]) -> str:
        """The span by token names, without spaces."""
        return self.vocabulary.span_text(Span(self.modality, tuple(codes)))

    def from_text(self, text: str) -> list[int]:
        """Codes of exactly one span. Raises SpanError for anything else."""
        return text_to_codes(self.vocabulary, self.modality, text)

    @staticmethod
    def draw(masks: Sequence[Any], image: Image.Image) -> Image.Image:
        """A copy of the image with masks (H, W) tinted and numbered from 1; they are resized to the image.

        Raises:
            ValueError: for a mask that is not (H, W) of 0 and 1.
        """
        drawn = load_image(image)
        pixels = np.asarray(drawn).astype(np.float32)  # (H, W, 3)
        labels = []
        for i, value in enumerate(masks):
            mask = as_mask(value, may_be_empty=True)
            color = np.array(ImageColor.getrgb(mark_color(i)), dtype=np.float32)  # (3,)
            chosen = np.asarray(Image.fromarray(mask).resize(drawn.size, Image.Resampling.NEAREST))
            pixels[chosen] += _TINT * (color - pixels[chosen])
            if mask.any():
                x1, y1 = tight_box(mask)[:2] * drawn.size
                labels.append((i, (x1, y1)))
        drawn = Image.fromarray(pixels.round().astype(np.uint8))
        canvas = ImageDraw.Draw(drawn)
        for i, corner in labels:
            draw_label(canvas, drawn, corner, str(i + 1), mark_color(i))
        return drawn
