"""The order of training, from the index alone: epoch -> global steps -> packs -> samples with their references.

A pure function of (index, split, cost, packs a step, max_tokens, seed): independent of world size, loader
workers and hash seed. That is why a run can stop at any step and continue on another number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.packing import complete_last_step, pack_samples
from preprocess.errors import InputError

# What a random stream is for: references and order of one epoch must not share numbers.
_REFERENCES, _ORDER = 0, 1


@dataclass(frozen=True)
class LayoutCost:
    """What a sample costs besides its texts and frames, measured on the layout that training uses.

    Length of a sample in tokens (text-stream tokens without audio placeholders, and audio columns):
    tokens_base + text + frames + columns_extra of the target, and for each reference
    tokens_per_reference + text + frames + columns_extra.
    """

    tokens_base: int  # text-stream tokens of a sample with empty texts and no reference
    tokens_per_reference: int  # text-stream tokens that a reference adds, its text empty
    columns_extra: int  # audio columns beyond the frames, an audio: 2 + codebooks - 1
    text_labels: int  # labelled text positions a sample


@dataclass(frozen=True, slots=True)
class Sample:
    """A target and its references, as rows of the index. `dialogue` numbers the target's `dialogues`, -1 = drawn."""

    target: int
    dialogue: int
    references: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Pack:
    """One micro-batch: at least one sample, at most `max_tokens` tokens."""

    samples: tuple[Sample, ...]

    @property
    def num_tokens(self) -> int:
        return sum(sample.num_tokens for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Step:
    """One global step: its packs and what they hold together."""

    packs: list[Pack]
    num_samples: int
    num_tokens: int
    text_count: int  # labelled text positions
    audio_count: int  # labelled positions of each codebook
    audio_frames: int  # frames of the targets


def packs_of_rank(packs_per_step: int, rank: int, world_size: int) -> range:
    """Numbers of the packs of a step that `rank` takes: rank, rank + world_size, ... Raises InputError."""
    if packs_per_step % world_size:
        possible = [w for w in range(1, packs_per_step + 1) if packs_per_step % w == 0]
        raise InputError(
            "world size",
            f"{world_size} ranks",
            f"{', '.join(map(str, possible))}: a number that divides packs_per_step={packs_per_step}",
            f"Start one of these numbers of ranks, or set packs_per_step to a multiple of {world_size}.",
        )
    return range(rank, packs_per_step, world_size)


@dataclass(frozen=True)
class EpochPlan:
    """One epoch as global steps of `packs_per_step` packs. Flat arrays, so it pickles cheaply to loader workers.

    A sample is a number below N: `target`, `dialogue`, `tokens` are [N]; its references are
    `reference[reference_offsets[n] : reference_offsets[n + 1]]`. Pack p holds the samples
    `order[pack_offsets[p] : pack_offsets[p + 1]]`. Samples dropped as too long are not in `order`.
    """

    packs_per_step: int
    target: np.ndarray
    dialogue: np.ndarray
    tokens: np.ndarray
    reference: np.ndarray
    reference_offsets: np.ndarray
    order: np.ndarray
    pack_offsets: np.ndarray
    num_tokens: np.ndarray  # [num_steps] tokens of each step
    text_count: np.ndarray  # [num_steps] labelled text positions
    audio_count: np.ndarray  # [num_steps] labelled positions of a codebook: frames and the end-of-stream code
    audio_frames: np.ndarray  # [num_steps] frames of the targets
    dropped: tuple[tuple[str, int], ...]  # (key, tokens) of the samples longer than max_tokens

    @property
    def num_steps(self) -> int:
        return (len(self.pack_offsets) - 1) // self.packs_per_step

    @property
    def step_offsets(self) -> np.ndarray:
        """[num_steps + 1] where each step begins in `order`."""
        return self.pack_offsets[:: self.packs_per_step]

    def step(self, step: int) -> list[Pack]:
        """The packs of a step of this epoch, in constant time."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of {self.num_steps}")
        first = step * self.packs_per_step
        return [self._pack(number) for number in range(first, first + self.packs_per_step)]

    def _pack(self, number: int) -> Pack:
        begin, end = self.pack_offsets[number : number + 2]
        return Pack(tuple(self._sample(n) for n in self.order[begin:end].tolist()))

    def _sample(self, n: int) -> Sample:
        begin, end = self.reference_offsets[n : n + 2]
        references = tuple(self.reference[begin:end].tolist())
        return Sample(int(self.target[n]), int(self.dialogue[n]), references, int(self.tokens[n]))


class Plan:
    """The samples of a split and their order in every epoch.

    index: table of preprocess.shards.INDEX_SCHEMA, sorted by key. Of the clips with `use` in `split`, each that
    `draws_reference` is a target with a reference drawn anew each epoch from the same speaker's other clips
    (none where there is no other), and each of the `dialogues` is a sample with the references it names,
    wherever they lie. max_tokens: most tokens of a pack.
    Raises InputError for references that the index does not have.
    """

    def __init__(
        self, index: pa.Table, *, split: str, cost: LayoutCost, packs_per_step: int, max_tokens: int, seed: int
    ) -> None:
        self.split, self.cost, self.seed = split, cost, seed
        self.packs_per_step, self.max_tokens = packs_per_step, max_tokens
        self._keys = index.column("key")
        self._frames = _numbers(index, "frames")
        usable = _numbers(index, "use") & pc.equal(index.column("split"), split).fill_null(False).to_numpy()
        drawn = np.flatnonzero(usable & _numbers(index, "draws_reference"))
        text_tokens = _numbers(index, "text_tokens")
        audio_columns = self._frames + cost.columns_extra
        self._reference_tokens = cost.tokens_per_reference + text_tokens + audio_columns

        # Clips of a speaker side by side: target i may draw from places first[i] to first[i] + others[i] of
        # `_by_speaker`, its own left out. Without a speaker there is nobody to draw from.
        speaker = index.column("speaker").combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
        self._speaker = speaker
        candidates = np.flatnonzero(usable & (speaker >= 0))
        self._by_speaker = candidates[np.argsort(speaker[candidates], kind="stable")].astype(np.int32)
        grouped = speaker[self._by_speaker]
        self._first = np.searchsorted(grouped, speaker[drawn], side="left")
        self._others = np.searchsorted(grouped, speaker[drawn], side="right") - self._first - 1
        place = np.zeros(len(speaker), dtype=np.int64)
        place[self._by_speaker] = np.arange(len(self._by_speaker))
        self._own_place = place[drawn]

        named = _NamedSamples(index, np.flatnonzero(usable))
        named_references = cost.tokens_per_reference + named.reference_text_tokens + audio_columns[named.reference]
        self._named = named
        self._target = np.concatenate([drawn, named.target]).astype(np.int32)
        self._dialogue = np.concatenate([np.full(len(drawn), -1), named.dialogue]).astype(np.int32)
        # Length of each sample with the references that it names; drawn ones are added epoch by epoch.
        self._tokens = cost.tokens_base + audio_columns[self._target]
        self._tokens[: len(drawn)] += text_tokens[drawn]
        self._tokens[len(drawn) :] += named.text_tokens
        np.add.at(self._tokens[len(drawn) :], named.reference_sample, named_references)
        self._num_steps: dict[int, int] = {}
        self._epochs: dict[int, EpochPlan] = {}

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of an epoch (0, 1, ...); each sample once. Raises InputError where samples are too few."""
        if epoch not in self._epochs:
            if len(self._epochs) == 2:  # the loader runs ahead of training, over an epoch's border
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._build(epoch, whole_steps=True)
            self._num_steps[epoch] = self._epochs[epoch].num_steps
        return self._epochs[epoch]

    def step(self, global_step: int) -> Step:
        """The step counted from the start of training."""
        epoch, number = locate(self, global_step)
        plan = self.epoch(epoch)
        packs = plan.step(number)
        counts = (plan.num_tokens, plan.text_count, plan.audio_count, plan.audio_frames)
        return Step(packs, sum(len(pack.samples) for pack in packs), *(int(count[number]) for count in counts))

    def evaluation_packs(self) -> list[Pack]:
        """Every sample once, in as many packs as it takes, always with the same references."""
        evaluation = self._build(0, whole_steps=False)
        return evaluation.step(0) if evaluation.num_steps else []

    def total_steps(self, num_epochs: int) -> int:
        """Global steps of the first `num_epochs` epochs."""
        return sum(self.num_steps(epoch) for epoch in range(num_epochs))

    def num_steps(self, epoch: int) -> int:
        """Global steps of an epoch; they may differ by a few between epochs."""
        return self._num_steps[epoch] if epoch in self._num_steps else self.epoch(epoch).num_steps

    def summary(self, epoch: int = 0) -> dict:
        """What an epoch is made of, as JSON can hold it. `samples` = drawn + without_reference + named."""
        plan = self.epoch(epoch)
        named = plan.dialogue[plan.order] >= 0
        with_reference = np.diff(plan.reference_offsets)[plan.order] > 0
        samples = np.diff(plan.step_offsets)
        step = np.repeat(np.arange(plan.num_steps), samples)
        speaker = self._speaker[plan.target[plan.order]]
        pairs = np.unique(step * (int(self._speaker.max()) + 2) + speaker + 1)
        return {
            "epoch": epoch,
            "split": self.split,
            "steps": plan.num_steps,
            "packs_per_step": self.packs_per_step,
            "max_tokens": self.max_tokens,
            "samples": len(plan.order),
            "targets": len(np.unique(plan.target[plan.order])),
            "drawn": int((~named & with_reference).sum()),
            "without_reference": int((~named & ~with_reference).sum()),
            "named": int(named.sum()),
            "dropped": [{"key": key, "tokens": tokens} for key, tokens in plan.dropped],
            "fill": float(plan.num_tokens.sum() / (len(plan.pack_offsets) - 1) / self.max_tokens),
            "samples_per_step": _spread(samples),
            "tokens_per_step": _spread(plan.num_tokens),
            "speakers_per_step": len(pairs) / plan.num_steps,
        }

    def _build(self, epoch: int, whole_steps: bool) -> EpochPlan:
        num_drawn = len(self._first)
        has_reference = self._others > 0
        # Among the speaker's clips without the target: the places after the target's move up by one.
        pick = self._first + self._random(epoch, _REFERENCES).integers(np.maximum(self._others, 1))
        pick += pick >= self._own_place
        reference = self._by_speaker[pick[has_reference]]
        tokens = self._tokens.astype(np.int32)
        tokens[:num_drawn][has_reference] += self._reference_tokens[reference]
        num_references = np.concatenate([has_reference, self._named.num_references])

        fitting = np.flatnonzero(tokens <= self.max_tokens)
        too_long = np.flatnonzero(tokens > self.max_tokens)
        dropped = tuple((self._keys[int(self._target[n])].as_py(), int(tokens[n])) for n in too_long)
        if whole_steps and len(fitting) < self.packs_per_step:
            raise InputError(
                f"plan of split {self.split!r}",
                f"{len(fitting)} samples that fit into max_tokens={self.max_tokens}, {len(dropped)} too long",
                f"at least packs_per_step={self.packs_per_step}, one for each pack of a step",
                "Add clips to the split, raise max_tokens, or set a smaller packs_per_step.",
            )
        order, pack_offsets = pack_samples(tokens[fitting], self.max_tokens, self._random(epoch, _ORDER))
        packs_per_step = max(1, len(pack_offsets) - 1)
        if whole_steps:
            packs_per_step = self.packs_per_step
            order, pack_offsets = complete_last_step(order, pack_offsets, packs_per_step)
        order = fitting[order].astype(np.int32)
        steps = pack_offsets[:-1:packs_per_step]
        num_samples = np.diff(pack_offsets[::packs_per_step])
        audio_frames = np.add.reduceat(self._frames[self._target[order]], steps, dtype=np.int64)
        return EpochPlan(
            packs_per_step=packs_per_step,
            target=self._target,
            dialogue=self._dialogue,
            tokens=tokens,
            reference=np.concatenate([reference, self._named.reference]).astype(np.int32),
            reference_offsets=np.concatenate([[0], np.cumsum(num_references)]).astype(np.int32),
            order=order,
            pack_offsets=pack_offsets,
            num_tokens=np.add.reduceat(tokens[order], steps, dtype=np.int64),
            text_count=num_samples * self.cost.text_labels,
            audio_count=audio_frames + num_samples,
            audio_frames=audio_frames,
            dropped=dropped,
        )

    def _random(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, purpose])))


