"""What a corpus holds, and one clip as the model is trained on it."""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess.common.errors import InputError
from preprocess.common.files import write_output
from preprocess.corpus.dialogue import audios_of, canonical_dialogue, read_dialogue

if TYPE_CHECKING:
    from preprocess.corpus.shards import Clip, Corpus

EXAMPLE_AUDIO = "python -m launch.show shards/ KEY --audio key.wav --audio-tokenizer CODEC --hubert HUBERT"


def show_corpus(corpus: "Corpus", num_lines: int) -> None:
    """Print the corpus's facts and a line a clip. Text is printed in logical order, as it is stored."""
    info, index = corpus.info, corpus.index
    codec = info["codec"]
    print(f"{corpus.folder}: {index.num_rows} clips, {sum(index.column('duration_sec').to_pylist()) / 3600:.3f} h")
    print(f"codec: {codec['num_codebooks']} codebooks of {codec['codebook_size']}, {codec['frame_rate_hz']} frames/s")
    layout, own = info["layout"], ""
    if layout.get("keep_system"):
        own = " (rows may have their own)"
    print(f"system text: {layout['system_text']!r}{own}; normaliser {layout['normaliser_version']}")
    names = ["key", "duration_sec", "speaker", "split", "use", "reason", "speaker_similarity"]
    shown = index.num_rows if num_lines == 0 else min(num_lines, index.num_rows)
    for row, entry in enumerate(index.select(names).slice(0, shown).to_pylist()):
        said = [entry["speaker"], entry["split"], use_of(entry), corpus.clip(row).meta["text"]]
        print(f"{entry['key']}  {entry['duration_sec']:6.2f} s  {'  '.join(said)}")
    if shown < index.num_rows:
        print(f"... and {index.num_rows - shown} more (--lines 0 shows all)")


def use_of(entry: dict) -> str:
    """Whether an index row is trained on, and why it is not; with the similarity of its voice where that decided."""
    voice = "" if entry["speaker_similarity"] is None else f" (voice {entry['speaker_similarity']:.2f})"
    return f"used{voice}" if entry["use"] else f"not used: {entry['reason']}{voice}"


def find_row(corpus: "Corpus", key: str) -> int:
    """The index row of the clip that `key` names or begins. Raises InputError for none or several."""
    keys = corpus.index.column("key").to_pylist()
    found = [row for row, name in enumerate(keys) if name == key] or [
        row for row, name in enumerate(keys) if name.startswith(key)
    ]
    if len(found) != 1:
        several = ", ".join(keys[row] for row in found[:5])
        raise InputError(
            f"{corpus.folder}: {key}",
            f"{len(found)} clips: {several}" if found else "no such clip",
            "the key of one clip",
            f"`python -m launch.show {corpus.folder}` lists them.",
        )
    return found[0]


def choose_dialogue(corpus: "Corpus", row: int) -> tuple[dict, list["Clip"], str]:
    """(dialogue as stored, the clips of its references, how they were chosen) of a sample that trains the clip.

    The first dialogue that names its references; else the first clip that could be drawn, where there is one. Of a
    clip that is no target, what it would be as one without a reference.
    """
    target, entry = corpus.clip(row), corpus.index.slice(row, 1).to_pylist()[0]
    if not entry["draws_reference"] and entry["dialogues"]:
        first = entry["dialogues"][0]
        keys = dict.fromkeys(audio["key"] for audio in first["audios"] if audio["key"] != target.key)
        named = [corpus.clip(find_row(corpus, key)) for key in keys]
        return target.meta["dialogues"][first["position"]], named, "named by its row"
    same = _drawable(corpus, row) if entry["draws_reference"] else []
    drawn = [corpus.clip(n) for n in same[:1]]
    how = f"one of {len(same)} that may be drawn" if same else "none: no other clip of this voice in its split"
    if not entry["draws_reference"]:
        how = "none: the clip is no target, so no sample is trained on it"
    transcripts = [(clip.key, clip.meta["text_normalised"]) for clip in drawn]
    dialogue = canonical_dialogue(target.meta["text_normalised"], transcripts, target.meta.get("system_text"))
    return dialogue, drawn, how


