"""What small models of these tests take."""

import numpy as np
import pytest


@pytest.fixture
def inputs():
    """The input of a small model."""
    import keras

    return keras.Input((16, 16, 3))


@pytest.fixture
def pixels():
    """Pixels 0-255, float32 (2, 16, 16, 3)."""
    return np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
