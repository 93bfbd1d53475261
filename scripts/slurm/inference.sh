#!/usr/bin/env bash
# Generate videos under SLURM; prompts are shared out to the GPUs. Options of sbatch overrule the lines below:
#
#   sbatch scripts/slurm/inference.sh CONFIG --prompt-path PROMPTS [options of scripts/inference.py]
#   bash scripts/slurm/inference.sh --dry-run CONFIG     prints environment and command
#
#SBATCH --job-name=opensora-inference
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}" # SLURM runs a copy of this file from elsewhere
source scripts/slurm/launch.sh
launch scripts/inference.py "$@"
