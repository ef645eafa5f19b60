"""Where a run stands."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Where a run stands: global steps done, and the lowest validation audio loss with its step.

    lineage: what the weights come from and every change on the way, oldest first.
    pending_evaluation: a stop cut the evaluation after `step` short; it comes first when the run goes on.
    """

    step: int = 0
    lineage: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float | None = None
    best_step: int | None = None
    pending_evaluation: bool = False

    def record(self) -> dict:
        """What state.json says of it beside the step."""
        return {name: value for name, value in asdict(self).items() if name != "step"}
