"""Scored sets -> plain sentences: which is ahead at a matched |N|, and whether that is more than
chance.
"""

import math
from itertools import compress

from scoring.figures import LABELS
from scoring.metrics import Lead
from scoring.show import Row


def value_of(row: Row, measure: str) -> float:
    """Return a measure of a set, below all others if it has none."""
    value = row["measures"].get(measure, {}).get("value")
    return -math.inf if value is None else float(value)


def leading(sets: list[Row]) -> str:
    """Return what sets are ordered by: coverage where all were measured, else ECI."""
    measured = all("coverage" in row["measures"] for row in sets)
    found = measured and any(value_of(row, "coverage") > -math.inf for row in sets)
    return "coverage" if found else "eci_v1"


def matched_size(sets: list[Row]) -> int | None:
    """Return the largest m for which every set has ECI@m, sets that have it for no m aside; None
    if there is none.
    """
    sizes = [
        {
            entry["k"]
            for name, entry in row["measures"].items()
            if name.startswith("eci_v1@") and entry["value"] is not None
        }
        for row in sets
    ]
    return max(set.intersection(*filter(None, sizes)), default=None) if any(sizes) else None


def findings(
    sets: list[Row], matched: int | None, lead: Lead | None, by: str = "eci_v1"
) -> list[str]:
    """Say in plain sentences which set is ahead at a matched |N|, and whether that is more than
    chance.

    Args:
        sets: sorted by the measure at that |N|, best first.
        matched: the |N|; None if the sets have none in common.
        lead: paired difference of the first two and its interval, if known.
        by: the measure, of LABELS.
    """
    if len(sets) == 1:
        return ["One set is scored, so there is nothing to compare it with."]
    if matched is None:
        return [
            f"The sets have no |N| in common; {LABELS[by]} as is also compares their sizes, so no"
            " set is marked as best."
        ]
    small = [row["name"] for row in sets if value_of(row, f"{by}@{matched}") == -math.inf]
    if small:
        rest = findings(sets[: -len(small)], matched, lead, by)
        return [*rest, f"Not compared, with less than one negative a query: {listed(small)}."]
    return [*_compared(sets, by, matched, lead), _unsafe(sets)]


def _compared(sets: list[Row], by: str, matched: int, lead: Lead | None) -> list[str]:
    """Say whether the first set is ahead of the others."""
    first, *others = entries = [row["measures"][f"{by}@{matched}"] for row in sets]
    said = (
        f"At the matched |N| of {matched}, {sets[0]['name']} has the highest {LABELS[by]},"
        f" {_with_interval(first)}"
    )
    if any(entry["low"] is None for entry in entries):
        return [f"{said}; there are no intervals, so whether that is more than chance is open."]
    overlap = [entry["high"] >= first["low"] for entry in others]
    near = [row["name"] for row in compress(sets[1:], overlap)]
    if not near:
        return [f"{said}; its interval lies above that of every other set."]
    said += f", but its interval overlaps that of {listed(near)}"
    if lead is None or lead.low is None or lead.high is None:
        return [f"{said}: this run does not tell them apart."]
    where = "Query by query" if lead.queries is None else f"On the {lead.queries:,} queries of both"
    paired = (
        f"{where} it is {lead.value:.3f} ({lead.low:.3f} to {lead.high:.3f}) ahead of the next,"
        f" {sets[1]['name']}"
    )
    verdict = "zero is possible, so this run does not tell the two apart"
    if lead.low > 0:
        verdict = "a difference that this run supports"
    return [f"{said}.", f"{paired}: {verdict}."]


def _unsafe(sets: list[Row]) -> str:
    shares = [row["measures"].get("unsafe_share", {}).get("value") for row in sets]
    others = [share for share in shares[1:] if share is not None]
    said = f"{percent(shares[0])} of its triples are unsafe"
    return (
        f"{said}, against {percent(min(others))} to {percent(max(others))} in the other sets."
        if others
        else f"{said}."
    )


def _with_interval(entry: Row) -> str:
    return f"{entry['value']:.3f}" + (
        "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    )


def listed(names: list[str]) -> str:
    """Return names as a sentence lists them."""
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def percent(value: float | None) -> str:
    """Return a share in percent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"
