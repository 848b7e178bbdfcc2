"""Search for the best LDSeg of a cohort: Ray Tune and Optuna, every trial a Ray Train run logged to MLflow.

One training is scored at several numbers of sampling steps; the cheapest with nearly the best energy score is stored
with the model. The best trials become bundles, are evaluated on the test split and registered.

A cluster does the work if cluster.yaml describes one that is up (docs/cluster.md); trials and models are then on its
storage. Without --data it is a cohort of 2D phantoms.

Example:
    python platform/tune.py --data Task04_Hippocampus --space hippocampus --name first --trials 20 --register ldseg
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldseg.commands import Parser, needs
from ldseg.data.remote import absolute, location
from ldseg.orchestration.cluster.dispatch import add_options, elsewhere, print_place
from ldseg.orchestration.home import home, phantoms

if TYPE_CHECKING:
    from ldseg.orchestration.cluster.place import Place
    from ldseg.orchestration.search.spaces import Space
    from ldseg.orchestration.search.study import Study
    from ldseg.orchestration.tracking.shipper import Shipper


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog, status="Exit status: 0 a trial has given a model, 2 none has.")
    add = parser.add_argument
    add(
        "--data",
        type=location,
        help="a labelled cohort: a folder, a manifest, or its address, s3://... (default: phantoms, made if missing)",
    )
    add("--space", help="a space in tune_spaces, or the path of your own .py file (needed with --data)")
    add("--name", help="of the study (default: the space's name)")
    add("--trials", type=int, default=10, help="default: %(default)s")
    add("--epochs", type=int, help="of a trial that is not stopped early (default: the space's)")
    add(
        "--front",
        action="store_true",
        help="Dice, likelihood and seconds at once in place of the space's one metric; no trial is stopped early then, "
        "for early stopping compares one number, epoch by epoch",
    )
    add("--hours", type=float, default=0.0, help="start no further trial after this time (default: no limit)")
    add("--warm-start", metavar="STUDY", default="", help="try the best three trials of an earlier study first")
    add("--minutes", type=float, default=0.0, help="of training for each trial (default: no limit)")
    add("--trials-at-once", type=int, help="default: as many as --gpus feeds, else 1")
    add("--workers", type=int, default=1, help="data-parallel workers of a trial (default: %(default)s)")
    add("--cpus-per-worker", type=float, default=1.0, help="cores and threads of a worker (default: %(default)s)")
    add("--gpus", type=float, default=0.0, help="GPUs for all trials together; 0 trains on CPUs (default: %(default)s)")
    add("--gpus-per-worker", type=float, help="may be a share, such as 0.5 (default: 1 with --gpus, else 0)")
    add("--memory-gb", type=float, default=0.0, help="a worker that asks for more fails its trial (default: no limit)")
    add("--seed", type=int, default=0, help="of the search and of every training (default: %(default)s)")
    add("--split-seed", type=int, default=0, help="of the split by case (default: %(default)s)")
    add("--top", type=int, default=1, help="how many of the best trials become models (default: %(default)s)")
    add("--register", metavar="NAME", default="ldseg", help="name in the model registry (default: %(default)s)")
    add("--samples", type=int, default=8, help="samples of each test case (default: %(default)s)")
    add("--resume", action="store_true", help="go on with the study of this name")
    add("--quiet", action="store_true", help="print only the table in the end and where things lie")
    add("--runs", type=location, metavar="DIR", help="home of all runs (default: LDSEG_HOME or runs)")
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.data and not options.space:
        parser.error("--space is missing: what is to be searched on --data")
    options.space = options.space or "phantom2d"
    return options


def shares(options: argparse.Namespace) -> tuple[int, float]:
    """How many trials at once, and GPUs for each of their workers.

    Raises:
        ValueError: a number is out of range, or the GPUs don't suffice for one trial.
    """
    each = options.gpus_per_worker if options.gpus_per_worker is not None else float(options.gpus > 0)
    if options.gpus < 0 or each < 0 or (options.trials_at_once is not None and options.trials_at_once < 1):
        raise ValueError("--gpus and --gpus-per-worker must not be negative, --trials-at-once must be at least 1")
    if not options.gpus:
        return options.trials_at_once or 1, each
    fed = int(options.gpus / (options.workers * each)) if each else options.trials_at_once or 1
    if fed < 1:
        raise ValueError(
            f"--gpus {options.gpus:g} does not feed one trial of {options.workers} workers with {each:g} each; "
            "give more, or a smaller --gpus-per-worker"
        )
    return min(options.trials_at_once or fed, fed), each


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Search, here or on a cluster, then bring the best into the registry; 2 if every trial failed."""
    from ldseg.orchestration.search.spaces import load_space

    for name in ("trials", "workers", "top"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    at_once, gpus_per_worker = shares(options)
    space = load_space(options.space)
    name = options.name or space.name
    place, ended = elsewhere("tune", name, options, arguments, shipped=["--space"])
    if ended is not None:
        return ended
    return _here(options, space, place, home(options.runs), at_once, gpus_per_worker)


def _here(
    options: argparse.Namespace, space: Space, place: Place, folder: Path, at_once: int, gpus_per_worker: float
) -> int:
    # they load in seconds, which who only brings the search elsewhere need not wait for
    from ldseg.config import Config
    from ldseg.data.dataset import check_trainable
    from ldseg.orchestration.cluster import connection, preflight
    from ldseg.orchestration.search.search import SLOT
    from ldseg.orchestration.search.study import Study, trial_run
    from ldseg.orchestration.tracking.shipper import shipping
    from ldseg.orchestration.training.run import read_data

    study = Study(
        name=options.name or space.name,
        home=str(folder),
        data=absolute(options.data or phantoms(folder)),
        space=options.space,
        trials=options.trials,
        epochs=options.epochs or space.base.get("optim", {}).get("epochs", 100),
        trials_at_once=at_once,
        workers=options.workers,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        seed=options.seed,
        split_seed=options.split_seed,
        minutes=options.minutes,
        memory_gb=options.memory_gb,
        hours=options.hours,
        front=options.front,
        warm_start=options.warm_start,
    )
    plan = trial_run(study, space, {}, study.name)  # the labels of every trial
    check_trainable(read_data(plan), Config.from_dict(plan.config).data)
    cpus = round(at_once * options.workers * options.cpus_per_worker)
    print_place("tune", place)
    try:
        connection.connect(place, num_cpus=max(2, cpus), resources={SLOT: at_once})
        for line in preflight.check(place, study.data, folder):
            print(f"tune: {line}", file=sys.stderr, flush=True)
        with shipping(Path(study.home)) as shipper:
            return _run(options, study, space, shipper)
    finally:
        connection.shutdown()


def _run(options: argparse.Namespace, study: Study, space: Space, shipper: Shipper) -> int:
    from optuna.exceptions import StorageInternalError

    from ldseg.orchestration.search.report import write_report
    from ldseg.orchestration.search.search import best_state, run_log, search, table
    from ldseg.orchestration.search.study import read_study
    from ldseg.orchestration.tracking.registry import CHALLENGER
    from ldseg.orchestration.tracking.run_log import RunLog
    from ldseg.orchestration.training.export import export
    from ldseg.orchestration.training.register import evaluate_and_register

    say = None if options.quiet else lambda line: print(line, flush=True)
    try:
        trials = search(study, resume=options.resume, say=say)
    except StorageInternalError as error:
        raise OSError(f"the studies' database went away ({error}); the same command with --resume goes on") from error
    print(f"\n{table(trials, space.metric)}\n", flush=True)
    good = [trial for trial in trials if trial.steps and trial.checkpoint]
    stored = read_study(Path(study.home), study.name)
    if not good:
        print(f"report: {write_report(study, space, stored, trials, Path(study.home))}")
        print(f"tune: every trial failed; the first said: {trials[0].reason if trials else 'nothing'}", file=sys.stderr)
        return 2
    for trial in good[: options.top]:
        state = best_state(trial)
        bundle = export(trial.run, state, options.command, study=study.name, trial=trial.values)
        print(f"{trial.name}: {state.config.sampler.num_sample_steps} sampling steps, bundle: {bundle}", flush=True)
        log = RunLog(run_log(study, trial.name))
        run = replace(trial.run, log=str(log.folder))
        version = evaluate_and_register(shipper, run, bundle, options.register, samples=options.samples)
        if trial is good[0]:
            shipper.tracker.client.set_registered_model_alias(options.register, CHALLENGER, str(version))
    print(f"report: {write_report(study, space, stored, trials, Path(study.home))}")
    return 0


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    options, given = parse(arguments, prog), sys.argv[1:] if arguments is None else arguments
    options.command = " ".join([prog or "python platform/tune.py", *given])
    try:
        with needs("train", prog or "tune.py"):
            return run(options, given)
    except (ValueError, OSError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntune: stopped; the same command with --resume goes on", file=sys.stderr)
        return 130
