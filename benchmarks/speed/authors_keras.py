"""The part of `against_authors.py` that runs the authors' code, under a Python that has TensorFlow.

It imports their modules from their checkout and changes nothing but what it says: plots are left out, and TensorFlow's
grouped convolution is mended if asked for.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

STEPS = 15  # of their cfg.ini


class Timed:
    """One of their networks; counts calls and seconds of `predict`."""

    def __init__(self, network: Any) -> None:
        self.load_weights, self.network, self.calls, self.seconds = network.load_weights, network, 0, 0.0

    def predict(self, inputs: Any, batch_size: int, verbose: int) -> Any:
        """As Keras does it."""
        start = time.perf_counter()
        outputs = self.network.predict(inputs, batch_size=batch_size, verbose=verbose)
        self.calls, self.seconds = self.calls + 1, self.seconds + time.perf_counter() - start
        return outputs


def main() -> int:
    """One sample, which also compiles everything; when told to, K samples against the clock."""
    job = json.loads(sys.argv[1])
    sys.path[0] = job["authors"]
    with redirect_stdout(sys.stderr):
        if job["mended"]:
            mend_grouped_convolution()
        networks, read, segment = load(Path(job["folder"]), tuple(job["shape"]))
        first_sample(Path(job["folder"]), tuple(job["shape"]), read, segment)
    print("{}", flush=True)
    if not sys.stdin.readline():
        return 1
    with redirect_stdout(sys.stderr):
        for network in networks.values():
            network.calls, network.seconds = 0, 0.0
        seconds, total = measure(job, read, segment)
    seconds |= {stage: network.seconds for stage, network in networks.items()}
    print_row(job["kind"], networks["denoise"].calls, seconds, total, "float32")
    return 0


def mend_grouped_convolution() -> None:
    """One convolution a group: TensorFlow has no grouped one for CPUs, and what Keras falls back to is slow."""
    import tensorflow as tf
    from keras.layers.convolutional import base_conv

    def by_group(layer: Any, inputs: Any, kernel: Any) -> Any:
        pairs = zip(tf.split(inputs, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
        return tf.concat([layer.convolution_op(part, weights) for part, weights in pairs], -1)

    base_conv.Conv._jit_compiled_convolution_op = by_group


def load(folder: Path, shape: tuple[int, ...]) -> tuple[dict[str, Timed], Callable[[], Any], Callable[[Any], Any]]:
    """Their networks by stage, their way to read the volume (1, D, H, W, 1) and to draw one label map (D, H, W).

    A missing denoiser3D.hdf5 is made of random weights.
    """
    import numpy as np
    import SimpleITK as sitk
    from utilities import dataLoader3D, misc, model3D, sampler3D

    weights, zeros = folder / "weights", np.zeros((1, *shape), np.uint8)
    networks = model3D.loadModel(zeros[..., None], zeros, loadCheckpoint=False)
    denoiser = weights / "denoiser3D.hdf5"
    if not denoiser.is_file():
        generator = np.random.default_rng(30)
        networks[3].set_weights([random_like(w.name, w.shape, generator) for w in networks[3].weights])
        networks[3].save_weights(str(denoiser))
    timed = dict(zip(("decode", "encode", "denoise"), map(Timed, networks[1:]), strict=True))
    sampler3D.plot_noise_parameters = sampler3D.plot_sampling_3D = lambda *_, **__: None

    def read() -> Any:  # as their readFiles does it for an image
        image = misc.standardize(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "volume.nii.gz"))))
        return dataLoader3D.interp(image.astype(np.float32), *shape)[None, ..., None]

    def segment(image: Any) -> Any:
        settings = {"model_directory": str(weights), "samplingSteps": STEPS, "batch_size": 1, "plots": False}
        return sampler3D.segment(image, *timed.values(), **settings)[0]

    return timed, read, segment


def random_like(name: str, shape: Any, generator: Any) -> Any:
    """Weights that let everything through: kernels of variance 1 / inputs, gains about 1, small biases."""
    values = generator.normal(size=tuple(shape))
    if "kernel" in name:
        return values / values[..., 0].size ** 0.5
    return 1 + 0.1 * values if "gamma" in name else 0.1 * values


def first_sample(folder: Path, shape: tuple[int, ...], read: Callable[[], Any], segment: Callable[[Any], Any]) -> None:
    """A sample and the noise (1, D/16, H/16, W/16, 1) that it starts from, theirs.npz."""
    import numpy as np

    np.random.seed(0)
    start = np.random.normal(0, 1, (1, *[n // 16 for n in shape], 1))  # `segment` draws it first
    np.random.seed(0)
    np.savez(folder / "theirs.npz", start=start, labels=segment(read()).astype(np.uint8))


def measure(
    job: dict[str, Any], read: Callable[[], Any], segment: Callable[[Any], Any]
) -> tuple[dict[str, float], float]:
    """Seconds of reading and writing, and of everything: K label maps, of which the most frequent label is written."""
    import numpy as np
    from utilities import dataLoader3D

    folder, votes = Path(job["folder"]), np.zeros((3, *job["shape"]), np.uint16)
    begin = time.perf_counter()
    image = read()
    reading = time.perf_counter() - begin
    for _ in range(job["samples"]):
        labels = segment(image)
        for index, vote in enumerate(votes):
            vote += labels == index
    last = time.perf_counter()
    dataLoader3D.writeImage([votes.argmax(0)], [str(folder / "volume.nii.gz")], [str(folder / "theirs.nii.gz")])
    end = time.perf_counter()
    return {"read": reading, "write": end - last}, end - begin


def print_row(kind: str, calls: int, seconds: dict[str, float], total: float, precision: str) -> None:
    """Print a row; what no stage accounts for is the rest."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = {**seconds, "rest": total - sum(seconds.values()), "all": total}
    print(json.dumps({"kind": kind, "calls": calls, "seconds": seconds, "peak_gib": peak, "by": precision}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
