"""One step, called under the run's lock; the command line and the Python API both come through
here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.steps import Step
from miner.errors import UserError
from miner.options import Options

if TYPE_CHECKING:
    from miner.engine import How
    from miner.store import Manifest, Run


@dataclass(frozen=True)
class Settings:
    """What holds for every command: the run folder and quarry.toml."""

    path: Path
    config: dict[str, Any]

    @property
    def run(self) -> "Run":
        """Return the run folder."""
        from miner.store import Run

        return Run(self.path)

    @property
    def made_run(self) -> "Run":
        """Return the run folder, which must be there.

        Raises:
            UserError: it is not.
        """
        if not self.path.exists():
            raise UserError(
                f"there is no run folder {self.path}; begin with `quarry ingest`, or name another"
                " with -r before the command"
            )
        return self.run


def call(run: "Run", step: Step, options: Options, how: "How") -> "list[Manifest]":
    """Call the step's function; the caller holds the lock."""
    made = step.part.function(run, options, how)
    return made if isinstance(made, list) else [made]


def call_alone(at: Settings, step: Step, options: Options, how: "How") -> "list[Manifest]":
    """Call the step's function under the lock; only ingest makes a run folder.

    Raises:
        UserError: there is no run folder, another process writes into it, or as the step says.
    """
    run = at.run if step.stage == "ingest" else at.made_run
    with run.lock():
        return call(run, step, options, how)
