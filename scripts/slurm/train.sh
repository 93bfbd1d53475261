#!/usr/bin/env bash
# Train under SLURM, on one machine or several. Options of sbatch overrule the lines below:
#
#   sbatch --nodes 4 scripts/slurm/train.sh CONFIG --run-name NAME [options of scripts/train.py]
#   bash scripts/slurm/train.sh --dry-run CONFIG --run-name NAME     prints environment and command
#
# Five minutes before the time limit, or when the job is preempted, the run saves and the job is queued again;
# it goes on where it was, because it is the same --run-name.
#
#SBATCH --job-name=opensora-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}" # SLURM runs a copy of this file from elsewhere
if [[ ! " $*" =~ \ --run[-_]name[\ =] ]]; then
    echo "give --run-name NAME: a job that is queued again finds its run by it." >&2
    exit 2
fi
source scripts/slurm/launch.sh
launch scripts/train.py "$@"
