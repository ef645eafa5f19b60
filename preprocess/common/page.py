"""Parts of one HTML file that needs no network and runs no script. All text is escaped here, by `escape`."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #667085; --line: #e4e7ec; --card: #fff; --page: #f6f7f9;
  --main: #2f6f8f; --warm: #b7652b; --grey: #98a2b3; --red: #b4413c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #98a2b3; --line: #2c3442; --card: #1a202c;
  --page: #11151d; --main: #6db3d2; --warm: #dd9a63; --grey: #667085; --red: #e2827c; } }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Noto Sans", "Noto Sans Arabic", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
p { margin: .3rem 0; color: var(--soft); } section { min-width: 0; }
.tiles, .plots { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.plots { grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; } .tile span { color: var(--soft); }
.bar { display: flex; height: 1rem; border-radius: .3rem; overflow: hidden; background: var(--line); }
.written { background: var(--main); } .merged { background: var(--grey); }
.screened { background: var(--warm); } .failed { background: var(--red); }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin: 0 .35rem 0 .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: start; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; } th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td.number, th.number { text-align: end; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.number, th.number { padding-inline-end: 1.4rem; } td:has(.fill) { width: 45%; }
td .fill { height: .55rem; border-radius: .2rem; background: var(--main); margin-top: .4rem; min-width: 1px; }
svg { display: block; width: 100%; height: auto; } svg .bin { fill: var(--main); }
svg .limit { stroke: var(--warm); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg text { fill: var(--soft); font-size: 11px; } figure { margin: 0; } figcaption { font-weight: 600; }
audio { width: 100%; height: 2.2rem; margin-top: .5rem; } .said { font-size: 1.1rem; }
"""
# Even if a hostile transcript got past `escape`, the browser would fetch nothing and run no script.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"


def page(title: str, body: Iterable[str]) -> str:
    """The whole file, as text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def escape(value: object) -> str:
    """Any value as text that is safe inside HTML or an attribute."""
    return html.escape(str(value), quote=True)


def section(title: str, *parts: str) -> str:
    """A heading with finished HTML below it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """A grid of large figures. facts: (figure, what it is) pairs."""
    inside = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span></div>' for figure, what in facts
    )
    return f'<div class="tiles">{inside}</div>'


def account_bar(counts: dict[str, int]) -> str:
    """A bar divided by status in proportion to `counts` {status: number}, with a legend of counts."""
    total = max(sum(counts.values()), 1)
    shown = [(name, counts[name]) for name in ("written", "merged", "screened", "failed") if name in counts]
    parts = "".join(f'<div class="{name}" style="width:{100 * count / total:.3f}%"></div>' for name, count in shown)
    keys = "".join(f'<span class="key {name}"></span>{count:,} {name}' for name, count in shown)
    return f'<div class="bar">{parts}</div><p>{keys}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    """A table. numbers: indices of the right-aligned columns. Cells of type `Markup` are not escaped."""

    def cells(tag: str, row: Sequence[object]) -> str:
        kinds = [' class="number"' if column in numbers else ' dir="auto"' for column in range(len(row))]
        shown = [cell if isinstance(cell, Markup) else escape(cell) for cell in row]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, shown, strict=True))

    lines = [f"<tr>{cells('th', head)}</tr>", *(f"<tr>{cells('td', row)}</tr>" for row in rows)]
    return '<div class="card"><table>' + "\n".join(lines) + "</table></div>"


class Markup(str):
    """Finished HTML, which `table` does not escape."""


def share_bar(share: float) -> Markup:
    """A bar that fills `share` (0 to 1) of its cell."""
    return Markup(f'<div class="fill" style="width:{100 * share:.2f}%"></div>')


def format_number(value: float) -> str:
    """A number with three significant digits; from 100 on, as a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def histogram(title: str, unit: str, values: npt.NDArray[Any], limits: Sequence[float] = ()) -> str:
    """A card with the distribution of `values` [clips]. `limits` (thresholds) within its range are dashed lines."""
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1.0
    counts, edges = np.histogram(values, bins=min(40, max(10, len(values) // 4)), range=(low, high))
    width, height = 360.0, 90.0
    step = width / len(counts)
    bars = "".join(
        f'<rect class="bin" x="{place * step:.2f}" y="{height - height * count / counts.max():.2f}" '
        f'width="{step - 1:.2f}" height="{height * count / counts.max():.2f}"><title>'
        f"{format_number(edges[place])} to {format_number(edges[place + 1])} {escape(unit)}: {count:,}</title></rect>"
        for place, count in enumerate(counts)
    )
    places = [(limit - low) / (high - low) * width for limit in limits if low < limit < high]
    lines = "".join(f'<line class="limit" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="{height:.0f}"/>' for x in places)
    median, first, last = (format_number(np.percentile(values, percent)) for percent in (50, 1, 99))
    return (
        f'<figure class="card"><figcaption>{escape(title)}</figcaption>'
        f"<p>median {median} {escape(unit)}, 1 to 99 %: {first} to {last}</p>"
        f'<svg viewBox="0 0 {width:.0f} {height + 16:.0f}" role="img">{bars}{lines}'
        f'<text x="0" y="{height + 13:.0f}">{format_number(low)}</text>'
        f'<text x="{width:.0f}" y="{height + 13:.0f}" text-anchor="end">{format_number(high)} {escape(unit)}</text>'
        "</svg></figure>"
    )
