"""The draft network of a finished model: `python -m train.drafts`.

The frozen model answers depth questions on scenes of the standard style that no benchmark asks about; a small network
(`perception.decoding.draft_network`) learns to guess those answers from the hidden states of the prompt: not the ids
alone but
how probable the model found each (distillation). Its guesses change how fast answers are decoded and never what they
are. Answers are kept in parts under `run_dir`, a killed run goes on behind the last one. About forty minutes on two
cores with `--processes 2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from perception.chains import prompt_for
from perception.datasets.shards import PLAN, Plan
from perception.decoding.draft_network import DraftNetwork, DraftNetworkConfig, prompt_states
from perception.evaluation.scenes import DEPTH_COUNTS, scene_items
from perception.model.perception_model import PerceptionModel, Prompt
from train.loop.command_line import parse_config
from vqvae.files import write_whole

PART = 256
"""answers of a file"""
_SEEDS = 1000
"""scenes set aside for a part, more than it renders"""
_BATCH = 32
_TOP = 8
"""ids of a place whose probabilities are kept"""
IGNORE = -100


@dataclass(frozen=True)
class DraftsConfig:
    """Configuration of the draft network's training."""

    model: str = "models/aurora-tiny"
    run_dir: str = "runs/drafts"
    """keeps the model's answers, so that a second training need not ask again"""
    out: str = ""
    """folder of the model that gets the weights; empty: the model's own"""
    first_seed: int = 30_000_000
    answers: int = 24_576
    """of the model, which are learned from; whole parts of 256 are asked for"""
    processes: int = 1
    """that answer; a thread each where there are several"""
    steps: int = 9000
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    length: int = 140
    """tokens of an answer that are guessed"""
    width: int = 64
    num_blocks: int = 3
    held_out: int = 256
    """answers that are only measured"""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.processes, self.steps, self.batch_size, self.held_out) < 1:
            raise ValueError("processes, steps, batch_size and held_out must be at least 1")
        if self.answers <= self.held_out:
            raise ValueError(f"answers ({self.answers}) must exceed held_out ({self.held_out}): none is left to learn")

    def parts(self) -> list[Path]:
        """Files of answers, by the seed of their first scene."""
        seeds = [self.first_seed + _SEEDS * number for number in range(-(-self.answers // PART))]
        return [Path(self.run_dir) / f"answers-{seed}-{self.length}.safetensors" for seed in seeds]


@torch.no_grad()
def answers_of(model: PerceptionModel, prompts: Sequence[Prompt], length: int) -> dict[str, Tensor]:
    """The model's greedy answers, and what it made of them.

    Returns:
        states (B, tokens + 1, D) of the prompts, half precision; ids (B, length), IGNORE behind the end; top_ids and
        top_odds (B, length, 8): the most probable ids of each place, given those before it.

    Raises:
        ValueError: for prompts without a square number of image tokens.
    """
    end = model.processor.tokenizer.eos_token_id
    rows = [[*row, end][:length] for row in model.generate_ids(prompts, length)]
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
    """Asks for a file of answers, in a process of its own."""
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
    """The model's answers, `config.answers` of them: those under `run_dir`, and those that it lacks yet.

    Raises:
        ValueError: naming a part that is not a complete file; for a run_dir with the answers of another model.
    """
    parts = config.parts()
    Plan(Path(config.run_dir) / PLAN, {"model": config.model}).begin()
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
    console = Console()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"parts of {PART} answers", total=total, completed=done)
        for path in paths:
            done += 1
            progress.advance(task)
            if not console.is_terminal:
                console.print(f"{path.name}: {done} of {total} parts", highlight=False)
            yield path


def _read_part(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no whole file of answers ({error}); delete it and run this again") from None


def fit(network: DraftNetwork, answers: dict[str, Tensor], config: DraftsConfig, say: Callable[[str], None]) -> float:
    """Trains for `config.steps` and returns the share of held-out ids that are guessed."""
    held, known = slice(0, config.held_out), torch.arange(config.held_out, len(answers["ids"]))
    held_states, held_ids = answers["states"][held].float(), answers["ids"][held].long()
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
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
    """Share of the ids of answers that the network's draft has in their places."""
    real = ids != IGNORE
    return float((network(states).argmax(-1) == ids)[real].float().mean())


def main(argv: list[str] | None = None) -> None:
    config = parse_config(DraftsConfig, argv)
    torch.manual_seed(config.seed)
    model = PerceptionModel.from_pretrained(config.model)
    answers = gather(config)
    text = model.model.config.get_text_config()
    grid = model.vocabulary.depth_grid
    sizes = DraftNetworkConfig(text.hidden_size, text.vocab_size, grid, config.length, config.width, config.num_blocks)
    network = DraftNetwork(sizes)
    share = fit(network, answers, config, print)
    network.save(config.out or config.model)
    print(f"{100 * share:.1f} % of held-out ids guessed; written to {config.out or config.model}")


if __name__ == "__main__":
    main()
