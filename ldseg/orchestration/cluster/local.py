"""A Ray of this process's own: on the loopback alone, behind a token that is made for it."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from ldseg.files import flock, locked
from ldseg.orchestration.cluster.launcher import ClusterError

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
ENVIRONMENT: Mapping[str, str | None] = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": None,  # it would come before the file
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # Ray's processes take 127.0.0.1 for the node's address
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
    "LDSEG_TOKEN": None,  # no worker needs it
}


@contextmanager
def secluded() -> Iterator[Path]:
    """While it lasts, a Ray that is started here listens on the loopback alone and asks for a token of its own.

    The token lies in a file that its user alone can read; it is gone afterwards, and the environment is as it was.

    Yields:
        A folder for Ray's files, which others can't enter: Ray makes its own folders and sockets open to everybody.

    Raises:
        ClusterError: the folder belongs to somebody else, or others can enter it.
    """
    folder = private_folder()
    with _token(folder) as path, _environment({**ENVIRONMENT, "RAY_AUTH_TOKEN_PATH": str(path)}), _loopback():
        yield folder / "ray"


def private_folder() -> Path:
    """The folder of this user's own Rays, made if missing.

    Raises:
        ClusterError: it belongs to somebody else, or others can enter it.
    """
    folder = Path(get_default_system_temp_dir()) / f"ldseg-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ClusterError(
            f"Ray's files are to lie in {folder}, which is not this user's alone (mode 700); remove it, or name "
            "another place by RAY_TMPDIR"
        )
    return folder


@contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """A file with a new token, held by a lock while it is in use; what killed processes left is removed."""
    with locked(folder / ".lock"):
        for left in folder.glob("token-*"):
            if not _held(left):
                left.unlink()
        handle, name = tempfile.mkstemp(prefix="token-", dir=folder)  # mode 600
        flock(handle, fcntl.LOCK_EX)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _held(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # or there are no locks here, and nobody knows
            return True
    return False


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")  # Ray has read the mode already, and perhaps another token
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _loopback() -> Iterator[None]:
    before = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment when Ray was imported
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
