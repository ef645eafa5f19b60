"""Packs -> batches: ahead of training, worker processes read clips, build samples and lay out their tensors."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from torch.utils.data import DataLoader, Dataset

from engine.base.stop import ignore_signals
from engine.base.trainable_base import read_trainable_base
from engine.batch.sample import build_sample, make_padded_batch
from engine.batch.stream import Batch, Stream, make_stream, map_tensors
from engine.plan.corpora import Corpora
from engine.plan.plan import Pack, Sample
from preprocess.common.errors import InputError, first_line
from preprocess.common.json_file import JsonObject
from preprocess.corpus.dialogue import dialogue_of
from preprocess.corpus.shards import INDEX_FILE, Clip

_PREFETCH = 4  # packs that a worker loads ahead


@dataclass
class LoadedPack:
    """A pack ready for the forward pass. `keys` are the keys of its targets, for error texts."""

    batch: Batch
    keys: list[str]

    def pin_memory(self) -> "LoadedPack":
        """The pack in pinned memory, from which copies to the GPU overlap with computing. DataLoader calls this."""
        return LoadedPack(map_tensors(self.batch, torch.Tensor.pin_memory), self.keys)


@dataclass(frozen=True)
class ReadSample:
    """A sample as the model is trained on it: the dialogue as stored, its clips, and its tokens and codes."""

    dialogue: JsonObject
    target: Clip
    references: list[Clip]
    tokens: ChatMLDatasetSample


class PackReader(Dataset[LoadedPack]):
    """Turns a Pack of a plan into a LoadedPack. Cheap to send to workers.

    forward: packed for a flat Stream, boson for Boson's padded batch. conditioning: as in the recipe. dtype: of the
    mel features in a Stream.
    """

    def __init__(
        self,
        corpora: Corpora,
        model_folder: Path | str,
        forward: str,
        conditioning: str = "codes",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.corpora = corpora
        self.model_folder = model_folder
        self.forward = forward
        self.conditioning = conditioning
        self.dtype = dtype
        self.base = read_trainable_base(model_folder)
        self.config, self.tokenizer = self.base.config, self.base.tokenizer
        self.system_text = corpora.info["layout"]["system_text"]
        self.frame_rate_hz = corpora.info["codec"]["frame_rate_hz"]

    def __getitem__(self, pack: Pack) -> LoadedPack:
        read = [self.read_sample(planned) for planned in pack.samples]
        samples, keys = [sample.tokens for sample in read], [sample.target.key for sample in read]
        if self.forward == "boson":
            return LoadedPack(make_padded_batch(samples, self.config), keys)
        speakers = [planned.speaker for planned in pack.samples]
        return LoadedPack(make_stream(samples, self.config, speakers, self.dtype), keys)

    def read_sample(self, planned: Sample) -> ReadSample:
        """A sample of the plan, read from the shards and built by Boson's functions. Raises InputError."""
        target = self.corpora.clip(planned.target)
        references = [self.corpora.clip(row, waveform=self.conditioning != "codes") for row in planned.references]
        if planned.dialogue >= len(target.meta["dialogues"]):
            raise InputError(
                f"clip {target.key}",
                f"{len(target.meta['dialogues'])} dialogues",
                f"a dialogue {planned.dialogue}, as {INDEX_FILE} says",
                "The shard is not as preprocess.shard wrote it: run `python -m preprocess.verify` on the folder.",
            )
        dialogue = dialogue_of(target.meta, [(clip.key, clip.meta) for clip in references], planned.dialogue)
        clips = dialogue, target, references
        tokens = build_sample(self.tokenizer, self.config, self.system_text, *clips, self.conditioning)
        return ReadSample(*clips, tokens)


class _PlannedPacks(Dataset[LoadedPack | InputError]):
    """Packs that are as long as the plan says, or an InputError: raised in a worker, torch would lose its parts."""

    def __init__(self, reader: PackReader) -> None:
        self.reader = reader

    def __getitem__(self, pack: Pack) -> LoadedPack | InputError:
        try:
            loaded = self.reader[pack]
            _refuse_other_length(pack, loaded)
            return loaded
        except InputError as error:
            return error


