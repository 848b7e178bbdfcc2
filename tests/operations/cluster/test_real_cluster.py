"""`ray up cluster.yaml && python platform/tune.py`, for real: a laptop and three machines with their own networks."""

import os
import time

from cluster.hosts import ROOT
from cluster.rig import NODES, Terminal

TRIALS, EPOCHS = 2, int(os.environ.get("LDSEG_CLUSTER_EPOCHS", "16"))
SEARCH = ["python", "platform/tune.py", *f"--trials {TRIALS} --trials-at-once {TRIALS} --epochs {EPOCHS}".split()]


def test_a_search_from_the_laptop_outlives_a_lost_machine_a_lost_laptop_and_ctrl_c(cluster):
    hosts, diary = cluster.hosts, cluster.diary
    cluster.up()
    one = Terminal(hosts, *SEARCH, "--front")
    diary.say(f"$ {' '.join(SEARCH)} --front")
    diary.wait("every trial has trained an epoch", lambda: min(cluster.all_epochs(TRIALS)) > 0, 300)
    assert "tune: cluster ldseg at 10.99.0.11 (cluster.yaml describes it, it is up)" in one.screen, one.screen
    trainers = cluster.trainers()
    assert len(set(trainers)) == TRIALS, trainers
    victim = next(name for name in trainers if name != "head")
    hosts.link(victim, False)
    unplugged, before = time.monotonic(), cluster.all_epochs(TRIALS)
    diary.say(f"unplugged {victim}; {' and '.join(trainers)} trained a trial each (epochs so far: {before})")

    hosts.link("laptop", False)
    diary.wait("the laptop, unplugged too, says that the cluster is away", lambda: "can't be reached" in one.screen, 60)
    hosts.link("laptop", True)
    diary.wait("the laptop, plugged in again, follows", lambda: "the cluster is back" in one.screen, 60)
    one.interrupt()
    diary.wait("Ctrl-C asks", lambda: "Stop the job on the cluster" in one.screen, 20)
    one.type("l\n")
    assert one.process.wait(30) == 0 and "it goes on" in one.screen
    diary.wait("the cluster knows that a machine is away", lambda: len(cluster.alive()) == 2, 150)
    grown = [now - then for now, then in zip(cluster.all_epochs(TRIALS), before, strict=True)]
    lost = grown.index(min(grown))
    diary.say(f"trial {lost} was trained there; epochs since: {grown}")
    assert grown[1 - lost] > 1, "the other machine went on"
    two = Terminal(hosts, "python", "platform/tune.py", "--attach")
    later = len(cluster.epochs(lost)) + 1
    diary.wait("its trial goes on elsewhere", lambda: len(cluster.epochs(lost)) > later, 120)
    diary.say(f"{time.monotonic() - unplugged:.0f} s after the cable was pulled")
    hosts.link(victim, True)
    diary.say("plugged it in again")
    diary.wait("the machine is back in the cluster", lambda: len(cluster.alive()) == 3, 240)
    diary.wait("the search has ended", lambda: two.process.poll() is not None, 400)
    diary.say("the end of what the laptop showed:\n" + two.screen[-2500:])
    assert two.process.returncode == 0
    assert f"trial 1/{TRIALS}  starts" in two.screen, "who attaches is shown everything from the beginning"
    for trial in range(TRIALS):
        trained = cluster.epochs(trial)
        again = len(trained) - len(set(trained))
        diary.say(f"trial {trial}: {len(set(trained))} epochs, {again} trained again")
        assert sorted(set(trained)) == list(range(1, EPOCHS + 1))
        assert again <= (1 if trial == lost else 0)
    assert (cluster.runs / "studies" / "phantom2d" / "report.html").exists()


def test_ray_down_stops_the_head_and_the_workers_follow(cluster):
    hosts, diary = cluster.hosts, cluster.diary
    hosts["laptop"].run("ray", "down", "-y", "cluster.yaml", cwd=ROOT)
    diary.say("`ray down -y cluster.yaml` ended well")
    assert cluster.raylets("head") == 0
    diary.wait("no machine runs Ray", lambda: not any(cluster.raylets(name) for name in NODES), 180)
