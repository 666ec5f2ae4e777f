"""What a KS test found, for people: a page of text and pictures, from its plain figures."""

import numpy as np

from utils import draw, plot
from utils.ks.test import SEEN, SHIFTS, distances, level_of

WEAK = 2.0  # standard deviations: if only larger shifts would be seen, the test cannot pass anything
CALM = 0.09  # share of real-against-real tests that may reject at .05: 5 % and 2.58 standard errors of 200
NUM_ECDFS = 4  # features drawn as pairs of ECDFs
TILE = (300, 230)  # of the small charts, one for each operation and sign


def verdict(figures, alpha):
    """(status, the sentence for people) of the figures of a report."""
    f = figures
    n = "{n} people against {n_other}".format(**figures)
    shift = f["shift_seen"]
    blind = [name for name, share in f["power"].items() if share < SEEN]
    if f["type1_rate"] > CALM:
        return "BLIND", (
            "No verdict: real photos against real ones are rejected in "
            f"{f['type1_rate']:.0%} of the tests: it is off."
        )
    if f["smallest_p"] > level_of(alpha, f["splits"]):
        return "UNDERPOWERED", (
            f"No verdict: {n} can never give a p below {f['smallest_p']:.3f}, whatever "
            "they look like; more people are needed."
        )
    if f["p"] <= alpha:
        chance = f"; chance seldom gives {f['d_critical']:.2f}" if f["d_max"] > f["d_critical"] else ""
        return "REJECT", (
            f"Told apart at {alpha:g} with {n}: most by `{f['feature']}`, with distributions "
            f"{f['d_max']:.2f} apart{chance}."
        )
    if shift is None or shift > WEAK:
        size = "of 3" if shift is None else f"just below {shift:.2f}"
        return "UNDERPOWERED", (
            f"No verdict: with {n}, a shift {size} standard deviations in one feature is "
            "missed more than once in five; more people are needed."
        )
    if blind:
        return "BLIND", f"No verdict: these features do not see {', '.join(blind)}; try others."
    return "PASS", (
        f"Not distinguishable at {alpha:g} with {n}; a shift of {shift:.2f} standard deviations "
        "in any one feature would have been seen four times in five."
    )


def ecdf(values, low):
    """Sorted values, after `low`, and the share of all that are no larger."""
    return np.r_[low, np.sort(values)], np.arange(len(values) + 1) / len(values)


def pictures(report, a, b, names, shares):
    """{name: (H, W, 3) uint8}. a (n, d), b (m, d): the numbers of one split; shares: how often each of
    `SHIFTS` was seen."""
    pages = []
    d = distances(a, b)
    for j in np.argsort(-d)[:NUM_ECDFS]:
        both = np.sort(np.concatenate([a[:, j], b[:, j]]))
        one, two = ((np.searchsorted(np.sort(x[:, j]), both, "right") / len(x)) for x in (a, b))
        k = np.abs(one - two).argmax()
        curves = [
            (report["sides"][0], *ecdf(a[:, j], both[0]), "step"),
            (report["sides"][1], *ecdf(b[:, j], both[0]), "step"),
        ]
        gap = [(both[k], one[k], two[k], f"D = {d[j]:.2f}")]
        y = "share of the images"
        pages.append(plot.chart(curves, names[j], "", y, gaps=gap, ylim=(0, 1), size=(450, 330)))
    made = {"ecdf": draw.sheet(np.stack(pages), 2)}
    curve = [("a shift of the feature where it is seen least", SHIFTS, shares)]
    x, y = "planted shift, standard deviations", "share of the splits that see it"
    levels = [(SEEN, "four in five")]
    made["power"] = plot.chart(curve, "what would have been seen", x, y, ylim=(0, 1), levels=levels)
    if report["ops"]:
        made |= _operations(report)
    return made


