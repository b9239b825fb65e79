"""Adapter for lmms-eval, which finds it by its entry point.

    pip install lmms-eval
    python -m lmms_eval --model perception_tokens --model_args pretrained=FOLDER,mode=chain --tasks blink --batch_size 8

A task's filter reads the text of an answer, without its spans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms
from PIL import Image

from perception.answers import options_in, read_option
from perception.datasets.progress import track
from perception.evaluation.published_scores import published_room
from perception.model.devices import find_device
from perception.model.perception_model import PerceptionModel, Prompt

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

NAME = "perception_tokens"


def manifest() -> ModelManifest:
    """The manifest that lmms-eval's registry asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(NAME, simple_class_path=f"{__name__}.PerceptionLmms")


class PerceptionLmms(lmms):  # type: ignore[misc]
    """A perception model with lmms-eval's interface."""

    def __init__(
        self,
        pretrained: str,
        mode: str = "chain",
        batch_size: int | str = 1,
        device: str | None = None,
        max_new_tokens: int | str | None = None,
        **unknown: Any,
    ) -> None:
        """
        Args:
            pretrained: folder or hub name.
            device: where the model runs; None for the best device there is.
            mode: "chain" draws first where a question counts or asks for depth; "direct" answers directly.
            max_new_tokens: for the spans of an answer in chain mode, where a task's own limit is added to it; None for
                512, or more if a map of the model's grid needs more.

        Raises:
            ValueError: for another mode, an argument that is not known, or a folder that holds no model.
        """
        super().__init__()
        if mode not in ("chain", "direct"):
            raise ValueError(f"unknown mode {mode!r}; known modes: chain, direct")
        if unknown := {name: value for name, value in unknown.items() if value is not None}:
            raise ValueError(f"unknown model_args {', '.join(unknown)}; known: pretrained, mode, max_new_tokens")
        self.perception = PerceptionModel.from_pretrained(pretrained, find_device(device))
        self.mode, self.batch_size = mode, int(batch_size)
        self.max_new_tokens = published_room(self.perception) if max_new_tokens is None else int(max_new_tokens)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the requests' order, each cut at the task's stop words.

        Raises:
            ValueError: for a request that has not exactly one image.
        """
        texts: list[str] = []
        batches = range(0, len(requests), self.batch_size)
        for start in track(batches, NAME):
            chunk = [request.args for request in requests[start : start + self.batch_size]]
            prompts = [self._prompt(*arguments) for arguments in chunk]
            limit = max(self._limit(settings) for _, settings, *_ in chunk)
            answers = self.perception.answer(prompts, limit)
            for answer, prompt, (context, settings, *_) in zip(answers, prompts, chunk, strict=True):
                texts.append(_cut(_as_asked(answer.text, prompt, context), settings))
        return texts

    def _prompt(
        self, context: str, _: Mapping[str, Any], visuals: Callable[[Any], Any], doc_id: Any, task: str, split: str
    ) -> Prompt:
        images = [image for image in visuals(self.task_dict[task][split][doc_id]) if isinstance(image, Image.Image)]
        if len(images) != 1:
            raise ValueError(
                f"{task}, document {doc_id}: got {len(images)} images, {NAME} takes one; choose another task"
            )
        question = context.replace("<image>", "").strip()
        return Prompt(images[0], *self.perception.put(question, "auto" if self.mode == "chain" else "direct"))

    def _limit(self, settings: Mapping[str, Any]) -> int:
        own = int(settings.get("max_new_tokens") or 0)
        return own + self.max_new_tokens if self.mode == "chain" else own or self.max_new_tokens

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError(f"{NAME} generates answers and gives no likelihoods; choose a task that generates")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError(f"{NAME} answers one question at a time; choose a task with one round")


def _as_asked(text: str, prompt: Prompt, context: str) -> str:
    """The letter that an answer means, where its question lists options and was put to the model in other words or with
    the wish for a drawing: tasks read letters, and such answers are numbers and readings."""
    question = context.replace("<image>", "").strip()
    options = options_in(question)
    return (read_option(text, options, question) if options and prompt.question != question else None) or text


def _cut(text: str, settings: Mapping[str, Any]) -> str:
    until = settings.get("until") or ()
    for stop in (until,) if isinstance(until, str) else until:
        if stop:
            text = text.split(stop)[0]
    return text.strip()
