import os
from pathlib import Path

import pytest
from buckets import buckets as buckets
from postgres import postgres as postgres

from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms

os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # the machine's memory is not this suite's to judge
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A 2D cohort that trains in seconds: 16 x 16 pixels, two raters."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, PhantomConfig(dims=2, cases=20, raters=2, shape=(16, 16), fractions=(0.6, 0.2, 0.2)))
    return folder


@pytest.fixture(scope="session")
def local_ray():
    from ldseg.orchestration.cluster import connection

    connection.connect(num_cpus=3, resources={"trial_slot": 1}, object_store_mb=100)
    yield
    connection.shutdown()
