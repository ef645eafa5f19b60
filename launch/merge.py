"""Merge: write a checkpoint's adapter and its base as one model folder that Boson's own loaders open.

    python -m launch.merge --checkpoint runs/first/checkpoints/best --out merged/ [--base FOLDER]

The folder appears only once it is complete: weights, config, tokenizer, voice_training.json.
"""

import argparse
from pathlib import Path

from launch.arguments import require_flags
from preprocess.common.errors import exit_on_input_error
from preprocess.common.say import say
from preprocess.common.shell import shell_line

EXAMPLE = "python -m launch.merge --checkpoint runs/first/checkpoints/best --out merged/"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises InputError that names all missing flags."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.merge",
        description="Merge a checkpoint's LoRA adapter into its base model, as a folder that HiggsAudioModel and "
        "HiggsAudioServeEngine load.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    needed.add_argument("--checkpoint", metavar="FOLDER", type=Path, help="a checkpoint or a PEFT adapter folder")
    needed.add_argument("--out", metavar="FOLDER", type=Path, help="folder for the merged model, new or empty")
    parser.add_argument("--base", metavar="FOLDER", type=Path, help="base model (default: the one it was trained on)")
    parser.add_argument(
        "--format",
        choices=("boson", "transformers"),
        default="boson",
        help="layout of the folder: boson for Boson's serve engine (default); transformers for transformers 5, "
        "vLLM-Omni, MLX and GGUF",
    )
    parser.add_argument(
        "--base-id",
        metavar="ORG/NAME[@REVISION]",
        help="the base on the Hugging Face hub, for the model card (default: what `hf download` left beside it)",
    )
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="of the weights (default: as in the base)")
    parser.add_argument(
        "--verify",
        choices=("layers", "model", "none"),
        default="layers",
        help="layers (default): read the written files again, and compare each layer with PEFT's live one; model: "
        "compare the logits of whole models, 4 bytes of memory per parameter; none",
    )
    arguments = parser.parse_args(argv)
    require_flags(arguments, ("checkpoint", "out"), EXAMPLE)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Merge, and print what was written and what to do next."""
    arguments = parse_arguments(argv)
    import torch

    from engine.merge.folder import merge_checkpoint
    from engine.speak.model_card import describe_training

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}[arguments.dtype]
    state = merge_checkpoint(
        arguments.checkpoint,
        arguments.base,
        arguments.out,
        verify=arguments.verify,
        dtype=dtype,
        layout=arguments.format,
        base_id=arguments.base_id,
    )
    if state:
        say(", ".join(f"{what} {words}" for what, words in describe_training(state).items()))
    conditioning = state.get("recipe", {}).get("conditioning", "codes")
    if conditioning != "codes":
        say(
            f"warning: this model was trained with conditioning={conditioning}: it expects the reference's 16 kHz "
            "waveform too, which Boson's HiggsAudioServeEngine does not pass on (its collator and "
            "HiggsAudioModel.generate do)"
        )
    size_gb = sum(path.stat().st_size for path in arguments.out.glob("*.safetensors")) / 1e9
    say(f"{arguments.out}: the merged model, {size_gb:.2f} GB of weights, with config, tokenizer and layout")
    words = ["python", "-m", "launch.generate", "--model", arguments.out, "--audio-tokenizer", "CODEC"]
    words += ["--hubert", "HUBERT", "--reference", "voice.wav", "--reference-text", "...", "--text", "..."]
    say(f"next: {shell_line(*words, '--out', 'out.wav')}")
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
