#!/bin/sh
# Show what runs on each host of a list: deploy/status.sh [hosts.txt] [options of `hyperfarm hosts status`]
set -eu
PATH="$(dirname "$0")/../.venv/bin:$PATH"
hosts=hosts.txt
case "${1:-}" in "" | -*) ;; *) hosts=$1 && shift ;; esac
exec hyperfarm hosts status --hosts "$hosts" "$@"
