"""Every family of models, from its stock folder through a training step to a merged stock folder that says the same.

Old rows, what a user types, and padding of the vocabulary are looked at on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES, save_family
from torch import Tensor
from transformers import AutoModelForImageTextToText

from perception import chains
from perception.datasets.images import ImageFile
from perception.datasets.records import Record
from perception.model.folder import read_model, read_processor
from perception.model.image_inputs import accepted_inputs
from perception.model.perception_model import PerceptionModel, Prompt
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.data.records import row_of
from train.data.rows import RowEncoder, TokenWeights
from train.loop.optimizer import parameter_groups
from train.models.adapters import LoraSettings, adapt, merged
from train.models.losses import row_losses, target_logits
from train.models.parts import embedding_names, projector_names, tower_parameters

SETTINGS = PerceptionVocabulary(depth_codes=8, depth_grid=(2, 2), num_locations=10)
QUESTION = "How many red cubes are there?"
SIZES = ((40, 72), (64, 33))  # height and width: not square, and not alike


@dataclass(frozen=True)
class Case:
    """One way through the matrix."""

    tied: bool
    spare_rows: int
    lora: LoraSettings
    train_rows: str


CASES = {
    "untied-padded-lora": Case(False, 200, LoraSettings(4, 8), "new"),
    "tied-full": Case(True, 0, LoraSettings(), "new"),
}
TIED_LORA = Case(True, 200, LoraSettings(4, 8), "new")
UNTIED_FULL = Case(False, 0, LoraSettings(), "new")
"""Each looked at in one family: what is left of them is peft's, or the other cases'"""
MATRIX = {f"{family}-{name}": (family, case) for family in FAMILIES for name, case in CASES.items()}
MATRIX |= {"qwen3_vl-tied-padded-lora": ("qwen3_vl", TIED_LORA), "llava-untied-full": ("llava", UNTIED_FULL)}


def image(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (*SIZES[number % 2], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def records(folder: Path) -> list[Record]:
    """A depth map, a chain and a direct answer, on images of different sizes."""
    for number in range(2):
        image(number).save(folder / f"{number}.png")
    depth, boxes = Span("depth", (0, 7, 3, 1)), Span("boxes", (1, 2, 3, 4, 5, 5, 9, 9))
    examples = [
        chains.atomic_depth(depth),
        chains.chain_count(QUESTION, boxes),
        chains.direct(chains.DIRECT_COUNT, "How many <LOC_3><image> are there?", "0"),
    ]
    return [Record(ImageFile(folder / f"{n % 2}.png"), e, f"record {n}") for n, e in enumerate(examples)]


class Run:
    """A base folder, its extended model, and that model a few steps later."""

    def __init__(self, family: str, case: Case, folder: Path):
        self.case, self.folder = case, folder
        base = save_family(family, folder / "base", case.tied, case.spare_rows)
        self.processor, model = read_processor(base), read_model(base, torch.float32)
        self.rows_before = [model.get_submodule(name).weight.detach().clone() for name in embedding_names(model)]
        self.num_old = len(self.processor.tokenizer)
        self.vocabulary = SETTINGS.extend(model, self.processor.tokenizer, init="description")
        self.tower = tower_parameters(model)
        self.accepted = accepted_inputs(model)
        self.start = {name: value.clone() for name, value in model.state_dict().items()}
        self.model = adapt(model, self.vocabulary, case.lora, case.train_rows)
        prompt = chains.ChatPrompt.from_processor(self.processor)
        self.encoder = RowEncoder(self.vocabulary, self.processor, prompt, TokenWeights(), self.accepted)

    def batch(self, *only: int) -> dict[str, Tensor]:
        made = records(self.folder)
        return self.encoder.batches([row_of(made[n]) for n in only or range(len(made))], groups=1)[0]

    def losses(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """(B,)"""
        return row_losses(*target_logits(model, batch))

    def train(self, steps: int = 2) -> list[float]:
        tables = [self.model.get_submodule(n).weight for n in embedding_names(self.model)]
        groups = parameter_groups(self.model, (self.tower, 0.0), undecayed=tables)
        for group in groups:
            group.setdefault("weight_decay", 0.05)
            group.pop("lr_scale", None)
        optimizer = torch.optim.AdamW(groups, lr=3e-3)
        self.model.train()
        batch, losses = self.batch(), []
        for _ in range(steps):
            loss = self.losses(self.model, batch).sum() / batch["weights"].sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses


@pytest.fixture(scope="module", params=MATRIX)
def run(request: Any, tmp_path_factory: Any) -> Run:
    family, case = MATRIX[request.param]
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
    pytest.importorskip("peft")
    return Run(family, case, tmp_path_factory.mktemp("run"))


def test_from_a_stock_folder_to_a_merged_one(run: Run) -> None:
    check_batch(run)
    check_turns(run)
    losses = run.train()
    assert losses[1] < losses[0]
    model = merged(run.model).eval()
    check_what_moved(run, model)
    check_folders(run, model)


def check_turns(run: Run) -> None:
    """A second turn is asked as the family's own template asks it, behind the token that ends the first answer."""
    encoder = run.encoder
    if encoder.prompt.between is None:
        assert encoder.prompt.completed, "only PaliGemma has no template"
        return
    row = row_of(records(run.folder)[0])
    (head, _) = encoder.prompt.head_ids(run.processor, row.image)
    ids, labels, weights = encoder.encode(replace(row, more=(row.example,)), head)
    alone, alone_labels, _ = encoder.encode(row, head)
    assert ids[: len(alone)] == alone and labels[: len(alone)] == alone_labels
    answer = [label for label in alone_labels if label >= 0]
    assert [label for label in labels if label >= 0] == answer * 2
    assert len(weights) == len(ids) - (len(alone) - len(answer))
    said = run.processor.apply_chat_template(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.example.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
            {"role": "user", "content": [{"type": "text", "text": row.example.question}]},
        ],
        add_generation_prompt=True,
    )
    turn = run.processor.tokenizer.decode(ids[len(alone) : len(ids) - len(answer)])
    assert turn.strip() and said.replace(" ", "").endswith(turn.replace(" ", ""))


