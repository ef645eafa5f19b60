"""The order of training, from the index alone: epoch -> global steps -> packs -> samples with their references.

It is a pure function of the index and the arguments of Plan, and does not depend on world size, loader workers or
hash seed. So a run can stop at any step and continue on another number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.plan.arrays import Int32s, Int64s
from engine.plan.packing import complete_last_step, pack_samples
from engine.plan.samples import EpochSamples, LayoutCost, Purpose, Split, SplitSamples, random_numbers
from preprocess.common.errors import InputError, join_some
from preprocess.common.json_file import JsonObject

# The loader reads ahead of training, so two epochs are in use near the end of the first.
_EPOCHS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """A target and its references, as rows of the index. What the other fields mean, SplitSamples says.

    num_tokens: text-stream tokens and audio columns; 0 where nothing counted them.
    """

    target: int
    dialogue: int
    references: tuple[int, ...]
    num_tokens: int
    speaker: int = 0
    text_labels: int = 0
    num_trained: int = 0
    trained_frames: int = 0

    @property
    def audio_labels(self) -> int:
        """Labelled positions of each codebook: the trained frames and one end-of-stream code per trained audio."""
        return self.num_trained + self.trained_frames


@dataclass(frozen=True, slots=True)
class Pack:
    """One micro-batch: at least one sample, at most `max_tokens` tokens."""

    samples: tuple[Sample, ...]

    @property
    def num_tokens(self) -> int:
        return sum(sample.num_tokens for sample in self.samples)

    @property
    def num_contrasted(self) -> int:
        """Number of samples with a reference, if they have two speakers or more to contrast; otherwise 0."""
        speakers = [sample.speaker for sample in self.samples if sample.references]
        return len(speakers) if len(set(speakers)) > 1 else 0


@dataclass(frozen=True, slots=True)
class Step:
    """One global step: its packs, and counts over all of them."""

    packs: list[Pack]
    num_samples: int
    num_tokens: int
    text_count: int  # labelled text positions
    audio_count: int  # labelled positions of each codebook
    audio_frames: int  # frames of the trained audios

    @property
    def num_contrasted(self) -> int:
        """Number of samples that the reference consistency loss covers."""
        return sum(pack.num_contrasted for pack in self.packs)


@dataclass(frozen=True)
class EpochPlan:
    """One epoch as global steps of `packs_per_step` packs. Flat arrays: small, and cheap to send to workers.

    Pack p holds the samples `order[pack_offsets[p] : pack_offsets[p + 1]]`, numbers below T of `drawn`. Samples that
    are dropped as too long are not in `order`.
    """

    packs_per_step: int
    samples: SplitSamples
    drawn: EpochSamples
    order: Int32s
    pack_offsets: Int64s
    num_tokens: Int64s  # [num_steps]
    dropped: tuple[tuple[str, int], ...]  # (description, tokens) of the samples longer than max_tokens

    @property
    def num_packs(self) -> int:
        return len(self.pack_offsets) - 1

    @property
    def num_steps(self) -> int:
        return self.num_packs // self.packs_per_step

    @property
    def num_samples(self) -> Int64s:
        """int64 [num_steps]: samples of each step."""
        return np.diff(self.pack_offsets[:: self.packs_per_step])

    @property
    def ordered_samples(self) -> Int32s:
        """int32 [len(order)]: numbers in `samples` of what is trained, in the order of training."""
        return self.drawn.sample[self.order]

    def step(self, number: int) -> Step:
        """Step `number` of this epoch, in constant time. Raises IndexError after the last step."""
        if not 0 <= number < self.num_steps:
            raise IndexError(f"step {number} of {self.num_steps}")
        first = number * self.packs_per_step
        packs = [self.pack(p) for p in range(first, first + self.packs_per_step)]
        samples = [sample for pack in packs for sample in pack.samples]
        return Step(
            packs=packs,
            num_samples=len(samples),
            num_tokens=int(self.num_tokens[number]),
            text_count=sum(sample.text_labels for sample in samples),
            audio_count=sum(sample.audio_labels for sample in samples),
            audio_frames=sum(sample.trained_frames for sample in samples),
        )

    def pack(self, number: int) -> Pack:
        """Pack `number` of this epoch, in constant time."""
        begin, end = self.pack_offsets[number : number + 2]
        return Pack(tuple(self._sample(n) for n in self.order[begin:end].tolist()))

    def samples_of(self, target: int) -> list[Sample]:
        """The samples of this epoch whose target is row `target` of the index."""
        return [self._sample(n) for n in self.order[self.samples.target[self.ordered_samples] == target].tolist()]

    def _sample(self, n: int) -> Sample:
        begin, end = self.drawn.reference_offsets[n : n + 2]
        number, references = self.drawn.sample[n], tuple(self.drawn.reference[begin:end].tolist())
        facts = {name: int(values[number]) for name, values in vars(self.samples).items()}
        return Sample(references=references, num_tokens=int(self.drawn.tokens[n]), **facts)


class Plan:
    """The samples of a split (see Split) and their order in every epoch.

    index: table of INDEX_SCHEMA, or that of engine.plan.corpora. packs_per_step: packs of a global step, over all
    ranks. max_tokens: most tokens of a pack; longer samples are dropped and reported. seed: 0 or more.
    references_per_sample, share_without_reference, repeat: as in the recipe's group `data`.
    Raises InputError for named references that the index does not have.
    """

    def __init__(
        self,
        index: pa.Table,
        *,
        split: str,
        cost: LayoutCost,
        packs_per_step: int,
        max_tokens: int,
        seed: int,
        references_per_sample: int = 1,
        share_without_reference: float = 0.0,
        repeat: Sequence[float] = (),
    ) -> None:
        self.split, self.seed = split, seed
        self.packs_per_step, self.max_tokens = packs_per_step, max_tokens
        self._split = Split(index, split, cost, seed, references_per_sample)
        self.share_without_reference = share_without_reference
        self.repeat = list(repeat) or [1.0] * self._split.num_corpora
        self._epochs: dict[int, EpochPlan] = {}
        self._num_steps: dict[int, int] = {}

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of an epoch, counted from 0. Raises InputError if there are too few samples for a step."""
        if epoch not in self._epochs:
            if len(self._epochs) == _EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]  # the one planned first
            self._epochs[epoch] = self._plan_epoch(epoch, training=True)
            self._num_steps[epoch] = self._epochs[epoch].num_steps
        return self._epochs[epoch]

    def num_steps(self, epoch: int) -> int:
        """Global steps of an epoch. Epochs may differ by a few, because references differ in length."""
        return self._num_steps[epoch] if epoch in self._num_steps else self.epoch(epoch).num_steps

    def total_steps(self, num_epochs: int, at_most: int = 0) -> int:
        """Global steps of the first `num_epochs` epochs, but not more than `at_most`; 0 = no limit."""
        steps = 0
        for epoch in range(num_epochs):
            steps += self.num_steps(epoch)
            if 0 < at_most <= steps:  # later epochs need no planning
                return at_most
        return steps

    def step(self, global_step: int) -> Step:
        """A global step, counted from 0 at the start of training."""
        epoch, number = locate_step(self, global_step)
        return self.epoch(epoch).step(number)

    def evaluation_packs(self) -> list[Pack]:
        """Packs of every sample once, the same each time. A sample longer than max_tokens has a pack of its own."""
        plan = self._plan_epoch(0, training=False)
        return [plan.pack(number) for number in range(plan.num_packs)]

    def summary(self, epoch: int = 0) -> JsonObject:
        """Counts of an epoch that JSON can hold.

        `samples` = drawn + without_reference (the speaker has no other clip) + reference_left_out + named = the sum
        over `corpora`, which are in the order of the index. `fill` is the share of the packs' token budget that is
        used; `speakers_per_step` the mean number of distinct speakers, all clips without a speaker counted as one.
        """
        plan = self.epoch(epoch)
        sample, left_out = plan.ordered_samples, plan.drawn.left_out[plan.order]
        target, speaker = plan.samples.target[sample], plan.samples.speaker[sample]
        named = plan.samples.dialogue[sample] >= 0
        with_reference = np.diff(plan.drawn.reference_offsets)[plan.order] > 0
        step = np.repeat(np.arange(plan.num_steps), plan.num_samples)
        speakers_of_steps = np.unique(step * (int(speaker.max()) + 1) + speaker)
        return {
            "epoch": epoch,
            "split": self.split,
            "steps": plan.num_steps,
            "packs_per_step": self.packs_per_step,
            "max_tokens": self.max_tokens,
            "samples": len(plan.order),
            "targets": len(np.unique(target)),
            "drawn": int((~named & with_reference).sum()),
            "without_reference": int((~named & ~with_reference & ~left_out).sum()),
            "reference_left_out": int(left_out.sum()),
            "named": int(named.sum()),
            "corpora": self._count_by_corpus(plan),
            "dropped": [{"key": key, "tokens": tokens} for key, tokens in plan.dropped],
            "fill": float(plan.num_tokens.sum() / (plan.num_packs * self.max_tokens)),
            "samples_per_step": _mean_min_max(plan.num_samples),
            "tokens_per_step": _mean_min_max(plan.num_tokens),
            "speakers_per_step": len(speakers_of_steps) / plan.num_steps,
        }

    def _count_by_corpus(self, plan: EpochPlan) -> list[JsonObject]:
        corpus = self._split.corpus[plan.samples.target[plan.ordered_samples]]
        samples = np.bincount(corpus, minlength=self._split.num_corpora).tolist()
        tokens = np.bincount(corpus, plan.drawn.tokens[plan.order], minlength=self._split.num_corpora)
        counts = zip(self.repeat, samples, tokens.tolist(), strict=True)
        return [{"repeat": repeat, "samples": num, "tokens": int(length)} for repeat, num, length in counts]

    def _plan_epoch(self, epoch: int, *, training: bool) -> EpochPlan:
        """The plan of an epoch; if not `training`, each sample once, also too long ones, and any number of packs."""
        choices = (self.repeat, self.share_without_reference) if training else ()
        drawn = self._split.draw_epoch(epoch, *choices)
        tokens = drawn.tokens
        dropped = np.flatnonzero(training & (tokens > self.max_tokens))
        kept = np.delete(np.arange(len(tokens)), dropped)
        if training and len(kept) < self.packs_per_step:
            raise InputError(
                f"plan of split {self.split!r}",
                f"{len(kept)} samples of at most max_tokens={self.max_tokens} tokens, and {len(dropped)} longer",
                f"at least packs_per_step={self.packs_per_step}, one for each pack of a step",
                "Add clips to the split, raise batch.max_tokens, or set a smaller batch.packs_per_step.",
            )
        # A kept sample that is longer counts as a full pack, so it gets one of its own.
        lengths = np.minimum(tokens[kept], self.max_tokens)
        order, pack_offsets = pack_samples(lengths, self.max_tokens, random_numbers(self.seed, Purpose.ORDER, epoch))
        if training:
            order, pack_offsets = complete_last_step(order, pack_offsets, self.packs_per_step)
        order = kept[order].astype(np.int32)
        steps = pack_offsets[: -1 : self.packs_per_step]
        return EpochPlan(
            packs_per_step=self.packs_per_step,
            samples=self._split.samples,
            drawn=drawn,
            order=order,
            pack_offsets=pack_offsets,
            num_tokens=np.add.reduceat(tokens[order], steps, dtype=np.int64),
            dropped=tuple((self._split.describe_sample(int(drawn.sample[n])), int(tokens[n])) for n in dropped),
        )