def locate(plan: Plan, global_step: int) -> tuple[int, int]:
    """(epoch, step in that epoch) of a step counted from the start of training."""
    epoch = 0
    while global_step >= plan.num_steps(epoch):
        global_step -= plan.num_steps(epoch)
        epoch += 1
    return epoch, global_step


def describe(summary: dict) -> str:
    """A summary as one paragraph."""
    samples, tokens, dropped = summary["samples_per_step"], summary["tokens_per_step"], summary["dropped"]
    text = (
        f"Epoch {summary['epoch']} of split {summary['split']!r}: {summary['samples']:,} samples "
        f"({summary['drawn']:,} with a drawn reference, {summary['without_reference']:,} without one, "
        f"{summary['named']:,} with named ones) in {summary['steps']:,} steps of {summary['packs_per_step']} packs "
        f"of at most {summary['max_tokens']:,} tokens, {summary['fill']:.1%} filled. A step has "
        f"{samples['mean']:.1f} samples ({samples['min']}-{samples['max']}) of {summary['speakers_per_step']:.1f} "
        f"speakers, {tokens['mean']:,.0f} tokens ({tokens['min']:,}-{tokens['max']:,}). "
        f"Dropped as longer than a pack: {len(dropped)}"
    )
    names = ", ".join(f"{item['key']} ({item['tokens']:,} tokens)" for item in dropped[:5])
    return text + (f": {names}{', ...' if len(dropped) > 5 else ''}." if dropped else ".")