def _drawable(corpus: "Corpus", row: int) -> list[int]:
    """Rows that may be drawn as reference of the clip: used ones of its voice and split, but copies of itself."""
    about = corpus.index.select(["speaker", "split", "use"]).to_pylist()
    origins = corpus.index.column("derived_from").to_pylist()
    key = corpus.index.column("key")[row].as_py()
    return [n for n, other in enumerate(about) if n != row and other == about[row] and origins[n] != key]


def show_sample(corpus: "Corpus", row: int, model: Path, image: Path | None) -> None:
    """Print a training sample of the clip token by token: what is trained bears a star, audio is one line a run."""
    from engine.base.base_config import load_config, load_tokenizer
    from engine.batch.sample import build_sample
    from preprocess.corpus.dialogue import IGNORE_INDEX

    config, tokenizer = load_config(model), load_tokenizer(model)
    target = corpus.clip(row)
    dialogue, references, how = choose_dialogue(corpus, row)
    system_text = corpus.info["layout"]["system_text"]
    sample = build_sample(tokenizer, config, system_text, dialogue, target, references)
    print(f"reference: {how}\n  place  trained  token")
    clips = {clip.key: clip for clip in [*references, target]}
    place, audios = 0, [clips[audio.key] for audio in audios_of(read_dialogue(dialogue, target.key, system_text))]
    extra = config.audio_num_codebooks + 1  # BOS, EOS and the delay
    for token, label in zip(sample.input_ids.tolist(), sample.label_ids.tolist(), strict=True):
        mark = " " if label == IGNORE_INDEX else "*"
        if token == config.audio_in_token_idx:
            print(f"{place:7d}          audio that the base does not hear: {audios.pop(0).key}")
            continue
        if token != config.audio_out_token_idx:
            print(f"{place:7d}     {mark}    {token:7d} {tokenizer.decode([token])!r}")
            place += 1
            continue
        clip = audios.pop(0)
        columns = clip.codes.shape[1] + extra
        what = "reference" if label == IGNORE_INDEX else "target"
        print(f"{place:7d}     {mark}    {columns} audio columns: {what} {clip.key}, {clip.codes.shape[1]} frames")
        place += columns
    print(f"{place} tokens; trained: *")
    if image:
        _save_image(sample, config, image)
        print(f"{image}: codes of the audios, codebook by column")


def _save_image(sample, config, path: Path) -> None:
    """The delayed audio columns as the model reads them: a row a codebook, the trained audio under a line."""
    import torch
    from matplotlib.figure import Figure

    from engine.batch.sample import IGNORE_INDEX, spoken_audios
    from engine.batch.stream import lay_out

    labels = sample.label_ids[sample.input_ids == config.audio_out_token_idx]
    spoken = [sample.get_audio_codes(number) for number in spoken_audios(sample, config)]
    lengths = [codes.shape[1] + config.audio_num_codebooks + 1 for codes in spoken]
    columns = lay_out([sample], config).audio_columns
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


def save_audio(corpus: "Corpus", row: int, clip: "Clip", arguments: argparse.Namespace) -> None:
    """Write the stored waveform; with the codec, the decoded codes of the clip and of its sample's references.

    Raises InputError where there is neither waveform nor codec.
    """
    if arguments.audio_tokenizer:
        from engine.speak.decoded import write_decoded

        _, references, _ = choose_dialogue(corpus, row)
        paths = write_decoded(corpus, clip, references, arguments.audio_tokenizer, arguments.hubert, arguments.audio)
        for path, of in zip(paths, [clip, *references], strict=True):
            print(f"{path}: the codes of {of.key}, decoded")
        return
    if clip.flac is None:
        raise InputError(
            clip.key,
            "no waveform",
            "a corpus with waveforms, or the codec",
            f"Hear its codes: {EXAMPLE_AUDIO}",
        )
    write_output(arguments.audio, clip.flac, "--audio")
    print(f"{arguments.audio}: the clip at 16 kHz")
