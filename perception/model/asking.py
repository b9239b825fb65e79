"""Several questions at once: each in a mode of its own, about one image or many; a gate where the mode is "auto"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perception.chains import Answer, prompt_for
from perception.model.gate import gate_features
from perception.model.perception_model import ImageLike, Prompt

if TYPE_CHECKING:
    from perception.model.perception_model import PerceptionModel


@dataclass(frozen=True)
class _Asked:
    """A question in its direct and its drawn form; `mode` is what was asked for, never "auto" without a gate."""

    image: ImageLike
    question: str
    mode: str

    def prompt(self, mode: str) -> Prompt:
        text, kind = prompt_for(self.question, mode)
        return Prompt(self.image, text, kind)


def _settle(question: str, mode: str, has_gate: bool) -> str:
    """The mode to begin with: "auto" is left where a gate will look at the direct answer."""
    _, kind = prompt_for(question, mode)  # refuses what cannot be asked
    if mode != "auto":
        return mode
    if kind is None:
        return "direct"
    return "auto" if has_gate else "chain"


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
    settled = [_settle(q, m, model.gate is not None) for q, m in zip(questions, asked_modes, strict=True)]
    answers: list[Answer] = []
    seen: dict[int, Any] = {}
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        seen = {id(per_question[i]): seen.get(id(per_question[i])) for i in rows}
        for i in rows:
            if seen[id(per_question[i])] is None:
                seen[id(per_question[i])] = model.look(per_question[i])
        batch = [_Asked(seen[id(per_question[i])], questions[i], settled[i]) for i in rows]
        answers += _answer_batch(model, batch, max_new_tokens)
    return answers


def _answer_batch(model: PerceptionModel, batch: Sequence[_Asked], max_new_tokens: int) -> list[Answer]:
    """Answers of one batch: the gate looks at those that are its to decide, then all are answered at once."""
    modes = [asked.mode for asked in batch]
    gated = [i for i, mode in enumerate(modes) if mode == "auto"]
    if gated and model.gate is not None:
        drawn = model.gate.draws(gate_features(model, [batch[i].prompt("direct") for i in gated]))
        for i, draws in zip(gated, drawn, strict=True):
            modes[i] = "chain" if draws else "direct"
    prompts = [asked.prompt(mode) for asked, mode in zip(batch, modes, strict=True)]
    answers = model.answer(prompts, max_new_tokens)
    return [replace(answer, mode=mode) for answer, mode in zip(answers, modes, strict=True)]
