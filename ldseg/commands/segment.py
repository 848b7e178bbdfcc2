"""Segment images with their uncertainty: by a model in this process (--model), or by a running service (--url).

OUT/maps/CASE/ gets the label map, a probability map for each structure, entropy and variance; OUT/table.parquet and
table.csv the structures' sizes: the calibrated interval, where the model has one, and the samples' 5th, 50th and 95th
percentile; the agreement of the samples and the Dice that their probabilities let expect. The tables are of all cases
under OUT, also of earlier calls, those to look at first on top. Run again, it fetches or segments only what is missing.

Example:
    python platform/segment.py --model models/hippocampus --data image.nii.gz --out runs/segmented
    python platform/segment.py --url http://127.0.0.1:8000 --data DIR --split test --out runs/segmented --pictures 3
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldseg import columns
from ldseg.commands import OF_CASES, Parser, Progress, fail, needs, status, tell
from ldseg.data.errors import CaseError
from ldseg.data.remote import local_path, location
from ldseg.posterior.draws import Draws

if TYPE_CHECKING:
    from ldseg.data.cohort import Case


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog, status=OF_CASES)
    add = parser.add_argument
    by = parser.add_mutually_exclusive_group(required=True)
    by.add_argument("--url", help="of a running service (platform/serve_model.py), such as http://127.0.0.1:8000")
    by.add_argument("--model", help="bundle folder or models:/name@alias, to segment in this process")
    add(
        "--data",
        type=location,
        required=True,
        help="an image, a folder of images or of DICOM, a cohort's folder or a manifest",
    )
    add(
        "--series", default="", metavar="NAME", help="of DICOM: number, UID or pattern of the description, as '*flair*'"
    )
    add("--split", default="all", help="train, validation, test or all cases of a cohort (default: %(default)s)")
    add("--out", type=Path, required=True, help="folder for the results")
    add("--samples", type=int, default=8, help="draws of each case's posterior (default: %(default)s)")
    add("--steps", type=int, help="denoiser steps of a sample (default: the model's own)")
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    add("--dicom-seg", action="store_true", help="of DICOM, write OUT/dicom/CASE_*.dcm too, which name the patient")
    add("--pictures", type=int, default=0, metavar="N", help="draw the N least certain cases (default: %(default)s)")
    add("--token", default=os.environ.get("LDSEG_TOKEN", ""), help="of the service (default: LDSEG_TOKEN)")
    add("--upload", action="store_true", help="send the images to the service, which can't read them by their paths")
    add("--device", default="cpu", help="for --model, such as cpu or cuda (default: %(default)s)")
    add("--runs", type=Path, help="home of the registry, for --model models:/... (default: LDSEG_HOME or runs)")
    add("--address", default="", metavar="WHERE", help="of a cluster that does the work, see tune.py (default: none)")
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error(f"--samples must be at least 1, got {options.samples}")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    if not 0 <= options.seed < 2**63:
        parser.error(f"--seed must lie in [0, 2**63), got {options.seed}")
    return options


def find_cases(options: argparse.Namespace, card: dict[str, Any]) -> tuple[tuple[Case, ...], tuple[CaseError, ...]]:
    """The cases that are asked for, and those of them that can't be used, which are said."""
    from ldseg.data.cohort import Case, read_cohort
    from ldseg.data.formats.dicom.headers import is_dicom
    from ldseg.data.listing.names import case_name
    from ldseg.data.volume import is_image

    data = local_path(options.data)
    is_file = (data.is_file() or data.is_symlink()) and not data.is_dir()
    if is_file and not options.series and (is_image(data) or is_dicom(data)):
        return (Case(name=case_name(data), image=data),), ()
    from ldseg.evaluation.cases import left_out, select_cases

    cohort = read_cohort(data, series=options.series)
    tell(cohort)
    cases, source = select_cases(cohort, card, options.split)
    print(source, flush=True)
    return cases, left_out(cohort, card, options.split)


def segment(options: argparse.Namespace) -> tuple[tuple[Case, ...], list[dict[str, Any]], dict[str, Any]]:
    """Segment the cases.

    Returns:
        The cases, a row for each and for those that were left out, and the model's structures, spatial_dims,
        in_channels and card.
    """
    from ldseg.files import check_writable

    check_writable(options.out)
    if options.url:
        return _by_service(options)
    from ldseg.orchestration.models import load_model
    from ldseg.results.segment import segment_here

    bundle = load_model(options.model, options.runs)
    data = bundle.config.data
    cases, rows = _found(options, bundle.card)
    with _Bar(len(cases)) as bar:
        made = segment_here(bundle, cases, _draws(options), options.out, bar.show)
    model = {name: getattr(data, name) for name in ("structures", "spatial_dims", "in_channels")}
    return cases, made.to_pylist() + rows, model | {"card": bundle.card}


def _found(options: argparse.Namespace, card: dict[str, Any]) -> tuple[tuple[Case, ...], list[dict[str, Any]]]:
    """The cases, and the rows of those that were left out."""
    from ldseg.results.gathering import record_left_out
    from ldseg.results.tables import table

    cases, problems = find_cases(options, card)
    return cases, table(record_left_out(options.out, problems)).to_pylist()


