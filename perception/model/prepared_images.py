"""Images that are prepared once and asked about several times.

`PerceptionModel.prepare_image(image)` returns a `PreparedImage`, which is accepted wherever an image is. It keeps what
the processor made of the image and, from the first question on, the image's visual features. `CachedFeatures` replaces
the model's `get_image_features`: for pixels that are marked as those of prepared images it returns the kept features.

A mark does not survive copies of the pixels (beam search, other devices); features are then computed again, so that no
answer changes. For a model without `get_image_features` only the processor's outputs are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

_NAME, _MARK, _DEEPSTACK = "get_image_features", "_prepared_images", "deepstack_features"
_KEPT = ("pooler_output", _DEEPSTACK)
"""What models read of an image's features; the tower's hidden states are not kept"""

_WITHOUT_EFFECT = ("return_dict", "use_cache", "logits_to_keep", "output_hidden_states", "output_attentions")
"""Settings that some models pass on and that change no feature"""


@dataclass(eq=False)
class PreparedImage:
    """An image with what a processor and, after the first question, a vision tower made of it."""

    image: Image.Image
    head: list[int]
    """Ids of the prompt up to the question"""
    extra: dict[str, Tensor]
    """The processor's other outputs, as far as the model takes them"""
    owner: Any = None
    """The model that it was prepared for"""
    features: dict[str, Any] = field(default_factory=dict)
    """Features by the settings that the tower was called with"""

    def get(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """One of the processor's outputs, on a device and, if it is floating point, in a dtype."""
        value = self.extra[name].to(device)
        return value.to(dtype) if value.is_floating_point() else value


def mark_pixels(pixels: Tensor, images: Sequence[PreparedImage]) -> None:
    """Mark the pixels of a batch as those of prepared images, in this order."""
    setattr(pixels, _MARK, tuple(images))


class CachedFeatures:
    """Replacement of a model's `get_image_features` that calls the original for images without kept features."""

    def __init__(self, original: Callable[..., Any]):
        self.original = original
        self.__signature__ = inspect.signature(original)  # transformers' generate reads it
        kinds = {p.kind: name for name, p in self.__signature__.parameters.items()}
        self._others = kinds.get(inspect.Parameter.VAR_KEYWORD)

    @classmethod
    def install(cls, model: Any) -> bool:
        """Replace a model's `get_image_features`; returns False where the model has none."""
        inner = model.base_model
        original = getattr(inner, _NAME, None)
        if original is None:
            return False
        if not isinstance(original, cls):
            setattr(inner, _NAME, cls(original))
        return True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.__signature__.bind(*args, **kwargs)
        given = dict(bound.arguments)
        given |= given.pop(self._others, {}) if self._others is not None else {}
        images = getattr(given.get("pixel_values"), _MARK, None)
        if images is None or torch.is_grad_enabled() or given.get("return_dict") is False:
            return self.original(*args, **kwargs)
        tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
        if any(name not in image.extra for name in tensors for image in images):
            return self.original(*args, **kwargs)
        rest = {name: value for name, value in given.items() if name not in tensors}
        settings = {name: repr(v) for name, v in rest.items() if v is not None and name not in _WITHOUT_EFFECT}
        key = repr(sorted(settings.items()))
        pixels = given["pixel_values"]
        for image in images:
            if key not in image.features:
                own = {name: image.get(name, pixels.device, pixels.dtype) for name in tensors}
                image.features[key] = self.original(**own, **rest)
        found = [image.features[key] for image in images]
        return _join_outputs(found)  # never the kept outputs themselves: generate repeats them in place for beams


def _join_outputs(outputs: Sequence[Any]) -> Any:
    """Return features of all images as the model would have at once, in a new output."""
    if isinstance(outputs[0], Tensor | list) or not hasattr(outputs[0], "keys"):
        return _join(outputs)
    made = {}
    for name in _KEPT:
        parts = [output.get(name) for output in outputs]
        if parts[0] is not None:
            # deepstack: per layer, one tensor or one list of images
            made[name] = [_join(layer) for layer in zip(*parts, strict=True)] if name == _DEEPSTACK else _join(parts)
    return type(outputs[0])(**made)


def _join(parts: Sequence[Any]) -> Any:
    """Tensors (n, ...) concatenated, or lists with one entry per image joined."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [entry for part in parts for entry in part]
