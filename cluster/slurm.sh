#!/bin/bash
# A recipe on many GPUs under Slurm; as it stands MobileLLM-R1's 16 x 8 (table 2 of the paper).
#
#   sbatch cluster/slurm.sh recipes/r1.py --size 950m --tokenizer DIR --teacher DIR --out /shared/r1-950m
#
# --out lies on a file system that all nodes share. Stages that do not train run on the first rank while the GPUs wait, so
# curate beforehand, on one machine and to the same --out: pocketlm run recipes/r1.py ... --only corpus-pretrain
#
# Five minutes before the time is up, and at a preemption, training saves its state and leaves; the job goes back into the
# queue and goes on from there. A rank that dies takes the others down within seconds; torchrun starts them anew.

#SBATCH --job-name=pocketlm
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pocketlm-%j.log

set -euo pipefail

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_node=${nodes%%$'\n'*} # not by head, which may end before scontrol has told all: with pipefail that ends the job
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node="$SLURM_GPUS_ON_NODE" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$head_node:29500" \
    --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --max-restarts=3 \
    --shutdown-timeout=240 \
    -m pocketlm.cli run "$@" &
step=$!

asked=no
trap 'asked=yes; kill -TERM "$step"' TERM

status=0
wait "$step" || status=$?
if [ "$asked" = yes ]; then
    wait "$step" || true # the first one ended with the signal; this one when training has saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
