"""A program that is run on a cluster from elsewhere: as a Ray job, with this working tree, its output followed here."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import ray
import requests
from ray.job_submission import JobDetails, JobSubmissionClient

from ldseg import ROOT
from ldseg.orchestration import SILENT
from ldseg.orchestration.cluster.launcher import AwayError, ClusterError, first_line, tunnel
from ldseg.orchestration.cluster.place import Place, answers, bearer
from ldseg.orchestration.tracking import provenance

PROGRAM, NAME = "program", "name"
GOING = ("PENDING", "RUNNING")
AWAY = (requests.RequestException, aiohttp.ClientError, RuntimeError, ConnectionError, AwayError)
LONGEST_AWAY = 600.0  # seconds without the cluster before following gives up
EXCLUDED = ["/.git", "/.venv", "/runs", "node_modules"]  # beside what .gitignore names


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a job does.

    Attributes:
        program: its file's name in platform/, without .py.
        name: of the study or the run: no two jobs may work on the same.
    """

    program: str
    name: str
    arguments: tuple[str, ...] = ()

    def entrypoint(self) -> str:
        """The command line on the cluster."""
        return shlex.join(["python", "-u", f"platform/{self.program}.py", *self.arguments])


@contextmanager
def jobs_api(place: Place) -> Iterator[JobSubmissionClient]:
    """The cluster's Jobs API.

    Raises:
        AwayError: it does not answer.
        ClusterError: it is of another version of Ray.
    """
    if place.cluster is not None:
        with tunnel(place.cluster) as (url, token):
            yield _client(url, token)
    else:
        yield _client(place.address, os.environ.get("RAY_AUTH_TOKEN", ""))


def _client(url: str, token: str) -> JobSubmissionClient:
    version = answers(url, token)
    if version != ray.__version__:
        raise ClusterError(
            f"this machine has Ray {ray.__version__} and the cluster has {version}; install the same packages "
            "(constraints.txt) on both, on the cluster by `ray up`"
        )
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # the client prefers RAY_ADDRESS to what it is given
    try:
        return JobSubmissionClient(url, headers=bearer(token))
    finally:
        os.environ.pop("RAY_API_SERVER_ADDRESS")
        if before is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def submit(client: JobSubmissionClient, work: Work) -> str:
    """Start the work on the cluster; returns the job's name.

    Raises:
        ClusterError: a job works on the same already.
    """
    for job in ours(client, work.program):
        if (job.metadata or {}).get(NAME) == work.name:
            raise ClusterError(
                f"the job {job.submission_id} works on {work.name} already; --attach follows it, another --name begins "
                "something new"
            )
    variables = {k: v for k, v in SILENT.items() if k != "RAY_AUTH_MODE"} | {"LDSEG_COMMIT": provenance.commit()}
    if os.environ.get("MLFLOW_TRACKING_URI"):
        variables["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"]
    return str(
        client.submit_job(
            entrypoint=work.entrypoint(),
            submission_id=f"{work.program}-{work.name}-{time.strftime('%Y%m%d-%H%M%S')}",
            runtime_env={"working_dir": str(ROOT), "excludes": EXCLUDED, "env_vars": variables},
            metadata={PROGRAM: work.program, NAME: work.name},
        )
    )


def ours(client: JobSubmissionClient, program: str) -> list[JobDetails]:
    """The jobs of a program that are not at their end, the newest first."""
    going = [job for job in client.list_jobs() if str(job.status.value) in GOING]
    found = [job for job in going if (job.metadata or {}).get(PROGRAM) == program]
    return sorted(found, key=lambda job: job.start_time or 0, reverse=True)


def running(client: JobSubmissionClient, program: str, asked: str) -> str:
    """The job to follow: the one asked for, else the newest of the program.

    Raises:
        ClusterError: there is none.
    """
    if asked:
        if asked not in {job.submission_id for job in client.list_jobs()}:
            raise ClusterError(f"the cluster has no job {asked}; it has {_names(client)}")
        return asked
    found = ours(client, program)
    if not found:
        raise ClusterError(f"no job of {program} runs on the cluster; it has {_names(client)}")
    return str(found[0].submission_id)


