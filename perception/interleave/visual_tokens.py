"""What interleaved reasoning needs of a model of transformers: visual tokens, their features, and positions.

Works with unmodified LLaVA, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Idefics3 and SmolVLM. Each place of a sequence has a
*source*: the number of its visual token among all visual tokens of the batch, -1 for text. A prompt's placeholders are
numbered in order. A token that is brought in again keeps its source, and so has the same input embedding and the same
features for deeper layers (Qwen3-VL's deepstack). Tokens of crops (`perception.interleave.native`) are numbered after
those of all prompts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from perception.decoding.cache_slots import cache_key

_RESERVED_NAMES = re.compile(
    r"<row_\d+_col_\d+>|<global-img>|</?img>|<fake_token_around_image>|<(image|video)>"
    r"|<\|vision_(start|end|pad)\|>|<\|(image|video)_pad\|>"
)
"""Names of tokens that stand for images or enclose them, which no answer may contain"""
_FAKE = "<fake_token_around_image>"
_TEXT_KEYS = {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}


@dataclass(frozen=True)
class VisualLayout:
    """Ids that represent visual tokens in a model's sequences."""

    image_id: int
    """Placeholder of a visual token"""
    interleave_id: int
    """Id of the interleave token"""
    before: tuple[int, ...] = ()
    """Ids before the visual tokens that a look brings in: the model's vision-start, if it has one"""
    after: tuple[int, ...] = ()
    """Ids after them: the model's vision-end, if it has one"""
    reserved: tuple[int, ...] = ()
    """Ids that are inserted into sequences and never written by the model"""

    def __post_init__(self) -> None:
        placed = {self.image_id, *self.before, *self.after}
        if self.interleave_id in placed:
            raise ValueError(
                f"interleave_id ({self.interleave_id}) must not be the image's or a vision marker's, {sorted(placed)}; "
                "use vocabulary.interleave_id"
            )
        object.__setattr__(self, "reserved", tuple(sorted(placed | set(self.reserved))))

    @classmethod
    def of(cls, model: Any, interleave_id: int, tokenizer: Any = None) -> VisualLayout:
        """The layout of an image-text-to-text model of transformers.

        Args:
            interleave_id: vocabulary.interleave_id.
            tokenizer: knows the tokens around images where the model's config does not (Idefics3, SmolVLM), and all
                reserved tokens.

        Raises:
            ValueError: for a model without visual tokens, or one whose text model reads them otherwise than from left
                to right, all of what came before.
        """
        config, core = model.config, unwrapped(model)
        image_id = getattr(config, "image_token_id", None)
        if image_id is None or not hasattr(core.base_model, "get_image_features"):
            raise ValueError(
                f"{type(core).__name__} has no visual tokens (no image_token_id, or no get_image_features); "
                "load an image-text-to-text model such as LLaVA, Qwen-VL or SmolVLM"
            )
        if (reason := _why_not_causal(core)) is not None:
            raise ValueError(
                f"{type(core).__name__} cannot reason interleaved: {reason}; use a model whose tokens attend to all "
                "tokens before them and to no other, such as LLaVA, Qwen-VL or SmolVLM"
            )
        start, end = (getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end"))
        reserved = {i for i in (start, end, getattr(config, "video_token_id", None)) if i is not None}
        if tokenizer is not None:
            added = tokenizer.get_added_vocab()
            reserved |= {i for name, i in added.items() if _RESERVED_NAMES.fullmatch(name)}
            if start is None and _FAKE in added:
                start = end = added[_FAKE]
        markers = [() if marker is None else (int(marker),) for marker in (start, end)]
        return cls(int(image_id), interleave_id, markers[0], markers[1], tuple(reserved))


def _why_not_causal(model: Any) -> str | None:
    """Describe where a model of transformers attends otherwise than causally; None where it does not.

    `read_text` gives the text model a mask of padding, to which it adds the causal one. Classes that build another
    mask, where visual tokens or whole prompts attend both ways, have a `create_masks_for_generate` of their own. A
    window would count the padding that stands between a row's tokens until it is packed away.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if hasattr(model, "create_masks_for_generate"):
        return "it builds an attention mask of its own (in Gemma 3 and PaliGemma, visual tokens attend both ways)"
    layers = DynamicCache(config=model.config).layers
    others = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    return f"its text model reads through a window or a state ({', '.join(others)})" if others else None


def unwrapped(model: Any) -> Any:
    """Return the model of transformers inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class VisualFeatures:
    """Inputs of the text model at visual tokens, for all rows and images of a batch one after another."""

    tokens: Tensor
    """(N, H), input embeddings, which the projector or merger returns"""
    deepstack: tuple[Tensor, ...] = ()
    """(N, H) each, added to the hidden states after the first layers"""

    @classmethod
    def encode(cls, model: Any, images: Mapping[str, Any]) -> VisualFeatures:
        """Run the vision encoder on a processor's image outputs."""
        if images.get("pixel_values_videos") is not None:
            raise ValueError("interleaved reasoning takes images, got pixel_values_videos; pass frames as images")
        core = unwrapped(model)
        if images.get("mm_encoder_outputs"):
            return cls._of(core, images["mm_encoder_outputs"].get("image"))
        if images.get("pixel_values") is None:
            return cls._of(core, None)
        encode = core.base_model.get_image_features
        known = inspect.signature(encode).parameters
        given = {name: value for name, value in images.items() if name in known and value is not None}
        _check_grid(core, given)
        return cls._of(core, encode(**given, return_dict=True))

    def and_then(self, more: VisualFeatures) -> VisualFeatures:
        """These features and, after them, those of further images."""
        deep = zip(self.deepstack, more.deepstack, strict=True) if self.deepstack else ()
        return VisualFeatures(torch.cat([self.tokens, more.tokens]), tuple(torch.cat(pair) for pair in deep))

    @classmethod
    def _of(cls, model: Any, outputs: Any) -> VisualFeatures:
        weight = model.get_input_embeddings().weight
        if outputs is None:
            return cls(weight.new_zeros(0, weight.shape[1]))
        deep = getattr(outputs, "deepstack_features", None) or ()
        return cls(_joined(outputs.pooler_output, weight), tuple(_joined(layer, weight) for layer in deep))


def _joined(parts: Any, like: Tensor) -> Tensor:
    """Flatten one tensor, or one per image, to (N, H)."""
    flat = [part.flatten(0, -2) for part in ([parts] if isinstance(parts, Tensor) else parts)]
    return torch.cat(flat).to(like)


def check_images(model: Any, layout: VisualLayout, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError where the images' grids do not match their pixels or the prompts' placeholders."""
    core = unwrapped(model)
    _check_grid(core, inputs)
    grid = inputs.get("image_grid_thw")
    if grid is not None:
        expected = int((grid.prod(-1) // core.config.vision_config.spatial_merge_size**2).sum())
        check_count(int((inputs["input_ids"] == layout.image_id).sum()), expected)


def _check_grid(model: Any, images: Mapping[str, Any]) -> None:
    grid, pixels = images.get("image_grid_thw"), images.get("pixel_values")
    if grid is not None and pixels is not None and int(grid.prod(-1).sum()) != len(pixels):
        raise ValueError(
            f"image_grid_thw {grid.tolist()} stands for {int(grid.prod(-1).sum())} patches and pixel_values holds "
            f"{len(pixels)}; pass both as one call of the processor gave them"
        )


def check_count(placeholders: int, features: int) -> None:
    """Raise ValueError where the number of placeholders is not the number of visual tokens."""
    if placeholders != features:
        raise ValueError(
            f"the prompts hold {placeholders} image placeholders and the images give {features} visual tokens; the "
            "image grid does not match the text: make both in one call of the processor"
        )


def placeholder_sources(ids: Tensor, image_id: int) -> Tensor:
    """Sources (B, L) of prompts (B, L): placeholders are numbered in order over the batch, text is -1."""
    is_image = ids == image_id
    numbers = is_image.flatten().cumsum(0).view_as(ids) - 1
    return torch.where(is_image, numbers, -1)


def visual_columns(sources: Tensor) -> Tensor:
    """Columns (B, M) of each row's visual tokens, padded with -1 in rows that have fewer than M."""
    is_image = sources >= 0
    counts = is_image.sum(1)
    order = is_image.long().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]  # (B, M)
    return torch.where(torch.arange(order.shape[1], device=sources.device) < counts[:, None], order, -1)


def gather_columns(hidden: Tensor, columns: Tensor) -> Tensor:
    """Hidden states (B, M, H) at columns (B, M) of hidden (B, L, H); undefined for column -1."""
    return hidden.gather(1, columns.clamp_min(0)[..., None].expand(-1, -1, hidden.shape[-1]))


def embed(
    model: Any, layout: VisualLayout, interleave: Tensor, ids: Tensor, sources: Tensor, features: VisualFeatures
) -> Tensor:
    """Input embeddings (B, L, H): of text by its ids, of visual tokens by their sources (B, L), and `interleave` (H,)
    for interleave tokens."""
    table = model.get_input_embeddings()
    plain = (sources < 0) & (ids != layout.interleave_id)
    embeds: Tensor = table(ids.where(plain, 0))  # (B, L, H)
    is_interleave = (ids == layout.interleave_id)[..., None]
    embeds = torch.where(is_interleave, interleave.to(embeds.dtype), embeds)
    if len(features.tokens):
        embeds = torch.where((sources >= 0)[..., None], features.tokens[sources.clamp_min(0)], embeds)
    return embeds


def chain_positions(
    model: Any, ids: Tensor, is_placeholder: Tensor, attention_mask: Tensor, images: Mapping[str, Any]
) -> Tensor:
    """Position ids by the model's own rule: (B, L), or (3, B, L) for time, height and width of Qwen-VL.

    Args:
        ids: (B, L).
        is_placeholder: (B, L) bool, the prompt's visual tokens. Those brought in later count as text, as the model
            would assign them to the next image's grid.
        attention_mask: (B, L).
        images: with image_grid_thw, if the model needs it.
    """
    rule = getattr(unwrapped(model).base_model, "get_rope_index", None)
    if rule is None:
        return (attention_mask.long().cumsum(1) - 1).clamp_min(0)
    positions: Tensor = rule(
        ids,
        mm_token_type_ids=is_placeholder.int(),
        image_grid_thw=images.get("image_grid_thw"),
        attention_mask=attention_mask,
    )[0]
    return positions


def read_text(
    model: Any,
    embeds: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    sources: Tensor | None,
    features: VisualFeatures,
    cache: Any = None,
) -> Tensor:
    """Last hidden states (B, L, H) of the text model for embeds (B, L, H), which follow the cache's tokens.

    Args:
        attention_mask: (B, slots + L).
        position_ids: (B, L) or (3, B, L).
        sources: (B, L); None where everything is text.
    """
    deep: dict[str, Any] = {}
    if features.deepstack and sources is not None:
        is_visual = sources >= 0
        layers = [layer[sources[is_visual]] for layer in features.deepstack]  # (n, H) each
        deep = {"visual_pos_masks": is_visual, "deepstack_visual_embeds": layers}
    outputs = unwrapped(model).get_decoder()(
        inputs_embeds=embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=cache is not None,
        **{cache_key(): cache},
        **deep,
    )
    hidden: Tensor = outputs.last_hidden_state
    return hidden


def images_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A processor's outputs that belong to the images."""
    return {name: value for name, value in inputs.items() if name not in _TEXT_KEYS}


def images_to(
    images: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Image inputs on a device; pixel values are converted to `dtype` if it is given."""
    return {
        name: value.to(device, dtype if dtype and value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for name, value in images.items()
    }


def repeat_rows(features: VisualFeatures, ids: Tensor, image_id: int, times: int) -> VisualFeatures:
    """Features of a batch in which every row is repeated `times` times.

    Args:
        features: of the rows before they are repeated.
        ids: (B * times, T), of the repeated prompts.
    """
    counts = (ids[::times] == image_id).sum(1).tolist()  # B
    numbers = torch.arange(len(features.tokens), device=features.tokens.device)
    check_count(sum(counts), len(numbers))
    return select_rows(features, torch.cat([own.repeat(times) for own in numbers.split(counts)]))


def select_rows(features: VisualFeatures, kept: Tensor) -> VisualFeatures:
    """Features of some visual tokens, by their numbers (n,)."""
    return replace(features, tokens=features.tokens[kept], deepstack=tuple(f[kept] for f in features.deepstack))
