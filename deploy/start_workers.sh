#!/bin/sh
# Start a worker on every host of a list: deploy/start_workers.sh [hosts.txt] [options of `hyperfarm hosts up`]
set -eu
PATH="$(dirname "$0")/../.venv/bin:$PATH"
hosts=hosts.txt
case "${1:-}" in "" | -*) ;; *) hosts=$1 && shift ;; esac
exec hyperfarm hosts up --hosts "$hosts" "$@"
