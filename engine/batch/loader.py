"""Packs -> batches: worker processes read clips by offset, build samples and collate, ahead of the training step."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from torch.utils.data import DataLoader, Dataset

from engine.base.stop import ignore_signals
from engine.base.trainable_base import read_trainable_base
from engine.batch.sample import build_sample, collate
from engine.batch.stream import Stream, lay_out, map_tensors
from engine.plan.corpora import Corpora
from engine.plan.plan import Pack, Sample
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import dialogue_of
from preprocess.corpus.shards import Clip


@dataclass
class LoadedPack:
    """A pack ready for the forward pass. `keys` are its targets' clip keys, for messages."""

    batch: Stream | HiggsAudioBatchInput
    keys: list[str]

    def pin_memory(self) -> "LoadedPack":
        """Called by torch's DataLoader, so that copies to the GPU overlap with computing."""
        return LoadedPack(map_tensors(self.batch, torch.Tensor.pin_memory), self.keys)


@dataclass(frozen=True)
class ReadSample:
    """A sample as the model is trained on it: the dialogue as stored, the clips in it, and its tokens and codes."""

    dialogue: Mapping
    target: Clip
    references: list[Clip]
    tokens: ChatMLDatasetSample


class PackReader(Dataset):
    """Turns a plan's Pack into a LoadedPack; reads with the system text of the corpora. Cheap to send to workers.

    forward: packed for a flat Stream, boson for Boson's padded batch. conditioning: how references are shown.
    dtype: of the mel features in a Stream.
    """

    def __init__(
        self,
        corpus: Corpora,
        model_folder: Path | str,
        forward: str,
        conditioning: str = "codes",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.corpus = corpus
        self.model_folder = model_folder
        self.forward = forward
        self.conditioning = conditioning
        self.dtype = dtype
        self.base = read_trainable_base(model_folder)
        self.config, self.tokenizer = self.base.config, self.base.tokenizer
        self.system_text = corpus.info["layout"]["system_text"]
        self.frame_rate_hz = corpus.info["codec"]["frame_rate_hz"]

    def __getitem__(self, pack: Pack) -> LoadedPack:
        read = [self.read_sample(planned) for planned in pack.samples]
        samples, keys = [sample.tokens for sample in read], [sample.target.key for sample in read]
        if self.forward == "boson":
            return LoadedPack(collate(samples, self.config), keys)
        speakers = [planned.speaker for planned in pack.samples]
        return LoadedPack(lay_out(samples, self.config, speakers, self.dtype), keys)

    def read_sample(self, planned: Sample) -> ReadSample:
        """A sample of the plan, read from the shards and built as Boson builds it. Raises InputError."""
        target = self.corpus.clip(planned.target)
        references = [self.corpus.clip(row, waveform=self.conditioning != "codes") for row in planned.references]
        dialogue = dialogue_of(target.meta, [(clip.key, clip.meta) for clip in references], planned.dialogue)
        clips = dialogue, target, references
        tokens = build_sample(self.tokenizer, self.config, self.system_text, *clips, self.conditioning)
        return ReadSample(*clips, tokens)


class _ErrorsAsValues(Dataset):
    """A PackReader whose InputError comes back as a value: torch would rebuild a worker's exception from its text."""

    def __init__(self, reader: PackReader) -> None:
        self.reader = reader

    def __getitem__(self, pack: Pack) -> LoadedPack | InputError:
        try:
            return self.reader[pack]
        except InputError as error:
            return error


def load_packs(reader: PackReader, packs: Iterable[Pack], num_workers: int, pin_memory: bool) -> Iterator[LoadedPack]:
    """The packs, loaded, in order. The plan stays here: workers get one pack at a time and hold no state.

    Raises InputError for a clip that can't be used, from workers as from this process.
    """
    loader = DataLoader(
        _ErrorsAsValues(reader),
        batch_size=None,
        sampler=packs,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=ignore_signals if num_workers else None,
    )
    for loaded in loader:
        if isinstance(loaded, InputError):
            raise loaded
        yield loaded


class WaitClock:
    """Counts the seconds that the training process waits in `next`."""

    def __init__(self, iterator: Iterator[LoadedPack]) -> None:
        self._iterator = iterator
        self.waited_sec = 0.0

    def next(self) -> LoadedPack:
        """The next pack; its waiting time is added to `waited_sec`."""
        start = time.perf_counter()
        pack = next(self._iterator)
        self.waited_sec += time.perf_counter() - start
        return pack
