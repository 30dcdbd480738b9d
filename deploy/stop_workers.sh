#!/bin/sh
# Stop the workers of a list of hosts; running trials finish first: deploy/stop_workers.sh [hosts.txt] [options of `hyperfarm hosts down`]
set -eu
PATH="$(dirname "$0")/../.venv/bin:$PATH"
hosts=hosts.txt
case "${1:-}" in "" | -*) ;; *) hosts=$1 && shift ;; esac
exec hyperfarm hosts down --hosts "$hosts" "$@"
