#!/usr/bin/env bash
# PostgreSQL and an MLflow server for a cluster: jobs of the service, studies of searches, runs and registered models.
#
#   platform/services.sh start|stop|status|environment [options]
#   platform/services.sh backup|restore FOLDER [options]
#
#   --home DIR        data, passwords, logs (default: LDSEG_SERVICES or /var/lib/ldseg)
#   --host ADDRESS    to listen on (default: 127.0.0.1); never one that strangers reach: MLflow asks for no password
#   --allow NETWORK   who may ask PostgreSQL for a password, such as 10.0.0.0/24 (default: this machine's own networks)
#   --postgres-port N (default: 5432)    --mlflow-port N (default: 5000)
#   --python FILE     with MLflow (default: .venv/bin/python of this project)
#   --user NAME       runs MLflow where root starts all (default: ldseg, made if missing; PostgreSQL runs as postgres)
#
# `start` installs Debian's packages if they are missing (as root), makes what is missing, and starts what does not run:
# a second time it changes nothing. Options are kept in DIR/options, so later commands need only --home. Passwords are
# made once, into DIR/secrets; `environment` prints what programs need, for:  source <(platform/services.sh environment)
# `backup` writes into a new FOLDER while all goes on; `restore` begins with an empty --home, and starts what is in FOLDER.
set -euo pipefail
umask 077

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMAND=${1:-help}
[ $# -gt 0 ] && shift
FOLDER=''
case $COMMAND in backup|restore) FOLDER=$(realpath -m "${1:?name the FOLDER of the backup}"); shift ;; esac
HOME_DIR=${LDSEG_SERVICES:-/var/lib/ldseg}
HOST=127.0.0.1 ALLOW=samenet POSTGRES_PORT=5432 MLFLOW_PORT=5000 RUN_AS=ldseg PYTHON=$ROOT/.venv/bin/python
DATABASES=(ldseg_jobs ldseg_studies ldseg_mlflow)
WAIT_S=300

fail() { echo "services: $*" >&2; exit 2; }

parse() {
  local given=()
  while [ $# -gt 0 ]; do
    case $1 in --home|--host|--allow|--postgres-port|--mlflow-port|--python|--user) ;; *) fail "unknown option $1; see the head of this file" ;; esac
    [ $# -gt 1 ] || fail "$1 needs a value"
    if [ "$1" = --home ]; then HOME_DIR=$(realpath -m "$2"); else given+=("$1" "$2"); fi
    shift 2
  done
  # shellcheck source=/dev/null
  [ -f "$HOME_DIR/options" ] && source "$HOME_DIR/options"
  set -- ${given[@]+"${given[@]}"}
  while [ $# -gt 0 ]; do
    case $1 in
      --host) HOST=$2 ;; --allow) ALLOW=$2 ;; --postgres-port) POSTGRES_PORT=$2 ;;
      --mlflow-port) MLFLOW_PORT=$2 ;; --python) PYTHON=$2 ;; --user) RUN_AS=$2 ;;
    esac
    shift 2
  done
}

is_root() { [ "$(id -u)" -eq 0 ]; }
as() { # USER COMMAND...: a program as another user, where root starts all
  local user=$1; shift
  if is_root; then (cd / && exec runuser -u "$user" -- "$@"); else "$@"; fi
}
postgres() { as postgres "$@"; }

install_packages() {
  PROGRAMS=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
  [ -n "$PROGRAMS" ] && return
  is_root || fail "PostgreSQL is not installed; let root run: apt-get install postgresql"
  mkdir -p /etc/postgresql-common  # or the package starts a server of its own, on the port that ours is to have
  echo "create_main_cluster = false" >> /etc/postgresql-common/createcluster.conf
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Options::=--force-confold postgresql postgresql-client
  PROGRAMS=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
}

make_python() { # a virtual environment with MLflow alone, where the project's own is not installed here
  [ -x "$PYTHON" ] && return
  PYTHON=$HOME_DIR/venv/bin/python
  [ -x "$HOME_DIR/venv/bin/mlflow" ] && return
  command -v python3.11 >/dev/null || fail "Python 3.11 is needed: apt-get install python3.11-venv, or name one by --python"
  (umask 022 && python3.11 -m venv "$HOME_DIR/venv" && "$PYTHON" -m pip install -q --disable-pip-version-check \
    -c "$ROOT/constraints.txt" mlflow "psycopg[binary]")
}

make_folders() {
  mkdir -p "$HOME_DIR"
  chmod 711 "$HOME_DIR"
  mkdir -p "$HOME_DIR"/{postgresql,socket,artifacts,logs,mlflow}
  chmod 711 "$HOME_DIR/logs"
  for name in HOST ALLOW POSTGRES_PORT MLFLOW_PORT RUN_AS PYTHON; do printf '%s=%q\n' $name "${!name}"; done > "$HOME_DIR/options"
  if is_root; then
    id "$RUN_AS" >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin "$RUN_AS"
    chown postgres: "$HOME_DIR"/{postgresql,socket}
    chown "$RUN_AS": "$HOME_DIR"/{artifacts,mlflow}
    as "$RUN_AS" "$PYTHON" -c '' 2>/dev/null || fail "$RUN_AS may not run $PYTHON; give another --python or --user"
  fi
}

