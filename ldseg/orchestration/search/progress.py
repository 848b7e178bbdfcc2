"""What a search says while it runs: a bar on a terminal, lines elsewhere, nothing if it is to be quiet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from tqdm import tqdm

from ldseg.orchestration.search.study import Study

SHOWN = ("loss", "val_dice", "val_energy_score", "val_agreement")
BEST = {"val_dice": max, "val_energy_score": min}


class SearchProgress(tune.Callback):
    """One line for each report of a trial; after each trial how many are done, run and failed, the best, the time left.

    Args:
        study: how many trials there are to be, and how many hours.
        say: takes a line; None says nothing and shows no bar.
        ended: the last numbers of the trials that had ended before, in a search that is resumed.
        failed: how many of them had failed.
        goes_on: whether a trial, by its number, is to be started again.
    """

    def __init__(
        self,
        study: Study,
        say: Callable[[str], None] | None,
        *,
        ended: Sequence[Mapping[str, float]] = (),
        failed: int = 0,
        goes_on: Callable[[int], bool] = lambda number: False,
    ) -> None:
        self.study, self.say, self.goes_on = study, say, goes_on
        self.done, self.failed, self.ended_now = len(ended) - failed, failed, 0
        self.running: set[str] = set()
        self.best: dict[str, float] = {}
        for numbers in ended:
            self._better(numbers)
        self.began = time.monotonic()
        total = max(study.trials, len(ended))
        hidden = True if say is None else None  # None: hidden unless this is a terminal
        self.bar = tqdm(total=total, initial=len(ended), unit="trial", disable=hidden)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its values."""
        self.running.add(trial.trial_id)
        values = trial.config["values"].items()
        self._line(trial, "starts  " + "  ".join(f"{k}={short(v)}" for k, v in values))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Its numbers at an epoch."""
        self._better(result)
        numbers = "  ".join(f"{n} {result[n]:.4f}" for n in SHOWN if n in result)
        self._line(trial, f"epoch {result.get('epoch', 0):.0f}  {numbers}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """How the search stands."""
        self.done += 1
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """How the search stands; a trial whose process died and that is started again has not failed."""
        if self.goes_on(trial.config["number"]):
            self.running.discard(trial.trial_id)
            self._line(trial, "its process died; it is started again")
            return
        self._line(trial, "failed; the search goes on")
        self.failed += 1
        self._ended(trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Take the bar away."""
        self.bar.close()

    def status(self) -> str:
        """ "3 of 12 done, 1 running, 0 failed; best val_dice 0.8123, val_energy_score 0.1431; about 14 min left"."""
        counts = f"{self.done} of {self.study.trials} done, {len(self.running)} running, {self.failed} failed"
        best = ", ".join(f"{name} {value:.4f}" for name, value in self.best.items())
        left = self.minutes_left()
        time_left = "" if math.isnan(left) else f"; about {left:.0f} min left"
        return counts + (f"; best {best}" if best else "") + time_left

    def minutes_left(self) -> float:
        """From the mean time of the trials that ended, and no more than --hours leaves; NaN before the first."""
        passed = (time.monotonic() - self.began) / 60
        if not self.ended_now:
            return math.nan
        left = passed / self.ended_now * max(self.study.trials - self.done - self.failed, 0)
        return min(left, max(60 * self.study.hours - passed, 0)) if self.study.hours else left

    def _better(self, numbers: Mapping[str, Any]) -> None:
        for name, better in BEST.items():
            value = float(numbers.get(name, math.nan))
            if math.isfinite(value):
                self.best[name] = better(value, self.best.get(name, value))

    def _ended(self, trial: Any) -> None:
        self.running.discard(trial.trial_id)
        self.ended_now += 1
        self.bar.update()
        if not self.bar.disable:
            self.bar.set_postfix_str(self.status())
        elif self.say:
            self.say(self.status())

    def _line(self, trial: Any, text: str) -> None:
        if self.say:
            line = f"trial {trial.config['number'] + 1}/{self.study.trials}  {text}"
            self.say(line) if self.bar.disable else self.bar.write(line)


def short(value: Any) -> str:
    """A value in three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
