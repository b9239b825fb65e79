"""New rows for new tokens: how a vocabulary gets into a tokenizer and a model of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from perception.vocabulary.names import PerceptionVocabulary

INITS = ("mean", "description", "codebook")
CONFIG_KEY = "perception_vocabulary"
_PROJECTION_SEED = 0


def embedding_layers(model: Any) -> list[Any]:
    """Input and output embeddings; one of the two where they share their weight or there is no output."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if layers[1] is None or layers[1].weight is layers[0].weight:
        return layers[:1]
    return layers


def find_mismatch(vocabulary: PerceptionVocabulary, model: Any, tokenizer: Any) -> str | None:
    """What keeps a bound vocabulary from belonging to a model (or None) and a tokenizer, in words; None if nothing."""
    names = vocabulary.tokens
    known = tokenizer.get_vocab()
    for name in names:
        if known.get(name) != vocabulary.token_id(name):
            return f"{name} is id {vocabulary.token_id(name)} here and {known.get(name)} in the tokenizer"
    encoded = tokenizer(names, add_special_tokens=False)["input_ids"]
    plain = tokenizer(names, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for name, ids, plain_ids in zip(names, encoded, plain, strict=True):
        if list(ids) != [vocabulary.token_id(name)]:
            return f"the tokenizer encodes {name} to {list(ids)}, not to the single id {vocabulary.token_id(name)}"
        if vocabulary.token_id(name) in plain_ids:
            return f"{name} is no special token of the tokenizer, so that a user's text could become it"
    if model is None:
        return None
    settings = getattr(model.config, CONFIG_KEY, None)
    if settings is not None and settings != vocabulary.settings:
        return f"the model's config says {settings}, the vocabulary {vocabulary.settings}"
    highest = max(vocabulary.ids.values())
    for layer in embedding_layers(model):
        if layer.weight.shape[0] <= highest:
            return f"ids go up to {highest} and the model's embedding has {layer.weight.shape[0]} rows"
    return None


def _check_extendable(vocabulary: PerceptionVocabulary, model: Any, tokenizer: Any) -> None:
    """Raises ValueError where model or tokenizer hold another vocabulary."""
    remedy = "start from the original model and tokenizer, or use the vocabulary they were extended with"
    settings = getattr(model.config, CONFIG_KEY, None)
    if settings is not None and settings != vocabulary.settings:
        raise ValueError(f"the model was extended with {settings}, got {vocabulary.settings}; {remedy}")
    foreign = vocabulary.foreign_tokens(tokenizer)
    if foreign:
        raise ValueError(f"the tokenizer has perception tokens of another vocabulary, e.g. {foreign[:3]}; {remedy}")
    known = tokenizer.get_vocab()
    if settings is not None and any(name not in known for name in vocabulary.tokens):
        raise ValueError(
            "the model was extended with this vocabulary and the tokenizer was not, so its rows would be written anew; "
            "load the tokenizer that was saved with the model, or start from the original model"
        )
    for modality in ("depth", "boxes"):
        present = [name in known for name in vocabulary.code_names(modality)]
        if any(present) and not all(present):
            raise ValueError(f"the tokenizer has {sum(present)} of the {len(present)} codes of {modality}; {remedy}")


def _descriptions(vocabulary: PerceptionVocabulary, given: Mapping[str, str] | None) -> dict[str, str]:
    unknown = set(given or ()) - set(vocabulary.tokens)
    if unknown:
        raise ValueError(f"descriptions must be by token name, got {sorted(unknown)[:3]}; see vocabulary.tokens")
    locations = vocabulary.code_names("boxes")
    return {name: f" {n}" for n, name in enumerate(locations)} | dict(given or {})


def _codebook_rows(codebook: Tensor, old: Tensor) -> Tensor:
    """Rows (K, width) for code vectors (K, D), with the mean and the spread of the old rows (V, width)."""
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)  # the same projection for everyone, everywhere
    projection = torch.randn(codebook.shape[1], old.shape[1], generator=generator).to(old)  # (D, width)
    rows = codebook.to(old) @ projection  # (K, width)
    rows = rows - rows.mean(0)
    return old.mean(0) + rows * (old.std(0).mean() / rows.std().clamp_min(1e-12))


