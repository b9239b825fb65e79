"""Perception tokens in a language model: the vocabulary, its tokenizers and its grammar.

Importing this is light: nothing below is loaded before it is used, and transformers only where a model is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perception.grammar.automaton import SpanGrammar
    from perception.grammar.processor import SpanLogitsProcessor
    from perception.model.perception_model import PerceptionModel
    from perception.tokenizers import TOKENIZERS, BoxTokenizer, DepthTokenizer, PointTokenizer
    from perception.vocabulary.names import MODALITIES, PerceptionVocabulary, Span, SpanError

_HOMES = {
    "MODALITIES": "perception.vocabulary.names",
    "PerceptionModel": "perception.model.perception_model",
    "PerceptionVocabulary": "perception.vocabulary.names",
    "Span": "perception.vocabulary.names",
    "SpanError": "perception.vocabulary.names",
    "SpanGrammar": "perception.grammar.automaton",
    "SpanLogitsProcessor": "perception.grammar.processor",
    "TOKENIZERS": "perception.tokenizers",
    "BoxTokenizer": "perception.tokenizers",
    "DepthTokenizer": "perception.tokenizers",
    "PointTokenizer": "perception.tokenizers",
}

__all__ = [
    "MODALITIES",
    "TOKENIZERS",
    "BoxTokenizer",
    "DepthTokenizer",
    "PerceptionModel",
    "PerceptionVocabulary",
    "PointTokenizer",
    "Span",
    "SpanError",
    "SpanGrammar",
    "SpanLogitsProcessor",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'perception' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
