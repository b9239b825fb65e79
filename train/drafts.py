"""Trains the draft network of a finished model (`python -m train.drafts`).

The frozen model answers depth questions on scenes of the standard style that no benchmark uses. A small network
(`perception.decoding.draft_network`) learns to guess those answers from the hidden states of the prompt, by
distillation: the targets are the model's probabilities, not only its ids. Guesses make decoding faster and never change
the answer. Answers are stored in parts under `run_dir`, and a killed run continues after the last complete part. Takes
about forty minutes on two cores with `--processes 2`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from perception.chains import prompt_for
from perception.datasets.progress import Progress
from perception.datasets.shards import PLAN, Plan
from perception.decoding.draft_network import FILE_NAME, DraftNetwork, DraftNetworkConfig, prompt_states
from perception.evaluation.scenes import DEPTH_COUNTS, scene_items
from perception.model.folder import find_folder
from perception.model.perception_model import PerceptionModel, Prompt
from train.loop.command_line import parse_config
from train.models.saving import TRAINING_FILE
from vqvae.files import write_whole

PART = 256
"""Answers per file"""
_SEEDS = 1000
"""Seeds of scenes reserved per file, more than it renders"""
_FIRST_SEED = 30_000_000
"""First seed of the scenes; no other recipe or benchmark renders these"""
_BATCH = 32
_TOP = 8
"""Most probable ids whose probabilities are stored per token of an answer"""
_WEIGHT_DECAY = 0.05
_NUM_BLOCKS = 3
"""Blocks of the network, the shipped model's: decoding is faster only while a draft costs far less than the model"""
IGNORE = -100


