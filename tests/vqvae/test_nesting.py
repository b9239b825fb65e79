from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_vqvae import TINY
from torch import Tensor

from vqvae import VQVAE, VQVAEConfig
from vqvae.nesting import coarse_to_fine, random_budgets

NESTED = replace(TINY, nested=True)
FSQ_NESTED = replace(NESTED, quantizer="fsq", codebook_dim=2, fsq_levels=(4, 4))


def smooth_maps(count: int, seed: int) -> Tensor:
    """(count, 16, 16) metres: tilted planes with a bump each"""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    a, b, u, v = torch.randn((4, count, 1, 1), generator=generator)
    bump = torch.exp(-((x - 0.5 * u).square() + (y - 0.5 * v).square()) / 0.3)
    return 4 / (1.2 + 0.2 * a.clamp(-2, 2) * x + 0.2 * b.clamp(-2, 2) * y + 0.6 * bump)


@pytest.fixture(scope="module")
def trained() -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(NESTED).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        model(smooth_maps(32, step)).losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("grid", [1, 2, 4, 10])
def test_the_order_takes_every_cell_once_and_covers_the_map_from_the_start(grid: int) -> None:
    order = coarse_to_fine(grid)
    assert sorted(order) == list(range(grid * grid))
    places = torch.tensor([divmod(cell, grid) for cell in order]).float()
    farthest = [torch.cdist(places, places[:n]).min(1).values.max().item() for n in range(1, len(order) + 1)]
    assert farthest[0] <= grid / 2**0.5, "the first lies in the middle"
    for n in range(4, len(order) + 1):
        assert farthest[n - 1] <= 1.5 * grid / n**0.5, f"{n} cells leave a hole"


def test_budgets_keep_all_codes_half_of_the_time() -> None:
    torch.manual_seed(0)
    budgets = random_budgets(2000, 16, torch.device("cpu"))
    assert 1 <= int(budgets.min()) and int(budgets.max()) == 16
    assert float((budgets == 16).float().mean()) == pytest.approx(0.5 + 0.5 / 16, abs=0.04)
    assert budgets.unique().numel() == 16


@pytest.mark.slow
def test_more_codes_are_better(trained: VQVAE) -> None:
    depth = smooth_maps(64, 999_999)
    target = trained.normalise(depth).nearness
    codes = trained.to_sequence(trained.encode(depth))
    errors = [float((trained.decode(codes[:, :n]) - target).abs().mean()) for n in (1, 2, 4, 8, 16)]
    assert all(more <= 1.05 * fewer for fewer, more in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.6 * errors[0], errors


@pytest.mark.slow
def test_all_codes_of_the_sequence_are_the_grid(trained: VQVAE) -> None:
    depth = smooth_maps(4, 1)
    codes = trained.encode(depth)
    sequence = trained.to_sequence(codes)
    assert sequence.equal(codes.flatten(1)[:, list(NESTED.cell_order)])
    assert trained.decode(sequence).equal(trained.decode(codes))
    probabilities = torch.nn.functional.one_hot(sequence, 16).float()
    for n in (3, 16):
        torch.testing.assert_close(trained.decode_soft(probabilities[:, :n]), trained.decode(sequence[:, :n]))


@pytest.mark.slow
def test_codes_beyond_the_budget_do_not_matter(trained: VQVAE) -> None:
    codes = trained.to_sequence(trained.encode(smooth_maps(2, 1)))
    assert not trained.decode(codes[:, :5]).equal(trained.decode(codes)), "the rest is missed"
    plain = VQVAE(TINY).eval()
    assert plain.to_sequence(codes.view(2, 4, 4)).equal(codes), "row by row without nesting"


@pytest.mark.slow
def test_a_nested_tokenizer_comes_back_from_disk(trained: VQVAE, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path)
    codes = loaded.to_sequence(loaded.encode(smooth_maps(4, 1)))
    assert loaded.config.nested and loaded.decode(codes[:, :5]).equal(trained.decode(codes[:, :5]))


def test_a_config_from_before_nesting_is_a_plain_one() -> None:
    values = {name: value for name, value in vars(TINY).items() if name != "nested"}
    assert VQVAEConfig.from_dict(values) == TINY and not TINY.nested
    assert not {"absent", "encoder.place"} & set(VQVAE(TINY).state_dict())


@pytest.mark.parametrize("config", [NESTED, FSQ_NESTED], ids=["ema", "fsq"])
def test_every_parameter_of_a_nested_model_moves(config: VQVAEConfig) -> None:
    torch.manual_seed(0)
    model = VQVAE(config).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(4):
        model(smooth_maps(8, step)).losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, p in model.named_parameters() if p.equal(before[name])] == []
    model.eval()
    first, again = (model(smooth_maps(8, 0)).losses.total for _ in range(2))
    assert first.equal(again), "nothing is dropped outside of training"


