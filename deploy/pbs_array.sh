#!/bin/sh
#PBS -N hyperfarm
#PBS -J 0-9
#PBS -l select=1:ncpus=4
#PBS -l walltime=04:00:00
#PBS -S /bin/sh
#PBS -j oe
# Workers as a PBS job array, each task one worker: qsub [-J 0-99 -v WORKER_SLOTS=4 ...] deploy/pbs_array.sh
# (Torque: -t 0-9 instead of -J, -l nodes=1:ppn=4 instead of select)
#
# PBS sends SIGTERM at the time limit, and kills some seconds later: too late for trials to finish. So the worker
# is told to drain after WORKER_SECONDS: it claims no more, its running trials have WORKER_GRACE seconds to finish,
# then they go back to the queue with their checkpoints. SIGTERM from PBS (qdel) does the same. Before that a worker
# stays, also when nothing waits; WORKER_OPTIONS='--max-jobs 20' makes it leave after 20 trials.
#
# The address of the database and the farm's secret are read from ~/.config/hyperfarm (mongo-url and secret, both
# chmod 600). Give no password by -v: PBS shows it to others.
#
# WORKER_VENV     the virtual environment with hyperfarm (default: .venv where qsub was called, else the PATH)
# WORKER_SLOTS    trials at once (default: auto, one for each GPU in CUDA_VISIBLE_DEVICES, or else for each core
#                 that the task may use: where PBS binds no cores that is every core of the host, so give a number)
# WORKER_SECONDS  when to drain (default: 120 s before walltime; give it with another walltime, but on Torque)
# WORKER_GRACE    seconds (default: 90; less than those 120)
# WORKER_OPTIONS  further options of `hyperfarm worker`, with blanks between
set -u
cd "${PBS_O_WORKDIR:-.}" || exit 2
PATH="${WORKER_VENV:-$PWD/.venv}/bin:$PATH"
name="$(uname -n)-${PBS_JOBID:-0}"
seconds="${WORKER_SECONDS:-$((${PBS_WALLTIME:-14400} - 120))}"
worker="" told=""
trap 'told=yes; kill -TERM "$worker" 2>/dev/null' TERM
# WORKER_OPTIONS is a list of words.
# shellcheck disable=SC2086
timeout --foreground --preserve-status "$seconds" \
    hyperfarm worker --name "$name" --slots "${WORKER_SLOTS:-auto}" --grace "${WORKER_GRACE:-90}" ${WORKER_OPTIONS:-} &
worker=$!
wait "$worker"
code=$?
while [ -n "$told" ]; do # A signal has ended `wait`, not the worker.
    told=""
    wait "$worker"
    code=$?
done
exit "$code"
