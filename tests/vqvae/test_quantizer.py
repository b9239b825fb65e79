from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_vqvae import TINY

from vqvae.quantizer import FSQ, EMAQuantizer, codebook_usage, perplexity

FSQ_CONFIG = replace(TINY, quantizer="fsq", codebook_size=60, codebook_dim=3, fsq_levels=(3, 4, 5))


def test_the_codebook_moves_to_the_mean_of_its_vectors() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(replace(TINY, codebook_size=4, decay=0.5)).train()
    centres = torch.tensor([[4.0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 4]])
    for _ in range(12):
        quantizer(centres.repeat_interleave(50, 0) + 0.05 * torch.randn(200, 4))
    assert float(torch.cdist(centres, quantizer.codebook).min(1).values.max()) < 0.1
    assert quantizer.encode(centres).unique().numel() == 4


def test_codes_are_the_nearest_rows_and_gradients_pass_straight_through() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(TINY).eval()
    vectors = torch.randn(50, 4, requires_grad=True)
    quantized, codes, commitment = quantizer(vectors)
    distances = (vectors[:, None] - quantizer.codebook[None]).square().sum(-1)
    assert codes.equal(distances.argmin(1))
    torch.testing.assert_close(quantized, quantizer.codebook[codes])
    weights = torch.randn(50, 4)
    (quantized * weights).sum().backward()
    torch.testing.assert_close(vectors.grad, weights)
    torch.testing.assert_close(commitment, (vectors - quantizer.codebook[codes]).square().mean())


def test_nothing_moves_in_evaluation() -> None:
    quantizer = EMAQuantizer(TINY).eval()
    before = {name: x.clone() for name, x in quantizer.state_dict().items()}
    quantizer(torch.randn(50, 4))
    assert all(x.equal(before[name]) for name, x in quantizer.state_dict().items())


def test_dead_codes_are_revived() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(replace(TINY, decay=0.8)).train()
    quantizer(torch.randn(200, 4))
    quantizer.codebook[8:] = 100.0  # where no vector comes
    quantizer.vector_sum[8:] = 100.0 * quantizer.cluster_size[8:, None]
    vectors = torch.randn(400, 4)
    for _ in range(60):
        quantizer(vectors)
    counts = torch.bincount(quantizer.encode(vectors), minlength=16)
    assert codebook_usage(counts) == 1
    assert float(quantizer.codebook.abs().max()) < 10


def test_deferred_batches_move_the_codebook_as_one() -> None:
    batches = torch.randn(5, 4, 40, 4, generator=torch.Generator().manual_seed(0))  # (steps, batches, N, D)
    first = EMAQuantizer(replace(TINY, decay=0.5, dead_threshold=0.5)).train()
    torch.manual_seed(1)
    first(batches[0].flatten(0, 1))
    second = EMAQuantizer(replace(TINY, decay=0.5, dead_threshold=0.5)).train()
    second.load_state_dict(first.state_dict())
    second.deferred = True
    for step, parts in enumerate(batches[1:]):
        torch.manual_seed(step)  # revived rows are drawn
        first(parts.flatten(0, 1))
        before = second.codebook.clone()
        for part in parts:
            second(part)
        assert second.codebook.equal(before)
        torch.manual_seed(step)
        second.settle()
        assert not second.codebook.equal(before)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)
    settled = second.codebook.clone()
    second.settle()
    assert second.codebook.equal(settled), "nothing is pending"


def test_perplexity_counts_codes_in_use() -> None:
    assert float(perplexity(torch.tensor([5, 5, 5, 5]))) == pytest.approx(4)
    assert float(perplexity(torch.tensor([9, 0, 0, 0]))) == pytest.approx(1)
    assert codebook_usage(torch.tensor([9, 1, 0, 0])) == 0.5


def test_fsq_numbers_every_lattice_point_once() -> None:
    quantizer = FSQ(FSQ_CONFIG)
    assert quantizer.codebook.unique(dim=0).shape == (60, 3)
    nearly = torch.atanh((quantizer.codebook * 0.999).clamp(-0.999, 0.999))
    assert quantizer.encode(nearly).equal(torch.arange(60))
    quantizer.permute(torch.randperm(60, generator=torch.Generator().manual_seed(0)))
    nearly = torch.atanh((quantizer.codebook * 0.999).clamp(-0.999, 0.999))
    assert quantizer.encode(nearly).equal(torch.arange(60))
    quantized, codes, commitment = quantizer(torch.randn(30, 3))
    torch.testing.assert_close(quantized, quantizer.codebook[codes])
    assert float(commitment) == 0


def _train_on_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(rank)  # other starts, other data
    quantizer = EMAQuantizer(replace(TINY, decay=0.5, dead_threshold=0.5)).train()
    for _ in range(5):
        quantizer(torch.randn(64, 4) + 3 * rank)
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_keep_one_codebook(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_train_on_rank, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(first[name].equal(second[name]) for name in first)
    means = first["codebook"].mean(1)
    assert float(means.min()) < 0.5 and float(means.max()) > 2.5, "both ranks' data shaped it"


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0, float("nan")])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_codes_that_are_never_revived_are_refused(threshold: float, decay: float) -> None:
    """The averages of a code without vectors fall to 0, and its row would be 0 / 0, the nearest of every vector."""
    with pytest.raises(ValueError, match=f"dead_threshold must lie between 0 and 1, got {threshold}.*decay {decay}"):
        replace(TINY, decay=decay, dead_threshold=threshold)


def test_a_small_threshold_keeps_codes_finite() -> None:
    quantizer = EMAQuantizer(replace(TINY, decay=0.5, dead_threshold=1e-3)).train()
    vectors = torch.randn(8, TINY.codebook_dim, generator=torch.Generator().manual_seed(0))
    for _ in range(300):
        quantizer(vectors)
    assert bool(quantizer.codebook.isfinite().all()) and len(quantizer.encode(vectors).unique()) > 1
