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
        self.began = self.shown = monotonic()

    def add(self, came: str, tokens: int) -> None:
        """Count an answer, by what came of it, and show the line if it is time."""
        self.came[came] += 1
        self.tokens += tokens
        now = monotonic()
        if now - self.shown >= EVERY:
            self.shown = now
            log.warning("%s", self.line(now - self.began))

    def line(self, seconds: float) -> str:
        """Return the line, so many seconds after the first request.

        >>> pace = Pace(40)
        >>> for came in ("kept", "kept", "truncated"):
        ...     pace.add(came, 100)
        >>> pace.line(30.0)
        '3 of 40 answered (2 kept, 1 truncated), 10 tokens/s, about 6 min left'
        """
        count = self.came.total()
        what = ", ".join(f"{number:,} {name}" for name, number in self.came.most_common())
        left = (self.total - count) * seconds / max(count, 1)
        time = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        rate = f"{self.tokens / max(seconds, 1e-9):,.0f} tokens/s"
        return f"{count:,} of {self.total:,} answered ({what}), {rate}, about {time} left"
