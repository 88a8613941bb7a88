"""What the steps add up to, on the device until somebody has to know it."""

import math
from collections import deque
from dataclasses import dataclass

import torch

from pretrain.steps.optimization import StepResult


COUNTS = ("tokens", "places", "labelled", "rows", "skipped")


@dataclass(frozen=True)
class Totals:
    """Of the steps since the last reading, over all processes.

    Args:
        loss: mean over the steps that were not skipped; None where all were.
        accuracy: share of the labelled tokens of the last step predicted right; None where it was not asked for.
        gradient_norm: of the last step.
        tokens, places, labelled, rows: sums; of `StepResult`.
        skipped: steps that left the weights alone.
        skipped_in_a_row: the series that ends with the last step, wherever it began.
        longest_skipped: the longest series that ended in these steps or goes on.
        seconds: of training before the last step.
    """

    loss: float | None
    accuracy: float | None
    gradient_norm: float | None
    tokens: int
    places: int
    labelled: int
    rows: int
    skipped: int
    skipped_in_a_row: int
    longest_skipped: int
    seconds: float


class DeviceTotals:
    """Sums over steps. Nothing waits for the device but `read` and `window`.

    Args:
        device: where the model is.
        skipped_in_a_row: the series of skipped steps that the last launch ended with.
        window: `window()` of the last launch, whose sums go on.
    """

    def __init__(self, device: torch.device, skipped_in_a_row: int = 0, window: dict[str, float] | None = None):
        window = window or {}
        self.steps = int(window.get("steps", 0))
        self.loss = torch.tensor(window.get("loss", 0.0), dtype=torch.float32, device=device)
        counts = [window.get(name, 0) for name in COUNTS]
        self.counts = torch.tensor(counts, dtype=torch.int64, device=device)
        self.in_a_row = torch.full((), skipped_in_a_row, dtype=torch.int64, device=device)
        self.longest = self.in_a_row
        self._sent: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()

    def add(self, result: StepResult):
        skipped = result.skipped.long()
        self.steps += 1
        self.loss = self.loss + torch.where(result.skipped, 0.0, result.loss)
        counts = [skipped if name == "skipped" else getattr(result, name) for name in COUNTS]
        self.counts = self.counts + torch.stack(counts)
        self.in_a_row = (self.in_a_row + 1) * skipped
        self.longest = torch.maximum(self.longest, self.in_a_row)
        self._sent.append(send_to_host(torch.stack([result.stops, self.longest, result.microseconds])))

    def late_news(self) -> tuple[bool, int, float]:
        """Whether some process had asked to end the run by the step before the last, the longest series of skipped
        steps until then, and the seconds of training before it.

        The same on all processes. The device has the last step to work on meanwhile, so that it does not run dry.
        """
        if len(self._sent) < 2:
            return False, 0, 0.0
        numbers, arrival = self._sent.popleft()
        if arrival is not None:
            arrival.synchronize()
        stops, longest, microseconds = numbers.numpy()
        return bool(stops > 0), int(longest), microseconds / 1e6

    def window(self) -> dict[str, float]:
        """The sums since the last reading, exact, so that the next launch goes on with them. Waits for the device."""
        return {"steps": self.steps, "loss": self.loss.item(), **dict(zip(COUNTS, self.counts.tolist(), strict=True))}

    def read(self, last: StepResult) -> Totals:
        """Wait for the device, and begin anew; a series of skipped steps goes on."""
        correct = torch.full_like(self.loss, math.nan) if last.correct is None else last.correct.float()
        loss, gradient_norm, correct = torch.stack([self.loss, last.gradient_norm.float(), correct]).tolist()
        integers = torch.cat(
            [self.counts, torch.stack([self.in_a_row, self.longest, last.labelled, last.microseconds])]
        )
        tokens, places, labelled, rows, skipped, in_a_row, longest, last_labelled, microseconds = integers.tolist()
        trained = self.steps - skipped
        self.steps = 0
        self.loss, self.counts = torch.zeros_like(self.loss), torch.zeros_like(self.counts)
        self.longest = self.in_a_row
        return Totals(
            loss=loss / trained if trained else None,
            accuracy=None if math.isnan(correct) or in_a_row else correct / max(1, last_labelled),
            gradient_norm=gradient_norm if math.isfinite(gradient_norm) else None,
            tokens=tokens,
            places=places,
            labelled=labelled,
            rows=rows,
            skipped=skipped,
            skipped_in_a_row=in_a_row,
            longest_skipped=longest,
            seconds=microseconds / 1e6,
        )


def send_to_host(tensor: torch.Tensor) -> tuple[torch.Tensor, "torch.cuda.Event | None"]:
    """A copy in the host's memory, and the event after which it is there."""
    copy = tensor.to("cpu", non_blocking=True)  # into pinned memory
    if tensor.device.type != "cuda":
        return copy, None
    event = torch.cuda.Event()
    event.record()
    return copy, event