make_secrets() { # one password for each database, made once
  [ -s "$HOME_DIR/secrets" ] && return
  for name in "${DATABASES[@]}"; do
    echo "${name}=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')"
  done > "$HOME_DIR/secrets.new"
  mv "$HOME_DIR/secrets.new" "$HOME_DIR/secrets"
}

url() { # DATABASE: its address with the password
  local password
  password=$(sed -n "s/^$1=//p" "$HOME_DIR/secrets")
  echo "postgresql+psycopg://$1:$password@$HOST:$POSTGRES_PORT/$1"
}

pg_ctl() { postgres "$PROGRAMS/pg_ctl" --pgdata "$HOME_DIR/postgresql" "$@"; }
psql() { postgres "$PROGRAMS/psql" -qAtX -v ON_ERROR_STOP=1 -h "$HOME_DIR/socket" -p "$POSTGRES_PORT" -U postgres "$@"; }

start_postgres() {
  if [ ! -f "$HOME_DIR/postgresql/PG_VERSION" ]; then
    postgres "$PROGRAMS/initdb" --pgdata "$HOME_DIR/postgresql" --username=postgres --encoding=UTF8 --locale=C.UTF-8 \
      --data-checksums --auth-local=peer --auth-host=reject --no-instructions > "$HOME_DIR/logs/initdb.log"
  fi
  local hba="local all postgres peer map=owner
host ${DATABASES[0]},${DATABASES[1]},${DATABASES[2]} ${DATABASES[0]},${DATABASES[1]},${DATABASES[2]} $ALLOW scram-sha-256"
  local owner=postgres
  is_root || owner=$(id -un)
  put "$HOME_DIR/postgresql/pg_hba.conf" "$hba"
  put "$HOME_DIR/postgresql/pg_ident.conf" "owner $owner postgres"
  put "$HOME_DIR/postgresql/conf.ldseg" "listen_addresses = '$HOST'
port = $POSTGRES_PORT
unix_socket_directories = '$HOME_DIR/socket'
password_encryption = 'scram-sha-256'
max_connections = 200
logging_collector = on
log_directory = 'log'
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on"
  grep -q conf.ldseg "$HOME_DIR/postgresql/postgresql.conf" || echo "include 'conf.ldseg'" >> "$HOME_DIR/postgresql/postgresql.conf"
  if pg_ctl status >/dev/null; then pg_ctl reload >/dev/null; return; fi
  # not through a pipe of ours: the server would hold it open
  pg_ctl start --wait --timeout $WAIT_S --silent --log "$HOME_DIR/postgresql/start.log" >/dev/null </dev/null ||
    { tail -5 "$HOME_DIR/postgresql/start.log" >&2; fail "PostgreSQL did not start (port $POSTGRES_PORT taken? give --postgres-port)"; }
}

put() { # FILE TEXT: as postgres' own file
  printf '%s\n' "$2" > "$1"
  ! is_root || chown postgres: "$1"
}

make_databases() { # a role for each, which owns nothing else
  local name
  for name in "${DATABASES[@]}"; do
    # through standard input: arguments of programs are seen by everyone on the machine
    psql -d postgres <<SQL
DO \$\$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$name') THEN CREATE ROLE $name LOGIN; END IF;
END \$\$;
ALTER ROLE $name PASSWORD '$(sed -n "s/^$name=//p" "$HOME_DIR/secrets")';
SELECT 'CREATE DATABASE $name OWNER $name' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '$name') \gexec
REVOKE CONNECT ON DATABASE $name FROM PUBLIC;
SQL
  done
}

