"""The stages of preprocess.shard: manifest -> clips -> plan (headers only) -> shards -> index, split, accounts."""

import os

import torch

from preprocess import console
from preprocess.codec.load import load_codec
from preprocess.codec.precision import BOSON_MODE, EncodeMode, check_mode
from preprocess.common.errors import InputError, Rejected
from preprocess.common.json_file import JsonObject
from preprocess.corpus.base_model import BaseModel, check_codec_fits, read_base_model
from preprocess.corpus.dialogue import AS_WRITTEN
from preprocess.corpus.shards import Corpus
from preprocess.corpus.text import check_mark_tokens, refuse_special_tokens
from preprocess.dry_run import show_plan
from preprocess.encode.agreement import measure_agreement
from preprocess.encode.failure_budget import refuse_many_failures
from preprocess.encode.judge_clip import load_screening_networks
from preprocess.encode.make_shard import ShardReport
from preprocess.encode.output_folder import (
    account_settings,
    corpus_settings,
    hold_finish,
    hold_folder,
    remove_leftovers,
)
from preprocess.encode.preview import preview_by_decoding, preview_by_headers
from preprocess.encode.probe import probe_clips
from preprocess.encode.reuse import check_reuse
from preprocess.encode.run import make_shards, refuse_missing, split_by_state
from preprocess.finish.accounts import account_for, finish_corpus, refuse_empty
from preprocess.finish.corpus_page import write_report
from preprocess.finish.held_out import plan_validation
from preprocess.manifest.read import Manifest, read_manifest
from preprocess.plan.clips import ClipTable, build_clips
from preprocess.plan.forecast import forecast
from preprocess.plan.noisy_references import add_noisy_references
from preprocess.plan.noisy_rows import add_fast_clips, noise_facts, noise_lines, take_out_noise
from preprocess.plan.outside import refuse_outside
from preprocess.plan.settings import Settings
from preprocess.plan.shard_specs import plan_shards


def make_corpus(settings: Settings) -> int:
    """Do what the flags ask for and return the exit code. Raises InputError for input that can't be used."""
    mode = EncodeMode(settings.device, settings.precision)
    check_mode(mode)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked after the tokenizer was used
    torch.set_num_threads(1)  # there is one process per core, and a parent's thread pool would not survive the fork
    num_cores = len(os.sched_getaffinity(0))
    num_workers = settings.workers or (num_cores if mode.device == "cpu" else torch.cuda.device_count())
    base = read_base_model(settings.model)
    refuse_special_tokens("--system-text", "system text", settings.system_text, base.special_tokens)
    if settings.allow_marks:
        check_mark_tokens(f"the model {settings.model}", base.special_tokens)

    manifest = _read_manifest(settings, base)
    noise = take_out_noise(manifest, settings.screening, settings.allow_marks)
    table = build_clips(manifest, settings.audio_root_of(settings.manifest), settings.val_audio_root)
    if not settings.allow_outside:
        refuse_outside(manifest, table, settings.audio_roots)
    console.show_manifest(manifest, table, settings.keep_system, settings.speaker)
    console.show_screening(settings.screening)
    headers, rejected = probe_clips(table.clips.values(), num_cores)
    add_fast_clips(noise, table, headers)
    console.show_lines(noise_lines(noise))
    console.show_lines(forecast(settings, base, table, headers, plan_validation(settings, table, headers)))
    if settings.validate_only:
        report = preview_by_decoding(settings.screening, table, headers, num_cores)
        return _show_preview(settings, manifest, table, rejected, report, "with every clip decoded")
    if settings.noisy_references:
        add_noisy_references(settings, table, headers)
    if settings.dry_run:
        report = preview_by_headers(settings.screening, table, headers)
        how = "by the files' headers (--validate-only decodes every clip)"
        exit_code = _show_preview(settings, manifest, table, rejected, report, how)
        show_plan(settings, base, table, headers, num_workers)
        return exit_code

    _refuse_many_failures(settings, manifest, table, rejected)
    assert settings.out  # required by the flags, unless nothing is written
    recorded = _load_networks(settings, mode, manifest, base)
    with hold_folder(settings.out, recorded, settings.slice):
        specs = plan_shards(settings, table, headers, recorded)
        if settings.finalize:
            refuse_missing(specs)
        agreement = measure_agreement(specs)
        to_make = settings.slice.select(specs) if settings.slice else specs
        reports = make_shards(settings, to_make, headers, num_workers)
        console.show_reused(settings, reports)
        with hold_finish(settings.out):
            if settings.slice:
                reports, missing = split_by_state(specs)
                if missing:
                    return console.show_slice(settings.slice, len(reports), len(specs))
            remove_leftovers(settings.out, reports)
            outcome = finish_corpus(
                settings.out, manifest, table, reports, rejected, recorded | agreement | noise_facts(noise)
            )
            write_report(settings.out)
    console.show_outcome(settings, outcome, Corpus(settings.out), base)
    return 0


def _read_manifest(settings: Settings, base: BaseModel) -> Manifest:
    return read_manifest(
        settings.manifest,
        base.special_tokens,
        settings.system_text,
        settings.columns,
        settings.val_manifest,
        keep_system=settings.keep_system,
        as_written=settings.layout == AS_WRITTEN,
        speaker=settings.speaker,
        audio_root=settings.audio_root,
        allow_marks=settings.allow_marks,
    )


def _refuse_many_failures(
    settings: Settings, manifest: Manifest, table: ClipTable, rejected: dict[str, Rejected]
) -> None:
    """Stop before the encode where too many rows can't be read, or too many clips opened."""
    row_errors = [error for _, error in manifest.rejected + table.rejected]
    refuse_many_failures("manifest", row_errors, manifest.num_rows, settings.max_failure_share)
    refuse_many_failures("headers", rejected.values(), len(table.clips), settings.max_failure_share)


def _show_preview(
    settings: Settings,
    manifest: Manifest,
    table: ClipTable,
    rejected: dict[str, Rejected],
    report: ShardReport,
    how: str,
) -> int:
    """Print the accounts that a run would give. Returns the exit code: 1 where a run would stop."""
    outcome = account_for(manifest, table, [report], rejected, account_settings(settings)).outcome
    console.show_preview(settings, outcome, how)
    try:
        _refuse_many_failures(settings, manifest, table, rejected)
        num_read = len(table.clips) - len(rejected)
        refuse_many_failures("decoding", report.rejected.values(), num_read, settings.max_failure_share)
        refuse_empty(manifest, outcome)
    except InputError as error:
        console.show_stop(error)
        return 1
    return 0


def _load_networks(settings: Settings, mode: EncodeMode, manifest: Manifest, base: BaseModel) -> JsonObject:
    """Load the networks that forked workers share with this process; returns the settings for corpus.json."""
    assert settings.audio_tokenizer
    assert settings.hubert
    # On the CPU in any case: a process that has used a GPU can't be forked.
    tokenizer, codec = load_codec(
        settings.audio_tokenizer, settings.hubert, mode if mode.device == "cpu" else BOSON_MODE
    )
    if mode == BOSON_MODE:  # measure_agreement prints how the codes of others differ
        console.show_encoder(tokenizer.faster_forms)
    load_screening_networks(settings.screening)
    check_codec_fits(base, settings.audio_tokenizer, codec.num_codebooks, codec.codebook_size)
    recorded = corpus_settings(settings, manifest, base, codec)
    if settings.reuse:
        assert settings.out
        recorded |= check_reuse(settings.reuse, settings.out, recorded)
    return recorded
