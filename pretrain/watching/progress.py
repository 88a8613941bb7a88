"""How far a run has come."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """What a run has done so far, over all its launches; each checkpoint holds it.

    Args:
        step: steps done.
        tokens: seen in them, padding left out; as of the last step that was logged.
        labelled: tokens predicted, as of the last step that was logged.
        skipped: of the steps those that left the weights alone, as a number was not finite; as of the last step that
            was logged.
        skipped_in_a_row: the series of such steps that the last step ends.
        window: sums over the steps since the last one that was logged, where a launch ends between two logs.
        seconds: of training, the same number on all processes; evaluations and checkpoints are left out.
        best_step, best_loss: of the checkpoints evaluated at their own step, the one with the lowest validation loss.
        tracker_ids: under which the run goes on at each tracker.
    """

    step: int = 0
    tokens: int = 0
    labelled: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    window: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_loss: float = float("inf")
    tracker_ids: dict[str, str] = field(default_factory=dict)

    def counted(self, name: str) -> int:
        """`tokens`, `labelled` or `skipped` over all steps, those of the window included."""
        return getattr(self, name) + int(self.window.get(name, 0))
