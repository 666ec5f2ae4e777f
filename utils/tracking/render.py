"""A table of runs as Markdown, and as a page that opens without a server."""

import html
import itertools
import os

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left; white-space: nowrap; }
td:first-child { border-left: 5px solid var(--row); }
th { font-weight: 600; }
svg { display: block; margin-top: 1rem; max-width: 100%; height: auto; }
svg polyline { fill: none; stroke: var(--row); stroke-width: 2; stroke-linecap: round; }
svg rect { fill: none; stroke: var(--line); }
svg text { fill: currentColor; font-size: 11px; }
"""
WIDTH, HEIGHT, MARGIN = 640, 220, 56  # of the curves, pixels


def markdown(table):
    """table: {"title", "header": cells, "rows": lists of cells, "notes": lines}; cells are text."""
    header, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (table["header"], *table["rows"])]
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"### {table['title']}", "", *lines, "", *(f"- {note}" for note in table["notes"]), ""])


def page(title, tables):
    """One HTML file without any other. tables: as for `markdown`, with "curves": [{name: [(step, value)]}] of
    the runs of each row."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for table in tables:
        header, *rows = [[html.escape(cell) for cell in row] for row in (table["header"], *table["rows"])]
        cells = "".join(f"<th>{cell}</th>" for cell in header)
        body = "".join(
            f'<tr style="{_color(i)}">' + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n"
            for i, row in enumerate(rows)
        )
        notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in table["notes"])
        parts += [
            f"<h2>{html.escape(table['title'])}</h2>",
            f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>\n{body}</tbody></table></div>',
            _curves(table["curves"]),
            f"<ul>\n{notes}</ul>" if notes else "",
        ]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{meta}<title>{html.escape(title)}</title><style>{STYLE}</style>"
    content = "\n".join(filter(None, parts))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{content}\n</body></html>\n'


def _color(i):
    """Of row i: hues a golden angle apart."""
    return f"--row: hsl({i * 137.5 % 360:.0f} 65% 50%)"


def _curves(rows):
    """The figure over steps, a line for each run in the colour of its row, as SVG; "" where there is none."""
    points = list(itertools.chain(*(line for runs in rows for line in runs.values())))
    if not points:
        return ""
    last = max(step for step, _ in points) or 1
    low, high = min(value for _, value in points), max(value for _, value in points)
    x = lambda step: MARGIN + step / last * (WIDTH - MARGIN - 8)
    y = lambda value: HEIGHT - 22 - (value - low) / ((high - low) or 1) * (HEIGHT - 34)
    lines = [
        f'<polyline style="{_color(i)}" points="'
        + " ".join(
            f"{x(step):.1f},{y(value):.1f}" for step, value in line + line[-1:]
        )  # one point shows, too
        + f'"><title>{html.escape(name)}</title></polyline>'
        for i, runs in enumerate(rows)
        for name, line in runs.items()
    ]
    frame = f'<rect x="{MARGIN}" y="6" width="{WIDTH - MARGIN - 4}" height="{HEIGHT - 24}"/>'
    words = [(2, y(high) + 8, f"{high:.4g}"), (2, y(low), f"{low:.4g}"), (MARGIN, HEIGHT - 4, "step 0")]
    texts = [f'<text x="{left}" y="{top:.0f}">{word}</text>' for left, top, word in words]
    texts.append(f'<text x="{WIDTH - 4}" y="{HEIGHT - 4}" text-anchor="end">{last}</text>')
    inner = "\n".join([frame, *texts, *lines])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">\n{inner}\n</svg>'


# ---- cells


def common(texts):
    """Texts as one: what they begin and end with, and … for what differs between."""
    first, *others = dict.fromkeys(texts)
    if not others:
        return first
    begin = os.path.commonprefix([first, *others])
    end = os.path.commonprefix([text[len(begin) :][::-1] for text in (first, *others)])[::-1]
    return f"{begin}…{end}"


def shown(value):
    """The value of a flag as text."""
    words = value if isinstance(value, list) else [] if value is None else [value]
    return " ".join(map(str, words)) or "–"
