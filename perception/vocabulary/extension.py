"""Rows for new tokens: add perception tokens to a tokenizer and their embeddings to a transformers model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

INITS = ("mean", "description", "codebook")
CONFIG_KEY = "perception_vocabulary"
"""Key of the model's config that holds the settings of its vocabulary"""
_PROJECTION_SEED = 0


def embedding_layers(model: Any) -> list[Any]:
    """Input and output embeddings; one of them where they share their weight or there is no output layer."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if layers[1] is None or layers[1].weight is layers[0].weight:
        return layers[:1]
    return layers


def count_rows(model: Any) -> int:
    """Number of rows that input and output embeddings both have."""
    return min(layer.weight.shape[0] for layer in embedding_layers(model))


def add_tokens(tokenizer: Any, names: Sequence[str]) -> None:
    """Add names to a tokenizer as special tokens, so that users' text can be kept from becoming them."""
    from tokenizers import AddedToken

    tokens = [AddedToken(name, special=True, normalized=False, lstrip=False, rstrip=False) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=True)


def find_mismatch(ids: Mapping[str, int], settings: Mapping[str, Any], model: Any, tokenizer: Any) -> str | None:
    """Describe why a tokenizer or a model does not fit a vocabulary; None where both fit.

    Args:
        ids: id of each token name.
        settings: the vocabulary's, as the model's config may hold them.
        model: or None to check the tokenizer alone.
    """
    names, known = list(ids), tokenizer.get_vocab()
    for name in names:
        if known.get(name) != ids[name]:
            return f"{name} is id {ids[name]} here and {known.get(name)} in the tokenizer"
    encoded = tokenizer(names, add_special_tokens=False)["input_ids"]
    plain = tokenizer(names, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for name, found, plain_ids in zip(names, encoded, plain, strict=True):
        if list(found) != [ids[name]]:
            return f"the tokenizer encodes {name} to {list(found)}, not to the single id {ids[name]}"
        if ids[name] in plain_ids:
            return f"{name} is no special token of the tokenizer, so that a user's text could become it"
    if model is None:
        return None
    kept = getattr(model.config, CONFIG_KEY, None)
    if kept is not None and kept != settings:
        return f"the model's config says {kept}, the vocabulary {settings}"
    highest = max(ids.values())
    for layer in embedding_layers(model):
        if layer.weight.shape[0] <= highest:
            return f"ids go up to {highest} and the model's embedding has {layer.weight.shape[0]} rows"
    return None


def write_rows(
    model: Any,
    old_ids: Sequence[int],
    new_ids: Sequence[int],
    descriptions: Mapping[int, list[int]],
    codebook: Tensor | None,
    codebook_ids: Sequence[int],
    pad_to_multiple_of: int | None,
) -> None:
    """Give a model rows up to the highest of `new_ids`, and write those of `new_ids` and of the padding.

    Args:
        old_ids: ids whose rows the new ones are made from.
        descriptions: ids of a plain text by new id, whose rows' mean is the new row; the others get all old rows' mean.
        codebook: (K, D) vectors for the rows of `codebook_ids`, or None.
    """
    rows, needed = count_rows(model), max(new_ids) + 1
    if needed > rows:
        # mean_resizing draws from a normal; every row it makes is written below.
        model.resize_token_embeddings(needed, pad_to_multiple_of=pad_to_multiple_of, mean_resizing=False)
        if hasattr(model.config, "vocab_size"):  # PaliGemma's, which transformers leaves as it was
            model.config.vocab_size = count_rows(model)
    fresh = sorted({*new_ids, *range(rows, count_rows(model))})
    for layer in embedding_layers(model):
        tensors = [layer.weight.data]
        if getattr(layer, "bias", None) is not None:
            tensors.append(layer.bias.data[:, None])  # (V, 1), a view
        for tensor in tensors:
            old = torch.tensor(old_ids, device=tensor.device)
            _fill_rows(tensor, old, fresh, descriptions, codebook, codebook_ids)


@torch.no_grad()
def _fill_rows(
    weight: Tensor,
    old_ids: Tensor,
    new_ids: Iterable[int],
    descriptions: Mapping[int, list[int]],
    codebook: Tensor | None,
    codebook_ids: Sequence[int],
) -> None:
    """Write the rows `new_ids` of weight (V, width), from the rows `old_ids`. A bias (V,) comes as (V, 1)."""
    old = weight[old_ids].float()  # (old, width)
    mean = old.mean(0)  # (width,)
    for i in new_ids:
        described = descriptions.get(i)
        weight[i] = (weight[described].float().mean(0) if described else mean).to(weight.dtype)
    if codebook is not None and weight.shape[1] > 1:
        fresh = set(new_ids)
        kept = [(row, i) for row, i in enumerate(codebook_ids) if i in fresh]
        rows = _codebook_rows(codebook, old)  # (K, width)
        weight[[i for _, i in kept]] = rows[[row for row, _ in kept]].to(weight.dtype)


def _codebook_rows(codebook: Tensor, old: Tensor) -> Tensor:
    """Rows (K, width) for code vectors (K, D), with the mean and the spread of the old rows (V, width)."""
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)  # the same projection on every machine
    projection = torch.randn(codebook.shape[1], old.shape[1], generator=generator).to(old)  # (D, width)
    rows = codebook.to(old) @ projection  # (K, width)
    rows = rows - rows.mean(0)
    return old.mean(0) + rows * (old.std(0).mean() / rows.std().clamp_min(1e-12))
