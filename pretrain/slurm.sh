#!/bin/bash
# Pretraining on several machines under SLURM: `sbatch pretrain/slurm.sh configs/pretrain/NAME.yaml runs/NAME`.
# docs/pretraining.md explains how it works.
#SBATCH --job-name=luna
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1        # one launcher per machine, which starts one process per GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@900          # fifteen minutes before the time limit: save a checkpoint and stop
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

config=$1 run=$2
gpus=8
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=840  # seconds that a launcher gives its processes after TERM; the default is 30
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export config run gpus head

srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file configs/accelerate/many_nodes.yaml \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * gpus))" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$head" --main_process_port "$((20000 + SLURM_JOB_ID % 10000))" \
        pretrain/run_mlm.py "$config" --output_dir "$run" --on_bad_checkpoint previous
' || true

# A launcher has its own exit code; status.json has the state of the run.
state=$(sed -n 's/.*"state": "\(.*\)",/\1/p' "$run/status.json")
echo "The run is $state."
case $state in
    finished) exit 0 ;;
    stopped | running) scontrol requeue "$SLURM_JOB_ID" ;;  # stopped by a signal, or lost a machine or a process
    failed) exit 1 ;;  # status.json has the message: an invalid key, a full disk, a diverged loss
    *) echo "$run/status.json is damaged: submit the job again to resume the run."; exit 1 ;;
esac