@dataclass(frozen=True)
class DraftsConfig:
    """Trains the draft network of a finished model."""

    model: str = "models/aurora-tiny"
    """folder of the model"""
    run_dir: str = "runs/drafts"
    """folder that keeps the model's answers, so that a second training reuses them"""
    out: str = ""
    """folder that the network is written to; empty: the model's own"""
    answers: int = 24_576
    """number of the model's answers to learn from, rounded up to parts of 256"""
    processes: int = 1
    """processes that answer; with several, each uses one thread"""
    steps: int = 9000
    """optimiser steps"""
    batch_size: int = 32
    """answers per step"""
    learning_rate: float = 3e-3
    length: int = 140
    """tokens per answer that are guessed"""
    width: int = 64
    """width of the network"""
    held_out: int = 256
    """number of answers that are measured on and not trained on"""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.processes, self.steps, self.batch_size, self.held_out) < 1:
            raise ValueError("processes, steps, batch_size and held_out must be at least 1")
        if self.answers <= self.held_out:
            raise ValueError(
                f"answers ({self.answers}) must exceed held_out ({self.held_out}); lower held_out or ask for more"
            )

    def parts(self) -> list[Path]:
        """Files of answers, named by the seed of their first scene."""
        seeds = [_FIRST_SEED + _SEEDS * number for number in range(-(-self.answers // PART))]
        return [Path(self.run_dir) / f"answers-{seed}-{self.length}.safetensors" for seed in seeds]


def weights_digest(model: str) -> str:
    """Digest of the files that decide a model's answers: weights, configuration, tokenizer; not the draft network."""
    folder, digest = find_folder(model), hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".safetensors", ".json") and path.name not in (FILE_NAME, TRAINING_FILE):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@torch.no_grad()
def answers_of(model: PerceptionModel, prompts: Sequence[Prompt], length: int) -> dict[str, Tensor]:
    """The model's greedy answers with its hidden states and probabilities.

    Returns:
        states (B, tokens + 1, D) of the prompts, half precision; ids (B, length), IGNORE after the end; top_ids and
        top_odds (B, length, 8): the most probable ids at each position given those before it, and their probabilities.

    Raises:
        ValueError: if the prompts do not have a square number of image tokens.
    """
    end = model.processor.tokenizer.eos_token_id
    rows = [[*row, end][:length] for row in model.generate_ids(prompts)]
    written = [replace(prompt, forced=tuple(row[:-1])) for prompt, row in zip(prompts, rows, strict=True)]
    inputs = model.inputs(written)
    hidden = model.model.base_model(**inputs, use_cache=False).last_hidden_state  # (B, T, D)
    read = prompt_states(hidden, inputs["input_ids"], model.model.config.image_token_id)
    if read is None:
        raise ValueError("the prompts have no square number of image tokens; this model cannot have a network")
    read[:, -1] = torch.stack(
        [states[-len(row)] for states, row in zip(hidden, rows, strict=True)]
    )  # the prompts' ends
    ids = torch.full((len(rows), length), IGNORE, dtype=torch.int32)
    top_ids = torch.zeros(len(rows), length, _TOP, dtype=torch.int32)
    top_odds = torch.zeros(len(rows), length, _TOP).half()
    head = model.model.get_output_embeddings()
    for n, row in enumerate(rows):
        odds, found = head(hidden[n, -len(row) :]).softmax(-1).topk(_TOP)  # (L, 8) each
        ids[n, : len(row)] = torch.tensor(row)
        top_ids[n, : len(row)], top_odds[n, : len(row)] = found.int().cpu(), odds.half().cpu()
    return {"states": read.half().cpu(), "ids": ids, "top_ids": top_ids, "top_odds": top_odds}


def write_part(config: DraftsConfig, path: Path) -> Path:
    """Writes one file of answers; runs in a process of its own."""
    model = _load(config.model)
    seed = int(path.name.split("-")[1])
    items = scene_items("standard", 0, PART // len(DEPTH_COUNTS), seed)
    prompts = [Prompt(i.image, prompt_for(i.question, "chain")[0], i.kind) for i in items]
    batches = [answers_of(model, prompts[n : n + _BATCH], config.length) for n in range(0, PART, _BATCH)]
    whole = {name: torch.cat([batch[name] for batch in batches]).contiguous() for name in batches[0]}
    write_whole(path, lambda file: save_file(whole, file))
    return path


_loaded: dict[str, PerceptionModel] = {}


def _load(folder: str) -> PerceptionModel:
    if folder not in _loaded:
        _loaded[folder] = PerceptionModel.from_pretrained(folder)
    return _loaded[folder]


def gather(config: DraftsConfig) -> dict[str, Tensor]:
    """`config.answers` answers of the model, read from `run_dir`; missing parts are made first.

    Raises:
        ValueError: naming a part that is not a complete file; for a run_dir with the answers of another model, or of
            this one before it was trained again.
    """
    parts = config.parts()
    Plan(Path(config.run_dir) / PLAN, {"model": config.model, "weights": weights_digest(config.model)}).begin()
    missing = [path for path in parts if not path.exists()]
    for _ in _shown(_written(config, missing), len(parts), len(parts) - len(missing)):
        pass
    read = [_read_part(path) for path in parts]
    return {name: torch.cat([part[name] for part in read]) for name in read[0]}


def _written(config: DraftsConfig, missing: Sequence[Path]) -> Iterator[Path]:
    if config.processes == 1 or len(missing) < 2:
        yield from (write_part(config, path) for path in missing)
        return
    with ProcessPoolExecutor(
        config.processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        asked = [pool.submit(write_part, config, path) for path in missing]
        try:
            for one in as_completed(asked):
                yield one.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _shown(paths: Iterator[Path], total: int, done: int) -> Iterator[Path]:
    with Progress(f"parts of {PART} answers", total, done) as progress:
        for path in paths:
            progress.advance()
            yield path


def _read_part(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a complete file of answers ({error}); delete it and run this again") from None


def fit(network: DraftNetwork, answers: dict[str, Tensor], config: DraftsConfig, say: Callable[[str], None]) -> float:
    """Trains for `config.steps` and returns the share of held-out ids that are guessed right."""
    held, known = slice(0, config.held_out), torch.arange(config.held_out, len(answers["ids"]))
    held_states, held_ids = answers["states"][held].float(), answers["ids"][held].long()
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=_WEIGHT_DECAY)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.learning_rate * min(1.0, (step + 1) / 50) * (1 - step / config.steps)
        rows = known[torch.randint(len(known), (config.batch_size,))]
        states = answers["states"][rows].float()
        odds, scores = answers["top_odds"][rows].float(), network(states + 0.05 * torch.randn_like(states))
        logs = scores.log_softmax(-1).gather(-1, answers["top_ids"][rows].long())  # (B, length, 8)
        losses = -(odds * logs).sum(-1)  # (B, length)
        loss = losses[answers["ids"][rows] != IGNORE].mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % 200 == 0:
            share = guessed(network, held_states, held_ids)
            say(f"step {step + 1} of {config.steps}: loss {loss.item():.3f}, held out {share:.3f}")
    return guessed(network, held_states, held_ids)


@torch.no_grad()
def guessed(network: DraftNetwork, states: Tensor, ids: Tensor) -> float:
    """Share of the ids of answers that the network's draft gets right, position by position."""
    real = ids != IGNORE
    return float((network(states).argmax(-1) == ids)[real].float().mean())


def main(argv: list[str] | None = None) -> None:
    config = parse_config(DraftsConfig, argv)
    torch.manual_seed(config.seed)
    model = PerceptionModel.from_pretrained(config.model)
    answers = gather(config)
    text = model.model.config.get_text_config()
    grid = model.vocabulary.depth_grid
    sizes = DraftNetworkConfig(text.hidden_size, text.vocab_size, grid, config.length, config.width, _NUM_BLOCKS)
    network = DraftNetwork(sizes)
    share = fit(network, answers, config, print)
    network.save(config.out or config.model)
    print(f"{100 * share:.1f} % of held-out ids guessed; written to {config.out or config.model}")


if __name__ == "__main__":
    main()
