#!/usr/bin/env python
"""What writing a case's maps costs: seconds and bytes of a map for each way to store and compress it, as one table.

Two cases: one of the size of a hippocampus, by a model on an image if they are given, and a phantom of 256x256x256. Its
mean probabilities come from draws of its known posterior, softened by a voxel and with the faint noise far from any
boundary that a network has. Before a way is timed, what it wrote is read back by nibabel and held against the maps: off
by at most half a step. Then the whole case is written and flushed to the disk by one and by two threads.

Example:
    python benchmarks/speed/export.py --model models/hippocampus --image hippocampus_075.nii.gz
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, table

if TYPE_CHECKING:
    import numpy as np

    Maps = dict[str, tuple[np.ndarray, float]]  # the map and its highest value, by name

LONG_S = 1.0
MAPS = 2  # of the large case that are measured
STORAGES = {"float32": None, "uint16": 16, "uint8": 8}


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__)
    add = parser.add_argument
    add("--model", type=Path, help="a bundle, for the small case (default: a phantom of that size)")
    add("--image", type=Path, help="an image that the model segments")
    add("--size", type=int, default=256, help="voxels of the large case along each axis (default: %(default)s)")
    add("--repeat", type=int, default=3, help="the fastest of so many times counts (default: %(default)s)")
    return parser.parse_args()


def compressors() -> dict[str, Callable[[bytes], bytes]]:
    """By name."""
    from isal import igzip

    zlib = {"zlib 1 (nibabel)": 1, "zlib 4": 4, "zlib 6": 6}
    found = {name: partial(gzip.compress, compresslevel=level, mtime=0) for name, level in zlib.items()}
    return found | {f"isal {level}": partial(igzip.compress, compresslevel=level, mtime=0) for level in range(4)}


def phantom(shape: tuple[int, ...], draws: int = 4) -> Maps:
    """A phantom's mean probability of each structure and its entropy."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from ldseg.data.phantom.case import draw_parameters
    from ldseg.data.phantom.cohort import draw_posterior

    generator, classes = np.random.default_rng(0), 4
    labels = draw_posterior(draw_parameters(shape, (1.0,) * 3, generator), draws, generator)
    mean = np.zeros((classes, *labels.shape[1:]), np.float32)
    for label in labels:
        for k in range(classes):
            mean[k] += gaussian_filter((label == k).astype(np.float32), 1.0) / draws
    mean += 1e-4 * np.exp(0.5 * generator.standard_normal(mean.shape, dtype=np.float32))
    mean /= mean.sum(0)
    entropy = -(mean * np.log(mean)).sum(0)
    return {f"probability {k}": (mean[k], 1.0) for k in range(1, classes)} | {"entropy": (entropy, math.log(classes))}


def segmented(options: argparse.Namespace) -> Maps:
    """A model's maps of an image."""
    from ldseg.bundle import load_bundle
    from ldseg.data.volume import read_volume
    from ldseg.posterior.sampling import Posterior

    bundle = load_bundle(options.model)
    data = bundle.config.data
    volume = read_volume(options.image, case="image", spatial_dims=3, in_channels=data.in_channels)
    summary = Posterior(bundle).segment(volume, samples=8)
    maps: Maps = {name: (summary.mean_probability[k], 1.0) for k, name in enumerate(data.structures)}
    maps["entropy"] = (summary.predictive_entropy, math.log(data.num_classes))
    return maps | {"variance": (summary.sample_variance, 1 - 1 / data.num_classes)}


def check(content: bytes, array: np.ndarray, highest: float, bits: int | None) -> None:
    """Whether nibabel reads the map's values.

    Raises:
        ValueError: a value is off by more than half a step.
    """
    import nibabel as nib
    import numpy as np

    from ldseg.data.formats.scaled import Scale

    image = nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(content)))
    worst = float(np.abs(np.asarray(image.dataobj) - array).max())
    allowed = 0.0 if bits is None else Scale(highest, bits).step / 2 * (1 + 1e-6)
    if worst > allowed:
        raise ValueError(f"values are off by {worst:.3g}, more than {allowed:.3g}")


