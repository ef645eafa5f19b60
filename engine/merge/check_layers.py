"""Proof of a merge, layer by layer, on the written files: no model is loaded, blocks of rows are compared."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from engine.base.trainable_base import read_trainable_base
from engine.merge.check import MergeCheck
from engine.merge.weights import AdaptedLayer, Adapter, Parts
from engine.model.weight_files import StoredTensor, stored_tensors
from preprocess.common.progress import with_progress

_NUM_INPUTS = 4
# Share of the norm. One layer in fp32, added up in two orders, differs by less than 1e-6 (measured).
_TOLERANCE = 1e-5


@torch.no_grad()
def check_layers(
    tensors: Mapping[str, StoredTensor], assigned: dict[str, Parts], adapter: Adapter, merged: Path
) -> MergeCheck:
    """Compares the folder `merged` with the base's `tensors` and the adapter. Raises RuntimeError if it is not both.

    With W the rows of a base tensor, M those written, D PEFT's merge of them in fp32, x random inputs: x D^T must be
    what PEFT's live layer makes of x, and M must be D, rounded once. All other tensors must be the base's, rounded
    likewise. The result is over the outputs of all adapted layers together.
    """
    written = stored_tensors(read_trainable_base(merged))
    if written.keys() != tensors.keys():
        raise RuntimeError(f"other tensors than the base: {sorted(written.keys() ^ tensors.keys())[:3]}")
    generator = torch.Generator().manual_seed(0)
    sums = torch.zeros(4, dtype=torch.float64)
    for name in with_progress(sorted(tensors), len(tensors), "checking", "tensors"):
        base, found = tensors[name], written[name]
        rows_written = _RowReader(found)
        if name not in assigned:
            for rows in base.blocks():
                _refuse_other(name, rows_written(len(rows)), rows)
            continue
        layer = None if "" in assigned[name] else AdaptedLayer(name, base, assigned[name], adapter)
        inputs = torch.randn(_NUM_INPUTS, base.shape[-1], generator=generator)
        pairs = layer.blocks() if layer else [(base.load(), assigned[name][""].float())]
        first = 0
        for before, expected in pairs:
            rows = rows_written(len(before))
            _refuse_other(name, rows, expected)
            live = layer.live(inputs, before, first) if layer else inputs @ expected.T
            difference, size = float((inputs @ expected.T - live).norm()), float(live.norm())
            if not difference <= _TOLERANCE * size:
                off_by = f"{difference:.1e}, where their norm is {size:.1e}"
                raise RuntimeError(f"merged {name}: outputs differ from PEFT's live layer by {off_by}")
            untouched = inputs @ before.float().T
            effect, kept = live - untouched, inputs @ rows.float().T - untouched
            changes = [(kept - effect).square(), live.square(), kept * effect, effect.square()]
            sums += torch.stack([each.double().sum() for each in changes])
            first += len(before)
    off, live_size, kept_size, effect_size = sums.tolist()
    difference = (off / live_size) ** 0.5 if live_size else 0.0
    return MergeCheck(difference, kept=kept_size / effect_size if effect_size else 1.0)


class _RowReader:
    """Hands out the rows of a stored tensor in order, as many as are asked for."""

    def __init__(self, tensor: StoredTensor) -> None:
        self._blocks: Iterator[torch.Tensor] = tensor.blocks()
        self._rest: list[torch.Tensor] = []

    def __call__(self, count: int) -> torch.Tensor:
        while sum(map(len, self._rest)) < count:
            self._rest.append(next(self._blocks))
        rows = self._rest[0] if len(self._rest) == 1 else torch.cat(self._rest)
        self._rest = [rows[count:]]
        return rows[:count]


def _refuse_other(name: str, written: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise RuntimeError unless `written` is `expected`, rounded to its dtype."""
    if not torch.equal(written, expected.to(written.dtype)):
        raise RuntimeError(f"{name} is not what was to be written")
