"""Rows of sums, written as in the solutions of the geometry problems, that teach the tiny model arithmetic.

A tiny language model that sees only some thousand solutions memorises their sums and guesses all others, unlike a model
that was pretrained on text. It therefore also trains on rows of sums without figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROW_LENGTH = 64
"""Tokens per row of sums"""
LARGEST = 676
"""Largest result: 26 x 26"""
_WHOLES = (90, 180, 360)


def sum_of(rng: np.random.Generator) -> tuple[str, str]:
    """Draw a sum (or difference, product, half, square) and its result, such as (" 45 + 60 =", " 105")."""
    kind = int(rng.integers(6))
    if kind == 0:  # angles
        a, b = (5 * int(n) for n in rng.integers(4, 60, 2))
        return f" {a} + {b} =", f" {a + b}"
    if kind == 1:
        whole = _WHOLES[int(rng.integers(3))]
        part = int(rng.integers(1, whole)) if rng.random() < 0.5 else 5 * int(rng.integers(1, whole // 5))
        return f" x = {whole} - {part} =", f" {whole - part}"
    if kind == 2:
        a, b = (int(n) for n in rng.integers(1, 90, 2))
        b = a if rng.random() < 0.3 else b
        return f" {a} + {b} =", f" {a + b}"
    if kind == 3:
        a, b = (int(n) for n in rng.integers(2, 17, 2))
        return f" {a} * {b} =", f" {a * b}"
    if kind == 4:
        half = int(rng.integers(1, 100))
        return (f" {2 * half} / 2 =", f" {half}") if rng.random() < 0.7 else (f" 2 * {half} =", f" {2 * half}")
    a, b = (int(n) for n in rng.integers(2, 19, 2))
    sides = int(rng.integers(3))
    if sides == 0:
        return f" x x = {a * a} + {b * b} =", f" {a * a + b * b}"
    if sides == 1:
        return f" x x = {a * a + b * b} - {b * b} =", f" {a * a}"
    return f" x x = {a * a}. x =", f" {a}"


def sum_rows(rng: np.random.Generator, tokenizer: Any, count: int, length: int = ROW_LENGTH) -> tuple[Tensor, Tensor]:
    """Rows of concatenated sums: ids (count, length), and labels, which are -100 except at the results."""
    ids = torch.full((count, length), tokenizer.bos_token_id)
    labels = torch.full((count, length), -100)
    for row in range(count):
        written: list[int] = []
        wanted: list[int] = []
        while len(written) < length:
            asked, result = (tokenizer.encode(text, add_special_tokens=False) for text in sum_of(rng))
            stop = tokenizer.encode(".", add_special_tokens=False)
            written += [*asked, *result, *stop]
            wanted += [-100] * len(asked) + result + [-100] * len(stop)
        ids[row, 1:] = torch.tensor(written[: length - 1])
        labels[row, 1:] = torch.tensor(wanted[: length - 1])
    return ids, labels


def sums_loss(model: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the results in `sum_rows`, and scalars.

    Args:
        model: an image-text-to-text model of transformers, of which only the text model is used.
        ids, labels: (S, T).
    """
    results = labels[:, 1:] != -100
    states = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1][results]  # (n, H)
    logits = model.get_output_embeddings()(states).float()  # (n, V)
    wanted = labels[:, 1:][results]
    loss = F.cross_entropy(logits, wanted)
    return loss, {"sums": loss.detach(), "sums_right": (logits.argmax(-1) == wanted).float().mean()}
