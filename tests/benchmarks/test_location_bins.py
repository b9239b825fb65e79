"""What bins of locations cost."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bars import all_met
from benchmarks.location_bins import BINS, DEFAULT, bars, box_ious, measure


def test_iou_of_a_box_with_what_is_decoded_of_it() -> None:
    # Four bins: 0.1 and 0.3 lie in the bins 0 and 1, whose centres are 0.125 and 0.375.
    box = np.array([[0.1, 0.1, 0.3, 0.3]])
    both = (0.3 - 0.125) ** 2
    assert box_ious(box, 4) == pytest.approx([both / (0.2**2 + 0.25**2 - both)])
    centres = np.array([[0.125, 0.125, 0.375, 0.625], [0.375, 0.125, 0.875, 0.375]])
    assert box_ious(centres, 4) == pytest.approx([1, 1]), "nothing is lost at the bins' own centres"


def test_more_bins_keep_more_of_the_boxes() -> None:
    found = measure(6)
    for record in found.values():
        ious = [record["bins"][str(bins)]["iou"]["mean"] for bins in BINS]
        assert ious == sorted(ious) and ious[-1] > 0.98
        assert record["bins"][str(DEFAULT)]["iou_5th_percentile"] < ious[BINS.index(DEFAULT)]
    assert len(bars(found)) == 4 and all_met(bars(found))
