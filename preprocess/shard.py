"""The offline command: a manifest and its audio files become a folder of shards, ready for training.

    python -m preprocess.shard --manifest corpus.jsonl --model BASE --audio-tokenizer CODEC --hubert HUBERT \\
        --out shards/

manifest -> rows -> clips -> plan (headers only) -> make_shard in every worker -> index, split, accounts
"""

import os

from preprocess.common.errors import exit_on_input_error, stop_on_signals
from preprocess.options import parse


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code. Raises InputError where nothing can be done."""
    args = parse(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked after the tokenizer was used

    # After the flags are read: these import torch.
    import torch

    from preprocess import console as report
    from preprocess.codec.load import load_codec
    from preprocess.codec.precision import BOSONS, Way, check_way
    from preprocess.corpus.base_model import check_codec_fits, check_system_text, read_base_model
    from preprocess.corpus.dialogue import AS_WRITTEN
    from preprocess.dry_run import show_plan
    from preprocess.encode.agreement import measure_agreement
    from preprocess.encode.failure_budget import refuse_many_failures
    from preprocess.encode.make_shard import load_screening_networks
    from preprocess.encode.output_folder import clean, corpus_settings, finishing, open_folder
    from preprocess.encode.reuse import check_reuse
    from preprocess.encode.run import make_shards, refuse_missing, split_by_state
    from preprocess.finish.accounts import finish
    from preprocess.finish.corpus_page import write_report
    from preprocess.manifest.read import read_manifest
    from preprocess.plan.clips import build_clips
    from preprocess.plan.noisy_references import add_noisy_references
    from preprocess.plan.shard_specs import plan_shards, probe_clips

    way = Way(args.device, args.precision)
    check_way(way)
    torch.set_num_threads(1)  # a process a core; and a parent's thread pool would not survive the fork
    num_cores = len(os.sched_getaffinity(0))
    num_workers = args.workers or (num_cores if way.device == "cpu" else torch.cuda.device_count())
    base = read_base_model(args.model)
    check_system_text(base, args.system_text)
    manifest = read_manifest(
        args.manifest,
        base.special_tokens,
        args.system_text,
        args.columns,
        args.val_manifest,
        keep_system=args.keep_system,
        as_written=args.layout == AS_WRITTEN,
    )
    table = build_clips(manifest, args.audio_root, args.val_audio_root)
    report.show_manifest(manifest, table, args.keep_system)
    report.show_screening(args.screening)
    headers, rejected = probe_clips(table.clips.values(), num_cores)
    if args.validate_only:
        return report.show_validation(manifest, table, headers, rejected, args.screening)
    if args.noisy_references:
        add_noisy_references(args, table, headers)
    if args.dry_run:
        report.show_problems(manifest, table, rejected)
        show_plan(args, base, table, headers, num_workers)
        return 0

    for stage, errors, num_seen in (
        ("manifest", manifest.rejected + table.rejected, manifest.num_rows),
        ("headers", list(enumerate(rejected.values())), len(table.clips)),
    ):
        failed = [error for _, error in errors if error.status == "failed"]
        refuse_many_failures(stage, failed, num_seen, args.max_failure_share)
    # What workers on the CPU share with this process. A process that has used a GPU can't be forked.
    _, codec = load_codec(args.audio_tokenizer, args.hubert, way if way.device == "cpu" else BOSONS)
    load_screening_networks(args.screening)
    check_codec_fits(base, args.audio_tokenizer, codec)
    settings = corpus_settings(args, manifest, base, codec)
    if args.reuse:
        settings |= check_reuse(args.reuse, args.out, settings)
    with open_folder(args.out, settings, args.slice):
        specs = plan_shards(args, table, headers, settings)
        if args.finalize:
            refuse_missing(specs)
        mine = args.slice.of(specs) if args.slice else specs
        settings_and_agreement = settings | measure_agreement(specs)
        reports = make_shards(mine, headers, num_workers, args.max_failure_share, args.executor)
        report.show_reused(args, reports)
        with finishing(args.out):
            if args.slice:
                reports, missing = split_by_state(specs)
                if missing:
                    return report.show_slice(args.slice, len(reports), len(specs))
            clean(args.out, reports)
            outcome = finish(args.out, manifest, table, reports, rejected, settings_and_agreement)
            write_report(args.out)
    report.show_outcome(args, outcome)
    return 0


if __name__ == "__main__":
    stop_on_signals()
    exit_on_input_error(main)
