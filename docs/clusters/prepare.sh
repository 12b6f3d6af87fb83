#!/bin/bash
# Prepare on eight machines, and join when the last one is done. Run this; it submits both jobs:
#     bash docs/clusters/prepare.sh /shared/Source
# A part that dies is started again, and goes on.
set -euo pipefail
SOURCE=$1
PARTS=8
ARRAY=$(sbatch --parsable --job-name=hemafast-part --array="1-$PARTS" --cpus-per-task=16 --requeue \
    --wrap "hemafast prepare --source '$SOURCE' --part \"\$SLURM_ARRAY_TASK_ID/$PARTS\"")
sbatch --job-name=hemafast-join --dependency="afterok:$ARRAY" --cpus-per-task=16 \
    --wrap "hemafast prepare --source '$SOURCE' --join"
