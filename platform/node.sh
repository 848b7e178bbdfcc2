#!/usr/bin/env bash
# What cluster.yaml runs on each machine of a cluster. Run again it changes nothing that is as it should be.
#
#   node.sh setup HOME   the locked packages, the project, `ray` and `python` on the PATH, HOME as the folder of all runs
#   node.sh token        a token for the cluster, on its head
#   node.sh address      the head's address as the machines know it
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
    if ! "$venv/bin/python" "$tree/ldseg/orchestration/lock.py" "$tree/constraints.txt"; then
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

address() {
    "$venv/bin/python" -c '
import json, os, socket
with open(os.path.expanduser("~/ray_bootstrap_config.yaml")) as file:
    print(socket.gethostbyname(json.load(file)["provider"]["head_ip"]))'
}

interface() {
    if [ -n "${RAY_HEAD_IP:-}" ]; then
        ip -o -4 route get "$RAY_HEAD_IP" | sed 's/.* dev \([^ ]*\) .*/\1/'
    else
        ip -o -4 addr show to "$(address)" | awk '{ print $2; exit }'
    fi
}

case ${1:-} in
    setup | token | address | interface) "$@" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
