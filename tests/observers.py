"""Observers of runs that do more than look."""

import signal

from svdcut import Interrupted


class Stop:
    """Observer that stops the run after some tensors, as a signal does."""

    def __init__(self, number, stage="truncate"):
        self.number, self.stage, self.seen = number, stage, []

    def __call__(self, progress):
        self.seen.append(progress)
        if sum(p.stage == self.stage for p in self.seen) == self.number:
            raise Interrupted(signal.SIGINT)
