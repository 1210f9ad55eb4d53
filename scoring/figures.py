"""report data -> charts, as plain plotly.js values. `meta.colour` names a colour of PALETTE;
`meta.set` or `meta.sets` the set of a trace or of each of its points.
"""

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
LABELS = {"coverage": "coverage", "eci_v1": "ECI"}  # what sets are ordered by, the better first
COLOURS = 12  # of sets; more sets begin anew
# colours by name: light, dark
PALETTE = {
    "page": ("#fbfaf8", "#15181c"),
    "card": ("#ffffff", "#1c2025"),
    "ink": ("#1d2126", "#e6e4df"),
    "soft-ink": ("#5d6670", "#9aa3ad"),
    "line": ("#e3e0da", "#30363d"),
    "hair": ("#eeece7", "#282d33"),
    "tint": ("#f4f2ed", "#23282e"),
    "accent": ("#2f5fa8", "#7aa7ea"),
    "soft": ("#b9c6da", "#465a78"),
    "negative": ("#cf7a2b", "#e59a52"),
    "positive": ("#2a8a72", "#4fb89c"),
    "unsafe": ("#c43a3f", "#ef6b6e"),
    "unsafe-tint": ("#fbeceb", "#3a2224"),
    "best": ("#edf3fb", "#1f2b3c"),
    "set-0": ("#2f5fa8", "#7aa7ea"),
    "set-1": ("#cf7a2b", "#e59a52"),
    "set-2": ("#2a8a72", "#4fb89c"),
    "set-3": ("#b0468e", "#d979ba"),
    "set-4": ("#8a7a1f", "#c2b04a"),
    "set-5": ("#3a9ec2", "#62bfe0"),
    "set-6": ("#c43a3f", "#ef6b6e"),
    "set-7": ("#6b55b5", "#a08fe6"),
    "set-8": ("#6c9a34", "#9cc862"),
    "set-9": ("#8a5a3c", "#bf8c69"),
    "set-10": ("#d06a93", "#ee9abb"),
    "set-11": ("#6b7480", "#a3acb7"),
}


def figures(data: Row) -> dict[str, Row]:
    """Return name -> {data, layout} of every chart on the page."""
    sets, matched, by = data["sets"], data["matched"], data["by"]
    label = LABELS[by]
    worth = [(f"{label} as is", by, "soft")] + (
        [(f"{label} at |N| = {matched}", f"{by}@{matched}", "accent")] if matched else []
    )
    parts = [("S, hardness", "signal", "negative"), ("D, safety", "margin", "positive")]
    found = {"worth": _bars(sets, worth), "parts": _bars(sets, parts), "curve": _curve(sets, by)}
    found["plane"] = _plane(sets)
    similarity, margin = (
        _span(data["histograms"], "s_n", "s_p"),
        _span(data["histograms"], "margin"),
    )
    for row in sets:
        found[f"histogram-{row['name']}"] = _histogram_figure(
            data["histograms"][row["name"]], similarity, margin
        )
    return found


def _bars(sets: list[Row], measures: list[tuple[str, str, str]]) -> Row:
    traces = []
    for label, measure, colour in measures:
        entries = [row["measures"].get(measure, {}) for row in sets]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label,
                "meta": {"colour": colour, "sets": [row["name"] for row in sets]},
                "y": [_escaped(row["name"]) for row in sets],
                "x": [entry.get("value") for entry in entries],
                "error_x": _errors(entries),
                "hovertemplate": "%{y}: %{x:.3f}<extra>" + label + "</extra>",
            }
        )
    # A category, so that a set called "2024" is a name and no number.
    axes = {
        "yaxis": {"type": "category", "autorange": "reversed"},
        "xaxis": {"rangemode": "tozero"},
    }
    return {
        "data": traces,
        "layout": {
            **axes,
            "height": 110 + 26 * len(measures) * len(sets),
            "barmode": "group",
            "bargap": 0.35,
        },
    }


def _plane(sets: list[Row]) -> Row:
    """Each set by hardness S and safety D, over lines on which E = 2 S D / (S + D) is the same."""
    points = [
        (number, row, *(row["measures"][name]["value"] for name in ("signal", "margin")))
        for number, row in enumerate(sets)
    ]
    points = [point for point in points if None not in point[2:]]
    far = 1.1 * max((abs(value) for point in points for value in point[2:]), default=1.0)
    traces = []
    for level in (far * step / 6 for step in range(1, 6)):
        hard = [level / 2 + far * step / 60 for step in range(1, 61)]
        safe = [level * one / (2 * one - level) for one in hard]
        line = [(one, two) for one, two in zip(hard, safe, strict=True) if max(one, two) <= far]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "meta": {"colour": "line"},
                "showlegend": False,
                "x": [one for one, _ in line],
                "y": [two for _, two in line],
                "hovertemplate": f"E = {level:.3f}<extra></extra>",
            }
        )
    for number, row, hard_one, safe_one in points:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _escaped(row["name"]),
                "meta": {"colour": f"set-{number % COLOURS}", "set": row["name"]},
                "marker": {"size": 11},
                "x": [hard_one],
                "y": [safe_one],
                "hovertemplate": "S %{x:.3f}, D %{y:.3f}",
            }
        )
    axes = {"xaxis": {"title": {"text": "S, hardness"}}, "yaxis": {"title": {"text": "D, safety"}}}
    return {"data": traces, "layout": {**axes, "height": 380}}


