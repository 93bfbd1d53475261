# Start the processes of a SLURM job, or print what would start them. The scripts beside this one source it.
#
# Each machine gets one torchrun, which starts a process for each GPU:
#
# launch SCRIPT [--dry-run] WORDS...
#
# Outside of a job, --dry-run takes SLURM_NNODES (2) and SLURM_GPUS_ON_NODE (8) from the environment. Variables
# that are set already stay: NCCL_SOCKET_IFNAME and NCCL_IB_HCA name the network, NCCL_DEBUG=INFO shows it.

launch() {
    local script=$1 dry=0
    shift
    if [[ ${1:-} == --dry-run ]]; then
        dry=1
        shift
    fi
    if [[ ! -f $script ]]; then
        echo "$PWD: no $script here; submit from the root of the repository." >&2
        return 2
    fi
    if [[ $dry == 0 && -z ${SLURM_JOB_ID:-} ]]; then
        echo "not in a SLURM job: submit with sbatch, or add --dry-run to see what would run." >&2
        return 2
    fi

    local nodes=${SLURM_NNODES:-2} gpus=${SLURM_GPUS_ON_NODE:-8} job=${SLURM_JOB_ID:-0}
    local machines=(FIRST_MACHINE)
    if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
        mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    fi
    local address=${machines[0]}:$((20000 + job % 20000)) # jobs that share a machine get ports of their own

    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} # of each process; the data loader has workers of its own
    export PYTHONUNBUFFERED=1
    # Seconds that torchrun gives processes to save after SIGTERM; its own 30 are too few for a long step.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}

    local command=(
        srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --kill-on-bad-exit=1
        "${PYTHON:-python}" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$gpus"
        --rdzv_backend c10d --rdzv_id "$job" --rdzv_endpoint "$address"
        "$script" "$@"
    )
    env | grep -E '^(CUDA_VISIBLE_DEVICES|NCCL_|OMP_NUM_THREADS|PYTHONUNBUFFERED|TORCH_ELASTIC_)' | sort
    printf '%q ' "${command[@]}"
    echo
    [[ $dry == 1 ]] && return 0

    # SLURM tells this script (USR1) some minutes before it ends the job. The processes are told (TERM), they
    # save and end, and the job waits in the queue again.
    local again=0 told status
    trap 'told=1 again=1; echo "the job must end: saving"; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
    trap 'told=1; echo "the job is ended: saving"' TERM # by SLURM, which told the processes and queues it again
    "${command[@]}" &
    local step=$!
    while # a signal ends the waiting, not the step; the step may end meanwhile, but its status stays to be asked for
        told=0 status=0
        wait "$step" || status=$?
        [[ $told == 1 ]]
    do
        :
    done
    if [[ $again == 1 ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}
