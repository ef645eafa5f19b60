"""How far a run has come."""

from dataclasses import asdict, dataclass, field

from preprocess.common.json_file import JsonObject


@dataclass
class Progress:
    """Global steps done, the last validation, and the lowest audio loss (in nats) of all with its step.

    validation: {"step", "loss_audio", "loss_text", "conditioning_gain" if it is measured}.

    lineage: where the weights come from, and each change since then, oldest first.
    pending_evaluation: a stop interrupted the evaluation after `step`; a resumed run begins with it.
    """

    step: int = 0
    lineage: list[JsonObject] = field(default_factory=list)
    validation: JsonObject | None = None
    best_loss: float | None = None
    best_step: int | None = None
    pending_evaluation: bool = False

    def record(self) -> JsonObject:
        """The entries of state.json about it, without the step."""
        return {name: value for name, value in asdict(self).items() if name != "step"}
