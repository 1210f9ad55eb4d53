"""The line that is shown while a language model answers: how many, what came of them, how fast,
how long still.
"""

from collections import Counter
from collections.abc import Callable
from time import monotonic

from miner.errors import log
from miner.llm.requests import Answer

EVERY = 15.0  # seconds from line to line
Label = Callable[[int, Answer], str]


class Pace:
    """Counts answers to so many requests."""

    def __init__(self, total: int):
        self.total, self.came, self.tokens = total, Counter[str](), 0
        self.read = self.cached = 0
        self.began = self.shown = monotonic()

    def add(self, came: str, answer: Answer) -> None:
        """Count an answer, by what came of it, and show the line if it is time."""
        self.came[came] += 1
        read, written = answer.tokens
        self.read, self.tokens = self.read + read, self.tokens + written
        self.cached += answer.cached
        now = monotonic()
        if now - self.shown >= EVERY:
            self.shown = now
            log.warning("%s", self.line(now - self.began))

    def line(self, seconds: float) -> str:
        """Return the line, so many seconds after the first request.

        >>> pace = Pace(40)
        >>> for came in ("kept", "kept", "truncated"):
        ...     pace.add(came, Answer("", tokens=(400, 100), cached=300))
        >>> pace.line(30.0)
        '3 of 40 answered (2 kept, 1 truncated), 10 tokens/s, 75 % cached, about 6 min left'
        """
        count = self.came.total()
        what = ", ".join(f"{number:,} {name}" for name, number in self.came.most_common())
        left = (self.total - count) * seconds / max(count, 1)
        time = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        rate = f"{self.tokens / max(seconds, 1e-9):,.0f} tokens/s"
        if self.cached:  # the engine says so
            rate += f", {self.cached / self.read:.0%} cached".replace("%", " %")
        return f"{count:,} of {self.total:,} answered ({what}), {rate}, about {time} left"
