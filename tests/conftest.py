"""Fixtures that more than one room uses."""

import pytest
from buckets import buckets as buckets

from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A 2D cohort that trains in seconds: 16 x 16 pixels, two raters."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, PhantomConfig(dims=2, cases=20, raters=2, shape=(16, 16), fractions=(0.6, 0.2, 0.2)))
    return folder