mlflow_pid() { # of the server that we started; nothing if it has ended and the number is another process's now
  local pid
  pid=$(cat "$HOME_DIR/mlflow.pid" 2>/dev/null) || return 1
  grep -qzE 'mlflow|services\.sh' "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

mlflow_answers() { "$PYTHON" - "http://$HOST:$MLFLOW_PORT/health" <<'PY'
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    sys.exit(opener.open(sys.argv[1], timeout=5).status != 200)
except OSError:
    sys.exit(1)
PY
}

start_mlflow() {
  if ! mlflow_pid >/dev/null; then
    local address
    address=$(url ldseg_mlflow)
    # its database is made before its workers start: several at once would get in each other's way
    (run_mlflow "$address" -c \
      'import os; from mlflow import MlflowClient; MlflowClient(os.environ["MLFLOW_BACKEND_STORE_URI"]).search_experiments()' \
      >> "$HOME_DIR/logs/mlflow.log" 2>&1) || fail "MLflow can't use its database; $HOME_DIR/logs/mlflow.log says more"
    (run_mlflow "$address" -m mlflow server --host "$HOST" --port "$MLFLOW_PORT" --workers 2 \
      --serve-artifacts --artifacts-destination "$HOME_DIR/artifacts" \
      --allowed-hosts "$HOST:$MLFLOW_PORT,$(hostname):$MLFLOW_PORT,localhost:$MLFLOW_PORT,127.0.0.1:$MLFLOW_PORT" \
      </dev/null >> "$HOME_DIR/logs/mlflow.log" 2>&1) &
    echo $! > "$HOME_DIR/mlflow.pid"
  fi
  local end=$((SECONDS + WAIT_S))
  until mlflow_answers; do
    mlflow_pid >/dev/null || fail "the MLflow server ended (port $MLFLOW_PORT taken? give --mlflow-port); $HOME_DIR/logs/mlflow.log says more"
    [ $SECONDS -lt $end ] || fail "the MLflow server does not answer; $HOME_DIR/logs/mlflow.log says more"
    sleep 1
  done
}

run_mlflow() { # in place of a subshell, in a session of its own: all its processes can be stopped together
  local environment=(MLFLOW_BACKEND_STORE_URI="$1" MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1 HOME="$HOME_DIR/mlflow" PATH="$(dirname "$PYTHON"):$PATH")
  shift
  cd "$HOME_DIR/mlflow"
  export "${environment[@]}"
  if is_root; then
    exec setpriv --reuid "$RUN_AS" --regid "$(id -g "$RUN_AS")" --clear-groups setsid "$PYTHON" "$@"
  else
    exec setsid "$PYTHON" "$@"
  fi
}

stop_mlflow() {
  local pid
  pid=$(mlflow_pid) || { rm -f "$HOME_DIR/mlflow.pid"; return 0; }
  kill -TERM -- "-$pid" 2>/dev/null || true
  local end=$((SECONDS + 20))
  while pgrep -r D,R,S,T -s "$pid" >/dev/null; do  # not those that have ended and are not fetched yet
    [ $SECONDS -lt $end ] || { kill -KILL -- "-$pid" 2>/dev/null || true; break; }
    sleep 0.2
  done
  rm -f "$HOME_DIR/mlflow.pid"
}

show_environment() {
  [ -s "$HOME_DIR/secrets" ] || fail "there is nothing in $HOME_DIR yet; start first"
  echo "export LDSEG_DATABASE_URL=$(url ldseg_jobs)"
  echo "export LDSEG_STUDIES_URL=$(url ldseg_studies)"
  echo "export MLFLOW_TRACKING_URI=http://$HOST:$MLFLOW_PORT"
}

backup() { # the databases first: what they name is then among the files, which are never changed
  [ ! -e "$FOLDER" ] || fail "$FOLDER exists; name a new folder"
  local part=$FOLDER.part
  rm -rf "$part" && mkdir -p "$part"
  for name in "${DATABASES[@]}"; do
    postgres "$PROGRAMS/pg_dump" -Fc -h "$HOME_DIR/socket" -p "$POSTGRES_PORT" -U postgres "$name" > "$part/$name.dump"
  done
  tar -C "$HOME_DIR" -cf "$part/artifacts.tar" artifacts
  (cd "$part" && sha256sum -- *.dump artifacts.tar > SHA256SUMS && sync -f .)
  mv "$part" "$FOLDER"
}

restore() {
  (cd "$FOLDER" && sha256sum --quiet --check SHA256SUMS) || fail "$FOLDER is not a whole backup"
  for name in "${DATABASES[@]}"; do
    [ "$(psql -d "$name" <<< "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")" = 0 ] ||
      fail "$name is not empty; restore into an empty --home"
  done
  for name in "${DATABASES[@]}"; do
    postgres "$PROGRAMS/pg_restore" --exit-on-error --single-transaction --no-owner --role="$name" \
      -h "$HOME_DIR/socket" -p "$POSTGRES_PORT" -U postgres -d "$name" < "$FOLDER/$name.dump"
  done
  tar -C "$HOME_DIR" -xf "$FOLDER/artifacts.tar"
  ! is_root || chown -R "$RUN_AS": "$HOME_DIR/artifacts"
}

status() {
  local ended=0
  if pg_ctl status >/dev/null 2>&1; then echo "PostgreSQL answers at $HOST:$POSTGRES_PORT"; else echo "PostgreSQL is down"; ended=3; fi
  if mlflow_answers; then echo "MLflow answers at http://$HOST:$MLFLOW_PORT"; else echo "MLflow is down"; ended=3; fi
  return $ended
}

parse "$@"
PROGRAMS=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
case $COMMAND in
  start|restore)
    install_packages
    mkdir -p "$HOME_DIR" && make_python && make_folders && make_secrets
    start_postgres
    make_databases
    [ "$COMMAND" = start ] || restore
    start_mlflow
    status ;;
  backup) backup ;;
  stop)
    stop_mlflow
    ! pg_ctl status >/dev/null 2>&1 || pg_ctl stop --wait --mode fast --silent
    echo "stopped" ;;
  status) status ;;
  environment) show_environment ;;
  *) sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
