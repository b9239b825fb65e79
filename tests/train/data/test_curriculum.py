"""The curriculum: shares that sum to one and fall as configured."""

from __future__ import annotations

import numpy as np
import pytest

from perception.chains import ATOMIC, CHAIN, DIRECT
from train.data.curriculum import CurriculumConfig, direct_only, draw_tasks, kind_shares, task_shares


@pytest.mark.parametrize("schedule", ["phases", "linear", "constant", "softmax"])
def test_shares_sum_to_one_throughout(schedule):
    config = CurriculumConfig(schedule=schedule)
    for progress in np.linspace(0, 1, 21):
        shares = task_shares(config, float(progress))
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
        atomic, chain, direct = kind_shares(config, float(progress))
        assert sum(shares[t] for t in ATOMIC) == pytest.approx(atomic)
        assert sum(shares[t] for t in CHAIN) == pytest.approx(chain)
        assert sum(shares[t] for t in DIRECT) == pytest.approx(direct)


def test_phases_are_aurora_s_ten_steps():
    config = CurriculumConfig()
    seen = [kind_shares(config, (phase + 0.5) / 10)[0] for phase in range(10)]
    assert seen == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert kind_shares(config, 1.0)[0] == pytest.approx(0.1)


def test_atomic_share_falls_in_every_schedule_but_the_constant():
    for schedule in ("phases", "linear", "softmax"):
        config = CurriculumConfig(schedule=schedule)
        assert kind_shares(config, 0.0)[0] > kind_shares(config, 0.5)[0] > kind_shares(config, 0.99)[0]


def test_tasks_are_drawn_by_their_shares():
    shares = direct_only(CurriculumConfig(depth_share=0.25))
    tasks = draw_tasks(shares, 4000, np.random.default_rng(0))
    assert set(tasks) == set(DIRECT)
    assert tasks.count("direct_depth") / 4000 == pytest.approx(0.25, abs=0.03)


def test_bad_settings_name_the_known_ones():
    with pytest.raises(ValueError, match="phases, linear, constant, softmax"):
        CurriculumConfig(schedule="cosine")
    for temperature in ((0.0, 3.0), (0.3, -1.0)):
        with pytest.raises(ValueError, match=r"temperatures must be above 0, got \(0\."):
            CurriculumConfig("softmax", temperature=temperature)
    with pytest.raises(ValueError, match=r"atomic_end must lie in \[0, 1\], got 2"):
        CurriculumConfig(atomic_end=2)
