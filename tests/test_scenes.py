"""Scenes of digits: what tests and pages of detection and segmentation are made of."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.testing import scenes_of_digits


@pytest.mark.parametrize("side", [32, 64])
def test_boxes_and_masks_say_where_the_digits_are(side: int):
    x, boxes, masks = scenes_of_digits(60, seed=1, side=side)
    assert (x.shape, boxes.shape) == ((60, 1, side, side), (60, 3, 5))
    assert masks.shape == (60, side, side)
    assert x.min() == 0
    assert x.max() == 1
    there = boxes[..., 0] >= 0
    assert set(there.sum(1)) == {1, 2, 3}
    assert (boxes[~there] == -1).all()
    for image, truth, mask in zip(x[:, 0], boxes, masks, strict=True):
        outside, classes = image.copy(), set()
        for c, x0, y0, x1, y1 in truth[truth[:, 0] >= 0].astype(int):
            assert 0 <= x0 < x1 <= side
            assert 0 <= y0 < y1 <= side
            inside = image[y0:y1, x0:x1]
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any(), "the box is not tight"
            assert set(np.unique(mask[y0:y1, x0:x1])) <= {0, 1 + c}
            assert ((mask[y0:y1, x0:x1] > 0) == (inside >= 0.3)).all()
            outside[y0:y1, x0:x1] = 0
            classes.add(1 + c)
        assert not outside.any()
        assert set(np.unique(mask)) - {0} == classes


def test_scenes_are_the_same_for_the_same_seed_and_the_first_rows_for_any_n():
    a, b, other = scenes_of_digits(8, 3), scenes_of_digits(5, 3), scenes_of_digits(5, 4)
    for one, two, third in zip(a, b, other, strict=True):
        np.testing.assert_array_equal(one[:5], two)
        assert not np.array_equal(two, third)


def test_scenes_of_fewer_classes_and_by_other_writers():
    assert set(np.unique(scenes_of_digits(40, classes=3).boxes[..., 0])) == {-1, 0, 1, 2}
    assert not np.array_equal(scenes_of_digits(5, split="test").x, scenes_of_digits(5).x)
