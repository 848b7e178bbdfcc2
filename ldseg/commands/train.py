"""Train one LDSeg on a labelled cohort by Ray Train; the same command again goes on where it stopped.

A cluster does the work if cluster.yaml describes one that is up (docs/cluster.md).

Example:
    python platform/train.py --data Task04_Hippocampus --space hippocampus --name hippocampus
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldseg.commands import Parser, needs, tell
from ldseg.config import Config, ConfigError, flatten
from ldseg.config.parsing import nearest
from ldseg.data.remote import absolute, location
from ldseg.orchestration.cluster.dispatch import add_options, elsewhere, print_place
from ldseg.orchestration.home import home

if TYPE_CHECKING:
    from ldseg.orchestration.cluster.place import Place
    from ldseg.orchestration.tracking.run_log import RunLog
    from ldseg.orchestration.tracking.shipper import Shipper
    from ldseg.orchestration.training.run import TrainRun

EXPERIMENT = "train"


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog, status="Exit status: 0 the model is trained, 2 it is not.")
    add = parser.add_argument
    add(
        "--data",
        type=location,
        help="a labelled cohort: a folder, a manifest, or its address, s3://... (needed without --from-run)",
    )
    add("--from-run", metavar="RUN_ID", help="train what this MLflow run trained again, under the new --name")
    add("--space", help="start from the base configuration of this search space")
    add("--config", type=Path, help="a JSON file with (parts of) a configuration, on top of the space's base")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override, for example model.latent_channels=8")
    add("--start-from", type=Path, metavar="DIR", help="begin with the weights of this bundle (fine-tuning)")
    add("--name", help="of the run (needed); the same name goes on with it")
    add("--epochs", type=int, help="default: the configuration's")
    add("--minutes", type=float, default=0.0, help="end after the epoch that passes this (default: no limit)")
    add("--workers", type=int, default=1, help="data-parallel processes (default: %(default)s)")
    add("--cpus-per-worker", type=float, default=1.0, help="cores and threads of a worker (default: %(default)s)")
    add("--gpus-per-worker", type=float, default=0.0, help="0 trains on CPUs (default: %(default)s)")
    add("--split-seed", type=int, default=0, help="of the split by case (default: %(default)s)")
    add("--test-case", action="append", default=[], metavar="CASE", help="hold out this case (again for more)")
    add("--control", action="store_true", help="train the no-diffusion control: image encoder straight to decoder")
    add("--half", action="store_true", help="store the bundle's weights as float16")
    add("--register", metavar="NAME", help="evaluate on the test split and register the model under this name")
    add("--samples", type=int, default=8, help="samples of each test case with --register (default: %(default)s)")
    add("--runs", type=location, metavar="DIR", help="home of all runs (default: LDSEG_HOME or runs)")
    add_options(parser)
    options = parser.parse_args(arguments)
    if not options.name and options.attach is None:
        parser.error("the following arguments are required: --name")
    return options


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Dotted keys from --set, --epochs and --control.

    Raises:
        ConfigError: one is no key of a configuration; the nearest that is one is named.
    """
    found: dict[str, Any] = {}
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item} has no value; write --set KEY=VALUE")
        if key not in Config.keys():
            raise ConfigError(f"unknown configuration key {key!r}{nearest(key, Config.keys())}")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    if options.epochs is not None:
        found["optim.epochs"] = options.epochs
    return found | ({"loss.deterministic": True} if options.control else {})


def describe(options: argparse.Namespace) -> TrainRun:
    """The run that the options mean, with the cohort's labels."""
    from ldseg.bundle import load_bundle
    from ldseg.data.cohort import by_number
    from ldseg.orchestration.search.spaces import load_space, with_cohort
    from ldseg.orchestration.training.run import TrainRun, read_data

    if options.data is None:
        raise ValueError("--data is missing; name a labelled cohort, or a run by --from-run")
    values: dict[str, Any] = dict(load_space(options.space).base) if options.space else {}
    for section, entries in (json.loads(options.config.read_text()) if options.config else {}).items():
        values[section] = {**values.get(section, {}), **entries}
    common: dict[str, Any] = {
        "name": options.name,
        "home": str(options.runs),
        "data": absolute(options.data),
        "split_seed": options.split_seed,
        "test_cases": tuple(options.test_case),
        "start_from": str(options.start_from.resolve()) if options.start_from else "",
    }
    if options.start_from:  # its classes keep their order, whatever numbers the cohort gives them
        classes = load_bundle(options.start_from).config.data
        known = {"structures": list(classes.structures), "label_values": list(classes.label_values)}
        values["data"] = {**values.get("data", {}), **known}
    cohort = read_data(TrainRun(config=values, **common))
    tell(cohort)
    config = with_cohort(values, cohort).with_overrides(overrides(options))
    if options.start_from and (said := by_number(cohort, config.data.structures)):
        print(said)
    sizes = ", ".join(f"{len(cohort.split(name))} {name}" for name in ("train", "validation", "test"))
    print(f"{cohort.name}: {sizes} cases; structures {', '.join(config.data.structures)}", flush=True)
    return TrainRun(
        config=config.to_dict(),
        workers=options.workers,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
        minutes=options.minutes,
        **common,
    )


