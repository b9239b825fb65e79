"""Fixtures that the tests of perception share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_llava, build_tokenizer
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from perception.vocabulary.names import PerceptionVocabulary


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def llava(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    return build_llava(tokenizer)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


@pytest.fixture
def tiny_folder(tmp_path: Path, tokenizer: Any, llava: Any) -> Path:
    """A folder with a tiny LLaVA, extended by a vocabulary of 2 x 2 depth codes, and its tokenizer."""
    vocabulary = PerceptionVocabulary(depth_codes=8, depth_grid=(2, 2), num_locations=10).extend(llava, tokenizer)
    llava.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    vocabulary.save(tmp_path)
    return tmp_path
