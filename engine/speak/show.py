"""One clip as the model is trained on it: the samples that a run plans for it, read by the run's own loader."""

import dataclasses
import io
from pathlib import Path

import torch
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from matplotlib.figure import Figure

from engine.base.recipe import Recipe
from engine.batch.loader import PackReader, ReadSample
from engine.batch.sample import audios_with_codes, layout_cost
from engine.batch.stream import make_stream
from engine.batch.whisper import check_conditioning, waveform_chunks
from engine.plan.corpora import Corpora
from engine.plan.of_run import training_plan, validation_packs
from engine.plan.plan import Sample
from engine.plan.samples import LayoutCost
from engine.speak.corpus_table import describe_use
from engine.speak.decoded import write_decoded
from preprocess.common.errors import InputError
from preprocess.common.files import write_output
from preprocess.common.say import say
from preprocess.corpus.dialogue import IGNORE_INDEX, audios_of, read_dialogue
from preprocess.corpus.shards import Corpus

# Enough to find a sample's references: the cost only decides which samples are too long.
_UNKNOWN_COST = LayoutCost(tokens_base=0, tokens_per_reference=0, columns_extra=0, text_labels=0)


def show_clip(corpus: Corpus, row: int) -> None:
    """Print the facts of a clip: those of its index row, then those stored beside its codes."""
    entry = corpus.index.slice(row, 1).to_pylist()[0]
    facts = [f"{entry['duration_sec']:.2f} s of {entry['speaker']}", entry["split"], entry["shard"]]
    say(f"{entry['key']}: {', '.join([*facts, describe_use(entry)])}")
    for name, value in sorted(corpus.meta(row).items()):
        if value not in (None, []):
            say(f"  {name}: {value}")


def find_samples(
    corpus: Corpus, corpora: Corpora, row: int, recipe: Recipe, epoch: int, cost: LayoutCost
) -> tuple[list[Sample], str]:
    """(the samples whose target is the clip of index row `row`, why some or all of its samples are missing or "").

    They are the samples of one epoch; for a clip of the validation split, those of every evaluation. `corpora`
    contains only `corpus`.
    """
    entry = corpus.index.slice(row, 1).to_pylist()[0]
    if not entry["use"]:
        return [], f"the clip is {describe_use(entry)}"
    if not (entry["draws_reference"] or entry["dialogues"]):
        return [], "the clip is no target, only a reference of others"
    if entry["split"] == "val":
        packs = validation_packs(corpora, recipe, cost)
        found = [sample for pack in packs for sample in pack.samples if sample.target == row]
        return found, "" if found else f"it is not in the first {len(packs)} packs (run.evaluate_max_packs)"
    # The number of packs per step does not change the samples, and with one pack even a tiny corpus fills a step.
    batch = dataclasses.replace(recipe.batch, packs_per_step=1)
    plan = training_plan(corpora, dataclasses.replace(recipe, batch=batch), cost).epoch(epoch)
    found, dropped = plan.samples_of(row), [tokens for key, tokens in plan.dropped if key == entry["key"]]
    if dropped:
        return found, f"{max(dropped)} tokens are more than batch.max_tokens={batch.max_tokens}"
    return found, "" if found else f"epoch {epoch} leaves it out (data.repeat={recipe.data.repeat})"


def _for_one_corpus(recipe: Recipe) -> Recipe:
    """The recipe without a data.repeat for several corpora: which of its numbers is this corpus's is not known."""
    if len(recipe.data.repeat) < 2:
        return recipe
    say(f"data.repeat={recipe.data.repeat} is for several corpora: shown as if each sample came once per epoch")
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, repeat=[]))


def show_samples(corpus: Corpus, row: int, model: Path, recipe: Recipe, epoch: int, image: Path | None) -> None:
    """Print the samples of a clip token by token, and draw the codes of the first as `image` if it is given.

    Raises InputError for a model that does not fit the corpus or the recipe.
    """
    corpora = Corpora([corpus.folder])
    recipe = _for_one_corpus(recipe)
    reader = PackReader(corpora, model, recipe.forward, recipe.conditioning)
    check_conditioning(recipe.conditioning, reader.config, corpora)
    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text, recipe.conditioning)
    planned, missing = find_samples(corpus, corpora, row, recipe, epoch, cost)
    samples = [reader.read_sample(sample) for sample in planned]
    for number, (sample, plan) in enumerate(zip(samples, planned, strict=True), 1):
        when = "every evaluation" if corpus.index.column("split")[row].as_py() == "val" else f"epoch {epoch}"
        say(f"sample {number} of {len(samples)} in {when}; {_describe_references(sample, plan)}")
        _print_tokens(reader, sample)
    if missing:
        say(f"{'other samples are dropped' if samples else 'no sample is trained on it'}: {missing}")
    if samples and image:
        _save_image(samples[0].tokens, reader.config, image)
        say(f"{image}: codes of the audios of sample 1, codebook by column")


