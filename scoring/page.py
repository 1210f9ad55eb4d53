"""Report data -> one HTML file that fetches nothing."""

import json
from pathlib import Path
from typing import Any

from scoring.examples import LIMIT
from scoring.figures import COLOURS, LABELS, PALETTE, figures
from scoring.findings import percent
from scoring.in_common import DEPTH
from scoring.reasons import REASONS
from scoring.show import Row

CUT = 300  # characters of a text that are shown
# what the page shows of a set in a table of its own
BESIDE = (
    "efficiency",
    "capacity",
    "gradient_unsafe",
    "gradient_hard",
    "gradient_easy",
    "n_eff_0.05",
    "top_share_0.05",
    "effective_documents",
    "eci_sem",
    "uniformity",
    "cross_uniformity",
    "centroid_gap",
    "ngram_diversity",
)
TERMS = {
    "|N|": "Mean number of negatives of a query.",
    "coverage@": (
        "Coverage of the best-ranked negatives only, as many for every set. The rows are sorted by"
        " it."
    ),
    "coverage": (
        "Share of the first-order fall of the corpus's loss that one step along the set's own"
        " gradient takes: 1 is all, below 0 is the wrong way."
    ),
    "ECI": (
        "Effective contrastive information, ln(1 + |N|) · 2SD / (S + D), of the set as it is. Set"
        " size dominates it."
    ),
    "ECI@": ("ECI of the best-ranked negatives only, as many for every set: the fair comparison."),
    "S": (
        "Signal: mean similarity s_n of query and negative under the target encoder. Higher is"
        " harder."
    ),
    "D": "Margin: mean of s_p − s_n, how far negatives stay below the positive. Higher is safer.",
    "E": "Efficiency: harmonic mean of S and D.",
    "I": "Capacity: ln(1 + |N|).",
    "probe": (
        "How often a classifier of words alone tells a negative from its original: about .5 is"
        " never, above is an artefact."
    ),
    "unsafe": (
        "Share of (query, positive, negative) triples with s_n ≥ s_p: the model already holds the"
        " negative to be the better answer."
    ),
    "without": "Share of queries that the recipe left without any negative.",
    "rows": "Negatives in the set, over all queries.",
    "left out": "Candidates that the recipe left out; the section below says why.",
}


def render_page(data: Row) -> str:
    """Return the page: one HTML file that fetches nothing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _figure,
        "share": percent,
        "head": _head,
        "words": spaced,
        "pretty": _pretty,
        "marked": _marked,
    }
    environment.tests["code"] = _is_code
    return environment.get_template("report.html.jinja").render(
        **data,
        figures=figures(data),
        plotlyjs=get_plotlyjs(),
        terms=TERMS,
        reasons=REASONS,
        measures_beside=_measures_beside,
        label=LABELS[data["by"]],
        colours=COLOURS,
        palette=PALETTE,
        depth=DEPTH,
        limit=LIMIT,
    )


def _measures_beside(sets: list[Row]) -> list[str]:
    """Return the measures of BESIDE that a set has."""
    return [name for name in BESIDE if any(name in row["measures"] for row in sets)]


def _figure(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}".replace("-", "−")


def spaced(name: str) -> str:
    """Return a name as words."""
    return name.replace("_", " ")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _head(text: str) -> str:
    """Return the beginning of a text, up to the last white space before the cut if one is near."""
    if len(text) <= CUT:
        return text
    place = max(text.rfind(" ", CUT - 40, CUT), text.rfind("\n", CUT - 40, CUT))
    return text[: place if place > 0 else CUT]


def _marked(row: Row, start: int, end: int | None = None) -> Any:
    """Return a part of a text, with what its edits say marked."""
    from markupsafe import Markup, escape

    text, at, out = row["text"][:end], start, Markup("")
    for edit in row.get("edits", ()):
        first, last = max(edit[0], start), min(edit[1], len(text))
        if first < last:
            out += escape(text[at:first]) + Markup("<mark>%s</mark>") % text[first:last]
            at = last
    return out + escape(text[at:])


def _is_code(text: str) -> bool:
    return any(line.startswith(("    ", "\t")) for line in text.split("\n"))
