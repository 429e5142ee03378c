"""The loss curve's picture."""

from xml.etree import ElementTree

import pytest

from training.curve import loss_curve_svg


@pytest.mark.parametrize("points", [[], [(0.5, 3.0), (1.0, 2.0), (1.5, 1.5)]])
def test_the_curve_is_a_small_svg(points: list[tuple[float, float]]) -> None:
    picture = loss_curve_svg(points, "Loss of assistant@3")
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert len(picture) < 40_000
