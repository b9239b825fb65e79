"""The Token Replacement Test for any model whose thought, a span or latent tokens, can be replaced.

    cases = [Case(question, truth, own=latents), ...]            # latents: (tokens, width), what the model wrote
    found = ablate(cases, answer, LATENT_REPLACEMENTS)           # answer(cases, thoughts) -> one answer per case
    found["zero"].accuracy, found["zero"].below_own

`perception.evaluation.span_ablation` runs it on a `PerceptionModel`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic

import numpy as np

from perception.datasets.progress import Progress
from perception.evaluation.bootstrap import Interval, accuracy_interval, paired_difference
from perception.evaluation.replacement import Case, Replacement, Thought


@dataclass(frozen=True)
class Condition(Generic[Thought]):
    """What a model answered under one replacement.

    Intervals are over questions, of each question's mean over the seeds. A condition that is not random has one seed.
    """

    about: str
    """What was put in"""
    accuracy: Interval
    """Over the questions that the condition applies to"""
    below_own: Interval
    """Accuracy with what the model itself wrote minus this accuracy, paired on the same questions"""
    follows: Interval | None
    """Share of answers equal to what the replacement says, over the questions where it says anything; else None"""
    unanswered: float
    """Share of answers that are None, as none could be read; they count as wrong"""
    answers: dict[int, list[Any]]
    """Answers by the question's index, one per seed"""
    example: Thought | None
    """What was put in, with the first seed, for the question chosen as an example"""

    def to_json(self) -> dict[str, Any]:
        """Everything but the example."""
        intervals = {
            name: None if (interval := getattr(self, name)) is None else asdict(interval)
            for name in ("accuracy", "below_own", "follows")
        }
        listed = {str(i): said for i, said in self.answers.items()}
        return {"about": self.about, **intervals, "unanswered": self.unanswered, "answers": listed}


AnswerCases = Callable[[Sequence[Case[Thought]], Sequence[Thought | None]], Sequence[Any]]
"""A model: answers of cases whose thoughts are replaced; None in the place of a thought: none at all"""


def ablate(
    cases: Sequence[Case[Thought]],
    answer: AnswerCases[Thought],
    replacements: Mapping[str, Replacement[Thought]],
    seeds: Sequence[int] = (0, 1, 2),
    says: AnswerCases[Thought] | None = None,
    batch_size: int = 32,
    title: str = "replacing",
    example: int = 0,
) -> dict[str, Condition[Thought]]:
    """Replace what a model thought and measure what becomes of its answers.

    Args:
        cases: questions of one kind, with what the model itself wrote.
        answer: the model. Takes at most `batch_size` cases with a thought each, and returns an answer per case. All
            thoughts of a call are replaced alike, so either all of them are None or none is.
        replacements: `LATENT_REPLACEMENTS`, `span_replacements(...)` or your own, by name; "own" must be among them.
        seeds: of the random replacements; the others are answered once.
        says: what thoughts say the answer is (a number of boxes, the nearest point of a map), None where they say
            nothing. Left out: whether answers follow is not measured.
        example: index of the case whose replacements are kept to be shown.

    Returns:
        The conditions by name, without those that apply to no case.

    Raises:
        ValueError: where there are no cases or seeds, "own" is missing, or a function returns another number of values.
    """
    if not cases or not seeds:
        raise ValueError(f"the test needs cases and seeds, got {len(cases)} cases and {len(seeds)} seeds")
    if "own" not in replacements:
        raise ValueError(f'replacements must hold "own", which the others are compared with, got {list(replacements)}')
    rows = {name: [i for i, case in enumerate(cases) if one.applies(case)] for name, one in replacements.items()}
    chosen = {name: seeds if one.is_random else seeds[:1] for name, one in replacements.items() if rows[name]}
    total = sum(len(rows[name]) * len(drawn) for name, drawn in chosen.items())
    right: dict[str, list[float]] = {}
    found: dict[str, Condition[Thought]] = {}
    with Progress(title, total) as progress:
        for name in sorted(chosen, key=lambda name: name != "own"):
            asked = [cases[i] for i in rows[name]]
            given: list[list[Any]] = [[] for _ in asked]
            followed: list[list[float]] = [[] for _ in asked]
            shown: Thought | None = None
            for seed in chosen[name]:
                thoughts = list(replacements[name].put(asked, np.random.default_rng(seed)))
                if example in rows[name] and seed == seeds[0]:
                    shown = thoughts[rows[name].index(example)]
                for start in range(0, len(asked), batch_size):
                    part = slice(start, start + batch_size)
                    answers = _one_each(answer, asked[part], thoughts[part], "answer")
                    implied = _one_each(says, asked[part], thoughts[part], "says") if says else [None] * len(answers)
                    for i, (said, meant) in enumerate(zip(answers, implied, strict=True), start):
                        given[i].append(said)
                        if meant is not None:
                            followed[i].append(float(said == meant))
                    progress.advance(len(answers))
            right[name] = [
                float(np.mean([said == case.truth for said in answers]))
                for case, answers in zip(asked, given, strict=True)
            ]
            follows = [float(np.mean(values)) for values in followed if values]
            found[name] = Condition(
                replacements[name].about,
                accuracy_interval(right[name]),
                paired_difference([right["own"][rows["own"].index(i)] for i in rows[name]], right[name]),
                accuracy_interval(follows) if follows else None,
                float(np.mean([said is None for answers in given for said in answers])),
                dict(zip(rows[name], given, strict=True)),
                shown,
            )
    return {name: found[name] for name in chosen}


def _one_each(
    function: AnswerCases[Thought], cases: Sequence[Case[Thought]], thoughts: Sequence[Thought | None], name: str
) -> list[Any]:
    values = list(function(cases, thoughts))
    if len(values) != len(cases):
        raise ValueError(f"{name} must return one value per case, {len(cases)}, got {len(values)}")
    return values


def commonest_share(cases: Sequence[Case[Any]]) -> float:
    """Accuracy of always giving the commonest right answer: what a model reaches that sees nothing."""
    return max(Counter(case.truth for case in cases).values()) / len(cases)
