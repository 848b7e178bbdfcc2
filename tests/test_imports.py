"""Who may import whom: what keeps the house in rooms."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ldseg import ROOT

CLUSTER = {"ray", "mlflow", "optuna"}
FOREIGN = CLUSTER | {"fastapi", "starlette", "sqlalchemy", "serve"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("ldseg", "serve")
    for path in (ROOT / top).rglob("*.py")
    if not {"page", "migrations"} & set(path.parts)
}
TOP = ("ldseg.orchestration", "ldseg.commands", "ldseg.api", "ldseg.__main__")
HIGHEST = ("commands", "__main__")
SCIENCE = sorted(m for m in MODULES if m.startswith("ldseg") and not m.startswith(TOP))

# each room and the rooms below it whose modules its own may import; what is imported in a function counts too
SCIENCE_ROOMS = {
    "ldseg.files": "", "ldseg.config": "", "ldseg.columns": "",
    "ldseg.data": "config files", "ldseg.diffusion": "config",
    "ldseg.calibration": "columns files", "ldseg.samplers": "config diffusion", "ldseg.networks": "config diffusion",
    "ldseg.metrics": "calibration columns", "ldseg.model": "config diffusion networks samplers",
    "ldseg.bundle": "calibration config files model", "ldseg.precision": "model",
    "ldseg.memory": "config data model",
    "ldseg.keras_import": "config model networks",
    "ldseg.posterior": "bundle calibration columns config data files memory model precision",
    "ldseg.results": "bundle calibration columns data files posterior",
    "ldseg.evaluation": "bundle calibration columns config data files metrics posterior",
    "ldseg.pictures": "data files posterior",
    "ldseg.training": "columns config data diffusion files metrics model posterior precision",
}  # fmt: skip
FACE = {"ldseg.api": "bundle data evaluation orchestration.models pictures posterior results"}
ORCHESTRATION_ROOMS = {
    "home": "", "tracking": "home", "cluster": "home tracking", "training": "tracking", "promotion": "tracking",
    "search": "home tracking cluster training", "models": "home tracking", "pyfunc": "",
}  # fmt: skip
SERVE_ROOMS = {
    "store": "", "tokens": "", "redaction": "", "audit": "", "connections": "", "backpressure": "connections",
    "listening": "",
    "settings": "tokens", "telemetry": "store",
    "http": "audit redaction settings telemetry tokens", "sampling": "settings",
    "intake": "http settings", "jobs": "intake redaction sampling settings store telemetry",
    "api": "http intake jobs redaction sampling settings store telemetry",
    "app": "api backpressure http jobs listening sampling settings store telemetry",
    "client": "",
}  # fmt: skip


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def room(module: str) -> str:
    depth = 3 if module.startswith("ldseg.orchestration.") else 2
    return ".".join(module.split(".")[:depth])


def allowed(of: str) -> set[str]:
    if of in SCIENCE_ROOMS | FACE:
        return {f"ldseg.{name}" for name in (SCIENCE_ROOMS | FACE)[of].split()}
    top, name = of.rsplit(".", 1)
    if top == "ldseg.orchestration":
        return {f"{top}.{below}" for below in ORCHESTRATION_ROOMS[name].split()} | {top, *SCIENCE_ROOMS}
    own = {f"serve.{below}" for below in SERVE_ROOMS[name].split()} | set(SCIENCE_ROOMS)
    return own | ({"ldseg.orchestration.tracking"} if name == "sampling" else set())


@pytest.mark.parametrize("module", [m for m in sorted(MODULES) if m.count(".") and m.split(".")[1] not in HIGHEST])
def test_a_room_imports_only_from_the_rooms_below_it(module):
    if module in ("ldseg.orchestration",):
        return
    ours = {room(name) for name in imported(MODULES[module]) if name in MODULES} - {room(module), "ldseg", "serve"}
    assert ours <= allowed(room(module))


def test_no_circle_of_imports():
    ours = {m: p for m, p in MODULES.items() if m != "ldseg"}  # the face, which loads what it shows when it is asked
    known = defaultdict(set, {m: {n for n in imported(p) if n in MODULES and n != m} for m, p in ours.items()})
    tuple(TopologicalSorter(known).static_order())  # raises CycleError, with the circle


@pytest.mark.parametrize("module", SCIENCE)
def test_the_science_imports_no_cluster_no_tracker_and_no_server(module):
    # read and not run: MONAI itself loads MLflow and Optuna where they are installed
    assert not {name.split(".")[0] for name in imported(MODULES[module])} & FOREIGN


@pytest.mark.parametrize("module", sorted(m for m in MODULES if "orchestration" in m))
def test_orchestration_imports_no_server(module):
    assert not {name.split(".")[0] for name in imported(MODULES[module])} & {"fastapi", "starlette", "serve"}


def test_no_folder_holds_more_than_ten_modules():
    held = defaultdict(list)
    for top in ("ldseg", "serve", "platform", "tune_spaces", "benchmarks", "tests"):
        for path in (ROOT / top).rglob("*.py"):
            if path.name != "__init__.py":
                held[path.parent].append(path.name)
    assert {str(folder): len(names) for folder, names in held.items() if len(names) > 10} == {}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(given) - (given[:1] in (["self"], ["cls"]))


def test_no_function_takes_more_than_seven_parameters():
    many = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for top in ("ldseg", "serve", "platform", "tune_spaces", "benchmarks", "tests")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) > 7
    ]
    assert many == []


def test_what_the_service_needs_loads_neither_monai_nor_a_cluster():
    code = "import sys, ldseg.posterior, ldseg.data.cohort; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not (FOREIGN | {"monai"}) & set(done.stdout.split())


def test_the_job_store_and_the_settings_load_no_torch():
    code = "import sys, serve.store, serve.settings; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not (CLUSTER | {"monai", "torch"}) & set(done.stdout.split())
