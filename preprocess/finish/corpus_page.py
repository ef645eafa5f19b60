"""report.html: a finished corpus on one page: what is in it, what was dropped and why, ten clips to listen to.

It is made from the corpus folder alone and holds no date or time: the same corpus gives the same page.
"""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.common.files import write_atomically
from preprocess.common.json_file import JsonObject, flatten
from preprocess.common.page import Markup, account_bar, escape, histogram, page, section, share_bar, table, tiles
from preprocess.corpus.shards import FAILURES_FILE, Corpus
from preprocess.finish.two_channels import PICK_ONE, find_two_channels

REPORT_FILE = "report.html"
_NUM_CLIPS, _NUM_SPEAKERS, _NUM_EXAMPLES = 10, 30, 3
# (column of the index, title, unit); the screening recipe names the thresholds min_COLUMN and max_COLUMN.
_PLOTS = (
    ("duration_sec", "Duration", "s"),
    ("rms_dbfs", "Loudness (RMS)", "dBFS"),
    ("bandwidth_hz", "Bandwidth", "Hz"),
    ("letters_per_sec", "Pace", "letters/s"),
    ("code_entropy_bits", "Code entropy", "bits per codebook"),
    ("silence_share", "Silence", "of the clip"),
    ("speech_share", "Speech (silero-vad)", "of the clip"),
    ("speaker_similarity", "Voice, to the speaker's others", "similarity"),
)
_PLOTS_NOTE = "<p>Clips in use. A dashed line is a threshold of the screening; clips beyond it were dropped.</p>"


def write_report(folder: Path) -> None:
    """Write report.html into a finished corpus folder."""
    corpus = Corpus(folder)
    parts = [
        "<h1>Corpus report</h1>",
        f"<p>{escape(_describe_format(corpus.info))}</p>",
        section("What is in it", tiles(_tiles(corpus))),
        section("Every manifest row, every clip", *_accounts(corpus.info)),
        section("What was dropped, and why", _dropped_table(corpus)),
        section("Noise in transcripts", _noise_table(corpus.info["text_noise"])),
        section("Files with two channels", _channels(corpus)),
        section("Figures of the clips", f'<div class="plots">{"".join(_plots(corpus))}</div>', _PLOTS_NOTE),
        section("Hours by language and speaker", _hours(corpus, "language"), "<p></p>", _hours(corpus, "speaker")),
        section("Clips to listen to", *_clip_cards(corpus)),
        section("Settings", _settings_table(corpus.info)),
    ]
    write_atomically(folder / REPORT_FILE, page("Corpus report", parts).encode())


def _describe_format(info: JsonObject) -> str:
    codec = info["codec"]
    return (
        f"{codec['num_codebooks']} codebooks of {codec['codebook_size']} codes, {codec['frame_rate_hz']:g} frames "
        f"per second; text normaliser {info['layout']['normaliser_version']}; shard format {info['format_version']}"
    )


def _tiles(corpus: Corpus) -> list[tuple[str, str]]:
    info = corpus.info
    tiles_shown = [
        (f"{info['hours']:.2f}", "hours"),
        (f"{info['clips']['written']:,}", "clips"),
        *((f"{copies['written']:,}", "noisy copies, for reference") for copies in _noisy_copies(info)),
        (f"{sum(info['samples'].values()):,}", "samples"),
        *((f"{count:,}", f"{split} speakers") for split, count in info["speakers"].items()),
        (f"{sum(info['lost_hours'].values()):.2f}", "hours dropped"),
        (f"{info['digits']['clips']:,}", f"transcripts with digits ({info['digits']['digits']:,})"),
    ]
    pace = info["speech"].get("sec_per_letter")
    return tiles_shown + ([(f"{1000 * pace:.0f} ms", "per letter, median")] if pace else [])


def _accounts(info: JsonObject) -> list[str]:
    return [
        f"<p>{sum(info['rows'].values()):,} rows</p>{account_bar(info['rows'])}",
        f"<p>{sum(info['clips'].values()):,} clips</p>{account_bar(info['clips'])}",
        *(f"<p>{sum(copies.values()):,} noisy copies</p>{account_bar(copies)}" for copies in _noisy_copies(info)),
    ]


def _noisy_copies(info: JsonObject) -> list[dict[str, int]]:
    """The account of noisy copies, where the corpus has any."""
    return [info["derived_clips"]] if "derived_clips" in info else []


