"""The operator's page: is something wrong, what changed, what was done about it, can it be undone.

One HTML file that needs no script, no server and no other file: its styles (page.css), charts and pictures
stand in it.
"""

import pathlib

from utils.operate import markup
from utils.operate.markup import code, command, known, number, picture, signed, text, word

SHORT = 12  # letters of a digest where there is little room


def page(facts):
    """The whole page, as HTML.

    facts: plain data; pictures are (H, W, 3) uint8 arrays. Lists may be empty.
      ops, time; fallback: a line of text or None; alpha: level of the drift test; delta: F1 that may be lost
      champion: {version, sha256, run, time, decision}; state: {drift, sentence, next: a command}
      watch: oldest first, [{batch, time, photos: path, num_photos, people, status, d_max, d_critical or None,
        p, feature, verdict}]; status: one of `markup.MARKS`
      strangest: of the newest batch, [{photo, id, distance, nearest, nearest_id}]
      differences: [{photo, champion, candidate, id, share}], the second and third as overlays
      legend: of the overlays, [(class, (r, g, b))]
      decisions: oldest first, [{time, candidate: path, sha256, k, batches, verdict, why, guard, audit}];
        the last two None or {differences: {person: candidate - champion}, mean, bound, level, people}
      lineage: [{depth, what, out, sha256, data}], each model before those that it came from
      history: newest first, [{version, time, sha256, run, decision, rollback: a command or None}]
    """
    sections = {
        "Distance": ("Distance of each batch from the reference", distance(facts)),
        "Strangest": ("Strangest photos of the newest batch", strangest(facts["strangest"])),
        "Candidate": ("Newest candidate", candidate(facts)),
        "History": ("History of the champion", history(facts["history"])),
        "Lineage": ("Where the champion came from", lineage(facts["lineage"])),
    }
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in sections)
    body = ""
    for name, (heading, content) in sections.items():
        body += f'<section id="{name}"><h2>{heading}</h2>\n{content}\n</section>\n'
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is fetched, no script runs
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{text(facts["ops"])}: drift {text(facts["state"]["drift"])}</title>
<style>
{pathlib.Path(__file__).with_name("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{markup.marks()}
<header>{text(facts["ops"])}, {text(facts["time"])}</header>
<main>
{verdict(facts)}
<nav aria-label="Sections">{links}</nav>
{body}</main>
</body>
</html>
"""


def verdict(facts):
    """What can be seen at a glance: drift, what to do next, the champion, the candidate, the way back."""
    state, champion, decisions = facts["state"], facts["champion"], facts["decisions"]
    since = f"version {text(champion['version'])}, since {text(champion['time'])}"
    files = f"{code(champion['run'])}<br>{code(champion['sha256'])}"
    back = next((row["rollback"] for row in facts["history"] if row["rollback"]), None)
    lines = {"Next": command(state["next"]), "Champion": f"{since}: {text(champion['decision'])}<br>{files}"}
    if decisions:
        lines["Newest candidate"] = f"{word(decisions[-1]['verdict'])}: {text(decisions[-1]['why'])}"
    lines["To go back"] = command(back) if back else "there is no earlier champion"
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in lines.items())
    fallback = f'<p class="warning">{text(facts["fallback"])}</p>' if facts["fallback"] else ""
    return (
        f'{fallback}<div class="verdict {markup.tone(state["drift"])}"><h1>Drift: {text(state["drift"])}</h1>'
        f"<p>{text(state['sentence'])}</p><dl>{rows}</dl></div>"
    )


def distance(facts):
    if not facts["watch"]:
        return "<p>No batch has been watched yet.</p>"
    rows = [
        (
            f"<b>{text(row['batch'])}</b> {word(row['status'])}<br>{text(row['time'])}",
            f"{code(row['photos'])}<br>{text(row['num_photos'])} photos, {text(row['people'])} people",
            f"{number(row['d_max'])} of {text(row['feature'])}",
            number(row["d_critical"]),
            number(row["p"]),
            text(row["verdict"]),
        )
        for row in reversed(facts["watch"])
    ]
    heads = ("batch", "photos", "largest D", "critical", "p", "verdict")
    return (
        "<p>D is the largest Kolmogorov-Smirnov distance of any feature: 0 where a batch is drawn like the "
        f"reference, 1 at most. Above the critical line (level {number(facts['alpha'])}) it is rejected.</p>"
        + markup.distances(facts["watch"])
        + markup.table("Batches, the newest first", heads, rows)
    )


def strangest(photos):
    if not photos:
        return "<p>There are no photos to show.</p>"
    figures = ""
    for each in photos:
        figures += "<figure>" + picture(each["photo"], f"photo {each['id']}", "photo")
        figures += picture(each["nearest"], f"reference photo {each['nearest_id']}", "nearest reference")
        ids = f"{code(each['id'])}, distance {number(each['distance'])}; nearest: {code(each['nearest_id'])}"
        figures += f"<figcaption>{ids}</figcaption></figure>"
    return f'<div class="pictures">{figures}</div>'


def candidate(facts):
    """The newest candidate with its bounds and masks, then the earlier ones as a table."""
    if not facts["decisions"]:
        return "<p>No candidate has been judged yet.</p>" + masks(facts)
    *earlier, newest = facts["decisions"]
    required = {"guard": -facts["delta"], "audit": 0}
    asked = f" It is candidate number {text(newest['k'])} on these audit photos." if newest["audit"] else ""
    heads = ("verdict", "candidate", "batches", "guard", "audit", "why")
    rows = [
        (
            f"{word(row['verdict'])}<br>{text(row['time'])}",
            f"{code(row['candidate'])}<br>{code(row['sha256'][:SHORT])}<br>number {text(row['k'])}",
            text(", ".join(map(str, row["batches"])) or None),
            *(bound(row[part], required[part]) for part in required),
            text(row["why"]),
        )
        for row in reversed(earlier)
    ]
    return (
        f"<p>{word(newest['verdict'])}, {text(newest['time'])}: {text(newest['why'])}</p>"
        f"<p>{code(newest['candidate'])}<br>{code(newest['sha256'])}<br>"
        f"Trained for batches: {text(', '.join(map(str, newest['batches'])) or None)}.{asked}</p>"
        f'<div class="halves">{judged("Guard: people of the old domain", newest["guard"], required["guard"])}'
        f"{judged('Audit: people of the new domain', newest['audit'], required['audit'])}</div>"
        + masks(facts)
        + (markup.table("Earlier candidates, the newest first", heads, rows) if rows else "")
    )


def judged(heading, part, required):
    """One half of a judgement: its figures and a paired plot."""
    if part is None:
        return f"<div><h3>{heading}</h3><p>Not measured.</p></div>"
    figures = f"{bound(part, required)}; people: {text(part['people'])}, level: {number(part['level'])}."
    return f"<div><h3>{heading}</h3><p>{figures}</p>{markup.paired(part, required)}</div>"


def bound(part, required):
    """The mean, its lower bound, and whether that is high enough."""
    if part is None:
        return "not measured"
    enough = known(part["bound"]) and part["bound"] > required
    outcome = '<b class="good">above</b>' if enough else '<b class="bad">not above</b>'
    return f"mean {signed(part['mean'])}, lower bound {signed(part['bound'])}, {outcome} {signed(required)}"


def masks(facts):
    """Photos on which champion and candidate disagree most, with the masks of both."""
    if not facts["differences"]:
        return ""
    key = ""
    for name, color in facts["legend"]:
        key += f'<li><i style="background: rgb{tuple(map(int, color))}"></i>{text(name)}</li>'
    figures = ""
    for each in facts["differences"]:
        figures += "<figure>" + picture(each["photo"], f"photo {each['id']}", "photo")
        for model in ("champion", "candidate"):
            figures += picture(each[model], f"mask of the {model} on {each['id']}", model, "PNG")
        share = f"{each['share']:.1%} of pixels differ"
        figures += f"<figcaption>{code(each['id'])}: {share}</figcaption></figure>"
    heading = "<h3>Where champion and candidate disagree most</h3>"
    return f'{heading}<ul class="key">{key}</ul><div class="pictures three">{figures}</div>'


def history(versions):
    if not versions:
        return "<p>No champion has been recorded yet.</p>"
    rows = [
        (
            f"<b>{text(row['version'])}</b><br>{text(row['time'])}",
            f"{code(row['run'])}<br>{code(row['sha256'][:SHORT])}",
            text(row["decision"]),
            command(row["rollback"]) if row["rollback"] else "–",
        )
        for row in versions
    ]
    heads = ("version", "run", "decision", "to go back to it")
    return markup.table("Champions, the newest first", heads, rows)


def lineage(models):
    """The champion's ancestors as nested lists."""
    if not models:
        return "<p>Nothing is known of its ancestors.</p>"
    tree, level = "", -1
    for model in models:
        depth = model["depth"]
        if depth > level:
            tree += "<ul><li>" * (depth - level)
        else:
            tree += "</li></ul>" * (level - depth) + "</li><li>"
        tree += f"<div><b>{text(model['what'])}</b> {code(model['out'])} {code(model['sha256'][:SHORT])}"
        tree += f'<br><span class="soft">{text(model["data"])}</span></div>'
        level = depth
    tree += "</li></ul>" * (level + 1)
    return f'<p>Below each model: what it began from or was taught by.</p><div class="tree">{tree}</div>'
