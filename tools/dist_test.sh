#!/usr/bin/env bash
# Tests a detector with one process per GPU, with the options of mmdet3d's tools/test.py:
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
#
# On several machines, start it on each with NNODES, NODE_RANK and MASTER_ADDR in the environment. Two runs on one machine
# need different PORTs (29500 if not given). Without CUDA, GPUS is a number of processes on the CPU, and mmengine has to
# be told: --cfg-options model_wrapper_cfg.type=MMDistributedDataParallel model_wrapper_cfg.device_ids=None
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
config=$1
checkpoint=$2
processes=$3
shift 3

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$here/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
