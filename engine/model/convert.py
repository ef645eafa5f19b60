"""Writes a base in the other layout: names and config change, no bit of a tensor does.

Tensors are copied in blocks, file by file, so memory does not grow with the model.
"""

import shutil
from pathlib import Path

from engine.base.trainable_base import read_trainable_base
from engine.model.base_tensors import check_tensors
from engine.model.folder_files import write_folder_files
from engine.model.write_weights import write_weights
from preprocess.common.errors import InputError, explain_write_errors
from preprocess.common.files import finish_folder, refuse_used_folder
from preprocess.corpus.native_layout import Layout


def convert(source: Path, out: Path, layout: Layout) -> int:
    """Write the folder `out` in `layout`; returns the number of tensors.

    Raises InputError for a folder that is no base, whose tensors are not those of its config, or that is in this
    layout already; then nothing is left of `out`, which must be new or empty.
    """
    source, out = source.resolve(), out.resolve()
    refuse_used_folder(out)
    base, tensors = read_trainable_base(source), check_tensors(source)
    if base.layout == layout:
        expected, action = "the other layout", "Use it as it is: every command reads both layouts."
        raise InputError(str(source), f"a base in the layout of {layout} already", expected, action)
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explain_write_errors(out.parent, "Free space or name another --out, then convert again."):
            temporary.mkdir(parents=True)
            write_folder_files(base, temporary, layout)
            write_weights(tensors, temporary, layout)
            check_tensors(temporary)
            finish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(tensors)
