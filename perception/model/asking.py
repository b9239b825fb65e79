"""Several questions at once: each in a mode of its own, about one image or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perception.chains import Answer, choose_mode, prompt_for
from perception.model.perception_model import ImageLike, Prompt

if TYPE_CHECKING:
    from perception.model.perception_model import PerceptionModel


def ask_many(
    model: PerceptionModel,
    images: ImageLike | Sequence[ImageLike],
    questions: Sequence[str],
    modes: str | Sequence[str] = "auto",
    max_new_tokens: int = 256,
    batch_size: int = 32,
) -> list[Answer]:
    """See `PerceptionModel.ask_many`."""
    count = len(questions)
    per_question = list(images) if isinstance(images, list | tuple) else [images] * count
    asked_modes = [modes] * count if isinstance(modes, str) else list(modes)
    for name, values in (("images", per_question), ("modes", asked_modes)):
        if len(values) != count:
            raise ValueError(f"{name} must be one, or one a question: got {len(values)} for {count} questions")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    chosen = [choose_mode(question, mode) for question, mode in zip(questions, asked_modes, strict=True)]
    answers: list[Answer] = []
    seen: dict[int, Any] = {}
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        seen = {id(per_question[i]): seen.get(id(per_question[i])) for i in rows}
        for i in rows:
            if seen[id(per_question[i])] is None:
                seen[id(per_question[i])] = model.look(per_question[i])
        prompts = [Prompt(seen[id(per_question[i])], *prompt_for(questions[i], chosen[i])) for i in rows]
        found = model.answer(prompts, max_new_tokens)
        answers += [replace(answer, mode=chosen[i]) for i, answer in zip(rows, found, strict=True)]
    return answers