def _refuse_other_length(pack: Pack, loaded: LoadedPack) -> None:
    """Raise InputError for a sample whose length the index does not have: a pack of any size might come of it."""
    if not isinstance(loaded.batch, Stream):
        return
    found = loaded.batch.segments.diff().tolist()
    for planned, key, num_tokens in zip(pack.samples, loaded.keys, found, strict=True):
        if planned.num_tokens not in (0, num_tokens):
            raise InputError(
                f"clip {key}",
                f"a sample of {num_tokens} tokens",
                f"{planned.num_tokens}, as {INDEX_FILE} counts them",
                "Something else wrote the index: run `python -m preprocess.verify` on the folder, with --model.",
            )


def load_packs(reader: PackReader, packs: Iterable[Pack], num_workers: int, pin_memory: bool) -> Iterator[LoadedPack]:
    """The packs, loaded, in order. Workers get one pack at a time and hold no state; the plan stays in this process.

    Raises InputError for a clip that can't be used, with and without workers.
    """
    loader = DataLoader(
        _PlannedPacks(reader),
        batch_size=None,
        sampler=packs,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=_PREFETCH if num_workers else None,
        worker_init_fn=ignore_signals if num_workers else None,
    )
    for loaded in loader:
        if isinstance(loaded, InputError):
            raise loaded
        yield loaded


def check_shared_memory(reader: PackReader, pack: Pack, num_workers: int, shared: Path = Path("/dev/shm")) -> None:
    """Raise InputError where `shared` can't hold the packs that workers load ahead, by the size of `pack`.

    Without room, torch loses the pack in a thread of the worker, and the training would wait for it for ever.
    """
    if not num_workers or not shared.is_dir():
        return
    sizes: list[int] = []
    map_tensors(reader[pack].batch, lambda tensor: sizes.append(tensor.nbytes) or tensor)  # type: ignore[func-returns-value]
    ranks = int(os.environ.get("LOCAL_SIZE", "1"))  # of this machine, by the deepspeed launcher
    needed, free = sum(sizes) * _PREFETCH * num_workers * ranks, shutil.disk_usage(shared).free
    if free < needed:
        raise InputError(
            str(shared),
            f"{free / 1e6:,.1f} MB free",
            f"{needed / 1e6:,.1f} MB for the packs that {num_workers} workers of each of {ranks} ranks load ahead",
            "Start the container with more (docker run --shm-size=16g), or set batch.loader_workers to less, or 0.",
        )


@contextlib.contextmanager
def loader_workers() -> Iterator[None]:
    """Around all that loads packs: after an error no worker is left, and torch's errors about those that died, which
    may be raised anywhere, become an InputError.

    Python sends children SIGTERM when it exits, and waits for them. Workers ignore it: it would wait for ever.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for each that is killed
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        text = str(error)
        if not isinstance(error, RuntimeError) or "DataLoader worker" not in text:
            raise
        shared = "Bus error" in text or "shared memory" in text or "</torch_" in text
        cause = "Something killed it, perhaps because memory ran out (see dmesg): lower batch.loader_workers"
        if shared:
            cause = "/dev/shm, in which it shares memory with this process, is too small: docker run --shm-size=16g"
        last = text.strip().splitlines()[-1] if shared else first_line(error)
        action = f"{cause}, or set batch.loader_workers=0. The same command resumes from the newest checkpoint."
        raise InputError("a loader worker", last, "workers that live as long as the run", action) from error


class WaitClock:
    """Measures how many seconds the training process waits for its packs."""

    def __init__(self, iterator: Iterator[LoadedPack]) -> None:
        self._iterator = iterator
        self.waited_sec = 0.0

    def next(self) -> LoadedPack:
        """The next pack; the time until it is there is added to `waited_sec`."""
        start = time.perf_counter()
        pack = next(self._iterator)
        self.waited_sec += time.perf_counter() - start
        return pack
