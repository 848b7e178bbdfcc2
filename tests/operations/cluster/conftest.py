import os
import signal
import subprocess
from pathlib import Path

import pytest
from cluster.diary import Diary
from cluster.hosts import ROOT, Hosts, why_not
from cluster.rig import COMMON, LAPTOP, NODES, Cluster, filled_in


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    reason = None
    for item in items:
        if "cluster" in item.fixturenames and item.path.parent == Path(__file__).parent:
            reason = why_not() if reason is None else reason
            item.add_marker(pytest.mark.slow)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def cluster(request):
    folder = Path(os.environ.get("LDSEG_CLUSTER_LOGS", ROOT / "runs" / "cluster"))
    diary = Diary(folder / request.path.stem / "log.txt")
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated"))  # what is made here is taken down again
    hosts = Hosts("laptop", *NODES, bashrc={"laptop": LAPTOP} | {name: COMMON for name in NODES})
    try:
        diary.say(f"a laptop and {len(NODES)} machines of one CPU each, load {os.getloadavg()[0]:.1f}")
        text = filled_in((ROOT / "cluster.yaml").read_text(), hosts)
        hosts["laptop"].run("bash", "-c", 'printf %s "$0" > cluster.yaml', text, cwd=ROOT)
        yield Cluster(hosts, diary)
    finally:
        for name in NODES:
            kept = diary.path.parent / name
            kept.mkdir(parents=True, exist_ok=True)
            logs = "/tmp/ray/session_latest/logs"
            packed = hosts[name].command("tar", "chz", "-C", logs, ".")
            with open(kept / "logs.tar.gz", "wb") as file:
                subprocess.run(packed, stdout=file, stderr=subprocess.DEVNULL)
        hosts.close()
        diary.say("taken down")
