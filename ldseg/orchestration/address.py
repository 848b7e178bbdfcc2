"""Run in every process of a local Ray as it starts."""

from __future__ import annotations

import os

import ray


def know_address() -> None:
    """Tell this process which Ray is its own.

    Ray Train asks Ray's state interface whether the driver of a training is still alive, and frees its CPUs if it is
    not; with a second Ray on the machine and no address it finds "multiple active Ray instances" and gives up, and the
    CPUs of every trial that is stopped early stay taken until no trial can start.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