@pytest.mark.slow
def test_counts_that_cannot_be_decoded_are_refused(tiny: VQVAE, trained: VQVAE) -> None:
    with pytest.raises(ValueError, match=r"exactly 16 codes a map; fewer need one trained with nested=True"):
        tiny.decode(torch.zeros(1, 5, dtype=torch.long))
    for wrong in (0, 17):
        with pytest.raises(ValueError, match=r"nested: it reads the first 1 to 16 codes"):
            trained.decode(torch.zeros(1, wrong, dtype=torch.long))
        with pytest.raises(ValueError, match=r"nested: it reads the first 1 to 16 codes"):
            trained.decode_soft(torch.zeros(1, wrong, 16))
    with pytest.raises(ValueError, match="nested=True"):
        tiny.decode_soft(torch.zeros(1, 5, 16))


@pytest.mark.slow
def test_confidence_of_probabilities_is_high_where_they_are_sure(tiny: VQVAE, trained: VQVAE) -> None:
    probabilities = torch.full((1, 16, 16), 1 / 16)
    probabilities[0, 3] = torch.nn.functional.one_hot(torch.tensor(7), 16).float()
    probabilities[0, 4] = torch.tensor([0.5, 0.5] + [0.0] * 14)
    expected = torch.zeros(16)
    expected[3], expected[4] = 1, 0.75  # 1 - log 2 / log 16
    torch.testing.assert_close(tiny.confidence(probabilities), expected.view(1, 4, 4), atol=1e-6, rtol=0)
    nested = trained.confidence(probabilities[:, :5])
    assert nested.flatten()[list(NESTED.cell_order)].sub(expected).abs().max() < 1e-6, "in the order of the sequence"


@pytest.mark.parametrize("config", [TINY, FSQ_NESTED], ids=["ema", "fsq"])
def test_confidence_of_codes_is_their_margin(config: VQVAEConfig, depth: Tensor) -> None:
    torch.manual_seed(0)
    model = VQVAE(config).eval()
    sure = model.encode_confidence(depth)
    assert sure.shape == (4, 4, 4) and 0 <= float(sure.min()) and float(sure.max()) <= 1
    # A little noise on the cells' vectors changes the codes of small margin, and only those.
    z = model._vectors(model.normalise(depth)).flatten(0, 2)
    noisy = z + 1e-2 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    changed = model.quantizer.encode(noisy) != model.quantizer.encode(z)
    if bool(changed.any()):
        assert float(sure.flatten()[changed].mean()) < float(sure.flatten()[~changed].mean())
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[:, :, 12:] = False
    holed = model.encode_confidence(depth, mask)
    assert bool((holed[:, :, 3] == 0).all()), "nothing was measured there"
    assert bool((holed[:, :, 2] < 0.5).all()) and float(holed[:, :, :2].max()) > 0


def test_distances_agree_with_codes(depth: Tensor) -> None:
    for config in (TINY, FSQ_NESTED):
        torch.manual_seed(0)
        quantizer = VQVAE(config).eval().quantizer
        vectors = torch.randn(200, config.codebook_dim)
        assert quantizer.distances(vectors).argmin(1).equal(quantizer.encode(vectors))
