import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = {"ray", "mlflow", "optuna", "fastapi", "starlette"}
SCIENCE = sorted(p for p in (ROOT / "ldseg").rglob("*.py") if "orchestration" not in p.parts)


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SCIENCE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_science_imports_no_cluster_no_tracker_and_no_server(path):
    # read and not run: MONAI itself loads MLflow and Optuna where they are installed
    assert not _imports(path) & FOREIGN


def test_what_the_service_needs_loads_neither_monai_nor_a_cluster():
    code = "import sys, ldseg.posterior, ldseg.data.cohort; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not (FOREIGN | {"monai"}) & set(done.stdout.split())
