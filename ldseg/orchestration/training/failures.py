"""Why a training failed, in a sentence, and whether to try it again."""

from __future__ import annotations

from ray.exceptions import RayActorError

from ldseg.files import FULL

OUT_OF_MEMORY = ("out of memory", "outofmemory", "memoryerror", "t allocate memory", "memory pressure", "low on memory")


def died(error: BaseException) -> bool:
    """Whether a process has gone, and neither the training itself failed nor a process as it was set up."""
    failures = _failures(error)
    failures += [f.health_check_failure for f in failures if hasattr(f, "health_check_failure")]
    return any(isinstance(failure, RayActorError) and not failure.actor_init_failed for failure in failures)


def reason_of(error: BaseException) -> str:
    """The sentence of the innermost error that a person wants to read.

    Where one worker fails, the others complain that it has gone: a full disk or memory that ran out comes first.
    """
    reasons = [_sentence(failure) for failure in _failures(error)]
    return next((reason for reason in reasons if is_memory(reason) or FULL in reason), reasons[0])


def is_memory(reason: str) -> bool:
    """Whether a failure is that memory ran out."""
    return any(word in reason.lower() for word in OUT_OF_MEMORY)


def _failures(error: BaseException) -> list[BaseException]:
    return list(getattr(error, "worker_failures", {}).values()) or [error]


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = next((line for line in lines if is_memory(line)), lines[-1])
    return f"out of memory: {telling}" if isinstance(error, MemoryError) and not is_memory(telling) else telling
