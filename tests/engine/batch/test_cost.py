"""What a step costs, counted: the dtype of each matmul, waits for the device, peak memory."""

import copy
import sys
import weakref
from pathlib import Path

import pytest
import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from engine.base import zero
from engine.base.recipe import Lora, Loss
from engine.base.trainable_base import read_trainable_base
from engine.base.watchdog import Watchdog
from engine.batch.loader import WaitClock
from engine.loop import train_step
from engine.model.forward import LossModel
from engine.model.lora import add_lora
from engine.model.losses import codebook_weights, weighted_loss
from engine.model.weights import load_base
from engine.plan.plan import Pack, Sample
from engine.run import build_engine
from tests.fixtures.steps import make_job, open_reader

MATMULS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "matmul")
ATTENTION = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")
SAMPLES = tuple(
    Sample(target=target, dialogue=-1, references=references, num_tokens=0)
    for target, references in [(1, (0,)), (4, ()), (2, (3, 0))]
)


class Multiplications(TorchDispatchMode):
    """(operator, dtypes of its inputs, shapes) of every matmul and attention call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in MATMULS or name in ATTENTION:
            inputs = [value for value in args if isinstance(value, torch.Tensor)][:4]  # not attention's logsumexp
            self.calls.append((name, {value.dtype for value in inputs}, [tuple(value.shape) for value in inputs]))
        return func(*args, **(kwargs or {}))


def multiplications_of_a_bf16_step(model_folder, data):
    """Those of forward, loss, backward and update of one pack, through DeepSpeed."""
    overrides = ["run.precision=bf16", "batch.packs_per_step=1", "lora.dropout=0.1"]
    job = make_job(model_folder, data, Path("/nonexistent"), overrides)
    engine = build_engine(job)
    zero.set_lr(engine, 1e-3)
    batch = job.reader[Pack(SAMPLES)].batch
    with Multiplications() as seen:
        sums = engine(batch)
        engine.backward(weighted_loss(sums, 3 * len(SAMPLES), 100, Loss(), codebook_weights(Loss(), len(sums.audio))))
        engine.step()
    engine.destroy()
    return seen.calls


def is_rope_frequencies(name, shapes):
    """Positions times inverse frequencies, an outer product, which inference has in fp32 too."""
    return name == "bmm" and shapes[0][-1] == shapes[1][-2] == 1


def test_no_matmul_or_attention_of_a_bf16_step_runs_in_fp32_but_the_rope_frequencies(
    one_rank, model_folder, random_corpus
):
    calls = one_rank.run(multiplications_of_a_bf16_step, model_folder, random_corpus.folder)[0]
    slow = [(name, shapes) for name, dtypes, shapes in calls if dtypes != {torch.bfloat16}]
    assert all(is_rope_frequencies(name, shapes) for name, shapes in slow), slow
    names = [name for name, _, _ in calls]
    assert len(slow) == 1
    assert sum(name in ATTENTION for name in names) >= 2 * len(SAMPLES) * 4, "attention went unseen"
    assert sum(name in MATMULS for name in names) > 100, "matmuls went unseen"


class Waits(TorchFunctionMode):
    """Python calls that make the host wait for the device, each with the file that makes it."""

    NAMES = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.NAMES:
            self.seen.append((func.__name__, Path(sys._getframe(1).f_code.co_filename).name))
        return func(*args, **(kwargs or {}))


class WaitingOperators(TorchDispatchMode):
    """Operators whose result has a size or a value that the host must know: a wait on CUDA."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
        if name in self.NAMES or any(index is not None and index.dtype == torch.bool for index in indices):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def waits(model, batch):
    with Waits() as calls, WaitingOperators() as operators:
        sums = model(batch)
        weighted_loss(sums, 3 * len(SAMPLES), 100, Loss(), codebook_weights(Loss(), len(sums.audio)))
    return calls.seen, operators.seen


