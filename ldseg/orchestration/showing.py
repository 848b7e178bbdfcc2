"""The history of promotions as text for a terminal."""

from __future__ import annotations

from ldseg.orchestration import tracking
from ldseg.orchestration.history import HistoryError, Record, read_history
from ldseg.orchestration.ledger import HEAD as TAG
from ldseg.orchestration.ledger import state
from ldseg.orchestration.registry import RegistryError

TITLES = ("#", "when (UTC)", "who", "model", "action", "version", "before", "dice", "why")


def show_history(tracker: tracking.Tracker, name: str = "") -> tuple[str, bool]:
    """All decisions, or those of one model, oldest first, and what is wrong with them.

    Returns:
        The text, and whether the chain holds and the registry knows no record that is missing.
    """
    history = read_history(tracker.home)
    known = [model.name for model in tracker.client.search_registered_models() if TAG in model.tags]
    names = list(dict.fromkeys([*(str(r["name"]) for r in history.records if "name" in r), *known]))
    shown = [(i, r) for i, r in enumerate(history.records, start=1) if not name or r.get("name") == name]
    rows = [TITLES, *(_cells(number, record) for number, record in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not shown:
        lines = [f"{history.path} holds no decision" + (f" on {name}" if name else "")]
    problems = [f"CHANGED: {history.broken}"] if history.broken else []
    for model in [] if history.broken else [name] if name else names:
        problem, note = _findings(tracker, model)
        problems += problem
        lines += note
    if history.torn:
        lines.append(
            f"a record was being written when its process was killed ({history.torn} bytes); it does not count"
        )
    chained = sum("hash" in record for record in history.records)
    older = len(history.records) - chained
    lines += problems or [f"the chain of {chained} records holds" + (f", after {older} older ones" if older else "")]
    return "\n".join(lines), not problems


def _findings(tracker: tracking.Tracker, name: str) -> tuple[list[str], list[str]]:
    """What was changed, and what is unfinished."""
    try:
        words = state(tracker, name).words()
    except HistoryError as error:
        return [f"CHANGED: {error}"], []
    except RegistryError as error:
        return [], [str(error)]
    return [], [f"{words}; the next promotion or rollback mends it"] if words else []


def _cells(number: int, record: Record) -> tuple[str, ...]:
    def text(key: str) -> str:
        return "-" if record.get(key) in (None, "") else str(record[key])

    checks = [check for check in record.get("checks", ()) if isinstance(check, dict)]
    dice = next((check["own"] for check in checks if check.get("gate") == "dice"), None)
    why = [record["reason"]] if record.get("reason") else []
    failed = ", ".join(check["gate"] for check in checks if not check["passed"])
    why += [f"NO: {failed}"] if failed else []
    why += [f"finishes record {record['mends']}"] if "mends" in record else []
    when = str(record.get("when", "-")).replace("+00:00", "").replace("T", " ")
    action = text("action") if record.get("promoted", True) else "refuse"
    middle = (text("who"), text("name"), action, text("version"), text("before"))
    return (str(number), when, *middle, "-" if dice is None else f"{dice:.4f}", "; ".join(why) or "-")
