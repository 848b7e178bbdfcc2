"""Contours of a label map on a picture: seen on any grey, and told apart without colours."""

from __future__ import annotations

import numpy as np
import pytest

from ldseg.pictures import overlays

KNOWN = overlays.structures(("one", "two", "three"), (0, 1, 2, 3))


def drawn(value: int, ground: float) -> tuple[np.ndarray, np.ndarray]:
    """Contours of a disc on a ground, and the disc."""
    y, x = np.mgrid[:200, :200] - 100
    disc = x**2 + y**2 < 70**2
    return overlays.outline(np.full((200, 200, 3), ground), disc * value, KNOWN), disc


@pytest.mark.parametrize("ground", [0.0, 128.0, 255.0])
def test_a_contour_is_seen_on_every_grey(ground: float) -> None:
    picture, disc = drawn(1, ground)
    grey = picture @ [0.299, 0.587, 0.114]
    line, around = (picture == overlays.rgb(KNOWN[0].colour)).all(axis=2), (picture == 0).all(axis=2) & ~disc
    assert line.any() and disc[line].all() and around.any()
    assert max(abs(grey[line].mean() - ground), abs(grey[around].mean() - ground)) > 80
    assert (picture[90:110, 90:110] == ground).all(), "what lies inside stays as it is"


def test_structures_have_lines_of_their_own() -> None:
    shares = []
    for structure in KNOWN:
        picture, disc = drawn(structure.value, 128.0)
        line = (picture == overlays.rgb(structure.colour)).all(axis=2)
        gaps = (picture == 0).all(axis=2) & disc
        shares.append(gaps.sum() / (gaps | line).sum())
    assert shares[0] == 0 and 0.25 < shares[1] < 0.45 < shares[2] < 0.6


def test_a_structure_at_the_edge_of_the_picture_is_not_closed_there() -> None:
    labels = np.zeros((40, 40), int)
    labels[:20, :] = 1
    picture = overlays.outline(np.full((40, 40, 3), 9.0), labels, KNOWN)
    assert (picture[0] == 9).all() and not (picture[18:20] == 9).all()
