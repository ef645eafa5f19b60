"""Counts that hold on any device: operators, bytes they move, peak bytes of tensors, bytes kept for backward."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

MATMULS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "matmul")
ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_attention_math",
    "_varlen_attn",
    "_varlen_attn_backward",
)
_FREE = ("empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "detach", "_unsafe_view")


class OperatorTally(TorchDispatchMode):
    """Counts operators that compute something, by name, and their tensors' bytes; not views and allocations.

    On CUDA each such operator is one kernel or a few. Each tensor read or written counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.matmul_bytes = self.other_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        returned = func._schema.returns
        is_view = bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write
        if not is_view and name not in _FREE:
            self.calls[name] += 1
            num_bytes = sum(t.numel() * t.element_size() for t in _tensors((args, kwargs, result)))
            if name in MATMULS:
                self.matmul_bytes += num_bytes
            else:
                self.other_bytes += num_bytes
        return result

    @property
    def num_matmuls(self) -> int:
        return sum(self.calls[name] for name in MATMULS)

    @property
    def num_others(self) -> int:
        return self.calls.total() - self.num_matmuls


class PeakBytes(TorchDispatchMode):
    """Most bytes that tensors made inside occupied at one time; tensors made before are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in before and storage not in self._seen:
                self._seen[storage] = True
                weakref.finalize(storage, self._freed, storage.nbytes())
                self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        return result

    def _freed(self, num_bytes: int) -> None:
        self._live -= num_bytes


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class SavedBytes:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters left out."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._parameters: set[int] = set()

    def see(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._parameters:
            self._storages[storage._cdata] = storage  # held, so that its address is not used again
        return tensor

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


@contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[SavedBytes]:
    """Inside, records the tensors that a forward pass keeps for backward, except weights and buffers of `model`."""
    saved = SavedBytes()
    tensors = [*model.parameters(), *model.buffers()]
    saved._parameters = {tensor.untyped_storage()._cdata for tensor in tensors}
    with torch.autograd.graph.saved_tensors_hooks(saved.see, lambda tensor: tensor):
        yield saved
