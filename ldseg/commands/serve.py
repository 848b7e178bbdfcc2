"""Serve a model over HTTP on this machine (or on the cluster that RAY_ADDRESS names) until Ctrl-C.

Cohorts are posted as paths under the --allow-root folders; single volumes are uploaded. Jobs and results live under
RUNS/service; what is unfinished when the service stops goes on at its next start.

Example:
    python platform/serve_model.py --model models/hippocampus --allow-root /data/hippocampus
    export LDSEG_TOKEN=...    # in another terminal, as the service prints it
    python platform/segment.py --url http://127.0.0.1:8000 --data /data/hippocampus --out runs/segmented
"""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldseg.commands import Parser, needs
from ldseg.orchestration import home as place

if TYPE_CHECKING:
    from serve.settings import Settings
    from serve.tokens import Token

PATIENCE_S = 20.0  # with a Ray that is to end
MAX_PRIORITY = 9  # of the token in the environment, which is the operator's own


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog, status="Exit status: 0 stopped, 1 ended without being asked to, 2 not started.")
    add = parser.add_argument
    add("--model", default="models:/ldseg@champion", help="bundle folder or models:/name@alias (default: %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, for this machine alone)")
    add("--port", type=int, default=8000, help="(default: %(default)s)")
    add("--replicas", type=int, default=2, help="sampler actors (default: %(default)s)")
    add("--gpus-per-replica", type=float, default=0.0, help="0 samples on the CPU (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads of a sampler (default: %(default)s)")
    add("--cases-in-flight", type=int, default=0, help="cases worked on at once (default: two more than samplers)")
    add("--keep-samples", type=int, default=4, help="label maps of samples kept of a case (default: %(default)s)")
    add("--max-samples", type=int, default=256, help="of a case (default: %(default)s)")
    add("--max-steps", type=int, default=100, help="of a sample, that clients may ask for (default: %(default)s)")
    add("--max-cohorts", type=int, default=100, help="that may be unfinished at once (default: %(default)s)")
    add("--max-upload-mb", type=int, default=8192, help="size of an uploaded file (default: %(default)s)")
    add(
        "--database",
        default=os.environ.get("LDSEG_DATABASE_URL", ""),
        metavar="URL",
        help="of the jobs: postgresql://... lets several services share them (default: LDSEG_DATABASE_URL, or a file)",
    )
    add("--runs", type=Path, help="home of jobs, results and the registry (default: LDSEG_HOME or runs)")
    add("--object-store-mb", type=int, default=300, help="of a local Ray (default: %(default)s)")
    _add_access(parser)
    return parser.parse_args(arguments)


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Who may use the service, and what it may read for them."""
    add = parser.add_argument
    add(
        "--allow-root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder that cohorts may be read from; may be given several times (default: none, uploads only)",
    )
    add(
        "--allow-url",
        action="append",
        default=[],
        metavar="PREFIX",
        help="what the URL of a cohort's image may begin with, such as s3://bucket/folder/ (default: no URLs)",
    )
    add(
        "--allow-model",
        action="append",
        default=[],
        metavar="NAME",
        help="registered model that clients may ask for beside --model; may be given several times",
    )
    add(
        "--token-env",
        default="LDSEG_TOKEN",
        metavar="NAME",
        help="environment variable with the token that clients must send; without one it is made up and printed "
        "(default: %(default)s)",
    )
    add(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="TOML or JSON: a table [NAME] for each token, with sha256, max_unfinished_cases, max_priority, operator",
    )
    add("--hash-token", action="store_true", help="read a token from standard input, print its sha256, and end")
    add("--no-token", action="store_true", help="ask for no token: all users of this machine may use the service")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which clients call the service, beside localhost and --host; may be given several times",
    )
    add("--behind-proxy", action="store_true", help="a proxy with TLS stands in front, so --host may be any address")
    add("--certificate", type=Path, metavar="FILE", help="speak TLS with this certificate (PEM), without a proxy")
    add("--key", type=Path, metavar="FILE", help="of the certificate (PEM)")
    add("--log-names", action="store_true", help="name cases in the access and audit logs (default: digests of names)")


def settings_of(options: argparse.Namespace) -> Settings:
    """Of the service."""
    from serve.http.security import check_reach
    from serve.settings import Settings

    missing = [str(root) for root in options.allow_root if not root.is_dir()]
    if missing:
        raise ValueError(f"--allow-root {missing[0]} is no folder; correct the path")
    if bool(options.certificate) != bool(options.key):
        raise ValueError("--certificate and --key come together; give both")
    settings = Settings(
        model=options.model,
        home=str(place.home(options.runs)),
        allow_roots=tuple(str(root) for root in options.allow_root),
        allow_urls=tuple(options.allow_url),
        allow_models=tuple(options.allow_model),
        allow_hosts=(options.host, *options.allow_host),
        behind_proxy=options.behind_proxy,
        log_names=options.log_names,
        database=options.database,
        tokens=tokens_of(options),
        replicas=options.replicas,
        gpus_per_replica=options.gpus_per_replica,
        cpus_per_replica=0.5 if options.gpus_per_replica == 0 else 1.0,
        threads_per_replica=options.threads,
        cases_in_flight=options.cases_in_flight,
        keep_samples=options.keep_samples,
        max_samples=options.max_samples,
        max_steps=options.max_steps,
        max_cohorts=options.max_cohorts,
        max_upload_bytes=options.max_upload_mb * 2**20,
    )
    check_reach(options.host, settings, certificate=bool(options.certificate))
    return settings


def tokens_of(options: argparse.Namespace) -> dict[str, Token]:
    """The tokens that clients may send. Where none is given one is made up, and kept in `options.made_token`.

    Raises:
        ValueError: some are given, and --no-token.
    """
    from serve.tokens import DEFAULT, Token, hash_token, load_tokens, take_token

    options.made_token, token = "", take_token(options.token_env)
    found = load_tokens(options.tokens) if options.tokens else {}
    if options.no_token:
        if token or found:
            raise ValueError("--no-token contradicts the tokens that are given; leave one of them out")
        return {}
    if not token and not found:
        token = options.made_token = secrets.token_urlsafe(24)
    if token:
        found = {DEFAULT: Token(sha256=hash_token(token), max_priority=MAX_PRIORITY, operator=True)} | found
    return found


def print_hash() -> int:
    """The hash of the token that is typed or piped in, for a file of tokens."""
    from serve.tokens import hash_token

    token = getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not token:
        raise ValueError("the token is empty; type one, or pipe one in")
    print(hash_token(token))
    return 0


def check_port(host: str, port: int) -> None:
    """Tell at once when the port is taken.

    Raises:
        ValueError: it can't be listened on.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise ValueError(f"can't listen on {host}:{port} ({error.strerror}); give another --port") from error


