"""The tokenizers: a depth map, or a mask, to codes and back, with figures. Independent of Gradio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demos.guards import Refused, read_depth_map, read_image
from demos.pictures import draw_map, enlarged
from perception.tokenizers.depth import DepthTokenizer
from perception.tokenizers.masks import MaskTokenizer, mask_iou
from vqvae import VQVAE
from vqvae.metrics import depth_errors

MAX_TOKEN_TEXT = 20_000
"""characters"""
_SHOWN = 320
"""longer side of a map on the page, in pixels"""
_WORST = 0.25
"""error in nearness that is lightest in a map of errors"""


@dataclass(frozen=True)
class TokenizingView:
    """One state of the tokenizer tab."""

    original: Image.Image
    decoded: Image.Image
    error: Image.Image
    codes: np.ndarray
    """(h, w), 0 farthest .. K-1 nearest"""
    text: str
    """The span as names of tokens"""
    figures: dict[str, float]


@dataclass(frozen=True)
class MaskView:
    """A mask, and what its tokens keep of it."""

    original: Image.Image
    decoded: Image.Image
    """The decoded mask, tinted, over the original"""
    text: str
    """The span as names of tokens"""
    figures: dict[str, float]


@dataclass(frozen=True)
class Budget:
    """The map decoded from the first n codes of a nested tokenizer."""

    tokens: int
    decoded: Image.Image
    figures: dict[str, float]


def budgets_of(tokenizer: DepthTokenizer) -> tuple[int, ...]:
    """Numbers of tokens that are shown side by side: several for a nested tokenizer, all for another."""
    total = tokenizer.num_codes
    if not tokenizer.vqvae.config.nested:
        return (total,)
    return tuple(sorted({max(1, round(total * share)) for share in (0.04, 0.09, 0.16, 0.36, 0.64, 1)}))


def _shrunk(depth: Tensor) -> Tensor:
    """Depth (H, W) with its longer side at most `_SHOWN` pixels; holes stay holes."""
    step = max(1, -(-max(depth.shape) // _SHOWN))
    return depth[::step, ::step]


def tokenize(
    tokenizer: DepthTokenizer, path: str | None, inverse: bool = False, budget: int | None = None
) -> TokenizingView:
    """Encode an uploaded map and decode its codes."""
    depth = read_depth_map(path, inverse)
    model = tokenizer.vqvae
    total = model.config.num_codes
    if budget is not None and budget != total and not model.config.nested:
        raise Refused(f"this tokenizer reads exactly {total} tokens a map; fewer need a nested one")
    codes = model.encode(depth[None])  # (1, h, w)
    sequence = model.to_sequence(codes)  # (1, h*w)
    ranges = model.normalise(depth[None]).depth_range  # (1, 2)
    shown = _shrunk(depth)
    nearness, errors = _decoded(model, sequence[:, :budget], ranges, shown)
    near, far = (1 / ranges[0]).tolist()
    truth = ((1 / shown - far) / max(near - far, 1e-12)).clamp(0, 1)
    valid = shown.isfinite()
    off = torch.where(valid, (nearness - truth).abs(), torch.nan)
    return TokenizingView(
        draw_map(torch.where(valid, truth, torch.nan).numpy(), "depth map"),
        draw_map(nearness.numpy(), f"from {budget or total} tokens"),
        draw_map((off / _WORST).clamp(max=1).numpy(), "error of nearness", ends=(f"{_WORST:g} +", "0")),
        codes[0].numpy(),
        tokenizer.to_text(sequence[0].tolist()),
        errors
        | {
            "mean error of nearness": round(float(off[valid].mean()), 4),
            "holes": round(float((~valid).float().mean()), 4),
        },
    )


def _decoded(model: VQVAE, sequence: Tensor, ranges: Tensor, shown: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Nearness (H, W) of a sequence (1, n), and the errors of its depth against a map (H, W)."""
    size = (shown.shape[0], shown.shape[1])
    nearness: Tensor = model.decode(sequence, size=size)[0]  # (H, W)
    metric = model.decode(sequence, ranges, size=size)  # (1, H, W)
    errors = depth_errors(metric, torch.where(shown.isfinite(), shown, 0)[None]).means()
    return nearness, {name: round(errors[name], 4) for name in ("delta1", "abs_rel", "rmse")}


def compare_budgets(tokenizer: DepthTokenizer, path: str | None, inverse: bool = False) -> list[Budget]:
    """The same uploaded map from each of `budgets_of` numbers of tokens.

    Raises:
        Refused: for an upload that is not taken.
    """
    depth = read_depth_map(path, inverse)
    model = tokenizer.vqvae
    sequence = model.to_sequence(model.encode(depth[None]))  # (1, h*w)
    ranges = model.normalise(depth[None]).depth_range  # (1, 2)
    shown = _shrunk(depth)
    found = []
    for tokens in budgets_of(tokenizer):
        nearness, errors = _decoded(model, sequence[:, :tokens], ranges, shown)
        found.append(Budget(tokens, draw_map(nearness.numpy(), f"{tokens} tokens"), errors))
    return found


def detokenize(tokenizer: DepthTokenizer, text: str | None) -> Image.Image:
    """The map that pasted tokens stand for.

    Raises:
        Refused: for text that is no whole span.
    """
    pasted = "".join((text or "").split())
    if not pasted:
        raise Refused("paste a depth span first: <DEPTH_START> .. <DEPTH_END>")
    if len(pasted) > MAX_TOKEN_TEXT:
        raise Refused(f"{len(pasted):,} characters are more than one span can have")
    try:
        codes = tokenizer.from_text(pasted)
        nearness = tokenizer.decode(codes)
    except ValueError as error:
        raise Refused(str(error)) from error
    return draw_map(nearness, f"from {len(codes)} tokens")


def tokenize_mask(tokenizer: MaskTokenizer, path: str | None) -> MaskView:
    """Encode the mask of one thing, an uploaded picture that is light inside and dark outside, and decode its codes.

    Raises:
        Refused: for an upload that is not taken, or one without a light pixel.
    """
    if path is None:
        raise Refused("choose a mask first: upload one, or click an example")
    grey = np.asarray(read_image(path).convert("L"))  # (H, W)
    mask = grey > grey.max() / 2  # of 0 and 1 too, or blurred at its edge
    if not mask.any():
        raise Refused("the picture is black; a mask is light inside of the thing and dark outside")
    codes = tokenizer.encode(mask)
    decoded = tokenizer.decode(codes, mask.shape)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    original = enlarged(Image.fromarray(mask).convert("RGB"))
    return MaskView(
        original,
        tokenizer.draw([decoded], original),
        tokenizer.to_text(codes),
        {
            "IoU of the decoded mask": round(mask_iou(mask, decoded), 4),
            "IoU of its box alone": round(mask_iou(mask, box), 4),
            "codes of the mask": tokenizer.vqvae.config.num_codes,
        },
    )
