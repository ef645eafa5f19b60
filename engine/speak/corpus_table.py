"""What a corpus holds: its facts, one line per clip, and the clip that a key names."""

from preprocess.common.errors import InputError
from preprocess.corpus.shards import Corpus


def show_corpus(corpus: Corpus, num_lines: int) -> None:
    """Print the corpus's facts and one line per clip. Text is printed in logical order, as it is stored."""
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
        said = [entry["speaker"], entry["split"], describe_use(entry), corpus.clip(row).meta["text"]]
        print(f"{entry['key']}  {entry['duration_sec']:6.2f} s  {'  '.join(said)}")
    if shown < index.num_rows:
        print(f"... and {index.num_rows - shown} more (--lines 0 shows all)")


def describe_use(entry: dict) -> str:
    """Whether an index row is trained on, and why it is not; with the similarity of its voice where that decided."""
    voice = "" if entry["speaker_similarity"] is None else f" (voice {entry['speaker_similarity']:.2f})"
    return f"used{voice}" if entry["use"] else f"not used: {entry['reason']}{voice}"


def find_row(corpus: Corpus, key: str) -> int:
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