@torch.no_grad()
def _fill_rows(
    weight: Tensor,
    old_ids: Tensor,
    new_ids: Iterable[int],
    description_ids: Mapping[int, list[int]],
    codebook: Tensor | None,
    codebook_ids: list[int],
) -> None:
    """Writes the rows `new_ids` of weight (V, width), from the rows `old_ids`. A bias (V,) is taken as (V, 1)."""
    old = weight[old_ids].float()  # (old, width)
    mean = old.mean(0)  # (width,)
    for i in new_ids:
        described = description_ids.get(i)
        weight[i] = (weight[described].float().mean(0) if described else mean).to(weight.dtype)
    if codebook is not None and weight.shape[1] > 1:
        fresh = set(new_ids)
        kept = [(row, i) for row, i in enumerate(codebook_ids) if i in fresh]
        rows = _codebook_rows(codebook, old)  # (K, width)
        weight[[i for _, i in kept]] = rows[[row for row, _ in kept]].to(weight.dtype)


def extend(
    vocabulary: PerceptionVocabulary,
    model: Any,
    tokenizer: Any,
    init: str,
    codebook: Tensor | None,
    descriptions: Mapping[str, str] | None,
    pad_to_multiple_of: int | None,
) -> PerceptionVocabulary:
    """See `PerceptionVocabulary.extend`."""
    _check_arguments(vocabulary, init, codebook)
    wanted = _descriptions(vocabulary, descriptions) if init != "mean" else {}
    _check_extendable(vocabulary, model, tokenizer)
    before = tokenizer.get_vocab()
    missing = [name for name in vocabulary.tokens if name not in before]
    rows = min(layer.weight.shape[0] for layer in embedding_layers(model))
    if not missing and max(vocabulary.bind(tokenizer).ids.values()) < rows:
        bound = vocabulary.bind(tokenizer)
        if getattr(model.config, CONFIG_KEY, None) is None:
            raise ValueError(
                "tokenizer and model have the tokens and their rows, but the model's config does not say that extend() "
                "made them; keep the rows with bind(tokenizer), or write them anew with the original tokenizer"
            )
        bound.check(model, tokenizer)
        return bound
    bound = _add_tokens(vocabulary, tokenizer, missing)
    # With an extended tokenizer and a fresh model all of its rows are new, those in its padding too.
    fresh = [bound.ids[name] for name in (missing or vocabulary.tokens)]
    old_ids = sorted(i for name, i in before.items() if i < rows and name not in bound.ids)
    needed = max(bound.ids.values()) + 1
    if needed > rows:
        # mean_resizing draws from a normal; every row it makes is written below.
        model.resize_token_embeddings(needed, pad_to_multiple_of=pad_to_multiple_of, mean_resizing=False)
    new_rows = min(layer.weight.shape[0] for layer in embedding_layers(model))
    new_ids = sorted({*fresh, *range(rows, new_rows)})
    described = {bound.ids[name]: bound.encode_plain(tokenizer, text) for name, text in wanted.items()}
    for layer in embedding_layers(model):
        tensors = [layer.weight.data]
        if getattr(layer, "bias", None) is not None:
            tensors.append(layer.bias.data[:, None])  # (V, 1), a view
        for tensor in tensors:
            old = torch.tensor(old_ids, device=tensor.device)
            _fill_rows(tensor, old, new_ids, described, codebook, bound.code_ids("depth"))
    setattr(model.config, CONFIG_KEY, bound.settings)
    bound.check(model, tokenizer)
    return bound


def _check_arguments(vocabulary: PerceptionVocabulary, init: str, codebook: Tensor | None) -> None:
    if init not in INITS:
        raise ValueError(f"init must be one of {INITS}, got {init!r}")
    if (init == "codebook") != (codebook is not None):
        raise ValueError("init='codebook' and codebook= go together; pass codebook=vqvae.codebook, or another init")
    if codebook is not None and (codebook.ndim != 2 or codebook.shape[0] != vocabulary.depth_codes):
        raise ValueError(
            f"codebook must be (depth_codes, D) = ({vocabulary.depth_codes}, D), got {tuple(codebook.shape)}; use the "
            "VQVAE whose codes the vocabulary names"
        )


def _add_tokens(vocabulary: PerceptionVocabulary, tokenizer: Any, missing: list[str]) -> PerceptionVocabulary:
    """The vocabulary, bound to the tokenizer that has its tokens now. Raises ValueError where they do not take."""
    from tokenizers import AddedToken

    tokens = [AddedToken(name, special=True, normalized=False, lstrip=False, rstrip=False) for name in missing]
    tokenizer.add_tokens(tokens, special_tokens=True)
    bound = vocabulary.bind(tokenizer)
    problem = find_mismatch(bound, None, tokenizer)
    if problem:
        raise ValueError(
            f"the tokenizer cannot hold perception tokens: {problem}; use a fast tokenizer of transformers"
        )
    return bound
