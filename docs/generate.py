"""The reference pages that are made from the code when the site is built (a hook of mkdocs, see mkdocs.yml).

A page holds a line `<!-- generate: NAME -->`; it is replaced by what the function of that name writes. Each function
reads the code itself, so that these pages can't fall behind it. Programs and the service are asked in processes of
their own: nothing heavy is imported here.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import html
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MARK = re.compile(r"^<!-- generate: ([a-z]+) -->$", re.MULTILINE)
LAUNCHERS = (
    "segment", "evaluate", "calibrate", "train", "tune", "register", "promote", "serve_model", "import_authors", "demo",
)  # fmt: skip
FACE = ("load", "Model", "Result", "StructureVolume", "evaluate", "read_cohort")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return MARK.sub(lambda found: PARTS[found[1]](), markdown)


def configuration() -> str:
    """Every key of a configuration: type, default, meaning."""
    from ldseg.config import Config

    parts = []
    for section in dataclasses.fields(Config):
        kind = typing.get_type_hints(Config)[section.name]
        text, meanings = _attributes(inspect.getdoc(kind) or "")
        hints = typing.get_type_hints(kind)
        rows = [
            (f"`{section.name}.{key.name}`", _code(_type(hints[key.name])), _code(_default(key)),
             meanings.get(key.name, ""))
            for key in dataclasses.fields(kind)
        ]  # fmt: skip
        parts.append(f"## `{section.name}`\n\n{text}\n\n" + _table(("key", "type", "default", "meaning"), rows))
    return "\n\n".join(parts)


def programs() -> str:
    """The help of every command, as the command prints it."""
    return "\n\n".join(f"## `{name}`\n\n```text\n{_help(run)}\n```" for name, run in _commands().items())


def http() -> str:
    """Every route of the service, from its own OpenAPI document."""
    document = _openapi()
    parts = [document["info"]["description"]]
    by_path = [(path, verb, told) for path, verbs in document["paths"].items() for verb, told in verbs.items()]
    links = [(f"[`{verb.upper()} {path}`](#{_slug(verb, path)})", told["summary"]) for path, verb, told in by_path]
    parts.append(_table(("route", "what it does"), links))
    for path, verb, told in by_path:
        parts.append(_route(path, verb, told))
    parts.append("## Documents")
    schemas = document["components"]["schemas"]
    parts += [_schema(name, schemas[name]) for name in sorted(schemas) if not name.endswith("ValidationError")]
    return "\n\n".join(part for part in parts if part)


def columns() -> str:
    """The names of columns, from `ldseg.columns`."""
    found = importlib.import_module("ldseg.columns").COLUMNS
    rows = [(f"`{c.name_pattern}`", c.meaning, c.unit or "–", ", ".join(_listed(c.where))) for c in found]
    return _table(("column", "meaning", "unit", "where"), rows)


def api() -> str:
    """What of the Python interface is documented: the library's face, or, in a tree without it, the parts beneath."""
    if not (ROOT / "ldseg/api.py").is_file():
        return "::: ldseg.bundle\n\n::: ldseg.posterior.sampling"
    return "\n\n".join(f"::: {_defined(name)}" for name in FACE)


def _defined(name: str) -> str:
    """Where a name of the library's face is defined: it is loaded lazily, which a reader of source can't follow."""
    package, module = importlib.import_module("ldseg"), importlib.import_module("ldseg.api")
    found = getattr(package, name) if hasattr(package, name) else getattr(module, name)
    return f"{found.__module__}.{found.__qualname__}"


