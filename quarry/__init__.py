"""quarry from Python: one class, whose methods are the commands."""

from quarry.run import QuarryRun as Run

__all__ = ["Run"]
