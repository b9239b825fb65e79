"""Nested codes: an order of the cells in which the first n cover the map, for every n."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

WHOLE_SHARE = 0.5
"""Share of the maps of a training batch that keep all their codes; the rest keep a random number of first codes"""
_CROWDING_UNIT = 1_000_000


@lru_cache(maxsize=16)
def coarse_to_fine(grid: int) -> tuple[int, ...]:
    """Row-major numbers of the cells of a grid x grid map, in the order in which nested codes are written.

    Each next cell is the one that most lowers the sum over all cells of the squared distance to the nearest cell
    written so far. This is the greedy choice for facility location, whose gain for every n is at least 1 - 1/e of
    the best possible (Nemhauser, Wolsey and Fisher 1978). The first cell lies in the middle, the next few quarter
    the map, and the last ones fill the gaps. Ties go to the cell with the fewest written cells around it (inverse
    squared distance), then to the lowest number. All arithmetic is in integers, so the order is the same on every
    machine.
    """
    places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))  # (N, 2)
    distance = (places[:, None] - places).square().sum(-1)  # (N, N), squared, in cells
    nearness = _CROWDING_UNIT // distance.clamp_min(1)
    nearest = torch.full((len(places),), 2 * grid * grid)  # (N,): more than any distance
    crowding, order = torch.zeros_like(nearest), list[int]()
    for _ in range(len(places)):
        gain = (nearest - distance).clamp_min(0).sum(1)  # (N,)
        gain[order] = -1
        chosen = int(torch.where(gain == gain.max(), crowding, torch.iinfo(torch.long).max).argmin())
        order.append(chosen)
        nearest = torch.minimum(nearest, distance[chosen])
        crowding = crowding + nearness[chosen]
    return tuple(order)


def random_budgets(count: int, num_codes: int, device: torch.device) -> Tensor:
    """Numbers of codes (count,) that maps keep in a training step.

    About half of the maps keep all codes, the rest keep 1 to all, each as likely (token dropout, after Rippel et
    al. 2014, "Learning ordered representations").
    """
    budgets = torch.randint(1, num_codes + 1, (count,), device=device)
    return torch.where(torch.rand(count, device=device) < WHOLE_SHARE, num_codes, budgets)
