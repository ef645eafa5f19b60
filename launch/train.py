"""Train: shards -> LoRA checkpoints, under the deepspeed launcher.

    deepspeed launch/train.py --deepspeed ds_configs/zero2.json --recipe launch/recipes/arabic_8xh200.yaml \\
        --model BASE --data shards/ --out runs/first [group.key=value ...]

The same command, run again, resumes from the newest whole checkpoint in --out.
"""

import argparse
import os
import time
from pathlib import Path

from launch.arguments import require_flags
from preprocess.common.errors import InputError, exit_on_input_error
from preprocess.corpus.storage import DEFAULT_CACHE, Cache

EXAMPLE = (
    "deepspeed launch/train.py --deepspeed ds_configs/zero2.json --recipe launch/recipes/arabic_8xh200.yaml "
    "--model models/base --data shards/ --out runs/first"
)
_RANK_0_FIRST_SEC = 10.0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises InputError that names all missing flags, and for values that can't be used."""
    parser = argparse.ArgumentParser(
        prog="deepspeed launch/train.py",
        description="Train LoRA adapters of Higgs Audio v2 on a corpus of preprocess.shard, with DeepSpeed ZeRO-2. "
        "The same command, run again, resumes from the newest whole checkpoint in --out.",
        epilog=f"example: {EXAMPLE} optimizer.lr=1e-4",
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    needed.add_argument("--deepspeed", metavar="JSON", help="DeepSpeed settings: ds_configs/zero2.json")
    needed.add_argument("--recipe", metavar="YAML", help="the training recipe, one of launch/recipes/ or your own")
    needed.add_argument("--model", metavar="FOLDER", help="base model: config, tokenizer and safetensors")
    needed.add_argument(
        "--data",
        metavar="FOLDER",
        action="append",
        help="corpus that preprocess.shard finished: a folder, or an address for fsspec such as s3://bucket/shards "
        "or https://host/shards. Give --data several times to train on several corpora as one; data.repeat in the "
        "recipe says how often an epoch takes each",
    )
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        type=Path,
        help=f"folder on a local disk that keeps the shards of an address, shared by runs ({DEFAULT_CACHE})",
    )
    parser.add_argument(
        "--cache-gb",
        type=float,
        metavar="N",
        help="most that the cache may hold, in 10^9 bytes (default: as much as fits)",
    )
    needed.add_argument("--out", metavar="FOLDER", help="run folder: checkpoints, metrics, resolved settings")
    parser.add_argument("overrides", nargs="*", metavar="group.key=value", help="values that override the recipe's")
    parser.add_argument(
        "--resume",
        choices=("auto", "fresh"),
        default="auto",
        help="auto (default): continue from the newest whole checkpoint in --out, or begin if there is none; "
        "fresh: begin, and refuse an --out that has checkpoints; metrics of an earlier run there get another name",
    )
    parser.add_argument(
        "--allow-change",
        metavar="NAME[,NAME]",
        type=lambda text: text.split(","),
        default=[],
        help="continue although these differ from the checkpoint's: corpus, max_tokens, packs_per_step, seed, "
        "data.repeat and the rest of data. From there on the samples come in another order; the change is printed "
        "and recorded in state.json",
    )
    parser.add_argument(
        "--init-adapter",
        metavar="FOLDER",
        help="begin a new run with the weights of a run (its newest checkpoint), of a checkpoint, or of a PEFT "
        "adapter that this project wrote; optimizer and schedule start anew. A run that has begun resumes as usual",
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # given by the launcher
    arguments = parser.parse_intermixed_args(argv)
    require_flags(arguments, ("deepspeed", "recipe", "model", "data", "out"), EXAMPLE)
    if arguments.cache_gb is not None and not arguments.cache_gb > 0:
        raise InputError("--cache-gb", f"{arguments.cache_gb}", "a number above 0", "Leave it out for no limit.")
    wrong = [text for text in arguments.overrides if "=" not in text]
    if wrong:
        raise InputError("command line", " ".join(wrong), "overrides of the form group.key=value", "Correct them.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Train as one of the launcher's ranks."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers fork
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # run.deterministic needs it on CUDA
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # packs differ in length
    try:
        train_on_this_rank(parse_arguments(argv))
    except InputError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0:
            raise
        # If all ranks failed alike, rank 0 reports it during this time and the launcher kills this rank.
        time.sleep(_RANK_0_FIRST_SEC)
        raise InputError(f"rank {rank}: {error.where}", error.found, error.expected, error.action) from error
    return 0


def train_on_this_rank(arguments: argparse.Namespace) -> None:
    """Check the job, train or resume it, and print what to do next. Raises InputError outside the launcher."""
    if "RANK" not in os.environ:
        expected = "to be started by the deepspeed launcher"
        raise InputError("launch/train.py", "no RANK in the environment", expected, f"For example: {EXAMPLE}")

    # Imported late, so that the command answers --help and a wrong command line at once.
    from engine.base.launcher import Launcher

    launcher = Launcher()  # before the slow imports, during which the launcher may die

    import deepspeed
    import torch

    from engine.job import prepare_job
    from engine.run import train_job

    deepspeed.init_distributed()  # one rank of each node reads the base's bytes for all
    job = prepare_job(
        deepspeed=arguments.deepspeed,
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        model=arguments.model,
        data=arguments.data,
        out=arguments.out,
        world_size=int(os.environ["WORLD_SIZE"]),
        cache=Cache(
            arguments.cache or DEFAULT_CACHE, None if arguments.cache_gb is None else int(arguments.cache_gb * 1e9)
        ),
    )
    train_job(job, arguments.resume, arguments.allow_change, arguments.init_adapter, launcher)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    exit_on_input_error(main)
