"""Train: shards -> LoRA checkpoints, under the deepspeed launcher.

    deepspeed launch/train.py --deepspeed ds_configs/zero2.json --recipe launch/recipes/arabic_8xh200.yaml \\
        --model BASE --data shards/ --out runs/first [group.key=value ...]

The same command again resumes from the newest whole checkpoint in --out.
"""

import argparse
import json
import os
from pathlib import Path

from preprocess.errors import InputError, exit_on_input_error

EXAMPLE = (
    "deepspeed launch/train.py --deepspeed ds_configs/zero2.json --recipe launch/recipes/arabic_8xh200.yaml "
    "--model higgs-audio-v2-generation-3B-base --data shards/ --out runs/first"
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; all missing flags are named at once."""
    parser = argparse.ArgumentParser(
        prog="deepspeed launch/train.py",
        description="Train LoRA adapters of Higgs Audio v2 on a corpus of preprocess.shard, with DeepSpeed ZeRO-2. "
        "The same command again resumes from the newest whole checkpoint in --out.",
        epilog=f"example: {EXAMPLE} optimizer.lr=1e-4",
    )
    parser.add_argument("--deepspeed", metavar="JSON", help="DeepSpeed settings: ds_configs/zero2.json")
    parser.add_argument("--recipe", metavar="YAML", help="the training recipe, one of launch/recipes/ or your own")
    parser.add_argument("--model", metavar="FOLDER", help="base model: config, tokenizer and safetensors")
    parser.add_argument("--data", metavar="FOLDER", help="corpus folder that preprocess.shard finished")
    parser.add_argument("--out", metavar="FOLDER", help="run folder: checkpoints, metrics, resolved settings")
    parser.add_argument("overrides", nargs="*", metavar="group.key=value", help="overrides of the recipe")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # given by the launcher
    arguments = parser.parse_args(argv)
    missing = [
        f"--{name}" for name in ("deepspeed", "recipe", "model", "data", "out") if not getattr(arguments, name)
    ]
    if missing:
        raise InputError("command line", f"no {', '.join(missing)}", "all of them", f"For example: {EXAMPLE}")
    wrong = [text for text in arguments.overrides if "=" not in text]
    if wrong:
        raise InputError("command line", " ".join(wrong), "overrides of the form group.key=value", "Correct them.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Set up one rank and train; prints on rank 0."""
    arguments = parse_arguments(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers fork

    # Imported late, so that --help and a wrong command line answer at once.
    import deepspeed
    import torch

    from engine import checkpoint, zero
    from engine.forward import LossModel
    from engine.loader import PackReader
    from engine.loop import Progress, count_steps, train
    from engine.lora import add_lora, describe, trainable_parameters
    from engine.metrics import print_rank0
    from engine.model import base_fingerprint, load_base, load_config, load_tokenizer
    from engine.plan import Plan
    from engine.plan import describe as describe_plan
    from engine.recipe import load_recipe, recipe_dict, save_recipe
    from engine.sample import layout_cost
    from preprocess.shards import Corpus

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    deepspeed_config = zero.resolve_config(arguments.deepspeed, recipe, world_size)
    config = load_config(arguments.model)
    corpus = Corpus(arguments.data)
    refuse_other_codec(corpus, config.audio_num_codebooks, config.audio_codebook_size)

    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(recipe.run.seed)  # LoRA starts from the same random weights on every rank
    if recipe.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    cost = layout_cost(load_tokenizer(arguments.model), config, corpus.info["layout"]["system_text"])
    settings = {"cost": cost, "max_tokens": recipe.batch.max_tokens, "seed": recipe.run.seed}
    plan = Plan(corpus.index, split="train", packs_per_step=recipe.batch.packs_per_step, **settings)
    summary = plan.summary()
    refuse_other_batch(summary, recipe)
    print_rank0(describe_plan(summary))
    validation = Plan(corpus.index, split="val", packs_per_step=1, **settings).evaluation_packs()
    validation = validation[: recipe.run.evaluate_max_packs or None]

    model = LossModel(
        add_lora(
            load_base(arguments.model, torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32),
            recipe.lora,
        )
    )
    print_rank0(describe(model.model))
    engine = zero.initialize(model, deepspeed_config)

    out = Path(arguments.out)
    facts = {
        "base": str(Path(arguments.model).resolve()),
        "corpus": str(Path(arguments.data).resolve()),
        "layout": corpus.info["layout"],
        "recipe": recipe_dict(recipe),
        "identity": {
            "base_fingerprint": base_fingerprint(arguments.model),
            "codec_fingerprint": corpus.info["codec"]["fingerprint"],
            "corpus_fingerprint": corpus.fingerprint,
            "lora": recipe_dict(recipe)["lora"],
            "max_tokens": recipe.batch.max_tokens,
            "packs_per_step": recipe.batch.packs_per_step,
            "seed": recipe.run.seed,
        },
    }
    progress = Progress()
    newest = checkpoint.find_newest(out / "checkpoints", print_rank0)
    if newest is not None:
        state = checkpoint.load(newest, model.model, [name for name, _ in trainable_parameters(engine.module)])
        checkpoint.refuse_other_run(newest, state.state["identity"], facts["identity"])
        zero.restore(engine, state.masters, state.moments, state.state["step"])
        progress = Progress(state.state["step"], state.state["best_loss"], state.state["best_step"])
        print_rank0(f"resuming from {newest}, the newest checkpoint whose files have their hashes")

    total_steps = count_steps(plan, recipe)
    arithmetic = {
        "world_size": world_size,
        "packs_per_step": recipe.batch.packs_per_step,
        "accumulation": recipe.batch.packs_per_step // world_size,
        "total_steps": total_steps,
        "validation_packs": len(validation),
        "plan": summary,
    }
    print_rank0(
        f"{recipe.batch.packs_per_step} packs a step = {world_size} ranks x {arithmetic['accumulation']} accumulated; "
        f"{summary['samples_per_step']['mean']:.1f} samples and {summary['tokens_per_step']['mean']:,.0f} tokens a "
        f"step; {total_steps} steps in all, {progress.step} done"
    )
    if torch.distributed.get_rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, out / "recipe.yaml")
        (out / "deepspeed.json").write_text(json.dumps(deepspeed_config, indent=2) + "\n")
        (out / "run.json").write_text(json.dumps({**facts, **arithmetic}, indent=2) + "\n")
    torch.distributed.barrier()

    train(engine, PackReader(corpus, arguments.model), plan, validation, recipe, out, facts, progress)
    print_rank0(
        f"finished at step {progress.step} of {total_steps}. Merge the best: "
        f"python -m launch.merge --checkpoint {out}/checkpoints/best --out merged/"
    )
    engine.destroy()
    torch.distributed.destroy_process_group()
    return 0


def refuse_other_codec(corpus, num_codebooks: int, codebook_size: int) -> None:
    """Raise InputError where the corpus was encoded by a codec of another shape than the model reads."""
    codec = corpus.info["codec"]
    if (codec["num_codebooks"], codec["codebook_size"]) != (num_codebooks, codebook_size):
        raise InputError(
            str(corpus.folder / "corpus.json"),
            f"codes of {codec['num_codebooks']} codebooks x {codec['codebook_size']}",
            f"{num_codebooks} codebooks x {codebook_size}, as the model's config says",
            "Encode the corpus again with this model's codec: preprocess.shard into a new folder.",
        )


def refuse_other_batch(summary: dict, recipe) -> None:
    """Raise InputError where a step's samples miss the range that the recipe states."""
    expected, mean = recipe.batch.expected_samples_per_step, summary["samples_per_step"]["mean"]
    if expected and not expected[0] <= mean <= expected[1]:
        raise InputError(
            "recipe: batch.expected_samples_per_step",
            f"{mean:.1f} samples a step on average with batch.max_tokens={recipe.batch.max_tokens} and "
            f"batch.packs_per_step={recipe.batch.packs_per_step}",
            f"{expected[0]} to {expected[1]}",
            "Change batch.max_tokens, or state the range you mean: the learning rate was chosen for it.",
        )


if __name__ == "__main__":
    exit_on_input_error(main)
