"""Answers of an interleaved model to problems, and the accuracy of its answers and looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perception.answers import final_answer, same_answer
from perception.interleave.chains import InterleavedModel, Look
from perception.interleave.generation import InterleavedGenerator
from train.data.interleaved import ChainEncoder, ChainProblem

Chooser = Callable[[ChainProblem, Tensor, int], Tensor]
"""(problem, scores (N,), number of the look) -> (N,) bool, True for the visual tokens that the look selects."""


@dataclass(frozen=True)
class Outcome:
    """The answer to one problem, compared with its solution."""

    text: str
    right: bool
    looks: tuple[tuple[int, ...], ...]
    """visual tokens selected per look"""
    hits: int
    """number of selected visual tokens that the solution's step of the same number looks at"""
    selected: int
    """number of visual tokens that the looks selected"""
    wanted: int
    """number of visual tokens that the solution's steps look at"""
    visual_tokens: int = 0
    """number of visual tokens that the model read, the prompt's and those that looks inserted"""


def answer_text(tokenizer: Any, answer: Sequence[int | Look], perception: bool = False) -> str:
    """Return the text of an answer, including the names of perception tokens if `perception` is True."""
    ids = [part for part in answer if not isinstance(part, Look)]
    if not perception:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return str(tokenizer.decode([i for i in ids if i not in ends], skip_special_tokens=False)).strip()


@torch.no_grad()
def answer_problems(
    model: InterleavedModel,
    encoder: ChainEncoder,
    problems: Sequence[ChainProblem],
    max_new_tokens: int = 160,
    batch_size: int = 32,
    choose: Chooser | None = None,
) -> list[Outcome]:
    """Answer problems with greedy decoding.

    Args:
        choose: chooses the visual tokens of each look; None uses the model's own selector.
    """
    outcomes = []
    for start in range(0, len(problems), batch_size):
        chosen = problems[start : start + batch_size]

        def hook(scores: Tensor, row: int, look: int, chosen: Sequence[ChainProblem] = chosen) -> Tensor:
            return model.selector.select(scores) if choose is None else choose(chosen[row], scores, look)

        generator = InterleavedGenerator(model, encoder.settings, encoder.processor.tokenizer, hook)
        inputs = {name: value.to(model.selector.log_gamma.device) for name, value in encoder.inputs(chosen).items()}
        native = encoder.native(chosen, inputs)
        found = generator.generate(inputs, native=native, max_new_tokens=max_new_tokens, do_sample=False)
        seen = (inputs["input_ids"] == encoder.layout.image_id).sum(1).tolist()
        for problem, answer, tokens, inserted in zip(chosen, found.answers, seen, found.inserted, strict=True):
            outcomes.append(_outcome(problem, answer, encoder, tokens + sum(inserted)))
    return outcomes


def _outcome(problem: ChainProblem, answer: Sequence[int | Look], encoder: ChainEncoder, visual_tokens: int) -> Outcome:
    text = answer_text(encoder.processor.tokenizer, answer)
    looks = [part.tokens for part in answer if isinstance(part, Look)]
    pairs = [(set(look), set(step.tokens)) for look, step in zip(looks, problem.steps, strict=False)]
    return Outcome(
        text,
        same_answer(final_answer(text), problem.answer),
        tuple(looks),
        sum(len(one & two) for one, two in pairs),
        sum(len(one) for one, _ in pairs),
        sum(len(two) for _, two in pairs),
        visual_tokens,
    )


def accuracy(outcomes: Sequence[Outcome]) -> float:
    return sum(o.right for o in outcomes) / max(1, len(outcomes))


def selection_f1(outcomes: Sequence[Outcome]) -> float:
    """Return the F1 score of the selected visual tokens of all looks against those of the solutions' steps."""
    both = sum(o.selected + o.wanted for o in outcomes)
    return 2 * sum(o.hits for o in outcomes) / max(1, both)
