"""The command `ldseg`: which commands there are, and the way to them."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys

from ldseg import __version__

COMMANDS = {
    "segment": ("ldseg.commands.segment", "segment images with their uncertainty, by a model or by a running service"),
    "evaluate": ("ldseg.commands.evaluate", "score a model on a cohort, beside the ceiling and the control"),
    "calibrate": ("ldseg.commands.calibrate", "give a model intervals that cover the truth, on held-out cases"),
    "train": ("ldseg.commands.train", "train a model on a labelled cohort [train]"),
    "tune": ("ldseg.commands.tune", "search for the best model of a cohort [train]"),
    "promote": ("ldseg.commands.promote", "move the alias champion to a registered version, through gates [train]"),
    "serve": ("ldseg.commands.serve", "serve a model over HTTP [serve]"),
    "phantom": ("ldseg.data.phantom.__main__", "write a cohort whose posterior is known"),
    "demo": ("ldseg.commands.demo", "the whole way on one machine, on phantoms [train,serve]"),
    "import-authors": ("ldseg.commands.import_authors", "make a bundle of the weight files of the authors of LDSeg"),
}
PURPOSE = "Segmentation of medical images with its uncertainty, from the first training to a service."
EPILOG = """\
In brackets the extra that a command needs: pip install 'ldseg[train]'. ldseg COMMAND --help tells its options.

Exit status: 0 all is done, 1 a part of it (some cases failed or were left out), 2 nothing; each command says it of
itself.

Example:
    ldseg segment --model models/hippocampus --data image.nii.gz --out segmented
"""


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return f"{PURPOSE}\n\nCommands:\n{lines}\n\n{EPILOG}"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status, and 2 where there is none of that name."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="ldseg", usage="ldseg COMMAND [OPTIONS]", description=_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"ldseg {__version__}")
    if not given or given[0].startswith("-"):
        parser.parse_args(given)
        parser.error(f"a command is missing; choose one of {', '.join(COMMANDS)}")
    name, *rest = given
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        cure = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        parser.error(f"there is no command {name!r}; {cure}")
    try:
        command = importlib.import_module(COMMANDS[name][0])
        return int(command.main(rest, prog=f"ldseg {name}"))
    except KeyboardInterrupt:
        print(f"\nldseg {name}: stopped", file=sys.stderr)
        return 130
