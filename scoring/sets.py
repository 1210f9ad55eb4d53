"""The sets of a run: which there are, and which are made from the tables as they are now."""

from miner.errors import UserError
from miner.store import Manifest, Run


def need_set(run: Run, name: str) -> Manifest:
    """Return the manifest of a finished set that was made from the tables as they are now.

    Raises:
        UserError: there is no such set (the sets found are listed), it is half done, or older than
            the tables.
    """
    found = run.names(run.SETS)
    if name not in found and not (run.path / run.SETS / name).is_dir():
        listed = f"found {', '.join(found)}" if found else "found none"
        raise UserError(
            f"{run.path / run.SETS} has no set {name!r} ({listed}); take one of these, or make it"
            f" with `quarry select {name}`"
        )
    manifest = run.need(f"{run.SETS}/{name}", f"select {name}")
    if run.TABLES in changed_inputs(run, manifest):
        raise UserError(
            f"{run.path / run.SETS / name} is older than the tables; run `quarry select {name}"
            " --force` first"
        )
    return manifest


def current_sets(run: Run) -> list[str]:
    """Return the finished sets that are made from the tables as they are now."""
    made = [
        (name, run.need(f"{run.SETS}/{name}", f"select {name}")) for name in run.names(run.SETS)
    ]
    return [name for name, manifest in made if run.TABLES not in changed_inputs(run, manifest)]


def changed_inputs(run: Run, manifest: Manifest) -> list[str]:
    """Return the stages that a stage was made from and that were made anew since, in order of
    name.
    """
    now = {folder: run.find(folder) for folder in manifest.inputs}
    return sorted(
        folder
        for folder, before in manifest.inputs.items()
        if (other := now[folder]) and other.fingerprint != before
    )
