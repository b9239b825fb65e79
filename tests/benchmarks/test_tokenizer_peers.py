"""The peers of our tokenizer: each encodes, decodes and learns; bars and page say what was measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import tokenizer_peers
from benchmarks.reference_vqvae import MovingCodebook
from benchmarks.tokenizer_peers import BUILDERS, OURS, REFERENCE, bars, page, parameters, reconstruct_with


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != OURS])
def test_a_peer_learns_and_its_codes_do_not_depend_on_the_batch(name: str) -> None:
    torch.manual_seed(0)
    model: Any = BUILDERS[name]().train()
    assert 6.5e6 < parameters(model) < 8e6
    depth = 1 + torch.rand(2, 40, 40).cumsum(1)
    terms = model(depth)
    sum(terms.values()).backward()
    learnt = [p for n, p in model.named_parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learnt)
    model.eval()
    codes = model.encode(depth)
    assert codes.shape == (2, 10, 10) and codes.dtype == torch.long and int(codes.max()) < 128
    assert model.encode(depth[1:]).equal(codes[1:])
    nearness, again = reconstruct_with(model)(depth)
    assert again.equal(codes) and nearness.shape == depth.shape
    assert 0 <= float(nearness.min()) and float(nearness.max()) <= 1


def test_the_textbook_codebook_moves_what_is_used_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    codebook = MovingCodebook(4, 2).train()
    with torch.no_grad():
        codebook.codebook.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, 9.0], [9.0, -9.0]]))
    vectors = torch.tensor([[1.0, 1.0], [1.0, 1.0]], requires_grad=True)
    quantized, commitment = codebook(vectors)
    assert quantized.tolist() == [[0, 0], [0, 0]] and commitment.item() == 1
    quantized.sum().backward()
    assert vectors.grad is not None and vectors.grad.tolist() == [[1, 1], [1, 1]]  # straight through
    for _ in range(600):
        codebook(torch.ones(2, 2))
    assert torch.allclose(codebook.codebook[0], torch.ones(2), atol=0.05)
    assert codebook.encode(torch.ones(1, 2)).item() == 0


def _measured(abs_rel: float, usage: float, count: int) -> dict[str, Any]:
    value = {"mean": abs_rel, "low": abs_rel, "high": abs_rel, "count": 3}
    names = ("abs_rel", "delta1", "rmse", "boundary_f1", "order_2", "order_3", "order_4", "order_5")
    one = {**dict.fromkeys(names, value), "codebook_usage": usage}
    return {"parameters": count, "results": {"standard": one, "shifted": one}}


def test_bars_ask_for_error_codes_and_size() -> None:
    good = {OURS: _measured(0.02, 1.0, 10), REFERENCE: _measured(0.04, 0.5, 70)}
    assert all(bar.met for bar in bars(good))
    poor = {OURS: _measured(0.03, 0.9, 80), REFERENCE: _measured(0.04, 0.5, 70)}
    assert not any(bar.met for bar in bars(poor))
    head = {"images": 10, "scenes_a_style": 3, "processor": "", "cores": 2, "torch": "", "commit": ""}
    assert "| ours | 0.0 M | 0.020 |" in page({**head, "tokenizers": good})


def test_settings_are_those_of_the_description() -> None:
    batch, loop = tokenizer_peers._settings(REFERENCE, 48_000)
    assert (batch, loop.steps, loop.learning_rate, loop.weight_decay) == (8, 6000, 3e-4, 0.0)
    assert loop.min_lr_ratio == pytest.approx(0.98**12)
    batch, loop = tokenizer_peers._settings(OURS, 48_000)
    assert batch * loop.steps == 48_000