def again(options: argparse.Namespace) -> TrainRun:
    """The run that --from-run names."""
    from ldseg.orchestration.tracking import mlflow_client
    from ldseg.orchestration.training import rerun

    given = [name for name in ("space", "config", "epochs", "set", "test_case", "start_from") if getattr(options, name)]
    if given or options.control:
        raise ValueError(f"--from-run trains the same again; leave --{(given or ['control'])[0].replace('_', '-')} out")
    data = absolute(options.data) if options.data else ""
    client = mlflow_client.connect(options.runs).client
    plan, notes = rerun.planned(client, options.from_run, name=options.name, home=options.runs, data=data)
    if notes:
        print(notes, flush=True)
    return plan


def show(epoch: dict[str, float], total: int) -> None:
    """One line for an epoch."""
    names = ("loss", "val_dice", "val_autoencoder_dice", "val_agreement", "val_energy_score", "val_nll")
    numbers = "  ".join(f"{name} {epoch[name]:.3f}" for name in names if name in epoch)
    left = (total - epoch["epoch"]) * epoch["seconds"] / 60
    print(f"epoch {epoch['epoch']:.0f}/{total}  {numbers}  {epoch['seconds']:.1f} s, {left:.0f} min left", flush=True)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Train, here or on a cluster, write the bundle, register it if asked to."""
    overrides(options)  # a misspelt key is told before anything starts

    shipped = ["--space", "--config", "--start-from"]
    place, ended = elsewhere("train", options.name or "", options, arguments, shipped=shipped)
    if ended is not None:
        return ended
    options.runs = home(options.runs)
    return _here(options, place)


def _here(options: argparse.Namespace, place: Place) -> int:
    from ldseg.data.dataset import check_trainable
    from ldseg.orchestration.cluster import connection, preflight
    from ldseg.orchestration.tracking import mlflow_client
    from ldseg.orchestration.tracking.run_log import RunLog
    from ldseg.orchestration.tracking.shipper import shipping
    from ldseg.orchestration.training import rerun
    from ldseg.orchestration.training.run import read_data

    plan, start = again(options) if options.from_run else describe(options), time.monotonic()
    check_trainable(read_data(plan), Config.from_dict(plan.config).data)
    tags = {"data": plan.data, "workers": str(plan.workers)} | rerun.tags(plan, rerun.digests(plan))
    folder = mlflow_client.logs(Path(plan.home)) / EXPERIMENT / plan.name
    log = RunLog.create(folder, EXPERIMENT, plan.name, parameters=flatten(plan.config), tags=tags)
    log.reopen()
    plan = replace(plan, log=str(folder))
    print_place("train", place)
    try:
        connection.connect(place, num_cpus=max(2, round(plan.workers * plan.cpus_per_worker)))
        for line in preflight.check(place, plan.data, Path(plan.home)):
            print(f"train: {line}", file=sys.stderr, flush=True)
        with shipping(Path(plan.home)) as shipper:
            return _run(options, plan, log, shipper, start)
    finally:
        connection.shutdown()


def _run(options: argparse.Namespace, plan: TrainRun, log: RunLog, shipper: Shipper, start: float) -> int:
    from ldseg.orchestration.training.export import export
    from ldseg.orchestration.training.register import evaluate_and_register
    from ldseg.orchestration.training.trainer import train_to_end

    total = plan.config["optim"]["epochs"]
    state = train_to_end(plan, lambda epoch: show(epoch, total))
    bundle = export(plan, state, options.command, half=options.half, minutes=(time.monotonic() - start) / 60)
    log.end()
    print(f"trained for {state.epoch} epochs; bundle: {bundle}")
    if options.register:
        evaluate_and_register(shipper, plan, bundle, options.register, samples=options.samples)
    return 0


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    options, given = parse(arguments, prog), sys.argv[1:] if arguments is None else arguments
    options.command = " ".join([prog or "python platform/train.py", *given])
    try:
        with needs("train", prog or "train.py"):
            return run(options, given)
    except (ValueError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntrain: stopped; the same command goes on from the last epoch", file=sys.stderr)
        return 130
