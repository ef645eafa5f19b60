"""The order of training, from the index alone: epoch -> global steps -> packs -> samples with their references.

A pure function of the index and the arguments of Plan: independent of world size, loader workers and hash seed.
That is why a run can stop at any step and continue on another number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.plan.packing import complete_last_step, pack_samples
from engine.plan.samples import LayoutCost, Purpose, Split, random_numbers
from preprocess.common.errors import InputError

# The loader runs ahead of training, so near the end of an epoch two are in use.
_EPOCHS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """A target and its references, as rows of the index. `dialogue` numbers the target's `dialogues`, -1 = drawn.

    speaker: a number that samples of one speaker share; those of clips without a speaker share one. text_labels:
    labelled text positions; num_trained, trained_frames: the audios that are trained, and their frames.
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
        """Labelled positions of each codebook: the trained frames and the end of each stream."""
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
        """Samples with a reference, in a pack where references of two speakers or more can be told apart; else 0."""
        speakers = [sample.speaker for sample in self.samples if sample.references]
        return len(speakers) if len(set(speakers)) > 1 else 0


@dataclass(frozen=True, slots=True)
class Step:
    """One global step: its packs and what they hold together."""

    packs: list[Pack]
    num_samples: int
    num_tokens: int
    text_count: int  # labelled text positions
    audio_count: int  # labelled positions of each codebook: the trained frames and their end-of-stream codes
    audio_frames: int  # frames of the audios that are trained

    @property
    def num_contrasted(self) -> int:
        """Samples that the reference consistency is over."""
        return sum(pack.num_contrasted for pack in self.packs)


@dataclass(frozen=True)
class EpochPlan:
    """One epoch as global steps of `packs_per_step` packs. Flat arrays: small, and cheap to send to workers.

    A sample is a number below N: `sample` (its number in the Split), `tokens`, `left_out` are [N]; its references are
    `reference[reference_offsets[n] : reference_offsets[n + 1]]`. One that the epoch takes several times is as many
    samples here. Pack p holds the samples `order[pack_offsets[p] : pack_offsets[p + 1]]`. Samples dropped as too
    long are not in `order`.
    """

    packs_per_step: int
    sample: np.ndarray
    tokens: np.ndarray
    target: np.ndarray  # as dialogue, text_labels, num_trained and trained_frames an array of the Split
    dialogue: np.ndarray
    text_labels: np.ndarray
    num_trained: np.ndarray
    trained_frames: np.ndarray
    speaker: np.ndarray  # [rows of the index]
    reference: np.ndarray
    reference_offsets: np.ndarray
    left_out: np.ndarray  # bool: without a reference by share_without_reference
    order: np.ndarray
    pack_offsets: np.ndarray
    num_tokens: np.ndarray  # [num_steps]
    dropped: tuple[tuple[str, int], ...]  # (name, tokens) of the samples longer than max_tokens

    @property
    def num_packs(self) -> int:
        return len(self.pack_offsets) - 1

    @property
    def num_steps(self) -> int:
        return self.num_packs // self.packs_per_step

    @property
    def num_samples(self) -> np.ndarray:
        """[num_steps]"""
        return np.diff(self.pack_offsets[:: self.packs_per_step])

    def step(self, number: int) -> Step:
        """Step `number` of this epoch, in constant time. Raises IndexError beyond the last."""
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
        return [self._sample(n) for n in self.order[self.target[self.sample[self.order]] == target].tolist()]

    def _sample(self, n: int) -> Sample:
        begin, end = self.reference_offsets[n : n + 2]
        number = self.sample[n]
        target = int(self.target[number])
        return Sample(
            target,
            int(self.dialogue[number]),
            references=tuple(self.reference[begin:end].tolist()),
            num_tokens=int(self.tokens[n]),
            speaker=int(self.speaker[target]),
            text_labels=int(self.text_labels[number]),
            num_trained=int(self.num_trained[number]),
            trained_frames=int(self.trained_frames[number]),
        )


