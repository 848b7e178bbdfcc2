#!/bin/sh
# platform/tune.py, with --resume if the study is there already: the same command before and after anything.
#   kubernetes/search.sh --name NAME --runs DIR ...
set -eu
cd "$(dirname "$0")/.."
name='' runs=${LDSEG_HOME:-runs} before=''
for word in "$@"; do
  case $before in --name) name=$word ;; --runs) runs=$word ;; esac
  before=$word
done
[ -n "$name" ] || { echo "search: give --name, the study is found by it" >&2; exit 2; }
known='import sys; from pathlib import Path; from ldseg.orchestration.search.study import study_names as n
sys.exit(sys.argv[1] not in n(Path(sys.argv[2])))'
if [ -n "${LDSEG_STUDIES_URL:-}" ]; then
  if "${PYTHON:-python}" -c "$known" "$name" "$runs"; then set -- "$@" --resume; fi
elif [ -e "$runs/studies/$name.db" ]; then
  set -- "$@" --resume
fi
exec "${PYTHON:-python}" platform/tune.py "$@"
