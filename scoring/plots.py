"""charts of the report -> SVG and PNG files for papers and slides, drawn by matplotlib."""

from pathlib import Path
from typing import Any

from miner.errors import UserError
from miner.files import atomic
from scoring.figures import PALETTE
from scoring.show import Row

FORMATS = ("svg", "png")
DPI, WIDTH = 150, 7.0  # dots and inches


def write_figures(figures: dict[str, Row], folder: Path) -> None:
    """Write each figure of `scoring.figures` as SVG and PNG.

    Args:
        figures: name -> {data, layout}.
        folder: where they go; it is made.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "--figures needs matplotlib; run pip install 'quarry-negatives[figures]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    # Texts stay texts, and the same numbers give the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "quarry", "font.size": 9}):
        for name, figure in figures.items():
            drawn = Figure((WIDTH, figure["layout"]["height"] / 80), layout="constrained")
            _draw(drawn, figure)
            safe = "".join(
                letter if letter.isalnum() or letter in "+-_." else "_" for letter in name
            )
            for kind in FORMATS:
                with atomic(folder / f"{safe}.{kind}") as temporary:
                    metadata = {"Date": None} if kind == "svg" else {"Software": None}
                    drawn.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)


def _draw(drawn: Any, figure: Row) -> None:
    """Draw the traces of a figure on one pair of axes, or on two side by side."""
    traces, layout = figure["data"], figure["layout"]
    names = sorted({trace.get("xaxis", "x") for trace in traces})
    for axes, name in zip(drawn.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        mine = [trace for trace in traces if trace.get("xaxis", "x") == name]
        for number, trace in enumerate(mine):
            _trace(axes, trace, number, len(mine))
        _axes(axes, layout, name)
        if any(trace.get("showlegend", True) for trace in mine):
            axes.legend(frameon=False, fontsize=8)


def _axes(axes: Any, layout: Row, name: str) -> None:
    across, up = (layout.get(f"{one}axis{name[1:]}", {}) for one in "xy")
    axes.set_xlabel(_plain(across.get("title", {}).get("text", "")))
    axes.set_ylabel(_plain(up.get("title", {}).get("text", "")))
    if across.get("type") == "log":
        axes.set_xscale("log")
        axes.set_xticks(across["tickvals"], across["ticktext"])
        axes.minorticks_off()
    if "range" in across:
        axes.set_xlim(*across["range"])
    if up.get("autorange") == "reversed":
        axes.invert_yaxis()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _trace(axes: Any, trace: Row, number: int, count: int) -> None:
    colour = PALETTE[trace["meta"]["colour"]][0]
    label = _plain(trace["name"]) if trace.get("showlegend", True) else None
    if trace["type"] == "bar" and trace.get("orientation") == "h":
        places = [
            place + (number - (count - 1) / 2) * 0.8 / count for place in range(len(trace["y"]))
        ]
        lengths = [float("nan") if value is None else value for value in trace["x"]]
        error = [[value or 0 for value in trace["error_x"][end]] for end in ("arrayminus", "array")]
        axes.barh(places, lengths, 0.8 / count, xerr=error, color=colour, label=label, capsize=2)
        axes.set_yticks(range(len(trace["y"])), [_plain(name) for name in trace["y"]])
    elif trace["type"] == "bar":
        axes.bar(trace["x"], trace["y"], trace["width"], color=colour, label=label, alpha=0.6)
    elif trace["mode"] == "markers":
        axes.scatter(trace["x"], trace["y"], color=colour, label=label)
    else:
        error = [
            [v or 0 for v in trace.get("error_y", {}).get(end, ())]
            for end in ("arrayminus", "array")
        ]
        style = "-o" if "markers" in trace["mode"] else "-"
        bars = error if error[0] else None
        axes.errorbar(
            trace["x"], trace["y"], bars, fmt=style, color=colour, label=label, markersize=4
        )


def _plain(text: str) -> str:
    """Return a text of a figure without plotly's kind of HTML, and without matplotlib's."""
    for tag, letter in (
        ("<sub>", "_"),
        ("</sub>", ""),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ):
        text = text.replace(tag, letter)
    return text.replace("$", r"\$")
