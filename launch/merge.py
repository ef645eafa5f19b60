"""Merge: a checkpoint's adapter into its base, as a folder that Boson's own loaders open.

    python -m launch.merge --checkpoint runs/first/checkpoints/best --out merged/ [--base FOLDER]

The folder is complete (weights, config, tokenizer, voice_training.json) or absent.
"""

import argparse
from pathlib import Path

from preprocess.common.errors import InputError, exit_on_input_error

EXAMPLE = "python -m launch.merge --checkpoint runs/first/checkpoints/best --out merged/"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; all missing flags are named at once."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.merge",
        description="Merge a checkpoint's LoRA adapter into its base model: a folder that HiggsAudioModel and "
        "HiggsAudioServeEngine load.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    needed.add_argument("--checkpoint", metavar="FOLDER", type=Path, help="a checkpoint or a PEFT adapter folder")
    needed.add_argument("--out", metavar="FOLDER", type=Path, help="the merged model; must not exist or be empty")
    parser.add_argument("--base", metavar="FOLDER", type=Path, help="base model (default: the one trained on)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="of the weights (default: as the base has them)")
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="skip the comparison with base + adapter, which needs 4 bytes of memory a parameter",
    )
    arguments = parser.parse_args(argv)
    missing = [f"--{name}" for name in ("checkpoint", "out") if not getattr(arguments, name)]
    if missing:
        raise InputError("command line", f"no {', '.join(missing)}", "all of them", f"For example: {EXAMPLE}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Merge and say what to do next."""
    arguments = parse_arguments(argv)
    import torch

    from engine.merge.folder import merge

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}[arguments.dtype]
    state = merge(arguments.checkpoint, arguments.base, arguments.out, not arguments.no_verify, dtype)
    conditioning = state.get("recipe", {}).get("conditioning", "codes")
    if conditioning != "codes":
        print(
            f"warning: this model was trained with conditioning={conditioning}: it expects to hear the reference as "
            "a 16 kHz waveform, which Boson's HiggsAudioServeEngine does not pass (its collator and "
            "HiggsAudioModel.generate do)"
        )
    size_gb = sum(path.stat().st_size for path in arguments.out.glob("*.safetensors")) / 1e9
    print(f"{arguments.out}: the merged model, {size_gb:.2f} GB of weights, with config, tokenizer and layout")
    print(
        f"next: python -m launch.generate --model {arguments.out} --audio-tokenizer CODEC --hubert HUBERT "
        '--reference voice.wav --reference-text "..." --text "..." --out out.wav'
    )
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
