#!/bin/bash
# One training on several machines without a scheduler. Run the same line on each of them; HOST is the first one:
#     bash docs/clusters/torchrun.sh HOST 2 --preset onecycle --output /shared/runs
set -euo pipefail
HOST=$1
NODES=$2
shift 2
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # so that restarted processes do not try to reach dead ones
exec torchrun --nnodes "$NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HOST:29500" --rdzv-id hemafast \
    -m hemafast train "$@"
