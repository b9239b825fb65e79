"""What each term of the loss rewards, on logits made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from perception.vocabulary.names import PerceptionVocabulary, Span
from train.base import IGNORE
from train.models.losses import LossSettings, SpanLosses
from vqvae import VQVAE, VQVAEConfig

NUM_TEXT = 20
SIZES = PerceptionVocabulary(depth_codes=8, depth_grid=(2, 2), num_locations=10)
VOCABULARY = PerceptionVocabulary(8, (2, 2), 10, ids={name: NUM_TEXT + n for n, name in enumerate(SIZES.tokens)})
SIZE = NUM_TEXT + len(SIZES.tokens)
DEPTH, BOXES = VOCABULARY.code_ids("depth"), VOCABULARY.code_ids("boxes")
EVERY = LossSettings(reconstruction=3.0, location_spread=1.5, marker=0.7, count=0.4)


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)).eval()


def targets() -> tuple[Tensor, Tensor]:
    """Labels and weights (2, 14): a chain with a map and one without, after two positions of a prompt."""
    rows = [
        [3, *VOCABULARY.span_ids(Span("depth", (0, 7, 3, 1))), 4, 5, 2],
        [3, *VOCABULARY.span_ids(Span("boxes", (1, 2, 3, 4))), 4, 5, 2],
    ]
    longest = max(len(row) for row in rows) + 4
    labels = torch.tensor([[IGNORE] * 2 + row + [IGNORE] * (longest - 2 - len(row)) for row in rows])
    return labels, torch.where(labels == IGNORE, 0.0, 1.0 + 0.1 * torch.arange(longest))


def sure(labels: Tensor, height: float = 30.0) -> Tensor:
    """Logits (B, t, V) that leave no doubt of these labels."""
    return torch.nn.functional.one_hot(labels.clamp(min=0), SIZE).float() * height


def loss(settings: LossSettings, vqvae: VQVAE | None, logits: Tensor) -> Tensor:
    labels, weights = targets()
    return SpanLosses.build(settings, VOCABULARY, vqvae)(logits, labels, weights)


def changed(at: int, row: int, to: int) -> Tensor:
    """Logits sure of the targets, but for one position at which they are sure of something else."""
    labels, _ = targets()
    labels[row, at] = to
    return sure(labels)


def test_without_terms_it_is_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    labels, weights = targets()
    logits = torch.randn(*labels.shape, SIZE)
    chosen = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(loss(LossSettings(), None, logits), -(chosen * weights).sum(1), rtol=1e-5)


def test_every_term_is_least_where_all_targets_are_met(vqvae: VQVAE) -> None:
    labels, _ = targets()
    assert loss(replace(EVERY, location_spread=0.0), vqvae, sure(labels)).abs().max() < 1e-6
    torch.manual_seed(0)
    assert (loss(EVERY, vqvae, sure(labels) + torch.randn(*labels.shape, SIZE) * 20) > 1.0).all()


def test_rows_are_worth_the_same_alone(vqvae: VQVAE) -> None:
    torch.manual_seed(0)
    labels, weights = targets()
    logits, losses = torch.randn(*labels.shape, SIZE), SpanLosses.build(EVERY, VOCABULARY, vqvae)
    alone = [losses(logits[n : n + 1], labels[n : n + 1], weights[n : n + 1]) for n in range(2)]
    assert torch.allclose(losses(logits, labels, weights), torch.cat(alone), rtol=1e-5)


def test_maps_that_decode_alike_cost_alike(vqvae: VQVAE) -> None:
    """Cross-entropy calls all wrong codes the same; the map tells them apart, and codes alone can mend it."""
    only = LossSettings(reconstruction=1.0)
    first = 4  # where the map's first code stands, whose truth is 0
    with torch.no_grad():
        maps = vqvae.decode(torch.tensor([[code, 7, 3, 1] for code in range(8)]))  # (8, S, S)
    weight = targets()[1][0, first : first + 4].sum()
    for code in range(8):
        logits = changed(first, 0, DEPTH[code])
        extra = (loss(only, vqvae, logits) - loss(LossSettings(), None, logits))[0]
        assert torch.isclose(extra, weight * (maps[code] - maps[0]).square().mean(), atol=1e-4)
    labels, weights = targets()
    logits = torch.randn(*labels.shape, SIZE, requires_grad=True)
    extra = SpanLosses.build(only, VOCABULARY, vqvae)._map_errors(logits, labels, weights)
    extra.sum().backward()
    touched = logits.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    assert torch.equal(touched, torch.isin(labels, torch.tensor(DEPTH))) and extra[1] == 0
    assert all(parameter.grad is None for parameter in vqvae.parameters())


def test_a_near_miss_of_a_location_costs_less() -> None:
    spread, place = LossSettings(location_spread=1.0), 5  # y1, whose bin is 2
    near, far = changed(place, 1, BOXES[3]), changed(place, 1, BOXES[9])
    assert loss(spread, None, near)[1] < loss(spread, None, far)[1] - 5
    assert torch.isclose(loss(LossSettings(), None, near)[1], loss(LossSettings(), None, far)[1], rtol=1e-4)
    assert torch.equal(loss(spread, None, near)[0], loss(LossSettings(), None, near)[0])  # a row without locations


def test_markers_and_numbers_of_codes_count_more() -> None:
    """A missed END costs twice; a code too many or too few adds to what its place cost."""
    end, text = changed(8, 0, 4), changed(9, 0, 6)
    marked, plain = LossSettings(marker=1.0), LossSettings()
    assert torch.isclose(loss(marked, None, end)[0], 2 * loss(plain, None, end)[0], rtol=1e-4)
    assert torch.isclose(loss(marked, None, text)[0], loss(plain, None, text)[0], rtol=1e-4)
    counted = LossSettings(count=1.0)
    for logits in (changed(5, 0, 4), changed(9, 0, DEPTH[2])):
        assert loss(counted, None, logits)[0] > loss(plain, None, logits)[0] + 0.1
    wrong = changed(5, 0, DEPTH[6])  # another code: as many
    assert torch.isclose(loss(counted, None, wrong)[0], loss(plain, None, wrong)[0], rtol=1e-4)


def test_what_is_read_but_not_learned_has_no_part(vqvae: VQVAE) -> None:
    """A map of another image has weight 0."""
    labels, weights = targets()
    weights[torch.isin(labels, torch.tensor(DEPTH))] = 0.0
    torch.manual_seed(0)
    logits = sure(labels)
    logits[torch.isin(labels, torch.tensor(DEPTH))] = torch.randn(4, SIZE)
    assert (
        SpanLosses.build(replace(EVERY, location_spread=0.0), VOCABULARY, vqvae)(logits, labels, weights).max() < 1e-5
    )


def test_maps_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="losses.reconstruction decodes depth maps; set depth_tokenizer"):
        SpanLosses.build(EVERY, VOCABULARY, None)
