#!/bin/bash
# Prepare on eight machines, and join when the last one is done. Run this; it submits both jobs:
#     bash docs/clusters/prepare.sh /shared/Source
# A part that is killed, alone or with its machine, is started again and goes on. If one fails, the join is cancelled.
set -euo pipefail
SOURCE=$1
PARTS=8
# Codes above 128 are signals. Other errors would come again.
ARRAY=$(sbatch --parsable --job-name=hemafast-part --array="1-$PARTS" --cpus-per-task=16 --requeue \
    --wrap "for try in 1 2 3; do \
        hemafast prepare --source '$SOURCE' --part \"\$SLURM_ARRAY_TASK_ID/$PARTS\" && exit; [ \$? -gt 128 ] || break; \
    done; exit 1")
sbatch --job-name=hemafast-join --dependency="afterok:$ARRAY" --kill-on-invalid-dep=yes --cpus-per-task=16 \
    --wrap "hemafast prepare --source '$SOURCE' --join"
