#!/bin/sh
# Installs hyperfarm from the mounted project, once per container, and runs a worker as a user without rights.
set -eu
if ! id farm >/dev/null 2>&1; then
    cp -r /project /tmp/project # pip builds in place, and the project is mounted for reading only
    # WORKER_PACKAGES is a list of words.
    # shellcheck disable=SC2086
    pip install --no-cache-dir --root-user-action=ignore /tmp/project $WORKER_PACKAGES
    rm -r /tmp/project
    useradd --create-home farm # last: an installation that was cut off begins anew
fi
install -d -o farm -g farm -m 700 /home/farm/.config /home/farm/.config/hyperfarm
install -o farm -g farm -m 600 /run/farm-secret /home/farm/.config/hyperfarm/secret
cd /home/farm
exec setpriv --reuid=farm --regid=farm --init-groups env HOME=/home/farm hyperfarm worker --slots "$WORKER_SLOTS"
