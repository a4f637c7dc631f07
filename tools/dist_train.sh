#!/usr/bin/env bash
# Trains a detector with one process per GPU, with the options of mmdet3d's tools/train.py:
#
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#
# On several machines, start it on each with NNODES, NODE_RANK and MASTER_ADDR in the environment. Two runs on one machine
# need different PORTs (29500 if not given). Without CUDA, GPUS is a number of processes on the CPU, and mmengine has to
# be told: --cfg-options model_wrapper_cfg.type=MMDistributedDataParallel model_wrapper_cfg.device_ids=None
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
config=$1
processes=$2
shift 2

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$here/train.py" "$config" --launcher pytorch "$@"