def _names(client: JobSubmissionClient) -> str:
    known = [f"{job.submission_id} ({job.status.value})" for job in client.list_jobs() if job.submission_id]
    return ", ".join(known) or "none"


class Follower:
    """Shows a job's output until its end, across broken connections.

    Args:
        show: takes pieces of the output.
        say: takes what is to be said besides.
    """

    def __init__(self, place: Place, job: str, show: Callable[[str], None], say: Callable[[str], None]) -> None:
        self.place, self.job, self.show, self.say = place, job, show, say
        self.shown = 0

    def follow(self) -> int:
        """Until the end; returns the job's exit status.

        Raises:
            AwayError: the cluster has been away too long.
        """
        since: float | None = None
        while True:
            try:
                with jobs_api(self.place) as client:
                    if since is not None:
                        self.say("the cluster is back")
                    since = None
                    while str((status := client.get_job_status(self.job)).value) == "PENDING":
                        time.sleep(0.5)
                    asyncio.run(self._tail(client))
                    time.sleep(0.2)  # the status follows the output
                    if str((status := client.get_job_status(self.job)).value) not in GOING:
                        return self._end(client, str(status.value))
            except AWAY as error:
                if since is None:
                    since = time.monotonic()
                    self.say(f"the cluster can't be reached ({first_line(error)}); the job goes on there, trying again")
                if time.monotonic() - since > LONGEST_AWAY:
                    raise AwayError(f"the cluster could not be reached for {LONGEST_AWAY:.0f} s") from error
                time.sleep(2)

    async def _tail(self, client: JobSubmissionClient) -> None:
        seen = 0
        async for piece in client.tail_job_logs(self.job):
            new = piece[max(0, self.shown - seen) :]
            seen += len(piece)
            if new:
                self.show(new)
                self.shown = seen

    def _end(self, client: JobSubmissionClient, status: str) -> int:
        job: Any = client.get_job_info(self.job)
        if status == "SUCCEEDED":
            return 0
        if status == "STOPPED":
            self.say(f"the job {self.job} was stopped")
            return 130
        if job.driver_exit_code in (None, 0) or job.driver_exit_code < 0:  # it did not speak for itself
            self.say(f"the job {self.job} failed: {' '.join((job.message or 'without a word').split())[:500]}")
        return int(job.driver_exit_code or 1) if (job.driver_exit_code or 1) > 0 else 1


def run(place: Place, work: Work, *, attach: str | None = None, detach: bool = False) -> int:
    """Run the work on the cluster and follow it; on Ctrl-C ask whether it is to be stopped.

    Args:
        attach: follow a job that runs already, "" for the newest of this program.
        detach: leave it running and return.
    """

    def say(text: str) -> None:
        print(f"{work.program}: {text}", file=sys.stderr, flush=True)

    def show(text: str) -> None:
        print(text, end="", flush=True)

    logging.disable(logging.WARNING)  # Ray tells of each file that it does not send, and of each connection
    with jobs_api(place) as client:
        job = running(client, work.program, attach) if attach is not None else submit(client, work)
    again = f"python platform/{work.program}.py --attach {job}"
    print(f"{work.program}: job {job}; {again} follows it" + ("" if detach else ", Ctrl-C asks"), flush=True)
    if detach:
        return 0
    follower = Follower(place, job, show, say)
    while True:
        try:
            return follower.follow()
        except KeyboardInterrupt:
            answer = ask()
        if answer == "stop":
            with jobs_api(place) as client:
                client.stop_job(job)
            say("stopped; the same command goes on from what is there (a search with --resume)")
            return 130
        if answer == "leave":
            say(f"it goes on; {again} follows it again")
            return 0


def ask() -> str:
    """After Ctrl-C: "stop", "leave" or "follow"; without a terminal the job is left running."""
    if not sys.stdin.isatty():
        return "leave"
    try:
        answer = input("\nStop the job on the cluster (s), leave it running (l), or go on watching (w)? [l] ")
    except (EOFError, KeyboardInterrupt):
        return "leave"
    return {"s": "stop", "w": "follow"}.get(answer.strip().lower()[:1], "leave")
