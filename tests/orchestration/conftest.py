import os
import sys

import pytest
from postgres import postgres as postgres

from ldseg import ROOT

os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # the machine's memory is not this suite's to judge
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def local_ray():
    """One for all modules of a process, until another one ends it."""
    from ldseg.orchestration.cluster import connection

    connection.connect(num_cpus=3, resources={"trial_slot": 1}, object_store_mb=100)


@pytest.fixture(scope="session", autouse=True)
def _ray_ends():
    yield
    if "ray" in sys.modules:
        from ldseg.orchestration.cluster import connection

        connection.shutdown()
