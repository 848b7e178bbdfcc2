import os

import pytest
from postgres import postgres as postgres

from ldseg import ROOT

os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # the machine's memory is not this suite's to judge
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="session")
def local_ray():
    from ldseg.orchestration.cluster import connection

    connection.connect(num_cpus=3, resources={"trial_slot": 1}, object_store_mb=100)
    yield
    connection.shutdown()
