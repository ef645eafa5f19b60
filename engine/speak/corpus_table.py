"""A corpus as text: its facts, one line per clip, and the row of the clip that a key names."""

from preprocess.common.errors import InputError, join_some
from preprocess.common.json_file import JsonObject
from preprocess.common.say import say
from preprocess.common.shell import shell_line
from preprocess.corpus.shards import Corpus


def show_corpus(corpus: Corpus, num_lines: int) -> None:
    """Print the corpus's facts and one line per clip, at most `num_lines` clips (0: all).

    Text is printed in logical order, as it is stored, so Arabic may look reversed in a terminal without bidi support.
    """
    info, index = corpus.info, corpus.index
    codec = info["codec"]
    say(f"{corpus.folder}: {index.num_rows} clips, {sum(index.column('duration_sec').to_pylist()) / 3600:.3f} h")
    say(f"codec: {codec['num_codebooks']} codebooks of {codec['codebook_size']}, {codec['frame_rate_hz']} frames/s")
    layout = info["layout"]
    own = " (rows may have their own)" if layout.get("keep_system") else ""
    marks = "; texts may have marks for sounds" if layout.get("allow_marks") else ""
    say(f"system text: {layout['system_text']!r}{own}; normaliser {layout['normaliser_version']}{marks}")
    names = ["key", "duration_sec", "speaker", "split", "use", "reason", "speaker_similarity"]
    shown = index.num_rows if num_lines == 0 else min(num_lines, index.num_rows)
    for row, entry in enumerate(index.select(names).slice(0, shown).to_pylist()):
        facts = [entry["speaker"] or "-", entry["split"], describe_use(entry), corpus.meta(row)["text"]]
        say(f"{entry['key']}  {entry['duration_sec']:6.2f} s  {'  '.join(facts)}")
    if shown < index.num_rows:
        say(f"... and {index.num_rows - shown} more (--lines 0 shows all)")


def describe_use(entry: JsonObject) -> str:
    """Whether an index row is used, and if not why; with the similarity to its speaker's voice if it was measured."""
    voice = "" if entry["speaker_similarity"] is None else f" (voice {entry['speaker_similarity']:.2f})"
    return f"used{voice}" if entry["use"] else f"not used: {entry['reason']}{voice}"


def find_row(corpus: Corpus, key: str) -> int:
    """The index row of the clip whose key is `key` or, if there is none, begins with it.

    Raises InputError if no clip or several match.
    """
    keys = corpus.index.column("key").to_pylist()
    found = [row for row, name in enumerate(keys) if name == key] or [
        row for row, name in enumerate(keys) if name.startswith(key)
    ]
    if len(found) != 1:
        matches = f"{len(found)} clips: {join_some([keys[row] for row in found], 5)}" if found else "no such clip"
        action = f"`{shell_line('python', '-m', 'launch.show', corpus.folder)}` lists them."
        raise InputError(f"{corpus.folder}: {key}", matches, "the key of one clip", action)
    return found[0]