def locate_step(plan: Plan, global_step: int) -> tuple[int, int]:
    """(epoch, step in that epoch) of a global step counted from the start of training."""
    epoch = 0
    while global_step >= plan.num_steps(epoch):
        global_step -= plan.num_steps(epoch)
        epoch += 1
    return epoch, global_step


def describe_plan(summary: JsonObject) -> str:
    """A summary of Plan as one paragraph for the console."""
    samples, tokens = summary["samples_per_step"], summary["tokens_per_step"]
    all_tokens = sum(corpus["tokens"] for corpus in summary["corpora"])
    corpora = [
        f"{corpus['samples']:,} from corpus {number} ({corpus['repeat']:g} times each, "
        f"{corpus['tokens'] / all_tokens:.1%} of the tokens)"
        for number, corpus in enumerate(summary["corpora"], 1)
    ]
    return (
        f"Epoch {summary['epoch']} of split {summary['split']!r}: {summary['samples']:,} samples "
        f"({summary['drawn']:,} with drawn references, {summary['without_reference']:,} of speakers with one "
        f"clip, {summary['reference_left_out']:,} set to none by data.share_without_reference, "
        f"{summary['named']:,} with named ones) in {summary['steps']:,} steps of {summary['packs_per_step']} packs "
        f"of at most {summary['max_tokens']:,} tokens, {summary['fill']:.1%} filled. "
        f"{', '.join(corpora) + '. ' if len(corpora) > 1 else ''}A step has "
        f"{samples['mean']:.1f} samples ({samples['min']}-{samples['max']}) of {summary['speakers_per_step']:.1f} "
        f"speakers, {tokens['mean']:,.0f} tokens ({tokens['min']:,}-{tokens['max']:,}). "
        + _describe_dropped([(item["key"], item["tokens"]) for item in summary["dropped"]])
    )


def describe_epoch_start(epoch: int, plan: EpochPlan) -> str:
    """Console line about an epoch that begins: its samples, and which are dropped in it."""
    dropped = _describe_dropped(plan.dropped)
    return f"Epoch {epoch} begins: {len(plan.order):,} samples in {plan.num_steps:,} steps. {dropped}"


def _describe_dropped(dropped: Sequence[tuple[str, int]]) -> str:
    names = join_some((f"{name} ({tokens:,} tokens)" for name, tokens in dropped), 5)
    return f"Dropped as longer than a pack: {len(dropped)}{': ' * bool(dropped)}{names}."


def _mean_min_max(values: Int64s) -> JsonObject:
    return {"mean": float(values.mean()), "min": int(values.min()), "max": int(values.max())}