class Plan:
    """The samples of a split (see Split) and their order in every epoch.

    index: table of INDEX_SCHEMA, or engine.plan.corpora's of several. packs_per_step: packs of
    a global step, over all ranks. max_tokens: most tokens of a pack; a longer sample is dropped, by name. seed: from
    0. references_per_sample, share_without_reference, repeat: the recipe's group `data`.
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
        self.split, self.cost, self.seed = split, cost, seed
        self.packs_per_step, self.max_tokens = packs_per_step, max_tokens
        self._samples = Split(index, split, cost, seed, references_per_sample)
        self.share_without_reference = share_without_reference
        self.repeat = list(repeat) or [1.0] * self._samples.num_corpora
        self._epochs: dict[int, EpochPlan] = {}
        self._num_steps: dict[int, int] = {}

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of an epoch (0, 1, ...), each sample as often as `repeat` says.

        Raises InputError where samples are too few.
        """
        if epoch not in self._epochs:
            if len(self._epochs) == _EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]  # the one built first
            self._epochs[epoch] = self._build(epoch, training=True)
            self._num_steps[epoch] = self._epochs[epoch].num_steps
        return self._epochs[epoch]

    def num_steps(self, epoch: int) -> int:
        """Global steps of an epoch. Epochs may differ by a few, because references differ in length."""
        return self._num_steps[epoch] if epoch in self._num_steps else self.epoch(epoch).num_steps

    def total_steps(self, num_epochs: int, at_most: int = 0) -> int:
        """Global steps of the first `num_epochs` epochs; `at_most` of them where that is above 0."""
        steps = 0
        for epoch in range(num_epochs):
            steps += self.num_steps(epoch)
            if 0 < at_most <= steps:  # later epochs need no planning
                return at_most
        return steps

    def step(self, global_step: int) -> Step:
        """A global step counted from the start of training, 0 the first."""
        epoch, number = locate(self, global_step)
        return self.epoch(epoch).step(number)

    def evaluation_packs(self) -> list[Pack]:
        """Every sample once, in as many packs as it takes, always the same; a longer one than max_tokens alone."""
        plan = self._build(0, training=False)
        return [plan.pack(number) for number in range(plan.num_packs)]

    def summary(self, epoch: int = 0) -> dict:
        """What an epoch is made of, as JSON can hold it.

        `samples` = drawn + without_reference (the speaker has no other clip) + reference_left_out + named = the sum
        over `corpora`, which are in the order of the index. `fill` is the share of token slots that hold a token;
        `speakers_per_step` the mean of distinct speakers, where all clips without a speaker count as one.
        """
        plan = self.epoch(epoch)
        sample, target = plan.sample[plan.order], plan.target[plan.sample[plan.order]]
        named = plan.dialogue[sample] >= 0
        with_reference = np.diff(plan.reference_offsets)[plan.order] > 0
        step = np.repeat(np.arange(plan.num_steps), plan.num_samples)
        speaker = self._samples.speaker[target]
        speakers_of_steps = np.unique(step * (int(self._samples.speaker.max()) + 1) + speaker)
        return {
            "epoch": epoch,
            "split": self.split,
            "steps": plan.num_steps,
            "packs_per_step": self.packs_per_step,
            "max_tokens": self.max_tokens,
            "samples": len(plan.order),
            "targets": len(np.unique(target)),
            "drawn": int((~named & with_reference).sum()),
            "without_reference": int((~named & ~with_reference & ~plan.left_out[plan.order]).sum()),
            "reference_left_out": int(plan.left_out[plan.order].sum()),
            "named": int(named.sum()),
            "corpora": self._corpora(plan),
            "dropped": [{"key": key, "tokens": tokens} for key, tokens in plan.dropped],
            "fill": float(plan.num_tokens.sum() / (plan.num_packs * self.max_tokens)),
            "samples_per_step": _spread(plan.num_samples),
            "tokens_per_step": _spread(plan.num_tokens),
            "speakers_per_step": len(speakers_of_steps) / plan.num_steps,
        }

    def _corpora(self, plan: EpochPlan) -> list[dict]:
        count, corpus = self._samples.num_corpora, self._samples.corpus[plan.target[plan.sample[plan.order]]]
        samples = np.bincount(corpus, minlength=count).tolist()
        tokens = np.bincount(corpus, plan.tokens[plan.order], minlength=count).astype(int).tolist()
        names = ("repeat", "samples", "tokens")
        return [dict(zip(names, row, strict=True)) for row in zip(self.repeat, samples, tokens, strict=True)]

    def _build(self, epoch: int, *, training: bool) -> EpochPlan:
        samples = self._samples
        draw = samples.draw(epoch, self.repeat, self.share_without_reference) if training else samples.draw(epoch)
        tokens = draw.tokens
        dropped = np.flatnonzero(training & (tokens > self.max_tokens))
        kept = np.delete(np.arange(len(tokens)), dropped)
        if training and len(kept) < self.packs_per_step:
            raise InputError(
                f"plan of split {self.split!r}",
                f"{len(kept)} samples of at most max_tokens={self.max_tokens} tokens, and {len(dropped)} longer",
                f"at least packs_per_step={self.packs_per_step}, one for each pack of a step",
                "Add clips to the split, raise max_tokens, or set a smaller packs_per_step.",
            )
        # A sample that is too long and yet kept takes a pack for itself.
        lengths = np.minimum(tokens[kept], self.max_tokens)
        order, pack_offsets = pack_samples(lengths, self.max_tokens, random_numbers(self.seed, Purpose.ORDER, epoch))
        if training:
            order, pack_offsets = complete_last_step(order, pack_offsets, self.packs_per_step)
        order = kept[order].astype(np.int32)
        steps = pack_offsets[: -1 : self.packs_per_step]
        return EpochPlan(
            packs_per_step=self.packs_per_step,
            sample=draw.sample,
            tokens=tokens,
            target=samples.target,
            dialogue=samples.dialogue,
            text_labels=samples.text_labels,
            num_trained=samples.num_trained,
            trained_frames=samples.trained_frames,
            speaker=samples.speaker,
            reference=draw.reference,
            reference_offsets=draw.reference_offsets,
            left_out=draw.left_out,
            order=order,
            pack_offsets=pack_offsets,
            num_tokens=np.add.reduceat(tokens[order], steps, dtype=np.int64),
            dropped=tuple((samples.name(draw.sample[n]), int(tokens[n])) for n in dropped),
        )


