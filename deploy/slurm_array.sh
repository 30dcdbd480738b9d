#!/bin/sh
#SBATCH --job-name=hyperfarm
#SBATCH --array=0-9
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=hyperfarm-%A_%a.log
# Workers as a Slurm job array, each task one worker: sbatch [--array=0-99 --gpus-per-task=1 ...] deploy/slurm_array.sh
#
# Slurm sends SIGTERM 120 s before the time limit: the worker claims no more, its running trials have WORKER_GRACE
# seconds to finish, then they go back to the queue with their checkpoints. Before that a worker stays, also when
# nothing waits; WORKER_OPTIONS='--max-jobs 20' makes it leave after 20 trials.
#
# The address of the database and the farm's secret are read from ~/.config/hyperfarm (mongo-url and secret, both
# chmod 600), or from what HYPERFARM_MONGO, HYPERFARM_MONGO_PASSWORD_FILE and HYPERFARM_SECRET_FILE say.
#
# WORKER_VENV     the virtual environment with hyperfarm (default: .venv where sbatch was called, else the PATH)
# WORKER_SLOTS    trials at once (default: auto, one for each GPU of the task, or else for each of its cores)
# WORKER_GRACE    seconds (default: 90; less than the 120 of --signal)
# WORKER_OPTIONS  further options of `hyperfarm worker`, with blanks between
set -u
PATH="${WORKER_VENV:-${SLURM_SUBMIT_DIR:-.}/.venv}/bin:$PATH"
name="$(uname -n)-${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-0}}_${SLURM_ARRAY_TASK_ID:-0}"
worker="" told=""
trap 'told=yes; kill -TERM "$worker" 2>/dev/null' TERM
# WORKER_OPTIONS is a list of words.
# shellcheck disable=SC2086
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