def check_batch(run: Run) -> None:
    """Targets are learned and prompts are not; what a user types is letters; a row alone is that row of a batch."""
    batch = run.batch()
    ours = set(run.vocabulary.ids.values())
    for ids, labels, weights in zip(batch["input_ids"], batch["labels"], batch["weights"], strict=True):
        learned = labels >= 0
        assert torch.equal(labels[learned], ids[learned]) and torch.equal(weights > 0, learned)
        assert not ours & set(ids[: int(learned.nonzero()[0])].tolist())
    model = run.model.eval()
    with torch.no_grad():
        together = run.losses(model, batch)
        for row, shown in enumerate(batch["task"].tolist()):
            number = next(n for n, r in enumerate(records(run.folder)) if chains.TASKS.index(r.example.task) == shown)
            alone = run.losses(model, run.batch(number))
            assert torch.allclose(alone.sum(), together[row], rtol=1e-3), number


def check_what_moved(run: Run, model: Any) -> None:
    """New rows, the language model and the projector; not the old rows, nor the tower."""
    now = model.state_dict()
    for name, before in zip(embedding_names(model), run.rows_before, strict=True):
        table, first = now[f"{name}.weight"], run.start[f"{name}.weight"]
        new = sorted(run.vocabulary.ids.values())
        old = [row for row in range(len(table)) if row not in set(new)]
        assert torch.equal(table[old], first[old]) and torch.equal(table[: run.num_old], before[: run.num_old])
        assert len(table) == max(len(before), run.num_old + len(new))
        assert not torch.equal(table[new], first[new]), name
    prefixes = tuple(f"{name}." for name in projector_names(model))
    moved = [n for n in now if n.startswith(prefixes) and not torch.equal(now[n], run.start[n])]
    assert moved, "the projector did not move"
    tower = {id(p) for p in run.tower}
    assert all(torch.equal(p, run.start[n]) for n, p in model.named_parameters() if id(p) in tower)


def check_folders(run: Run, model: Any) -> None:
    """Saved and loaded again it gives the same logits and ids; so does plain transformers."""
    ours = PerceptionModel(model, run.processor, run.vocabulary)
    ours.save_pretrained(run.folder / "model")
    loaded = PerceptionModel.from_pretrained(run.folder / "model")
    stock = AutoModelForImageTextToText.from_pretrained(run.folder / "model", dtype=torch.float32).eval()
    asked = [Prompt(image(n), QUESTION) for n in range(2)]
    inputs = ours.inputs(asked)
    assert all(torch.equal(inputs[name], value) for name, value in loaded.inputs(asked).items())
    with torch.no_grad():
        logits = model(**inputs).logits
        for other in (loaded.model, stock):
            assert torch.equal(other(**inputs).logits, logits)
    answers = ours.generate_ids(asked, max_new_tokens=12)
    assert answers == loaded.generate_ids(asked, max_new_tokens=12, fast=False)
    assert answers == [ours.generate_ids([prompt], max_new_tokens=12, fast=False)[0] for prompt in asked]
    assert all(ours.grammar.accepts(ids) for ids in answers)
    check_spans(loaded)
    plain = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": list(ours.stop_ids)}
    assert torch.equal(model.generate(**inputs, **plain), stock.generate(**inputs, **plain))


def check_spans(model: PerceptionModel) -> None:
    """A map that is begun is ended, and read back."""
    begun = (model.vocabulary.start_id("depth"), model.vocabulary.code_ids("depth")[3])
    ids = model.generate_ids([Prompt(image(0), QUESTION, None, begun)], max_new_tokens=8)[0]
    depth = model.vocabulary.parse(ids)[0]
    assert isinstance(depth, Span) and depth.modality == "depth" and depth.codes[0] == 3 and len(depth.codes) == 4
    answer = model.ask(image(1), QUESTION, mode="chain")
    assert all(isinstance(span, Span) for span in answer.spans)