def _operations(report):
    """An operations x features map of D at full range, and p and D against magnitude."""
    rows, full, tiles = [], [], []
    for name, op in report["ops"].items():
        for sign in ("neg", "pos"):
            if found := op.get(sign):
                title = f"{'-' if sign == 'neg' else ''}{name}"
                rows.append(title)
                full.append(found["full"])
                m, p, d = np.array(found["trail"]).T
                curves = [("p", m, p), ("D", m, d)]
                levels = [(report["alpha"], ""), (report["d_critical"], "")]
                marks = [(found["m"], found["status"])]
                ends = (0, 1.03 * m.max())
                tiles.append(
                    plot.chart(curves, title, xlim=ends, ylim=(0, 1), levels=levels, marks=marks, size=TILE)
                )
    values = np.array(full)
    title = "D at full range, framed where it is seldom chance"
    marked = values > report["d_critical"]
    heat = plot.heatmap(values, rows, list(report["features"]), title, 0, 1, marked=marked, width=1100)
    return {"operations": heat, "magnitudes": draw.sheet(np.stack(tiles), 4)}


def contact(cells, titles, width=150):
    """One row for each operation: its name, then faces. cells: (R, C, S, S, 3) uint8."""
    side = cells.shape[2]
    named = zip(titles, cells, strict=True)
    rows = [np.concatenate([draw.words(title, width, side), *row], 1) for title, row in named]
    return draw.sheet(np.stack(rows), 1)


def markdown(report, made):
    """The report as a page. made: names of the pictures beside it."""
    r = report
    shift = report["shift_seen"]
    lines = [f"# {r['status']}", "", r["verdict"], ""]
    lines += [f"- {note}" for note in r["notes"]] + [""] * bool(r["notes"])
    facts = {
        "people a side": f"{r['n']} against {r['n_other']}, one photo of each, {r['splits']} splits",
        "p": f"{r['p']:.3f} ({r['permutations']} permutations a split; combined over the splits)",
        'confidence against "drawn alike"': f"{r['confidence']:.3f}; accepted below {1 - r['alpha']:g}",
        "largest distance": f"{r['d_max']:.2f}, `{r['feature']}`; chance seldom gives {r['d_critical']:.2f}",
        "true distances": f"with 95 % confidence all below {r['d_upper']:.2f}",
        "splits that reject": f"{r['reject_share']:.0%}",
        "energy distance, of all jointly": f"p {r['p_energy']:.3f}; no part of the verdict",
        "real against real": f"rejected {r['type1_rate']:.1%} of the time at {r['alpha']:g}",
        "smallest shift seen": f"{'none up to 3' if shift is None else shift} standard deviations",
    }
    lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items())]
    lines.append("")
    if r["status"] == "PASS":
        lines += [
            "That nothing was seen does not make two sets the same: it bounds how much they differ.",
            "",
        ]
    lines += ["## Would it have been seen?", "", "| ruined photos | splits that reject |", "|---|---|"]
    lines += [*(f"| {k} | {v:.0%} |" for k, v in r["power"].items()), ""]
    if r["ops"]:
        lines += ["## Operations", "", "| operation | accepted from | to | |", "|---|---|---|---|"]
        for name, op in r["ops"].items():
            lines.append(f"| {name} | {0.0 - op['m_neg']:.3g} | {op['m_pos']:.3g} | {op['status']} |")
        lines += ["", "PASS: so far nothing was seen. REJECT: seen at its weakest. BLIND: in one direction"]
        lines += [
            "not seen at full range, although it changes the photos; that stays out of policy.json.",
            "",
        ]
    lines += ["## Features", "", "| feature | D |", "|---|---|"]
    lines += [f"| {k} | {v:.2f} |" for k, v in sorted(r["features"].items(), key=lambda kv: -kv[1])]
    lines += [f"| {k} (shown, not tested) | {v:.2f} |" for k, v in r["shown"].items()]
    return "\n".join([*lines, "", *(f"![{name}]({name}.png)" for name in made), ""])
