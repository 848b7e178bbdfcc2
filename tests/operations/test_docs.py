"""README and docs: short where they are to be short, and what they name is there."""

from __future__ import annotations

import re
import runpy
from functools import cache
from pathlib import Path

import pytest

from ldseg import ROOT

README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NEVER = {"platform/__init__.py", "platform/serve.py"}  # the pages say why
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")] + PAGES


def text(page: Path) -> str:
    """A page without what it quotes: commands and what they print."""
    return re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def prose(page: Path) -> list[str]:
    """Lines outside tables and addresses of pictures."""
    return [line for line in text(page).splitlines() if not line.startswith(("|", "![", "<"))]


@cache
def names_of_tests() -> dict[str, str]:
    return {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}


def test_the_readme_is_short_and_no_line_is_broken_by_a_screen() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 110] == []


def test_a_change_is_one_line() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 160] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_lines_of_prose_are_short(page: Path) -> None:
    assert [line for line in prose(page) if len(line) > 140] == []


def test_the_readmes_numbers_stand_in_the_results() -> None:
    table = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    numbers = re.findall(r"\d+\.\d+|\d+(?= %)", table)
    assert len(numbers) > 9
    results = "\n".join(page.read_text() for page in (ROOT / "docs" / "results").glob("*.md"))
    assert [number for number in numbers if number not in re.findall(r"\d+\.\d+|\d+(?= %)", results)] == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text(page))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    places = "ldseg|serve|platform|tune_spaces|benchmarks|kubernetes|models"
    named = set(re.findall(rf"`(?:python )?((?:{places})/[\w/]+\.(?:py|ya?ml|sh|toml|csv))", page.read_text()))
    assert [name for name in sorted(named - NEVER) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_tests_that_are_named_are_there(page: Path) -> None:
    missing = []
    for file, name in re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", page.read_text()):
        if f"def {name}" not in names_of_tests().get(file, "") if name else file not in names_of_tests():
            missing.append(f"{file}::{name}")
    assert missing == []


def test_the_picture_of_the_rooms_shows_who_may_import_whom() -> None:
    drawn = re.findall(r'y="(\d+)"[^>]*>([\w/]+)', (ROOT / "docs/images/rooms.svg").read_text())
    heights = {f"ldseg.{name.strip('/')}": int(y) for y, name in drawn}  # the science is drawn last, so its names count
    rooms = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))["SCIENCE_ROOMS"]
    for room, below in rooms.items():
        assert [name for name in below.split() if heights[f"ldseg.{name}"] <= heights[room]] == [], room
