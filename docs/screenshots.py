#!/usr/bin/env python
"""Make the documentation's pictures of the page: a real service, a real cohort, a headless Chromium.

The cohort gets a volume of noise beside its cases, so that the page shows what it says of one that is unfamiliar.
Needs Chromium and `pip install playwright`; the viewer must have been built (make page).

Example:
    python docs/screenshots.py --data Task04_Hippocampus/imagesTr --out docs/images
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, Options

if TYPE_CHECKING:
    from benchmarks.serving.process import Service

WEBGL = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
JOB_S, SETTLE_MS = 900.0, 4000


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Options(__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=ROOT / "models" / "hippocampus", help="bundle (default: %(default)s)")
    add("--data", type=Path, required=True, help="folder with .nii.gz volumes")
    add("--out", type=Path, default=ROOT / "docs" / "images", help="(default: %(default)s)")
    add("--cases", type=int, default=14, help="of the cohort (default: %(default)s)")
    add("--chromium", default=shutil.which("chromium"), help="(default: the one on the PATH)")
    options = parser.parse_args()
    if options.chromium is None:
        parser.error("there is no chromium on the PATH; install it or name it by --chromium")
    return options


def prepare(source: Path, folder: Path, count: int) -> dict[str, str]:
    """Copies of some volumes and one of noise, by name."""
    paths = sorted(path for path in source.glob("*.nii.gz") if not path.name.startswith("."))[:count]
    if not paths:
        raise SystemExit(f"screenshots: there is no .nii.gz in {source}")
    for path in paths:
        shutil.copy(path, folder / path.name)
    import nibabel as nib
    import numpy as np

    first = nib.load(paths[0])
    noise = np.random.default_rng(0).normal(100, 30, first.shape[:3]).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, first.affine), folder / "noise.nii.gz")
    return {path.name.removesuffix(".nii.gz"): str(path) for path in sorted(folder.glob("*.nii.gz"))}


def segment(service: Service, cases: dict[str, str]) -> tuple[str, str]:
    """The finished cohort, and the least certain of its familiar cases."""
    cohort, _ = service.post([{"name": name, "image": image} for name, image in cases.items()], samples=8)
    deadline = time.monotonic() + JOB_S
    while service.ended(cohort) < len(cases):
        if time.monotonic() > deadline:
            raise RuntimeError("the cohort did not end")
        time.sleep(1)
    numbers = {name: service.http.get(f"/v1/cohorts/{cohort}/cases/{name}").json()["numbers"] for name in cases}
    familiar = [name for name, found in numbers.items() if not found.get("unfamiliar")]
    return cohort, min(familiar, key=lambda name: float(numbers[name]["agreement"]))


def photograph(browser: Any, url: str, cohort: str, case: str, out: Path) -> list[Path]:
    """The cohort in light, the case with its entropy in dark."""
    from benchmarks.serving.process import TOKEN

    made = []
    for name, scheme, place in (
        ("page-cohort", "light", f"#/cohorts/{cohort}"),
        ("page-case", "dark", f"#/cohorts/{cohort}/cases/{case}"),
    ):
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.add_init_script(f"sessionStorage.setItem('ldseg-token', '{TOKEN}')")
        page.goto(f"{url}/{place}")
        page.wait_for_timeout(SETTLE_MS)
        if name == "page-case":
            page.get_by_label("Map").first.select_option("entropy")
            page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=out / f"{name}.png")
        made.append(out / f"{name}.png")
        page.close()
    return made


def main() -> None:
    """Start, segment, photograph."""
    options = parse()
    from playwright.sync_api import sync_playwright  # of the development tools, not of the platform

    from benchmarks.serving.process import Service

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        data.mkdir()
        cases = prepare(options.data, data, options.cases)
        runs = Path(temporary) / "runs"
        with Service(options.model.resolve(), data, runs) as service, sync_playwright() as playwright:
            cohort, case = segment(service, cases)
            browser = playwright.chromium.launch(executable_path=options.chromium, args=WEBGL)
            for path in photograph(browser, service.url, cohort, case, options.out):
                print(path)
            browser.close()


if __name__ == "__main__":
    main()
