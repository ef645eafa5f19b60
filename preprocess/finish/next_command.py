"""The command that trains on a finished corpus, with the recipe that fits it."""

from collections.abc import Iterator

import pyarrow.compute as pc

from preprocess.common.shell import shell_line
from preprocess.corpus.base_model import BaseModel
from preprocess.corpus.shards import Corpus
from preprocess.plan.recipe_choice import RECIPES, SMALL_CORPUS, choose_recipe
from preprocess.plan.sample_lengths import ClipLength, SampleLengths, audio_columns, measure_samples


def train_command(corpus: Corpus, base: BaseModel) -> str | None:
    """One line for a shell; None where the corpus has no sample to train on.

    A small corpus gets one GPU: its few packs per step would leave the others of a server without work.
    """
    lengths = _training_lengths(corpus, base)
    if not lengths.num_samples:
        return None
    recipe, overrides = choose_recipe(lengths)
    gpus = ["--num_gpus", 1] if recipe == SMALL_CORPUS else []
    flags = ["--deepspeed", "ds_configs/zero2.json", "--recipe", RECIPES / recipe, "--model", base.folder]
    return shell_line(
        "deepspeed", *gpus, "launch/train.py", *flags, "--data", corpus.folder, "--out", "runs/first", *overrides
    )


def _training_lengths(corpus: Corpus, base: BaseModel) -> SampleLengths:
    index = corpus.index
    rows = index.filter(pc.and_(index.column("use"), pc.equal(index.column("split"), "train")))
    names = ("key", "speaker", "text_tokens", "frames", "draws_reference", "system_tokens")
    columns = (rows.column(name).to_pylist() for name in names)
    clips = [ClipLength(*values) for values in zip(*columns, strict=True)]
    return measure_samples(base, corpus.info["layout"]["system_text"], clips, _named_samples(corpus, base))


def _named_samples(corpus: Corpus, base: BaseModel) -> Iterator[tuple[str, float]]:
    """(target, tokens) of each dialogue of the train split."""
    names = ("key", "frames", "use", "split", "dialogues")
    columns = [corpus.index.column(name).to_pylist() for name in names]
    frames = dict(zip(*columns[:2], strict=True))
    for key, _, use, split, dialogues in zip(*columns, strict=True):
        for dialogue in (dialogues or ()) if use and split == "train" else ():
            audios = [audio["key"] for audio in dialogue["audios"] if audio["has_codes"]]
            yield key, dialogue["stream_tokens"] + sum(audio_columns(base, frames[audio]) for audio in audios)