def _by_service(options: argparse.Namespace) -> tuple[tuple[Case, ...], list[dict[str, Any]], dict[str, Any]]:
    from serve.client import segmenting
    from serve.client.client import Client, ClientError

    try:
        client = Client(options.url, options.token)
        model = client.model()
        cases, rows = _found(options, model["card"])
        with _Bar(len(cases)) as bar:
            made = segmenting.segment_by_service(
                client, cases, _draws(options), options.out, bar.show, upload=options.upload
            )
    except ClientError as error:
        raise SystemExit(fail("segment", error)) from error
    return cases, made.to_pylist() + rows, model


def _draws(options: argparse.Namespace) -> Draws:
    return Draws(options.samples, options.steps, options.seed, options.device)


class _Bar:
    """Progress over the cases: a bar on a terminal, lines elsewhere."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="case", disable=None)
        self.lines = Progress(total) if self.bar.disable else None

    def show(self, ended: int, word: str) -> None:
        if self.lines is not None:
            self.lines.show(ended, word)
            return
        self.bar.set_postfix_str(word)
        self.bar.update(ended - self.bar.n)

    def __enter__(self) -> _Bar:
        if self.lines is not None:
            self.lines.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.lines is not None:
            self.lines.__exit__(*error)
        self.bar.close()


def _size(row: dict[str, Any], structure: str, unit: str) -> str:
    """A structure's size in a case: the interval with a promise, the best guess, the samples' percentiles."""
    low, high, start, middle, end = (
        row.get(columns.volume(structure, unit, what))
        for what in (columns.LOW, columns.HIGH, *(columns.percentile(p) for p in columns.PERCENTILES))
    )
    if middle is None:
        return ""
    kind = "not promised" if row.get("unfamiliar") else "calibrated"
    told = "" if low is None else f"{low:.4g} to {high:.4g} {kind}, "
    return f"{told}{middle:.4g} (samples {start:.4g} to {end:.4g})"


def _spread(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def report(rows: list[dict[str, Any]]) -> None:
    """The cases, the least certain first: of each structure the interval with a promise, then what the samples say."""
    done = [row for row in rows if row["state"] == "done"]
    named = {key: columns.read_volume_column(key) for row in done for key in row if row[key] is not None}
    medians = {key: parts[:2] for key, parts in named.items() if parts and parts[2] == columns.percentile(50)}
    width = max((len(row["case"]) for row in done), default=4)
    titles = [" in ".join(parts) for parts in medians.values()]
    cells = [[_size(row, *parts) for parts in medians.values()] for row in done]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    print(f"{'case':<{width}}  agreement" + _spread(titles, widths))
    for row, line in zip(done, cells, strict=True):
        print(f"{row['case']:<{width}}  {row['agreement']:9.3f}" + _spread(line, widths))
    if any("calibrated" in cell for line in cells for cell in line):
        print("calibrated: holds the true size as often as the model's card promises; samples: 5th to 95th percentile")
    elif done:
        print("samples: 5th to 95th percentile over the samples, which promises nothing")
    strange = [row["case"] for row in done if row.get("unfamiliar")]
    if strange:
        print(f"unlike the cases that the model was trained on, don't trust without a look: {', '.join(strange)}")
    for row in rows:
        if row.get("note"):
            print(f"note: {row['case']}: {row['note']}")
        if row["state"] != "done":
            print(f"{row['state']}: {row['error'] or row['case']}")


def _dicom_objects(
    options: argparse.Namespace, cases: Sequence[Case], rows: list[dict[str, Any]], model: dict[str, Any]
) -> list[Path]:
    """The folder of the cases' DICOM objects, if there are any; a case that has none is told."""
    from ldseg.results.dicom_seg import write_objects

    done, found = {row["case"] for row in rows if row["state"] == "done"}, []
    for case in cases:
        if case.name in done:
            try:
                found += write_objects(options.out, case, model)
            except CaseError as error:
                print(f"no DICOM object: {error}")
    return [options.out / "dicom"] if found else []


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Segment, print, draw; the exit status."""
    if options.address:
        from ldseg.orchestration.cluster.dispatch import elsewhere

        options.attach, options.detach = None, False
        _, ended = elsewhere("segment", options.out.name, options, arguments, shipped=["--model"])
        if ended is not None:
            return ended
    cases, rows, model = segment(options)
    from ldseg.results.gathering import place
    from ldseg.results.segment import load_summary

    rows.sort(key=lambda row: place(row["state"], row, row["case"]))
    report(rows)
    drawn = [row["case"] for row in rows if row["state"] == "done"][: options.pictures]
    pictures = []
    if drawn:
        from ldseg.pictures.case import draw_case

        by_name = {case.name: case for case in cases}
        for name in drawn:
            target = options.out / "pictures" / f"{name}.png"
            pictures.append(draw_case(*load_summary(options.out, by_name[name], model), target))
    objects = _dicom_objects(options, cases, rows, model) if options.dicom_seg else []
    for path in (options.out / "maps", options.out / "table.parquet", options.out / "table.csv", *objects, *pictures):
        print(path)
    return status(sum(row["state"] == "done" for row in rows), len(rows))


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake, or when the service fails."""
    options = parse(arguments, prog)
    try:
        with needs("", prog or "segment.py"):
            return run(options, sys.argv[1:] if arguments is None else arguments)
    except (CaseError, ValueError, OSError) as error:
        return fail("segment", error, options.out)
    except KeyboardInterrupt:
        print("\nStopped. Run the command again to go on.", file=sys.stderr)
        return 130