class _NamedSamples:
    """The dialogues of the index rows `rows` as flat arrays: D samples that name R references.

    target, dialogue, text_tokens, num_references [D]; reference (row), reference_sample (below D),
    reference_text_tokens [R].
    """

    def __init__(self, index: pa.Table, rows: np.ndarray) -> None:
        lists = index.column("dialogues").combine_chunks().take(pa.array(rows))
        parent = pc.list_parent_indices(lists).to_numpy()
        self.target = rows[parent]
        self.dialogue = np.arange(len(parent)) - np.searchsorted(parent, parent)
        dialogues = pc.list_flatten(lists)
        self.text_tokens = pc.struct_field(dialogues, "text_tokens").to_numpy()
        references = pc.struct_field(dialogues, "references")
        self.reference_sample = pc.list_parent_indices(references).to_numpy()
        self.num_references = np.bincount(self.reference_sample, minlength=len(parent))
        references = pc.list_flatten(references)
        self.reference_text_tokens = pc.struct_field(references, "text_tokens").to_numpy()
        keys = pc.struct_field(references, "key")
        found = pc.index_in(keys, value_set=index.column("key").combine_chunks())
        self._refuse_missing(index, keys, np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False)))
        self.reference = found.to_numpy()

    def _refuse_missing(self, index: pa.Table, keys: pa.Array, missing: Sequence[int]) -> None:
        if len(missing) == 0:
            return
        targets = index.column("key").take(pa.array(self.target[self.reference_sample[missing[:5]]]))
        pairs = [f"{key} (named by {by})" for key, by in zip(keys.take(missing[:5]), targets, strict=True)]
        raise InputError(
            "index: dialogues",
            f"{len(missing)} references to clips that are not there: {', '.join(pairs)}",
            "keys of clips in the same index",
            "Run preprocess.shard again on the whole manifest: failures.jsonl says why a clip was left out.",
        )


def _numbers(index: pa.Table, name: str) -> np.ndarray:
    column = index.column(name)
    assert column.null_count == 0, f"{name} has {column.null_count} nulls"
    return column.to_numpy()


def _spread(values: np.ndarray) -> dict:
    return {"mean": float(values.mean()), "min": int(values.min()), "max": int(values.max())}
