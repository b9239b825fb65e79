"""Conversations about images, as trl, ms-swift, LLaMA-Factory, LLaVA and most sets of the hub write them.

    {"messages": [{"role": "user", "content": "<image>Where is the cup?"}, {"role": "assistant", "content": "There."}],
     "images": ["desk.jpg"]}

- messages: turns of user and assistant, after a system turn or none; content is a text, or a list of parts {"type":
  "text", "text": ..} and {"type": "image"}. `conversations` with `from` and `value` (LLaVA) are read too.
- prompt and completion (trl, instead of messages): the question, after a system turn or none, and what is learned; each
  a text or a list of turns.
- images (or image): paths relative to the table, or images inside of the table; none for rows of text alone. <image> in
  a user's text shows the next one. Where nothing says where images stand, they come before the first question.
- objects (ms-swift, optional): "bbox" and "ref", the boxes (or points, of two numbers) and names that stand for <bbox>
  and <ref-object> in the texts, in order; "bbox_type" real (pixels) or norm1, and "image_id". <bbox> in an answer is
  drawn; boxes that follow one another are drawn in one span, in the order of its tokenizer, unless texts place
  different names for them. Objects that no <bbox> places are detection labels, with a
  name for each box: they become counting and drawing tasks of their own, but for classes with an object that "iscrowd",
  "is_crowd", "ignore" or "difficult" marks.

Other columns are left alone. Names of perception tokens in texts stay text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception import chains
from perception.chains import IMAGE
from perception.datasets.aurora import example_of
from perception.datasets.boxes import DeclaredBoxes
from perception.datasets.detection import BoxedImage
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.own import CONVERSATIONS, image_size
from perception.datasets.records import Record
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import Span

_REMEDY = "correct or remove the row"
_TAG = "<image>"
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_OTHER_MEDIA = ("videos", "video", "audios", "audio")
_PLACES = re.compile(r"<ref-object>|<bbox>")
_BOXES = re.compile(r"<bbox>(?:[\s,;]*(?:and\s*)?<bbox>)*")
_NAMES = ("ref", "category", "categories", "label")
"""Names of objects: ms-swift's, and those of detection sets of the hub"""
_NOT_ONE = ("iscrowd", "is_crowd", "ignore", "difficult")
"""What detection sets call their marks of objects whose class is not counted, 0 or 1 for each"""