def run(options: argparse.Namespace, stop: threading.Event) -> int:
    """Start, tell where, wait, stop."""
    settings = settings_of(options)
    check_port(options.host, options.port)
    from ldseg.orchestration.cluster import connection
    from ldseg.orchestration.cluster.launcher import first_line
    from serve import backpressure
    from serve.app import build

    backpressure.announce(behind_proxy=options.behind_proxy)
    application = build(settings.to_dict())
    try:
        cpus = max(4, options.replicas + 2)
        connection.connect(num_cpus=cpus, object_store_mb=options.object_store_mb, dashboard=False)
    except Exception as error:  # also what Ray raises where a cluster's address is wrong
        raise RuntimeError(first_line(error)) from error
    _catch(stop)  # again: Ray's start has put its own handler in the place of ours
    from ray import serve
    from ray.exceptions import RayError

    try:
        if not stop.is_set():
            try:
                serve.start(http_options=_http_options(options))
                serve.run(application, name="ldseg", route_prefix="/")
            except RayError as error:
                cause = str(error).strip().splitlines()[0]
                raise RuntimeError(f"Ray Serve did not start ({cause}); is the machine overloaded?") from error
            _announce(options, settings)
            while not stop.wait(1):  # in pieces, so that signals are seen
                if not connection.alive():
                    return _ended()
            print("stopping", flush=True)
            serve.delete("ldseg")  # on a shared cluster the rest of Serve is not ours to stop
    finally:
        connection.shutdown()
    return 0


def _ended() -> int:
    """Without its Ray the program serves nothing: whoever keeps it running must see it end."""
    sentence = "Ray has ended; start the service again, and what was begun goes on"
    print(f"serve_model: {sentence}", file=sys.stderr, flush=True)
    timer = threading.Timer(PATIENCE_S, os._exit, (1,))
    timer.daemon = True
    timer.start()  # should what is left of Ray not let itself be ended
    return 1


def _catch(stop: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())


def _http_options(options: argparse.Namespace) -> dict[str, Any]:
    """Of Ray Serve."""
    found: dict[str, Any] = {"host": options.host, "port": options.port}
    if options.certificate:
        found |= {"ssl_certfile": str(options.certificate), "ssl_keyfile": str(options.key)}
    return found


def _announce(options: argparse.Namespace, settings: Settings) -> None:
    scheme = "https" if options.certificate else "http"
    url = f"{scheme}://{f'[{options.host}]' if ':' in options.host else options.host}:{options.port}"
    header = ' -H "Authorization: Bearer $LDSEG_TOKEN"' if settings.tokens else ""
    print(f"serving {settings.model} at {url}")
    if options.made_token:
        print(f"  in a browser: {url}/#token={options.made_token}")
        print(f"  in a terminal, first: export LDSEG_TOKEN={options.made_token}")
    print(f"  curl{header} -F image=@volume.nii.gz -F samples=8 {url}/v1/segmentations")
    print(f"  python platform/segment.py --url {url} --data DIR --out DIR")
    print("Ctrl-C stops it", flush=True)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    options, stop = parse(arguments, prog), threading.Event()
    _catch(stop)
    try:
        with needs("serve", prog or "serve_model.py"):
            return print_hash() if options.hash_token else run(options, stop)
    except ValueError as error:
        print(f"serve_model: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"serve_model: the service did not start: {error}", file=sys.stderr)
        return 2
