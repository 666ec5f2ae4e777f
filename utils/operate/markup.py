"""Words, numbers, tables, pictures and charts as HTML and SVG. All foreign text goes through `text`.

Charts place things across by percentages and up by pixels, so that they fill any width while their text keeps
its size.
"""

import base64
import html
import io
import math

from PIL import Image

from utils.errors import printable

LARGEST = 192  # pixels: larger pictures are reduced, so that the file stays small
RECENT = 8  # rows of a table before the older ones are folded
HEIGHT = 200  # pixels of the chart of distances
MIDDLE = 13  # pixels: of a row of a paired plot
TONES = {  # colour of each state; no meaning hangs on the colour alone
    "no": "good",
    "PASS": "good",
    "better": "good",
    "promoted": "good",
    "yes": "bad",
    "REJECT": "bad",
    "refused": "bad",
    "suspected": "care",
    "waits": "care",
}  # else dull: what cannot tell
MARKS = {  # one shape a status, around (0, 0), and what the status means
    "PASS": ('<circle r="4.5" fill="var(--good)"/>', "no difference seen"),
    "REJECT": ('<path d="M0-6.5 6.5 0 0 6.5-6.5 0z" fill="var(--bad)"/>', "drawn differently"),
    "UNDERPOWERED": (
        '<circle r="4" fill="var(--paper)" stroke="var(--dull)" stroke-width="2"/>',
        "too few people to tell",
    ),
    "BLIND": (
        '<path d="M-4-4 4 4M-4 4 4-4" stroke="var(--dull)" stroke-width="2.5"/>',
        "features cannot tell",
    ),
}


def text(value):
    """Anything as text in HTML; a dash for None."""
    return "–" if value is None else html.escape(printable(str(value)))


def code(value):
    return f"<code>{text(value)}</code>"


def command(line):
    return f"<pre>{text(line)}</pre>"


def tone(state):
    return TONES.get(state, "dull")


def word(state):
    """A state in its colour."""
    return f'<b class="{tone(state)}">{text(state)}</b>'


def known(value):
    return value is not None and math.isfinite(value)


def number(value):
    return f"{value:.3g}" if known(value) else "–"


def signed(value):
    """A difference with its sign, such as +0.0120."""
    if value == 0:
        return "0"
    return f"{value:+.4f}".replace("-", "−") if known(value) else "unknown"


def table(caption, heads, rows, shown=RECENT):
    """rows: tuples of HTML, one for each of heads. Those after the first `shown` are folded."""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = ""
    for row in rows[:shown]:
        cells = zip(heads, row, strict=True)
        cells = "".join(f'<td data-head="{head}"><div>{cell}</div></td>' for head, cell in cells)
        body += f"<tr>{cells}</tr>"
    made = f"<caption>{caption}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    made = f'<table class="rows">{made}</table>'
    if older := rows[shown:]:
        folded = table(f"{caption}: older ones", heads, older, len(older))
        made += f"<details><summary>{len(older)} older</summary>{folded}</details>"
    return made


def picture(array, alt, label, form="JPEG"):
    """(H, W, 3) uint8 -> an image with its label below, as a data: URI. form: JPEG or PNG."""
    image = Image.fromarray(array)
    image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    image.save(file, form, quality=88, optimize=True)
    data = f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    size = f'width="{image.width}" height="{image.height}"'
    return f'<span><img src="{data}" {size} alt="{text(alt)}">{label}</span>'


def marks():
    """The shapes that `use` elements of the charts refer to."""
    shapes = "".join(f'<g id="{status}" class="mark">{shape}</g>' for status, (shape, _) in MARKS.items())
    return f'<svg class="unseen" width="0" height="0" aria-hidden="true"><defs>{shapes}</defs></svg>'