def _errors(entries: list[Row]) -> Row:
    """Return plotly's distances from value to interval; None where there is no interval."""
    whole = [
        entry if None not in (entry.get("value"), entry.get("low"), entry.get("high")) else None
        for entry in entries
    ]
    up = [entry["high"] - entry["value"] if entry else None for entry in whole]
    down = [entry["value"] - entry["low"] if entry else None for entry in whole]
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "thickness": 1.2,
        "width": 3,
    }


def _curve(sets: list[Row], by: str) -> Row:
    traces, sizes = [], set()
    for number, row in enumerate(sets):
        entries = [
            entry
            for name, entry in row["measures"].items()
            if name.startswith(f"{by}@") and entry["value"] is not None
        ]
        entries.sort(key=lambda entry: entry["k"])
        sizes |= {entry["k"] for entry in entries}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": _escaped(row["name"]),
                "meta": {"colour": f"set-{number % COLOURS}", "set": row["name"]},
                "x": [entry["k"] for entry in entries],
                "y": [entry["value"] for entry in entries],
                "error_y": _errors(entries),
                "hovertemplate": "|N| = %{x}: %{y:.3f}",
            }
        )
    ticks = sorted(sizes)
    axes = {
        "xaxis": {
            "type": "log",
            "tickvals": ticks,
            "ticktext": [str(size) for size in ticks],
            "title": {"text": "|N|, best ranks first"},
        },
        "yaxis": {"title": {"text": LABELS[by]}, "rangemode": "tozero"},
    }
    return {"data": traces, "layout": {**axes, "height": 380}}


def _span(histograms: Mapping[str, Mapping[str, Row]], *quantities: str) -> list[float]:
    """Return the range that holds the bins of all sets, so that their histograms can be compared
    by eye.
    """
    bins = [
        found[quantity]
        for found in histograms.values()
        for quantity in quantities
        if quantity in found
    ]
    edges = [
        (low, high)
        for one in bins
        for low, high, count in zip(one["low"], one["high"], one["count"], strict=True)
        if count
    ]
    return [min(low for low, _ in edges), max(high for _, high in edges)] if edges else [0.0, 1.0]


def _histogram_figure(
    histograms: Mapping[str, Row], similarity: list[float], margin: list[float]
) -> Row:
    traces = [
        _bars_of(histograms, "s_n", "negatives, s<sub>n</sub>", "negative"),
        _bars_of(histograms, "s_p", "positives, s<sub>p</sub>", "positive"),
    ]
    traces += [
        _bars_of(histograms, "margin", label, colour, "2")
        for label, colour in (("safe", "accent"), ("unsafe", "unsafe"))
    ]
    below_zero = {"x0": min(margin[0], 0), "x1": 0, "y0": 0, "y1": 1}
    shade = {"type": "rect", "xref": "x2", "yref": "paper", "layer": "below", **below_zero}
    shade["line"] = {"width": 0}
    layout = {
        "barmode": "overlay",
        "bargap": 0,
        "height": 200,
        "xaxis": {
            "domain": [0, 0.48],
            "range": similarity,
            "title": {"text": "similarity to the query"},
        },
        "xaxis2": {
            "domain": [0.54, 1],
            "range": [min(margin[0], -0.05), margin[1]],
            "title": {"text": "margin s<sub>p</sub> − s<sub>n</sub>"},
            "anchor": "y2",
        },
        "yaxis": {"tickformat": ".0%"},
        "yaxis2": {"tickformat": ".0%", "anchor": "x2"},
        "shapes": [shade],
    }
    return {"data": [trace for trace in traces if trace], "layout": layout}


def _bars_of(
    histograms: Mapping[str, Row], quantity: str, label: str, colour: str, axes: str = ""
) -> Row:
    """Return the bars of one quantity as shares of all its counts; of margins, those of one side
    of zero.
    """
    if quantity not in histograms:
        return {}
    bins = list(
        zip(*(histograms[quantity][name] for name in ("low", "high", "count")), strict=True)
    )
    total = sum(count for _, _, count in bins) or 1
    kept = [
        (low, high, count)
        for low, high, count in bins
        if count and (quantity != "margin" or (low + high < 0) == (colour == "unsafe"))
    ]
    return {
        "type": "bar",
        "name": label,
        "meta": {"colour": colour},
        "x": [(low + high) / 2 for low, high, _ in kept],
        "y": [count / total for _, _, count in kept],
        "width": [high - low for low, high, _ in kept],
        "opacity": 0.6,
        "marker": {"line": {"width": 0}},
        "xaxis": f"x{axes}",
        "yaxis": f"y{axes}",
        "hovertemplate": "%{x:.2f}: %{y:.1%}<extra>" + label + "</extra>",
    }


def _escaped(text: str) -> str:
    """Keep plotly from reading a name as its own kind of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