class Uploads(TorchDispatchMode):
    """How many tensors are made of Python numbers: each would be a copy to the device."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += func.overloadpacket.__name__ == "lift_fresh"
        return func(*args, **(kwargs or {}))


def uploads_of_steps(model_folder, data):
    """Those of each of three global steps, and of one tensor."""
    job = make_job(model_folder, data, Path("/nonexistent"), ["run.precision=fp32", "batch.packs_per_step=1"])
    engine, found = build_engine(job), []
    for number in range(3):
        step = job.plan.step(number)
        clock = WaitClock(iter([job.reader[pack] for pack in step.packs]))
        with Uploads() as uploads:
            train_step(engine, clock, step, number, 1e-4, job.recipe, Watchdog(0))
        found.append(uploads.seen)
    engine.destroy()
    with Uploads() as uploads:
        torch.tensor([1.0])
    return found, uploads.seen


def test_the_weights_of_the_losses_go_to_the_device_once_a_run(one_rank, model_folder, random_corpus):
    (first, *others), one = one_rank.run(uploads_of_steps, model_folder, random_corpus.folder)[0]
    assert one == 1, "uploads go unseen"
    assert others == [first - 1, first - 1], "the weights, beside what DeepSpeed copies in every step"


@pytest.mark.parametrize("num_checkpointed_layers", [0, 2])
def test_nothing_waits_for_the_device_between_batch_and_loss(num_checkpointed_layers, model_folder, random_corpus):
    """Attention's tolist is the CPU path's alone: CUDA reads the segments in its kernel."""
    model = LossModel(add_lora(load_base(model_folder, torch.float32), Lora(dropout=0.1)), num_checkpointed_layers)
    calls, operators = waits(model, open_reader(random_corpus.folder, model_folder, "packed")[Pack(SAMPLES)].batch)
    assert set(calls) == {("tolist", "attention.py")}
    assert not operators
    calls, operators = waits(model, open_reader(random_corpus.folder, model_folder, "boson")[Pack(SAMPLES)].batch)
    assert calls, "Boson's forward waits, so the test would see it"
    assert operators


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside hold at one time."""

    def __init__(self):
        super().__init__()
        self.peak = self.live = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {id(value.untyped_storage()) for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)}
        result = func(*args, **(kwargs or {}))
        for storage in (value.untyped_storage() for value in tree_leaves(result) if torch.is_tensor(value)):
            if id(storage) not in given and storage not in self.known:
                self.known[storage] = True
                weakref.finalize(storage, self.free, storage.nbytes())
                self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        return result

    def free(self, num_bytes):
        self.live -= num_bytes


def peak_bytes(model_folder, corpus_folder, forward, vocabulary):
    """Of forward, loss and backward."""
    config = copy.deepcopy(read_trainable_base(model_folder).config)  # the reader keeps what it has read
    config.text_config.vocab_size = vocabulary
    torch.manual_seed(0)
    base = HiggsAudioModel(config).requires_grad_(False).train()
    model = LossModel(add_lora(base, Lora(mode="attention", dropout=0.1)))
    batch = open_reader(corpus_folder, model_folder, forward)[Pack(SAMPLES)].batch
    with PeakBytes() as held:
        sums = model(batch)
        weighted_loss(sums, 3 * len(SAMPLES), 100, Loss(), codebook_weights(Loss(), len(sums.audio))).backward()
    return held.peak


def test_peak_memory_grows_with_the_vocabulary_at_labelled_positions_alone(model_folder, random_corpus):
    small, large = 1_000, 21_000
    stream = open_reader(random_corpus.folder, model_folder, "packed")[Pack(SAMPLES)].batch
    growth = {
        forward: peak_bytes(model_folder, random_corpus.folder, forward, large)
        - peak_bytes(model_folder, random_corpus.folder, forward, small)
        for forward in ("packed", "boson")
    }
    one_row = (large - small) * 4  # fp32 logits of a position
    assert growth["packed"] <= 4 * len(stream.text_labels) * one_row
    assert growth["boson"] >= len(stream.position_ids) * one_row, "the oracle has logits everywhere"
