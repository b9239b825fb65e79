"""The draft network of a finished model: `python -m train.drafts`.

The frozen model answers depth questions on scenes of the standard look that no benchmark asks about; a small network
(`perception.draft_network`) learns to guess those answers from the hidden states of the prompt. Its guesses change how
fast answers are decoded and never what they are. About ten minutes on one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from perception.chains import prompt_for
from perception.draft_network import DraftNetwork, DraftNetworkConfig, prompt_states
from perception.evaluation.scenes import scene_items
from perception.model import PerceptionModel, Prompt
from train.config import parse_config

_EACH = 8
_SEEDS = 1000
"""scenes set aside for a round of questions, more than it renders"""
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
    gather_seconds: float = 250.0
    """time for the model's own answers"""
    train_seconds: float = 260.0
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    length: int = 140
    """tokens of an answer that are guessed"""
    width: int = 64
    held_out: int = 128
    """answers that are only measured"""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.gather_seconds, self.train_seconds, self.batch_size, self.held_out) <= 0:
            raise ValueError("gather_seconds, train_seconds, batch_size and held_out must be above 0")


@torch.no_grad()
def gather(model: PerceptionModel, config: DraftsConfig) -> dict[str, Tensor]:
    """The model's greedy answers to depth questions: states (N, tokens + 1, D) of the prompt, half precision; ids
    (N, length), IGNORE behind the end."""
    states: list[Tensor] = []
    ids: list[Tensor] = []
    stop, seed = time.monotonic() + config.gather_seconds, config.first_seed
    end = model.processor.tokenizer.eos_token_id
    while not ids or time.monotonic() < stop:
        items = scene_items("standard", 0, _EACH, seed)
        seed += _SEEDS
        prompts = [Prompt(i.image, prompt_for(i.question, "chain")[0], i.kind) for i in items]
        rows = model.generate_ids(prompts, config.length)
        inputs = model.inputs(prompts)
        hidden = model.model.base_model(**inputs, use_cache=False).last_hidden_state  # (B, T, D)
        read = prompt_states(hidden, inputs["input_ids"], model.model.config.image_token_id)
        if read is None:
            raise ValueError("the prompts have no square number of image tokens; this model cannot have a network")
        states.append(read.half())
        ids += [torch.tensor([*row, end, *[IGNORE] * config.length][: config.length]) for row in rows]
    return {"states": torch.cat(states), "ids": torch.stack(ids)}


def fit(network: DraftNetwork, answers: dict[str, Tensor], config: DraftsConfig, say: Callable[[str], None]) -> float:
    """Trains for `train_seconds` and returns the share of held-out ids that are guessed."""
    states, ids = answers["states"].float(), answers["ids"].long()
    held, known = slice(0, config.held_out), torch.arange(config.held_out, len(ids))
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / config.train_seconds) < 1:
        optimizer.param_groups[0]["lr"] = config.learning_rate * min(1.0, (step + 1) / 50) * (1 - done)
        rows = known[torch.randint(len(known), (config.batch_size,))]
        seen = states[rows] + 0.05 * torch.randn_like(states[rows])
        loss = F.cross_entropy(network(seen).flatten(0, 1), ids[rows].flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if step % 100 == 0:
            say(f"step {step}: loss {loss.item():.3f}, held out {guessed(network, states[held], ids[held]):.3f}")
    return guessed(network, states[held], ids[held])


@torch.no_grad()
def guessed(network: DraftNetwork, states: Tensor, ids: Tensor) -> float:
    """Share of the ids of answers that the network's draft has in their places."""
    real = ids != IGNORE
    return float((network(states).argmax(-1) == ids)[real].float().mean())


def main(argv: list[str] | None = None) -> None:
    config = parse_config(DraftsConfig, argv)
    torch.manual_seed(config.seed)
    model = PerceptionModel.from_pretrained(config.model)
    kept = Path(config.run_dir) / "answers.safetensors"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(gather(model, config), kept)
    text = model.model.config.get_text_config()
    grid = model.vocabulary.depth_grid
    sizes = DraftNetworkConfig(text.hidden_size, text.vocab_size, grid, config.length, config.width)
    network = DraftNetwork(sizes)
    share = fit(network, load_file(kept), config, print)
    network.save(config.out or config.model)
    print(f"{100 * share:.1f} % of held-out ids guessed; written to {config.out or config.model}")


if __name__ == "__main__":
    main()
