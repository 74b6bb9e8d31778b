"""Images as networks want them."""

from __future__ import annotations

import numpy as np
import pytest

from dynroute.data import BGR_MEAN, Normalise


def test_normalisation_is_bgr_minus_mean() -> None:
    image = np.array([[[10, 20, 30]]], dtype=np.uint8)
    expected = [30 - BGR_MEAN[0], 20 - BGR_MEAN[1], 10 - BGR_MEAN[2]]
    np.testing.assert_allclose(Normalise()(image)[0, 0], expected, rtol=1e-6)
    scaled = Normalise(std=(2.0, 4.0, 5.0), order="rgb", mean=(0.0, 0.0, 0.0))
    np.testing.assert_allclose(scaled(image)[0, 0], [5, 5, 6], rtol=1e-6)
    with pytest.raises(ValueError, match="order"):
        Normalise(order="hsv")
