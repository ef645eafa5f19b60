#!/bin/bash
#SBATCH --job-name=shards
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --requeue
#
# One corpus on eight nodes that share a file system:
#     sbatch docs/preprocess_slurm.sh --manifest corpus.jsonl --model models/base \
#         --audio-tokenizer models/codec --hubert models/hubert --out shards/
# A slice that is requeued keeps its finished shards. The last one to end writes index and corpus.json; should it die
# in between, run the command once more with --finalize instead of --slice.
exec python -m preprocess.shard "$@" --slice "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
