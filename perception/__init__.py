"""Perception tokens in a vision-language model: a model that draws depth maps, boxes and points before it answers.

The public names are loaded when they are first used, so that `import perception` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perception.chains import Answer, prompt_for
    from perception.grammar.automaton import SpanGrammar
    from perception.grammar.processor import SpanLogitsProcessor
    from perception.interleave.chains import InterleavedModel, Look
    from perception.interleave.generation import InterleavedGenerator
    from perception.interleave.reasoner import Reasoner
    from perception.interleave.selector import VisualTokenSelector
    from perception.interleave.triggers import InterleaveSettings
    from perception.interleave.visual_tokens import VisualLayout
    from perception.model.images import load_image
    from perception.model.perception_model import PerceptionModel, Prompt
    from perception.model.prepared_images import PreparedImage
    from perception.model.sharing import push_to_hub
    from perception.model.shipped import shipped
    from perception.tokenizers import TOKENIZERS, BoxTokenizer, DepthTokenizer, MaskTokenizer, PointTokenizer
    from perception.vocabulary.names import PerceptionVocabulary
    from perception.vocabulary.spans import MODALITIES, Span, SpanError

_NAMES = {
    "perception.chains": ("Answer", "prompt_for"),
    "perception.grammar.automaton": ("SpanGrammar",),
    "perception.grammar.processor": ("SpanLogitsProcessor",),
    "perception.interleave.chains": ("InterleavedModel", "Look"),
    "perception.interleave.generation": ("InterleavedGenerator",),
    "perception.interleave.reasoner": ("Reasoner",),
    "perception.interleave.selector": ("VisualTokenSelector",),
    "perception.interleave.triggers": ("InterleaveSettings",),
    "perception.interleave.visual_tokens": ("VisualLayout",),
    "perception.model.images": ("load_image",),
    "perception.model.perception_model": ("PerceptionModel", "Prompt"),
    "perception.model.prepared_images": ("PreparedImage",),
    "perception.model.sharing": ("push_to_hub",),
    "perception.model.shipped": ("shipped",),
    "perception.tokenizers": ("TOKENIZERS", "BoxTokenizer", "DepthTokenizer", "MaskTokenizer", "PointTokenizer"),
    "perception.vocabulary.names": ("PerceptionVocabulary",),
    "perception.vocabulary.spans": ("MODALITIES", "Span", "SpanError"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "MODALITIES",
    "TOKENIZERS",
    "Answer",
    "BoxTokenizer",
    "DepthTokenizer",
    "InterleaveSettings",
    "InterleavedGenerator",
    "InterleavedModel",
    "Look",
    "MaskTokenizer",
    "PerceptionModel",
    "PerceptionVocabulary",
    "PointTokenizer",
    "PreparedImage",
    "Prompt",
    "Reasoner",
    "Span",
    "SpanError",
    "SpanGrammar",
    "SpanLogitsProcessor",
    "VisualLayout",
    "VisualTokenSelector",
    "load_image",
    "prompt_for",
    "push_to_hub",
    "shipped",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'perception' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