def distances(watch):
    """D of each batch, oldest first, with its critical line, and what the marks mean. watch: as in `page`."""
    step = 100 / len(watch)
    every = math.ceil(len(watch) / 7)  # so many numbers have room on the narrowest screen
    under, over = "", ""
    for level in (0, 0.25, 0.5, 0.75, 1):
        under += line("0%", up(level), "100%", up(level), "--line")
        under += f'<text x="-8" y="{up(level)}" dy="4" text-anchor="end">{level:g}</text>'
    before = None
    for i, row in enumerate(watch):
        x, d, critical = f"{step * (i + 0.5):.2f}%", row["d_max"], row["d_critical"]
        if (len(watch) - 1 - i) % every == 0:  # the newest has its number, too
            under += f'<text x="{x}" y="{HEIGHT + 24}" text-anchor="middle">{text(row["batch"])}</text>'
        if known(critical):
            ends = f"{step * i:.2f}%", f"{step * (i + 1):.2f}%"
            under += line(ends[0], up(critical), ends[1], up(critical), "--blue", 2)
        if known(d):
            under += line(*before, x, up(d), "--soft") if before else ""
            before = x, up(d)
            words = text(f"batch {row['batch']}: {row['status']}, D {number(d)}, critical {number(critical)}")
            over += f'<use href="#{row["status"]}" x="{x}" y="{up(d)}"><title>{words}</title></use>'
    key = [f'<li><svg aria-hidden="true">{line("0%", 8, "100%", 8, "--blue", 2)}</svg>critical line</li>']
    for status, (_, meaning) in MARKS.items():
        if count := sum(row["status"] == status for row in watch):
            mark = f'<svg aria-hidden="true"><use href="#{status}" x="8" y="8"/></svg>'
            key.append(f"<li>{mark}{count} {status}: {meaning}</li>")
    label = f"Distances of {len(watch)} batches and their critical lines, as in the table below"
    kind = "chart many" if len(watch) > 60 else "chart"
    chart = f'<svg class="{kind}" role="img" aria-label="{label}">{under}{over}</svg>'
    return f'<ul class="key">{"".join(key)}</ul>{chart}'


def paired(part, required):
    """A row and a dot for each person, candidate minus champion, below the mean with its lower bound.

    part: as guard and audit in `page`; required: what the bound must exceed.
    """
    differences, mean, bound = part["differences"], part["mean"], part["bound"]
    values = [value for value in (*differences.values(), mean, bound, required, 0) if known(value)]
    room = 0.06 * (max(values) - min(values)) or 0.01
    low, high = min(values) - room, max(values) + room

    def across(value):  # a bound of -inf stands at the edge
        return f"{100 * (max(value, low) - low) / (high - low):.2f}%"

    def row(name, value, drawn, kind):
        plot = f'<svg aria-hidden="true">{rules}{drawn}</svg>'
        cells = f'<th scope="row">{text(name)}</th><td>{plot}</td><td>{signed(value)}</td>'
        return f'<tr class="{kind}">{cells}</tr>'

    rules = line(across(0), 0, across(0), 2 * MIDDLE, "--soft")
    if required:
        rules += line(across(required), 0, across(required), 2 * MIDDLE, "--bad", dashes="4 3")
    rows = ""
    if known(mean):
        end, x = across(bound), across(mean)
        bar = line(end, MIDDLE, x, MIDDLE, "--blue", 3)
        stop = line(end, MIDDLE - 6, end, MIDDLE + 6, "--blue", 3)
        rows += row("mean", mean, bar + stop + dot(x, "var(--blue)"), "mean")
    for person, value in sorted(differences.items(), key=lambda item: item[1]):
        rows += row(person, value, dot(across(value), "currentColor"), "person")
    level = "0; dashed: what" if required else "0, which"
    caption = (
        "Candidate minus champion, the worst first. Bar: from the lower bound to the mean. "
        f"Line: {level} the lower bound must exceed."
    )
    return f'<table class="paired"><caption>{caption}</caption><tbody>{rows}</tbody></table>'


def up(distance):
    """Pixels from the top of the chart to a distance in 0 to 1."""
    return round(HEIGHT * (1 - min(max(distance, 0), 1)) + 4, 1)


def line(x1, y1, x2, y2, color, width=1, dashes="none"):
    style = f'stroke="var({color})" stroke-width="{width}" stroke-dasharray="{dashes}"'
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {style}/>'


def dot(x, color):
    return f'<circle cx="{x}" cy="{MIDDLE}" r="4.5" fill="{color}"/>'
