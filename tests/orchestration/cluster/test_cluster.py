import subprocess
import sys

import pytest
import ray
from ray.util import state

from ldseg.orchestration.cluster.connection import connect, shutdown
from ldseg.orchestration.cluster.launcher import ClusterError

OTHER = """
import ray, sys
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, logging_level="ERROR")
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another_ray():
    with subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"up\n"
        yield
        other.stdin.close()
        other.wait(60)


def test_a_ray_that_does_not_start_is_one_sentence_and_leaves_nothing_behind():
    shutdown()  # what other modules left
    with pytest.raises(ClusterError, match="did not start on this machine .*object store"):
        connect(num_cpus=1, object_store_mb=1, dashboard=False)
    assert not ray.is_initialized()


def test_beside_another_ray_processes_can_ask_about_their_own(local_ray, another_ray):
    @ray.remote(num_cpus=0)
    def actors_here():
        return {actor.actor_id for actor in state.list_actors(timeout=30)}

    @ray.remote(num_cpus=0)
    class Here:
        def id(self):
            return ray.get_runtime_context().get_actor_id()

    here = Here.remote()
    assert ray.get(here.id.remote()) in ray.get(actors_here.remote())
