"""Images that were looked at once and are asked about several times.

`PerceptionModel.look(image)` gives a `SeenImage`, which may stand wherever an image may. What the processor made of it
is kept, and so are the visual features, from the first question on: `SeenFeatures` stands in front of the model's
`get_image_features` and, for pixels that are known to be those of seen images, gives what was computed for each alone.
Pixels that anything has copied on the way (beams, devices) are no longer known and are looked at anew, so that no
answer changes. Models without `get_image_features` keep the processor's part only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

_NAME, _TAG, _ELEMENTWISE = "get_image_features", "_seen_images", "deepstack_features"
_KEPT = ("pooler_output", _ELEMENTWISE)
"""What models read of an image's features; hidden states of the tower are not kept"""

_IDLE = ("return_dict", "use_cache", "logits_to_keep", "output_hidden_states", "output_attentions")
"""Settings that some models pass on and that change no feature"""


@dataclass(eq=False)
class SeenImage:
    """An image, what a processor made of it, and what a model's tower made of that, once it has."""

    image: Image.Image
    head: list[int]
    """ids of the prompt up to the question"""
    extra: dict[str, Tensor]
    """the processor's other outputs, which the model takes"""
    owner: Any = None
    """the model that it was seen by"""
    features: dict[str, Any] = field(default_factory=dict)
    """by the settings that the tower was called with"""

    def given(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        value = self.extra[name].to(device)
        return value.to(dtype) if value.is_floating_point() else value


def tag(pixels: Tensor, seen: Sequence[SeenImage]) -> None:
    """Marks the pixels of a batch as those of so many seen images, in this order."""
    setattr(pixels, _TAG, tuple(seen))


class SeenFeatures:
    """Stands in for `get_image_features` of a model, and calls it for what has not been seen."""

    def __init__(self, original: Callable[..., Any]):
        self.original = original
        self.__signature__ = inspect.signature(original)  # transformers' generate reads it
        kinds = {p.kind: name for name, p in self.__signature__.parameters.items()}
        self._others = kinds.get(inspect.Parameter.VAR_KEYWORD)

    @classmethod
    def install(cls, model: Any) -> bool:
        """Puts one before the model's own, where it has `get_image_features`; says whether it has."""
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
        seen = getattr(given.get("pixel_values"), _TAG, None)
        if seen is None or torch.is_grad_enabled() or given.get("return_dict") is False:
            return self.original(*args, **kwargs)
        tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
        if any(name not in image.extra for name in tensors for image in seen):
            return self.original(*args, **kwargs)
        rest = {name: value for name, value in given.items() if name not in tensors}
        key = repr(sorted((n, repr(v)) for n, v in rest.items() if v is not None and n not in _IDLE))
        pixels = given["pixel_values"]
        for image in seen:
            if key not in image.features:
                own = {name: image.given(name, pixels.device, pixels.dtype) for name in tensors}
                image.features[key] = self.original(**own, **rest)
        found = [image.features[key] for image in seen]
        return found[0] if len(found) == 1 else _join_outputs(found)


def _join_outputs(outputs: Sequence[Any]) -> Any:
    """The features of several images as the model would have given them for all at once."""
    if isinstance(outputs[0], Tensor | list) or not hasattr(outputs[0], "keys"):
        return _join(outputs)
    made = {}
    for name in _KEPT:
        parts = [output.get(name) for output in outputs]
        if parts[0] is not None:
            # one tensor, or one list of images, a layer
            made[name] = [_join(layer) for layer in zip(*parts, strict=True)] if name == _ELEMENTWISE else _join(parts)
    return type(outputs[0])(**made)


def _join(parts: Sequence[Any]) -> Any:
    """Tensors (n, ...) one behind the other; lists of an entry an image likewise."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [entry for part in parts for entry in part]
