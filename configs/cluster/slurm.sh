#!/usr/bin/env bash
# Restore shards on the nodes of a Slurm job: Ray is started on them, and ends with the job.
#
#   sbatch configs/cluster/slurm.sh 'shards/*.tar' restored --model models/BUNDLE.safetensors
#
# What follows the script's name goes to `vsp restore`. Submit from the checkout, which all nodes
# see under the same path, as they see IN and OUT. Shortly before the time limit the run stops in
# good order and the job queues itself again. Not tried on a real cluster yet; sizes are explained
# in docs/cluster.md.
#SBATCH --job-name=vsp-restore
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=24
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

GPUS_PER_NODE=4
THREADS=4 # of a worker, for torch; they decide the last bits on a CPU
PORT=6379
BIN="$SLURM_SUBMIT_DIR/.venv/bin"

# Whoever reaches Ray's ports may run code: a secret that only this job knows.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

on() { # on NODE COMMAND...: a step beside others
  srun --nodes=1 --ntasks=1 --overlap -w "$1" "${@:2}"
}

ray_start=("$BIN/ray" start --block --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$GPUS_PER_NODE")
on "$head" "${ray_start[@]}" --head --node-ip-address "$address" --port "$PORT" \
  --include-dashboard false &
until on "$head" "$BIN/ray" status --address "$address:$PORT" > /dev/null 2>&1; do sleep 2; done
for node in "${nodes[@]:1}"; do
  on "$node" "${ray_start[@]}" --address "$address:$PORT" &
done

"$BIN/vsp" restore --ray-address "$address:$PORT" --device cuda \
  --workers $((SLURM_NNODES * GPUS_PER_NODE)) --threads "$THREADS" "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM # the batch script runs on the first node, and so does the driver

code=0
wait "$driver" || code=$?
if [ "$code" -eq 143 ]; then # the signal ended the wait; the driver drains
  code=0
  wait "$driver" || code=$?
fi
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