def measure(maps: Maps, repeat: int) -> Iterator[dict[str, str]]:
    """A row for each way: milliseconds of a map with one and with two threads, bytes of a map."""
    import nibabel as nib
    import numpy as np

    from ldseg.data.formats.nifti import encode_nifti
    from ldseg.data.formats.scaled import Scale

    header, entries = nib.Nifti1Image(next(iter(maps.values()))[0], np.eye(4)).header, list(maps.values())
    for storage, bits in STORAGES.items():
        for name, compressor in compressors().items():

            def write(entry: tuple[np.ndarray, float], bits: Any = bits, compressor: Any = compressor) -> bytes:
                scale = None if bits is None else Scale(entry[1], bits)
                return compressor(b"".join(encode_nifti(entry[0], header, "none", scale)))

            contents = [write(entry) for entry in entries]
            for content, entry in zip(contents, entries, strict=True):
                check(content, *entry, bits)
            one, two = (1000 * fastest(write, entries, threads, repeat) / len(maps) for threads in (1, 2))
            row = {"stored as": storage, "compressed by": name, "1 thread, ms a map": f"{one:.1f}"}
            size = sum(map(len, contents)) / len(contents)
            yield row | {"2 threads, ms a map": f"{two:.1f}", "bytes a map": f"{size:,.0f}"}


def fastest(work: Callable[..., Any], entries: list[Any], threads: int, repeat: int) -> float:
    """Seconds to do all entries with so many threads; what takes more than `LONG_S` is done once."""
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat):
            start = time.perf_counter()
            list(pool.map(work, entries))
            times.append(time.perf_counter() - start)
            if times[-1] > LONG_S:
                break
    return min(times)


def whole_case(maps: Maps, repeat: int) -> list[float]:
    """Seconds to write and flush a case's files by one and by two threads."""
    import nibabel as nib
    import numpy as np

    from ldseg.data.formats.scaled import Scale
    from ldseg.data.volume import Volume
    from ldseg.posterior import derivatives
    from ldseg.posterior.derivatives import Map

    arrays = [Map(name, name.replace(" ", ""), array, name, Scale(highest)) for name, (array, highest) in maps.items()]
    shape = arrays[0].array.shape
    header = nib.Nifti1Image(arrays[0].array, np.eye(4)).header
    like = Volume("case", np.empty((1, *shape), np.float32), np.eye(4), Path(), header, 3, "")
    found = []
    for derivatives.WRITERS in (1, 2):
        times = []
        for _ in range(repeat):
            with tempfile.TemporaryDirectory(dir=".") as folder:
                start = time.perf_counter()
                derivatives.write_case("case", arrays, Path(folder), like, structures=(), label_values=(0,), about={})
                times.append(time.perf_counter() - start)
        found.append(min(times))
    return found


def report(title: str, maps: Maps, repeat: int) -> None:
    """Measure and print one case."""
    shape = "x".join(map(str, next(iter(maps.values()))[0].shape))
    print(f"\n{title}, {shape} voxels, {len(maps)} maps\n")
    print(table(list(measure(maps, repeat))), flush=True)
    one, two = whole_case(maps, repeat)
    print(f"\nwhole case, uint8, flushed to the disk: {one:.3f} s by one writer, {two:.3f} s by two")


def main() -> int:
    """Both cases; one sentence and exit status 2 where a value is not read back."""
    options = parse()
    try:
        small = segmented(options) if options.model and options.image else phantom((48, 40, 32))
        report("Hippocampus" if options.model and options.image else "Small phantom", small, options.repeat)
        large = phantom((options.size,) * 3)
        report("Phantom", {name: large[name] for name in list(large)[-MAPS:]}, options.repeat)
    except ValueError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
