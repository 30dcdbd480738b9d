#!/bin/sh
# Starts mongod as a replica set of one, with the options given. Members of a set know each other by a key: it is
# made here, once.
set -eu
key=/data/configdb/keyfile
if [ ! -s "$key" ]; then
    (umask 077 && head -c 756 /dev/urandom | base64 >"$key.new" && mv "$key.new" "$key")
fi
# The image's own script gives the files to its user mongodb, makes admin at the first start and runs users.js.
exec docker-entrypoint.sh mongod --replSet hyperfarm --keyFile "$key" --bind_ip_all --port "$FARM_PORT" "$@"
