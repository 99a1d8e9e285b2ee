"""What all pictures share."""

import math

import pytest

from rgtg_logits.drawing import COLORS, INK, interval_bars


def test_bars_are_distances_to_the_ends_of_intervals():
    intervals = [(0.0, 3.0), None, (math.nan, 4.0), (3.5, math.inf)]
    assert interval_bars([1.0, 2.0, 3.0, 3.0], intervals) == [[1.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, 0.0]]
    assert interval_bars([1.0, 2.0], [None, None]) is None


@pytest.mark.parametrize("page", ["#ffffff", "#15171b"])
def test_colors_can_be_read_on_light_and_on_dark_pages(page):
    for color in (*COLORS, INK):
        light, dark = sorted((luminance(color), luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > (4 if color == INK else 3)


def luminance(color):
    """As in the contrast ratio of the Web Content Accessibility Guidelines."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