def _describe_references(sample: ReadSample, plan: Sample) -> str:
    keys = ", ".join(clip.key for clip in sample.references)
    if plan.dialogue >= 0:
        return f"named by its row: {keys or 'no reference'}"
    return f"reference, drawn: {keys}" if keys else "no reference: none to draw, or data.share_without_reference"


def _print_tokens(reader: PackReader, sample: ReadSample) -> None:
    """Print one line per token and per audio, with a star if it is trained."""
    config, tokens = reader.config, sample.tokens
    with_waveforms, with_codes = reader.conditioning != "codes", reader.conditioning != "whisper"
    tower_audios = [clip.key for clip in sample.references if with_waveforms for _ in waveform_chunks(clip, config)]
    dialogue = read_dialogue(
        sample.dialogue, sample.target.key, reader.system_text, tower_audios=tower_audios, with_codes=with_codes
    )
    clips = {clip.key: clip for clip in [*sample.references, sample.target]}
    place, audios = 0, [clips[audio.key] for audio in audios_of(dialogue)]
    extra = config.audio_num_codebooks + 1  # BOS, EOS and the delay
    say("  place  trained  token")
    for token, label in zip(tokens.input_ids.tolist(), tokens.label_ids.tolist(), strict=True):
        mark = " " if label == IGNORE_INDEX else "*"
        if token == config.audio_in_token_idx:
            what = "a waveform for the audio tower" if tower_audios else "audio that the model does not receive"
            say(f"{place:7d}          {what}: {audios.pop(0).key}")
        elif token == config.audio_out_token_idx:
            clip = audios.pop(0)
            frames = clip.codes.shape[1]
            what = "reference" if label == IGNORE_INDEX else "target"
            say(f"{place:7d}     {mark}    {frames + extra} audio columns: {what} {clip.key}, {frames} frames")
            place += frames + extra
        else:
            say(f"{place:7d}     {mark}    {token:7d} {reader.tokenizer.decode([token])!r}")
            place += 1
    say(f"{place} tokens{' and the waveforms' if tower_audios else ''}; trained: *")


def _save_image(sample: ChatMLDatasetSample, config: HiggsAudioConfig, path: Path) -> None:
    """Draw the delayed audio columns that the model reads: one row per codebook, a red line below trained audio."""
    labels = sample.label_ids[sample.input_ids == config.audio_out_token_idx]
    with_codes = [sample.get_audio_codes(number) for number in audios_with_codes(sample, config)]
    lengths = [codes.shape[1] + config.audio_num_codebooks + 1 for codes in with_codes]
    columns = make_stream([sample], config).audio_columns
    figure = Figure(figsize=(min(3 + columns.shape[1] / 30, 60), 3), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(columns.to(torch.float32).numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
    begin = 0
    for length, label in zip(lengths, labels.tolist(), strict=True):
        if label != IGNORE_INDEX:
            axes.plot([begin - 0.5, begin + length - 0.5], [len(columns) - 0.3] * 2, color="red", linewidth=3)
        begin += length
        axes.axvline(begin - 0.5, color="white")
    axes.set_xlabel("audio column (red: trained)")
    axes.set_ylabel("codebook")
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_output(path, data.getvalue(), "--image")


def save_waveform(corpus: Corpus, row: int, out: Path) -> None:
    """Write the stored 16 kHz waveform of a clip as a FLAC file. Raises InputError if it has none."""
    clip = corpus.clip(row, waveform=True)
    if clip.flac is None:
        action = "Decode its codes: --audio-tokenizer CODEC --hubert HUBERT, and --audio with a name in .wav."
        raise InputError(clip.key, "no waveform", "a corpus with waveforms, or the codec", action)
    write_output(out, clip.flac, "--audio")
    say(f"{out}: the clip at 16 kHz")


def save_decoded(corpus: Corpus, row: int, recipe: Recipe, epoch: int, codec: Path, hubert: Path, out: Path) -> None:
    """Write the decoded codes of a clip as `out`, and those of its first sample's references beside it.

    Raises InputError if `codec` is not the codec of the corpus.
    """
    planned, _ = find_samples(corpus, Corpora([corpus.folder]), row, _for_one_corpus(recipe), epoch, _UNKNOWN_COST)
    clips = [corpus.clip(number) for number in (row, *(planned[0].references if planned else ()))]
    paths = write_decoded(corpus, clips[0], clips[1:], codec, hubert, out)
    for path, clip in zip(paths, clips, strict=True):
        say(f"{path}: the codes of {clip.key}, decoded")
