"""Turn the weight files of the authors of LDSeg into a bundle in faithful mode.

Example:
    python platform/import_authors.py --label-encoder labelEncoder3D.hdf5 --label-decoder labelDecoder3D.hdf5 \\
        --image-encoder imageEncoder3D.hdf5 --denoiser denoiser3D.hdf5 --structures femur tibia --out knee
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldseg.commands import Parser

NETWORKS = ("label_encoder", "label_decoder", "image_encoder", "denoiser")


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog, status="Exit status: 0 the bundle is written, 2 it is not.")
    add = parser.add_argument
    for network in NETWORKS[:3]:
        add(f"--{network.replace('_', '-')}", type=Path, required=True, metavar="HDF5", help="as Keras 2 saved it")
    add("--denoiser", type=Path, metavar="HDF5", help="the authors have published none; train one with their code")
    add(
        "--without-denoiser",
        action="store_true",
        help="make the no-diffusion control of the other three: the image embedding is decoded, nothing is sampled",
    )
    add("--structures", nargs="+", required=True, metavar="NAME", help="a name for each class but the background")
    add("--out", type=Path, required=True, help="the bundle's folder")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Import, write, say what came of it."""
    from ldseg.bundle import save_bundle
    from ldseg.keras_import import import_authors

    if not options.denoiser and not options.without_denoiser:
        raise ValueError(
            "there is no --denoiser, so nothing could be sampled (the authors have published no trained one); "
            "give one, or --without-denoiser for the control that decodes the image embedding"
        )
    files = {name: getattr(options, name) for name in NETWORKS if getattr(options, name)}
    model, origin = import_authors(files, options.structures)
    card = {"name": options.out.name, "structures": options.structures, "split": {}, **origin}
    digest = save_bundle(options.out, model, model.config, card)
    kind = "faithful mode" if options.denoiser else "no-diffusion control"
    sizes = " x ".join(map(str, model.config.data.shape))
    weights = sum(p.numel() for network in files for p in getattr(model, network).parameters())
    print(f"{options.out}: {kind}, working grid {sizes}, {weights} weights, {digest}")
    return 0


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    options = parse(arguments, prog)
    try:
        return run(options)
    except ValueError as error:
        print(f"import_authors: {error}", file=sys.stderr)
        return 2