def spaces() -> str:
    """The search spaces that come along: each module's first line, what is searched, by which metric."""
    rows = []
    for path in sorted((ROOT / "tune_spaces").glob("[a-z]*.py")):
        module = ast.parse(path.read_text())
        first = (ast.get_docstring(module) or "").split("\n")[0]
        found = importlib.import_module(f"tune_spaces.{path.stem}")
        rows.append((f"`{path.stem}`", first, str(len(found.SPACE)), " ".join(found.METRIC)))
    return _table(("space", "for", "choices", "metric"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "configuration": configuration, "programs": programs, "http": http, "columns": columns, "api": api,
    "spaces": spaces,
}  # fmt: skip


def _attributes(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring's text and the meanings in its section "Attributes"."""
    told, _, section = docstring.partition("Attributes:\n")
    meanings: dict[str, str] = {}
    for entry in re.findall(r"^(\w+): (.*(?:\n[ ]+.*)*)", textwrap.dedent(section), re.MULTILINE):
        meanings[entry[0]] = " ".join(entry[1].split())
    return told.strip(), meanings


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(json.dumps(value) for value in typing.get_args(hint))
    name = str(hint).removeprefix("<class '").removesuffix("'>").replace("typing.", "")
    return name.replace("NoneType", "None").replace(" | ", " or ")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return json.dumps(field.default) if isinstance(field.default, str) else str(field.default)
    return str(field.default_factory()) if callable(field.default_factory) else "(needed)"


def _commands() -> dict[str, list[str]]:
    """Each command and the arguments of Python that run it; in a tree without the command `ldseg`, its launchers."""
    if (ROOT / "ldseg/commands/main.py").is_file():
        known = importlib.import_module("ldseg.commands.main").COMMANDS
        start = "import sys; from ldseg.commands.main import main; sys.exit(main(sys.argv[1:]))"
        return {f"ldseg {name}": ["-c", start, name, "--help"] for name in known}
    found = {f"python platform/{name}.py": [f"platform/{name}.py", "--help"] for name in LAUNCHERS}
    return found | {"python -m ldseg.data.phantom": ["-m", "ldseg.data.phantom", "--help"]}


def _help(arguments: list[str]) -> str:
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout.replace(f"{ROOT}/", "").rstrip()


DESCRIBE = """
import json, sys
from unittest.mock import MagicMock
from serve.settings import Settings
from {module} import create_app
service = MagicMock()
service.settings = Settings(model="models:/ldseg@champion")
print(json.dumps(create_app(service).openapi()))
"""


@functools.cache
def _openapi() -> dict[str, Any]:
    module = "serve.api.application" if (ROOT / "serve/api/application.py").is_file() else "serve.api"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DESCRIBE.format(module=module)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the service does not describe itself: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _slug(verb: str, path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{verb} {path}".lower()).strip("-")


def _route(path: str, verb: str, told: dict[str, Any]) -> str:
    parts = [f"### `{verb.upper()} {path}` {{ #{_slug(verb, path)} }}", f"{told['summary']}."]
    text = inspect.cleandoc(told.get("description", ""))
    parts += [text] if text else []
    rows = [
        (f"`{p['name']}`", p["in"], _code(_schema_type(p.get("schema", {}))), "yes" if p.get("required") else "",
         p.get("description", "") or p.get("schema", {}).get("description", ""))
        for p in told.get("parameters", [])
    ]  # fmt: skip
    parts += [_table(("parameter", "in", "type", "needed", "meaning"), rows)] if rows else []
    body = told.get("requestBody", {}).get("content", {})
    if body:
        parts.append("Body: " + ", ".join(f"`{kind}`{_of(content)}" for kind, content in body.items()) + ".")
    answers = []
    for status, answer in told["responses"].items():
        if status == "default":
            continue
        kinds = ", ".join(f"`{kind}`{_of(content)}" for kind, content in answer.get("content", {}).items())
        told_of = answer.get("description", "").replace("Successful Response", "")
        answers.append((status, kinds or "–", told_of))
    parts.append(_table(("status", "answer", "meaning"), answers))
    return "\n\n".join(parts)


def _of(content: dict[str, Any]) -> str:
    kind = _schema_type(content.get("schema", {}))
    return f" ({_linked(kind)})" if kind[:1].isupper() or "[" in kind else ""


def _linked(kind: str) -> str:
    return re.sub(r"([A-Z]\w+)", lambda found: f"[{found[1]}](#document-{found[1].lower()})", kind)


def _schema_type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_schema_type(one) for one in schema[key]))
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list[{_schema_type(schema.get('items', {}))}]"
    return str(schema.get("type", "any"))


def _schema(name: str, schema: dict[str, Any]) -> str:
    needed = set(schema.get("required", []))
    rows: list[tuple[str, ...]] = []
    for key, value in schema.get("properties", {}).items():
        kind = _schema_type(value)
        shown = _linked(kind) if re.fullmatch(r"(list\[)?[A-Z]\w+\]?( or null)?", kind) else _code(kind)
        rows.append((f"`{key}`", shown, "yes" if key in needed else "", value.get("description", "")))
    told = inspect.cleandoc(schema.get("description", "")) if schema.get("description") else ""
    table = _table(("field", "type", "needed", "meaning"), rows) if rows else ""
    return "\n\n".join(p for p in (f"### `{name}` {{ #document-{name.lower()} }}", told, table) if p)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown without the columns that are empty in every row."""
    kept = [k for k in range(len(head)) if k == 0 or not rows or any(row[k] for row in rows)]
    lines = [[head[k] for k in kept], ["---"] * len(kept), *([_cell(row[k]) for k in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    text = " ".join(text.split())
    if "`" in text or "](" in text:
        return text
    return html.escape(text, quote=False).replace("|", "\\|")