def with_messages(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row of trl's `prompt` and `completion` as one of `messages`; any other row as it is.

    Raises:
        ValueError: naming the row, if the prompt is not one question, since answers in it would be learned too, or the
            completion is empty.
    """
    if any(row.get(name) for name in CONVERSATIONS) or not row.keys() >= {"prompt", "completion"}:
        return row
    prompt, completion = _as_turns(row["prompt"], "user"), _as_turns(row["completion"], "assistant")
    for name, turns in (("prompt", prompt), ("completion", completion)):
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(
                f"{where}: {name} must be a text or a list of turns with role and content, got {row[name]!r:.80}; "
                f"{_REMEDY}"
            )
    roles = [_role(turn, where) for turn in prompt]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(
            f"{where}: a prompt must be one turn of user, after a system turn or none, got {', '.join(roles)}; shorten "
            "it, or write the row as messages, whose answers are all learned"
        )
    return {**row, "messages": prompt + completion}


def _as_turns(given: Any, role: str) -> Any:
    return [{"role": role, "content": given}] if isinstance(given, str) else given


@dataclass(frozen=True)
class _Objects:
    """The boxes and names of a row, in the order in which its texts place them."""

    names: tuple[str, ...]
    spots: tuple[np.ndarray, ...]
    """boxes (4,) or points (2,) in [0, 1]"""
    unsure: tuple[int, ...] = ()
    """numbers of the objects that are a crowd, to be ignored or difficult"""


def conversation_records(
    row: dict[str, Any], images: Sequence[Path], num_locations: int, declared: DeclaredBoxes, where: str
) -> tuple[list[Record], list[str], BoxedImage | None]:
    """The conversation of a row as one record, what of the row is not used, and its detection labels.

    Args:
        row: a row with `messages`, `conversations`, or `objects` alone.
        images: the row's images.
        declared: format of the boxes; a row's bbox_type norm1 stands above it.

    Raises:
        ValueError: naming the row, if turns do not alternate, a text is empty, the numbers of images or objects and of
            their places differ, a question has a box, or an object lies outside of its image.
    """
    for path in images:
        check_exists(path, where)
    for name in _OTHER_MEDIA:
        if row.get(name):
            raise ValueError(f"{where} has {name}, which are not read; remove the row")
    files = tuple(ImageFile(path) for path in images)
    objects = _objects(row.get("objects"), files, declared, where)
    turns = row.get("messages") or row.get("conversations") or []
    if not turns and row.get("objects") is None:
        raise ValueError(f"{where} has no messages; {_REMEDY}")
    if not turns and objects is None:
        objects = _Objects((), ())
    records, placed = list[Record](), False
    if turns:
        system, texts = _turns(turns, len(files), where)
        system = system or str(row.get("system") or "").strip()
        placed = any(_PLACES.search(text) for text in texts)
        records.append(_record(system, _filled(texts, objects, num_locations, where), files, where))
    if objects is None or placed:
        return records, [], None
    labels = _labels(objects, files, where)
    unused = f"{where}: the objects are not used: no <bbox> places them, and detection labels are one image's boxes "
    return records, [] if labels else [unused + "with a name for each"], labels


def _record(
    system: str, turns: list[tuple[str, tuple[str | Span, ...]]], files: tuple[ImageFile, ...], where: str
) -> Record:
    examples = [example_of(question, target) for question, target in turns]
    first = examples[0].question
    if len(files) == 1 and first.startswith(IMAGE) and not system:  # as all other records are
        plain = chains.Example(examples[0].task, first.removeprefix(IMAGE), examples[0].target, examples[0].answer)
        return Record(files[0], plain, where, more=tuple(examples[1:]))
    image = files[0] if files else None
    return Record(image, examples[0], where, more=tuple(examples[1:]), images=files, system=system)


def _turns(given: Any, num_images: int, where: str) -> tuple[str, list[str]]:
    """The system turn, and the texts of user and assistant in turn, with IMAGE in place of each image."""
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise ValueError(
            f"{where}: messages must be a list of turns with role and content, got {given!r:.80}; {_REMEDY}"
        )
    said = [(_role(turn, where), _content(turn, where)) for turn in given]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    roles = [role for role, _ in said]
    if not said or len(said) % 2 or roles != ["user", "assistant"] * (len(said) // 2):
        raise ValueError(
            f"{where}: turns must alternate between user and assistant, user first and assistant last, got "
            f"{', '.join(roles) or 'none'}; {_REMEDY}"
        )
    texts = [text for _, text in said]
    if IMAGE in system or any(IMAGE in text for text in texts[1::2]):
        raise ValueError(
            f"{where}: an image stands in a system turn or an answer; show it in a question, or remove the row"
        )
    places = sum(text.count(IMAGE) for text in texts)
    if not places:
        texts[0] = IMAGE * num_images + texts[0]
    elif places != num_images:
        raise ValueError(f"{where}: {places} image placeholders and {num_images} images; {_REMEDY}")
    for number, text in enumerate(texts):
        if not text.replace(IMAGE, "").strip():
            raise ValueError(f"{where}: turn {number} of {roles[number]} is empty; {_REMEDY}")
    return system.strip(), texts


def _role(turn: dict[str, Any], where: str) -> str:
    role = turn.get("role") or turn.get("from")
    if role not in _ROLES:
        raise ValueError(f"{where}: a turn is of {role!r}, and known roles are {', '.join(_ROLES)}; {_REMEDY}")
    return _ROLES[role]


def _content(turn: dict[str, Any], where: str) -> str:
    """The text of a turn, with IMAGE in place of each image."""
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if isinstance(content, str):
        return _trimmed(IMAGE.join(_plain(part) for part in content.split(_TAG)))
    parts, given = list[str](), content if isinstance(content, list) else [content]
    for part in (part if isinstance(part, dict) else {} for part in given):
        kind = part.get("type")
        if kind in ("image", "image_url"):
            parts.append(IMAGE)
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(_plain(part["text"]))
        else:
            raise ValueError(
                f"{where}: content must be a text, or a list of parts of type text and image, got {content!r:.80}; "
                f"{_REMEDY}"
            )
    return _trimmed("".join(parts))


def _plain(text: str) -> str:
    return text.replace(IMAGE, " ")


def _trimmed(text: str) -> str:
    """Without white space at both ends, and between images at the start and the text."""
    images = re.match(rf"(?:\s*{IMAGE})*", text)
    assert images is not None, "it matches nothing too"
    return IMAGE * images[0].count(IMAGE) + text[images.end() :].strip()


def _filled(
    texts: list[str], objects: _Objects | None, num_locations: int, where: str
) -> list[tuple[str, tuple[str | Span, ...]]]:
    """Questions and targets, with the row's objects in their places."""
    counts = {tag: sum(text.count(tag) for text in texts) for tag in ("<ref-object>", "<bbox>")}
    if objects is None or not any(counts.values()):
        if any(counts.values()):
            raise ValueError(f"{where}: <bbox> or <ref-object> stands in a text, and the row has no objects; {_REMEDY}")
        return [(question, (f" {answer}",)) for question, answer in zip(texts[::2], texts[1::2], strict=True)]
    for tag, given in (("<bbox>", len(objects.spots)), ("<ref-object>", len(objects.names))):
        if counts[tag] != given and (tag == "<bbox>" or counts[tag]):
            raise ValueError(
                f"{where}: {tag} stands {counts[tag]} times in the texts, and objects give {given}; {_REMEDY}"
            )
    if any("<bbox>" in text for text in texts[::2]):
        raise ValueError(f"{where}: a question has a <bbox>, and questions are plain text; {_REMEDY}")
    names, spots = iter(objects.names), iter(objects.spots)
    named = [re.sub("<ref-object>", lambda _: next(names), text) for text in texts]
    owners = iter(objects.names if counts["<ref-object>"] == counts["<bbox>"] else [""] * counts["<bbox>"])
    turns = []
    for question, answer in zip(named[::2], named[1::2], strict=True):
        target, end = list[str | Span](), 0
        for found in _BOXES.finditer(answer):
            target.append(answer[end : found.start()])
            between = found[0].split("<bbox>")[1:-1]
            run = [next(spots) for _ in range(len(between) + 1)]
            if len({next(owners) for _ in run}) == 1:
                target.append(_span(run, num_locations, where))
            else:  # the cup and the lamp are at .. and ..
                for words, spot in zip(["", *between], run, strict=True):
                    target += [words, _span([spot], num_locations, where)]
            end = found.end()
        target.append(answer[end:])
        kept = [part for part in target if isinstance(part, Span) or part.strip()]
        if isinstance(kept[0], str):
            kept[0] = " " + kept[0].lstrip()
        turns.append((question, tuple(kept)))
    return turns


def _span(spots: list[np.ndarray], num_locations: int, where: str) -> Span:
    """One span of boxes, or of points."""
    if len({len(spot) for spot in spots}) > 1:
        raise ValueError(f"{where}: boxes and points follow one another without a word between them; {_REMEDY}")
    places = np.stack(spots)
    if places.shape[1] == 2:
        return Span("points", tuple(PointTokenizer(num_locations).encode(places)))
    return Span("boxes", tuple(BoxTokenizer(num_locations).encode(places)))


def _objects(given: Any, files: tuple[ImageFile, ...], declared: DeclaredBoxes, where: str) -> _Objects | None:
    """A row's objects with places in [0, 1]; None if it has none."""
    if not given or (isinstance(given, dict) and not any(given.values())):
        return None
    if isinstance(given, list) and all(isinstance(item, dict) for item in given):  # one entry per object
        given = {name: [item.get(name) for item in given] for name in dict.fromkeys(n for item in given for n in item)}
    if not isinstance(given, dict):
        raise ValueError(f"{where}: objects must give bbox and ref, got {given!r:.80}; {_REMEDY}")
    names: Any = next((given[name] for name in _NAMES if given.get(name) is not None), [])
    boxes: Any = given.get("bbox") or []
    owners: Any = given.get("image_id") or ([0] * len(boxes) if isinstance(boxes, list) else [])
    if not all(isinstance(values, list) for values in (names, boxes, owners)):
        raise ValueError(f"{where}: objects must give lists, got {given!r:.80}; {_REMEDY}")
    kind = given.get("bbox_type") or "real"
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind not in ("real", "norm1"):
        raise ValueError(
            f"{where}: bbox_type {kind!r} is not known; write real (pixels) or norm1, or declare boxes_format"
        )
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{where}: names of objects must be texts, got {names!r:.80}; {_REMEDY}")
    form = DeclaredBoxes("xyxy-1") if kind == "norm1" else declared
    if len(owners) != len(boxes) or not all(isinstance(n, int) and 0 <= n < len(files) for n in owners):
        raise ValueError(
            f"{where}: {len(boxes)} objects are of images {owners!r:.60}, and the row has {len(files)} images; "
            f"{_REMEDY}"
        )
    sizes = {number: image_size(files[number], where) for number in dict.fromkeys(owners)}
    spots = []
    for box, number in zip(boxes, owners, strict=True):
        try:
            values = np.array(box, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.zeros(0)
        if values.shape == (2,):
            spots.append(form.point(values, sizes[number], where))
        elif values.shape == (4,):
            spots.append(form.fractions(values[None], sizes[number], where)[0])
        else:
            raise ValueError(f"{where}: a bbox must be four numbers, or two for a point, got {box!r:.60}; {_REMEDY}")
    marks = [given[name] for name in _NOT_ONE if isinstance(given.get(name), list)]
    unsure = tuple(n for n in range(len(spots)) if any(n < len(mark) and mark[n] for mark in marks))
    return _Objects(tuple(name.strip() for name in names), tuple(spots), unsure)


def _labels(objects: _Objects, files: tuple[ImageFile, ...], where: str) -> BoxedImage | None:
    """Objects that no text places, as the labels of the image; None if they cannot be meant so."""
    if len(files) != 1 or len(objects.names) != len(objects.spots) or any(len(spot) != 4 for spot in objects.spots):
        return None
    boxes = dict[str, list[list[float]]]()
    for name, spot in zip(objects.names, objects.spots, strict=True):
        boxes.setdefault(name, []).append(spot.tolist())
    return BoxedImage(files[0], where, 0, boxes, {objects.names[n] for n in objects.unsure})
