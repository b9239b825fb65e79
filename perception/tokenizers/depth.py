"""`DepthTokenizer`: depth maps as the codes of a VQVAE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from perception.model.images import load_image
from perception.tokenizers.locations import text_to_codes
from perception.vocabulary.names import PerceptionVocabulary, Span

if TYPE_CHECKING:
    from vqvae import VQVAE


@cache
def color_table() -> NDArray[np.uint8]:
    """Colours (256, 3) from dark violet (0, far) to light yellow (255, near), evenly spaced in OKLab's lightness.

    A straight rise of lightness and an even turn of hue in OKLab (B. Ottosson, "A perceptual color space for image
    processing", 2020), so that equal steps of nearness look equal, in grey too. The chroma keeps every colour in sRGB.
    """
    t = np.linspace(0, 1, 256)
    lightness = 0.22 + 0.70 * t
    hue = np.radians(300 + 155 * t)  # violet, magenta, red, orange, yellow
    chroma = 0.105 + 0.05 * np.sin(np.pi * t)
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cone = np.stack(  # (3, 256): cube roots of cone responses
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = to_linear @ cone**3  # (3, 256), within [0, 1] for these hues and chromas
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(srgb.T * 255).astype(np.uint8)


def readings_at(nearness: Tensor, points_xy: NDArray[Any]) -> NDArray[np.int64]:
    """Readings (n,) of nearness (1, S, S) at points (n, 2), xy in [0, 1]: from 0 (farthest) to 99 (nearest).

    Raises:
        ValueError: for points outside [0, 1].
    """
    from vqvae.metrics import values_at

    values = values_at(nearness, torch.from_numpy(points_xy)[None])[0]  # (n,)
    return np.round(values.numpy() * 99).astype(np.int64).clip(0, 99)


class DepthTokenizer:
    """Converts depth maps to codes and back with a VQVAE: row by row, or coarse to fine if its codes are nested.

    `encode` takes depth in any unit, larger is farther. `decode` returns nearness in [0, 1], where 1 is nearest, as the
    codes do not hold a map's scale.
    """

    modality = "depth"

    def __init__(self, vqvae: VQVAE):
        self.vqvae = vqvae.eval()
        grid = vqvae.config.grid_size
        self.vocabulary = PerceptionVocabulary(depth_codes=vqvae.config.codebook_size, depth_grid=(grid, grid))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> DepthTokenizer:
        """Load a VQVAE's folder, a hub repository, or what ships by its bare name such as "depth-scenes-100".

        Raises:
            ValueError: where it cannot be read.
        """
        from perception.model.shipped import find_shipped
        from vqvae import VQVAE

        return cls(VQVAE.from_pretrained(find_shipped(path) or path))

    @property
    def num_codes(self) -> int:
        """Number of codes of a map."""
        return self.vocabulary.depth_length

    @property
    def _device(self) -> torch.device:
        return next(self.vqvae.parameters()).device

    def encode(self, depth: Any, mask: Any = None) -> list[int]:
        """Codes (h*w,) of a depth map (H, W), array or tensor.

        NaN, infinite, non-positive and masked pixels are holes.

        Args:
            depth: any unit, larger is farther.
            mask: (H, W), False or 0 where depth must not be used.

        Raises:
            ValueError: for depth that is not (H, W), a mask of another shape, or a map without a valid pixel.
        """
        if not isinstance(depth, Tensor):  # masked pixels of NumPy's masked arrays are holes
            depth = torch.from_numpy(np.ma.filled(np.ma.asarray(depth).astype(np.float32), np.nan).copy())
        depth = depth.to(self._device, torch.float32)  # (H, W)
        if depth.ndim != 2:
            raise ValueError(f"depth must be one map (H, W), got shape {tuple(depth.shape)}; encode map by map")
        if mask is not None:
            mask = torch.as_tensor(mask, device=self._device)
            if mask.shape != depth.shape:
                raise ValueError(
                    f"mask must have depth's shape {tuple(depth.shape)}, got {tuple(mask.shape)}; resize it with "
                    "nearest neighbours"
                )
            mask = mask[None]
        codes: list[int] = self.vqvae.to_sequence(self.vqvae.encode(depth[None], mask))[0].tolist()
        return codes

    def decode(self, codes: Sequence[int], size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Nearness (S, S), or (height, width) if `size` is given, in [0, 1].

        Args:
            codes: (h*w,) in the order of `encode`, or the first nested ones; or a grid (h, w), as `vqvae` gives.

        Raises:
            ValueError: for codes that are not integers, too few or many, or out of range.
        """
        tensor = torch.as_tensor(codes, device=self._device)
        maps: Tensor = self.vqvae.decode(tensor[None], size=size)  # (1, S, S)
        return maps[0].float().cpu().numpy()

    def decode_soft(self, probabilities: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Nearness (S, S) for probabilities (h*w, K), differentiable. Raises ValueError for another shape."""
        return self.vqvae.decode_soft(probabilities[None], size=size)[0]

    def to_text(self, codes: Sequence[int]) -> str:
        """The span by token names, without spaces."""
        return self.vocabulary.span_text(Span(self.modality, tuple(codes)))

    def from_text(self, text: str) -> list[int]:
        """Codes of exactly one span. Raises SpanError for anything else."""
        return text_to_codes(self.vocabulary, self.modality, text)

    @staticmethod
    def draw(nearness: Any, image: Image.Image | None = None) -> Image.Image:
        """A coloured picture of nearness (H, W) in [0, 1]; light is near, holes (NaN) are grey.

        Args:
            nearness: as `decode` gives it.
            image: the picture gets its size; None for one pixel per value.

        Raises:
            ValueError: for another shape or values outside [0, 1].
        """
        given = nearness.detach().cpu().double() if isinstance(nearness, Tensor) else nearness
        values = np.asarray(given, dtype=np.float64)
        if values.ndim != 2 or values.size == 0:
            raise ValueError(f"nearness must be one map (H, W), got shape {values.shape}")
        holes = ~np.isfinite(values)
        known = values[~holes]
        if known.size and (known.min() < 0 or known.max() > 1):
            raise ValueError(
                f"nearness must lie in [0, 1], got {known.min():g}..{known.max():g}; draw what decode() gives"
            )
        shade = np.round(np.where(holes, 0, values) * 255).astype(np.uint8)  # (H, W)
        pixels = color_table()[shade]  # (H, W, 3)
        pixels[holes] = 128
        picture = Image.fromarray(pixels)
        return picture if image is None else picture.resize(load_image(image).size, Image.Resampling.BILINEAR)
