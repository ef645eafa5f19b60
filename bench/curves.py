"""Two trainings of one small model on the same Arabic speech, compared loss by loss.

    PYTHONPATH=. python bench/curves.py [forward | codebook_weights] [--steps 50] [--out FILE] [--plot FILE]

forward: Boson's own forward on a padded batch against the packed one, which must give the same curve.
codebook_weights: equal weights against 8,8,6,6,4,4,2,2, compared by each codebook's loss on held-out voices.

It makes its speech (espeak-ng), base, codec and shards in a temporary folder, and trains with the product's own loop
in this process: fp32, LoRA without dropout (the masks of the two forwards would differ), one seed.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from machine import describe_machine

from engine.base import zero
from engine.base.launcher import Launcher
from engine.job import prepare_job
from engine.monitor.metrics import METRICS_FILE
from engine.run import train_job
from launch.demo.arabic_speech import build_arabic_corpus
from launch.demo.small_codec import build_codec, build_hubert
from launch.demo.small_model import build_model
from preprocess import shard

ROOT = Path(__file__).parents[1]
COMPARISONS = {
    "forward": {"boson": ["forward=boson"], "packed": ["forward=packed"]},
    "codebook_weights": {
        "equal": [],
        "8,8,6,6,4,4,2,2": ["loss.codebook_weights=[8,8,6,6,4,4,2,2]"],
    },
}
VOICES, SENTENCES = 6, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compare", choices=COMPARISONS, nargs="?", default="forward")
    parser.add_argument("--steps", type=int, default=50, help="training steps of each run (50)")
    parser.add_argument("--out", type=Path, help="JSON (default: bench/results/curves_COMPARISON.json)")
    parser.add_argument("--plot", type=Path, help="SVG of both curves (default: none)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29556")
    zero.deepspeed.init_distributed()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, shards = make_data(folder)
        runs = {
            name: train(base, shards, folder / f"run{number}", arguments.steps, overrides)
            for number, (name, overrides) in enumerate(COMPARISONS[arguments.compare].items())
        }
    dist.destroy_process_group()
    first, second = runs
    result = {
        "compare": arguments.compare,
        "steps": arguments.steps,
        **describe_machine(torch.device("cpu")),
        "clips": VOICES * SENTENCES,
        "largest_difference": {
            key: max(abs(a - b) for a, b in zip(runs[first][key], runs[second][key], strict=True))
            for key in ("loss_text", "loss_audio", "grad_norm")
        },
        "runs": runs,
    }
    out = arguments.out or ROOT / "bench" / "results" / f"curves_{arguments.compare}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    for name, run in runs.items():
        print(f"{name}: last losses {run['loss_audio'][-1]:.4f} (audio), {run['loss_text'][-1]:.4f} (text)")
        print("    validation, codebook by codebook: " + ", ".join(f"{v:.3f}" for v in run["validation_audio"]))
    print(f"largest difference between the runs: {result['largest_difference']}; wrote {out}")
    if arguments.plot:
        plot(arguments.plot, runs)


def make_data(folder: Path) -> tuple[Path, Path]:
    """(base model, shards): the tiny model of the tests, and speech of some voices through its codec."""
    base, hubert = build_model(folder / "base"), build_hubert(folder / "hubert")
    codec = build_codec(folder / "codec", hubert)
    build_arabic_corpus(folder / "speech", voices=VOICES, sentences=SENTENCES)
    flags = {"manifest": folder / "speech" / "corpus.jsonl", "model": base, "audio-tokenizer": codec}
    flags |= {"hubert": hubert, "out": folder / "shards", "workers": 1, "val-speakers": 2}
    assert shard.main([text for name, value in flags.items() for text in (f"--{name}", str(value))]) == 0
    return base, folder / "shards"


def train(base: Path, shards: Path, out: Path, num_steps: int, overrides: list[str]) -> dict[str, list[float]]:
    """Loss and gradient norm of every step, and each codebook's loss on the held-out voices at the end."""
    settings = [
        "batch.loader_workers=0",
        "batch.max_tokens=4096",
        "run.precision=fp32",
        f"run.max_steps={num_steps}",
        "run.log_every=1",
        f"run.evaluate_every={num_steps}",
        f"run.save_every={num_steps}",
        "run.monitors=[]",
    ]
    job = prepare_job(
        deepspeed=str(ROOT / "ds_configs" / "zero2.json"),
        recipe=str(ROOT / "launch" / "recipes" / "demo.yaml"),  # no dropout
        overrides=[*settings, *overrides],
        model=str(base),
        data=[str(shards)],
        out=str(out),
        world_size=1,
    )
    train_job(job, mode="auto", allow_change=[], init_adapter=None, launcher=Launcher())
    lines = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    (validation,) = [line for line in lines if line["kind"] == "validation"]
    num_codebooks = job.reader.config.audio_num_codebooks
    return {
        **{key: [line[key] for line in steps] for key in ("loss_text", "loss_audio", "grad_norm")},
        "validation_audio": [validation[f"loss_audio_{codebook}"] for codebook in range(num_codebooks)],
    }


def plot(path: Path, runs: dict[str, dict[str, list[float]]]) -> None:
    """Both runs' losses over steps, the second as dots on the first's line."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "curves"  # the same bytes from the same figures
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for (name, run), style in zip(runs.items(), ("-", "."), strict=True):
        for key, colour in (("loss_audio", "tab:blue"), ("loss_text", "tab:orange")):
            values = run[key]
            axes.plot(range(1, len(values) + 1), values, style, color=colour, label=f"{key[5:]}, {name}")
    axes.set(xlabel="step", ylabel="loss, nats per labelled position")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
