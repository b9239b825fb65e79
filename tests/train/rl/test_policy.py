"""The policy gradient of interleaved chains against an enumeration of everything that could have been selected."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_figures import make_toy_folder, toy_problems

from perception.interleave.chains import LabelRule, Look, build_batch
from perception.interleave.selector import SelectorConfig, VisualTokenSelector
from train.rl.policy import (
    DETERMINISTIC,
    ChainLogProbs,
    chain_log_probs,
    equal_groups,
    group_advantages,
    look_log_probs,
    policy_loss,
    reference_kl,
)

SUBSETS = torch.tensor(list(itertools.product([False, True], repeat=4)))  # (16, 4)
WORTH = torch.randn(16, generator=torch.Generator().manual_seed(3))
"""A reward a subset"""


def look_only(scores: torch.Tensor, chosen: torch.Tensor) -> ChainLogProbs:
    """Chains of one look and no token: scores and chosen are (B, M)."""
    empty = torch.zeros(len(chosen), 0)
    scores = scores.expand(chosen.shape)[:, None]
    return ChainLogProbs(empty, empty.bool(), empty, scores, chosen[:, None], torch.ones_like(chosen)[:, None])


def exact(scores: torch.Tensor) -> torch.Tensor:
    """Expected reward of drawing each of four tokens with probability sigmoid(score), by its definition."""
    p = scores.sigmoid()
    return (torch.where(SUBSETS, p, 1 - p).prod(-1) * WORTH).sum()


def test_the_gradient_of_sampled_selections_is_that_of_the_expected_reward() -> None:
    scores = torch.tensor([-1.0, 0.3, 2.0, -0.2], requires_grad=True)
    wanted = torch.autograd.grad(exact(scores), scores)[0]
    torch.manual_seed(0)
    selector = VisualTokenSelector(SelectorConfig(4, threshold=0.5))
    chosen = torch.stack([selector.draw(scores.detach()) for _ in range(40_000)])
    number = (chosen * torch.tensor([8, 4, 2, 1])).sum(1)  # of its row in SUBSETS
    loss = policy_loss(look_only(scores, chosen), WORTH[number], norm=1)
    found = -torch.autograd.grad(loss, scores)[0]
    torch.testing.assert_close(found, wanted, atol=0.015, rtol=0)
    paper = policy_loss(look_only(scores, chosen), WORTH[number], norm=1, selection=DETERMINISTIC)
    assert (-torch.autograd.grad(paper, scores)[0] - wanted).abs().max() > 0.05, "it leaves out what was not selected"


def test_the_gradient_goes_through_a_model_that_reads_what_it_selected(tmp_path: Path) -> None:
    """Every subset of four visual tokens and one token behind it, weighted by its probability: the loss's gradient is
    that of the expected reward, in the selector and in the text model."""
    folder = make_toy_folder(tmp_path)
    model, encoder = folder.model.eval(), folder.encoder
    inputs = encoder.inputs(toy_problems(1, 0, 32, (4, 4)) * 16)
    word = folder.processor.tokenizer.encode(" 42", add_special_tokens=False)[0]
    answers = [[Look(tuple(subset.nonzero()[:, 0].tolist())), word] for subset in SUBSETS]
    batch = build_batch(folder.model.layout, inputs, answers, 0, LabelRule(next_token=True))
    chain = chain_log_probs(model(batch), batch, model.layout.reserved)
    first = {name: getattr(chain, name)[..., :4] for name in ("scores", "chosen", "candidates")}
    four = replace(chain, **first)
    parameters = [model.selector.query.weight, model.selector.embedding, model.model.model.language_model.norm.weight]
    p = four.scores[:, 0].sigmoid()  # (16, 4)
    probability = torch.where(SUBSETS, p, 1 - p).prod(-1) * chain.tokens.sum(1).exp()
    torch.testing.assert_close(look_log_probs(four)[:, 0].exp().sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
    wanted = torch.autograd.grad((probability * WORTH).sum(), parameters, retain_graph=True)
    loss = policy_loss(four, 16 * probability.detach() * WORTH, norm=1)
    found = torch.autograd.grad(-loss, parameters)
    for one, other in zip(found, wanted, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_advantages_compare_within_a_group_and_equal_groups_teach_nothing() -> None:
    advantages = group_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2)
    assert advantages.tolist() == pytest.approx([1, -1, 0, 0], abs=1e-3)


@pytest.mark.parametrize(("reward", "size"), [(0.1, 8), (1.1, 10), (0.7, 7)])
def test_rewards_whose_mean_is_off_by_rounding_are_equal(reward: float, size: int) -> None:
    tied = torch.full((2 * size,), reward)
    tied[-1] = 0
    assert equal_groups(tied, size).tolist() == [True, False]
    assert group_advantages(tied, size)[:size].abs().max() == 0 < group_advantages(tied, size)[size:].abs().min()


def test_banned_ids_take_no_part_and_the_divergence_from_itself_is_nothing(tmp_path: Path) -> None:
    folder = make_toy_folder(tmp_path)
    encoder = folder.encoder
    problems = toy_problems(2, 0, 32, (4, 4))
    answers = [encoder.answer(problem) for problem in problems]
    batch = build_batch(folder.model.layout, encoder.inputs(problems), answers, 0, LabelRule(next_token=True))
    with torch.no_grad():
        output = folder.model.eval()(batch)
    free, banned = (chain_log_probs(output, batch, ids) for ids in ([], [7, 8, 9]))
    assert (banned.tokens[banned.written] > free.tokens[free.written]).all()
    assert banned.written.sum() == sum(not isinstance(part, Look) for answer in answers for part in answer)
    assert float(reference_kl(free, free, 1).mean()) == pytest.approx(0, abs=1e-6)
    other = replace(free, tokens=free.tokens - 0.3 * free.written, scores=free.scores + 1)
    assert float(reference_kl(free, other, 1).mean()) > 0
