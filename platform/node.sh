#!/usr/bin/env bash
# What cluster.yaml runs on each machine of a cluster. Run again it changes nothing that is as it should be.
#
#   node.sh setup HOME   the locked packages, the project, `ray` and `python` on the PATH, HOME as the folder of all runs
#   node.sh token        a token for the cluster, on its head
#   node.sh address      this machine's address as the others know it
#   node.sh interface    the network interface towards the other machines: a host's name may mean its loopback
#
# LDSEG_VENV names a virtual environment to use in place of ~/.ldseg-venv, PYTHON the Python 3.11 to make it with.
set -euo pipefail
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${LDSEG_VENV:-$HOME/.ldseg-venv}
started=$SECONDS

say() { echo "ldseg: $*"; }

setup() {
    local home=${1:?the folder of all runs is missing} python=${PYTHON:-python3.11}
    if [ ! -x "$venv/bin/python" ]; then
        command -v "$python" >/dev/null || { say "Python 3.11 is not on $(hostname); install it or set PYTHON"; exit 1; }
        "$python" -m venv "$venv"
        say "made $venv"
    fi
    if ! "$venv/bin/python" "$tree/ldseg/orchestration/cluster/packages.py" "$tree/constraints.txt"; then
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$tree/constraints.txt"
        say "installed the packages of constraints.txt"
    fi
    if [ "$(project)" != "$tree/ldseg/__init__.py" ]; then
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e "$tree"
        say "installed the project"
    fi
    shell "$home"
    say "$(hostname) is set up ($((SECONDS - started)) s)"
}

# Where Python finds the project.
project() {
    (cd / && "$venv/bin/python" -c '
import importlib.util
found = importlib.util.find_spec("ldseg")
print(found.origin if found else "")')
}

# What every shell of this user has, those that the launcher opens too.
shell() {
    cat >"$HOME/.ldseg.sh" <<END
export PATH="$venv/bin:\$PATH"
export LDSEG_HOME="$1"
export PYTHONPATH="$tree"  # started in the home folder, Python would take ~/ldseg itself for the package ldseg
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
export RAY_worker_niceness=0  # training is what the machine is for
export RAY_worker_maximum_startup_concurrency=16  # many processes of a search only steer; by CPUs Ray warns of them
END
    local line='. ~/.ldseg.sh'
    grep -qxF "$line" "$HOME/.bashrc" 2>/dev/null || echo "$line" >>"$HOME/.bashrc"
}

token() {
    umask 077
    [ -s "$HOME/.ray/auth_token" ] && return
    mkdir -p "$HOME/.ray"
    "$venv/bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$HOME/.ray/auth_token"
    say "made a token"
}

# Own address towards the others (no packet is sent), on the head the one that cluster.yaml gives it.
address() {
    "$venv/bin/python" - <<'END'
import json, os, socket
path, head = os.path.expanduser("~/ray_bootstrap_config.yaml"), os.environ.get("RAY_HEAD_IP")
if head is None and os.path.exists(path):
    with open(path) as file:
        own = json.load(file)["provider"].get("head_ip")
    if own:
        print(socket.gethostbyname(own))
        raise SystemExit
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect((head or "192.0.2.1", 1))
    print(sock.getsockname()[0])
END
}

interface() {
    "$venv/bin/python" - "$(address)" <<'END'
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for _, name in socket.if_nameindex():
        try:
            found = fcntl.ioctl(sock, 0x8915, struct.pack("256s", name.encode()))[20:24]  # SIOCGIFADDR
        except OSError:
            continue
        if socket.inet_ntoa(found) == sys.argv[1]:
            print(name)
            break
    else:
        sys.exit(f"ldseg: no network interface has the address {sys.argv[1]}")
END
}

case ${1:-} in
    setup | token | address | interface) "$@" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