def _dropped_table(corpus: Corpus) -> str:
    """One line per reason: rows and hours, with examples. A clip lost with its row has its reason."""
    examples: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    counts: Counter[tuple[str, str]] = Counter()
    with open(corpus.folder / FAILURES_FILE, encoding="utf-8") as file:
        for record in map(json.loads, file):
            kind = record["status"], record["reason"]
            if record["line"] is not None:
                counts[kind] += 1
                if len(examples[kind]) < _NUM_EXAMPLES:
                    examples[kind].append(f"{record['where']}: {record['found']}")
    if not counts:
        return '<div class="card">Nothing.</div>'
    lost_hours = corpus.info["lost_hours"]
    rows = [
        (status, reason, f"{count:,}", f"{lost_hours.get(reason, 0):.3f}", _examples(examples[status, reason]))
        for (status, reason), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return table(("", "reason", "rows", "hours", "for example"), rows, numbers=(2, 3))


def _noise_table(noise: JsonObject) -> str:
    """One line per kind of noise in the manifest's transcripts, dropped rows included."""
    if not noise:
        return '<div class="card">None found.</div>'
    kinds = sorted(noise, key=lambda kind: (-noise[kind]["rows"], kind))
    rows = [
        (kind, noise[kind]["what"], f"{noise[kind]['rows']:,}", _examples(noise[kind]["examples"])) for kind in kinds
    ]
    return table(("kind", "what it is", "rows", "for example"), rows, numbers=(2,))


def _channels(corpus: Corpus) -> str:
    count, examples = find_two_channels(corpus)
    if not count:
        return '<div class="card">No clip has two channels that differ.</div>'
    what = f"{count:,} clips have two channels that differ; {PICK_ONE}."
    return f'<div class="card">{escape(what)}{_examples(examples)}</div>'


def _examples(texts: list[str]) -> Markup:
    return Markup("".join(f"<div dir='auto'>{escape(text)}</div>" for text in texts))


def _plots(corpus: Corpus) -> list[str]:
    screening, plots = corpus.info["settings"]["screening"], []
    used = corpus.index.filter(pc.and_(corpus.index.column("use"), _is_recording(corpus)))
    for column, title, unit in _PLOTS:
        values = used.column(column).drop_null().to_numpy().astype(np.float64)
        limits = [screening[name] for name in (f"min_{column}", f"max_{column}") if screening.get(name) is not None]
        if len(values):
            plots.append(histogram(title, unit, values, limits))
    return plots


def _is_recording(corpus: Corpus) -> pa.ChunkedArray:
    """Per clip, whether it is a recording and no noisy copy of one."""
    return pc.is_null(corpus.index.column("derived_from"))


def _hours(corpus: Corpus, column: str) -> str:
    """Hours and clips per value of the column, the most hours first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    clips: Counter[str] = Counter()
    recordings = corpus.index.filter(_is_recording(corpus))
    columns = (recordings.column(name).to_pylist() for name in (column, "duration_sec", "use"))
    for name, duration_sec, use in zip(*columns, strict=True):
        if use:
            seconds[name or "(not given)"] += duration_sec
            clips[name or "(not given)"] += 1
    largest = sorted(seconds, key=lambda name: (-seconds[name], name))
    rows: list[tuple[str, ...]] = [
        (name, f"{seconds[name] / 3600:.3f}", f"{clips[name]:,}", share_bar(seconds[name] / seconds[largest[0]]))
        for name in largest[:_NUM_SPEAKERS]
    ]
    rest = largest[_NUM_SPEAKERS:]
    if rest:
        hours, number = sum(seconds[name] for name in rest) / 3600, sum(clips[name] for name in rest)
        rows.append((f"{len(rest):,} more", f"{hours:.3f}", f"{number:,}", ""))
    return table((column, "hours", "clips", ""), rows, numbers=(1, 2))


def _clip_cards(corpus: Corpus) -> list[str]:
    """Clips drawn by the corpus's seed, with their waveforms inside the page."""
    index, seed = corpus.index, corpus.info["settings"]["seed"]
    columns = (index.column(name).to_pylist() for name in ("key", "use", "flac_bytes"))
    candidates = [(key, row) for row, (key, use, flac) in enumerate(zip(*columns, strict=True)) if use and flac]
    if not candidates:
        return ['<div class="card">The shards hold no waveforms (--waveforms none).</div>']
    candidates.sort(key=lambda item: hashlib.sha256(f"{seed}:hear:{item[0]}".encode()).digest())
    return ['<div class="plots">', *(_clip_card(corpus, row) for _, row in sorted(candidates[:_NUM_CLIPS])), "</div>"]


def _clip_card(corpus: Corpus, row: int) -> str:
    clip = corpus.clip(row, waveform=True)
    assert clip.flac is not None
    quality = clip.meta["quality"]
    about = (
        f"{clip.meta['duration_sec']:.1f} s, {quality['rms_dbfs']:.0f} dBFS, {quality['bandwidth_hz'] / 1000:.1f} kHz"
    )
    if "augmentation" in clip.meta:
        about += f", noisy copy ({clip.meta['augmentation']['snr_db']:.0f} dB)"
    return (
        f'<div class="card"><div class="said" dir="auto">{escape(clip.meta["text_normalised"])}</div>'
        f'<p dir="auto">{escape(clip.meta["speaker"])}, {escape(about)}<br>{escape(clip.meta["source"])}</p>'
        f'<audio controls preload="none" src="data:audio/flac;base64,{base64.b64encode(clip.flac).decode()}"></audio>'
        "</div>"
    )


def _settings_table(info: JsonObject) -> str:
    groups = {name: info[name] for name in ("layout", "codec", "text_tokenizer", "waveforms", "settings", "pins")}
    rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in sorted(flatten(groups).items())]
    return table(("setting", "value"), rows)