def locate(plan: Plan, global_step: int) -> tuple[int, int]:
    """(epoch, step in that epoch) of a global step counted from the start of training."""
    epoch = 0
    while global_step >= plan.num_steps(epoch):
        global_step -= plan.num_steps(epoch)
        epoch += 1
    return epoch, global_step


def describe_plan(summary: dict) -> str:
    """A summary as one paragraph."""
    samples, tokens = summary["samples_per_step"], summary["tokens_per_step"]
    corpora = [
        f"{corpus['samples']:,} from corpus {number} ({corpus['repeat']:g} times each, "
        f"{corpus['tokens'] / sum(c['tokens'] for c in summary['corpora']):.1%} of the tokens)"
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


def describe_start(epoch: int, plan: EpochPlan) -> str:
    """What is new in an epoch that begins: its samples, and which are dropped this time."""
    samples = f"{len(plan.order):,} samples in {plan.num_steps:,} steps"
    return f"Epoch {epoch} begins: {samples}. {_describe_dropped(plan.dropped)}"


def _describe_dropped(dropped: Sequence[tuple[str, int]]) -> str:
    names = ", ".join(f"{name} ({tokens:,} tokens)" for name, tokens in dropped[:5])
    return (
        f"Dropped as longer than a pack: {len(dropped)}{': ' * bool(dropped)}{names}{', ...' * (len(dropped) > 5)}."
    )


def _spread(values: np.ndarray) -> dict:
    return {"mean": float(values.mean()), "min": int(values.min()), "max": int(values.max())}
