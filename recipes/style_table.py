"""What styles_words.sh and styles_photo.sh measured: each row in each domain, mean ± deviation over seeds.

python recipes/style_table.py runs/styles_words [--figure miou] [--against more]

Below it what each row gains over the row `more`, seed by seed, as a mean with Student's 95 % interval. A row
that is called as a domain was mined for its phrase: `its own phrase` has in each domain that row, `another's`
the mean of the others. `unseen` is the mean of all domains but daylight.
"""

import pathlib
import re
import statistics
import sys

from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from utils import cli, files
from utils.errors import UserError

# the order of columns and of rows; rows that are not here come last
DOMAINS = "daylight night fog snow sketch red_light rain dusk".split()
ROWS = "source more own random adain mixstyle augment augmented mined uniform beta".split() + DOMAINS
ROWS += ["its own phrase", "another's", "words", "famix", "labels"]


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("root", metavar="FOLDER", help="what one of these recipes wrote")
    p.add_argument("--figure", default="mean_f1", metavar="NAME", help="of those that evaluate.py --json has")
    p.add_argument("--against", default="more", metavar="ROW", help="row that gains are over")
    return p


def read(root, figure):
    """{row: {domain: {seed: figure}}} of ROOT/SEED/ROW/DOMAIN.json. Raises UserError."""
    rows = {}
    for path in sorted(root.glob("*/*/*.json")):
        if path.stem in DOMAINS:
            seed, row, _ = path.relative_to(root).parts
            found = files.read_json(path)
            figures = [name for name, value in found.items() if isinstance(value, float)]
            if figure not in figures:
                raise UserError(f"{path}: no figure {figure}; it has {', '.join(figures)}")
            rows.setdefault(row, {}).setdefault(path.stem, {})[seed] = found[figure]
    if not rows:
        raise UserError(f"{root}: no SEED/ROW/DOMAIN.json in it, as these recipes write them")
    return rows


def mean_of(parts):
    """[{seed: figure}, ...] -> {seed: their mean}, of the seeds that all have."""
    seeds = set.intersection(*(set(part) for part in parts)) if parts else ()
    return {seed: statistics.mean(part[seed] for part in parts) for seed in sorted(seeds)}


def add_phrases(rows, unseen):
    """Of each domain the row that was mined for it, and those that were mined for others."""
    mined = [domain for domain in unseen if domain in rows]
    if len(mined) > 1:
        rows["its own phrase"] = {d: rows[d].get(d, {}) for d in mined}
        others = {d: [rows[other].get(d, {}) for other in mined if other != d] for d in mined}
        rows["another's"] = {d: mean_of(found) for d, found in others.items()}


def short(text):
    return re.sub(r"(?<!\d)0\.", ".", text).replace("-", "−")


def level(values):
    """{seed: figure} -> their mean, and their deviation where they are several."""
    values = list(values.values())
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return short(f"{statistics.mean(values):.3f}{spread}")


def gain(values, others):
    """Two {seed: figure} -> the mean difference of the seeds that both have, and its interval of three or
    more."""
    change = [values[seed] - others[seed] for seed in values if seed in others]
    if not change:
        return ""
    text = f"{statistics.mean(change):+.3f}"
    if len(change) > 2:  # of two the interval would say nothing
        text += f" ± {stats.sem(change) * stats.t.ppf(0.975, len(change) - 1):.3f}"
    return short(text)


def table(rows, domains, cell):
    print(f"\n| row | {' | '.join(domains)} |\n|---|{'---|' * len(domains)}")
    for name in sorted(rows, key=lambda name: (ROWS.index(name) if name in ROWS else len(ROWS), name)):
        row = rows[name]
        print(f"| {name} | {' | '.join(cell(row, domain) for domain in domains)} |")


def main(args):
    rows = read(pathlib.Path(args.root), args.figure)
    domains = [domain for domain in DOMAINS if any(domain in row for row in rows.values())]
    unseen = [domain for domain in domains if domain != "daylight"]
    add_phrases(rows, unseen)
    if len(unseen) > 1:
        domains.append("unseen")
        for row in rows.values():
            if row.keys() >= set(unseen):
                row["unseen"] = mean_of([row[domain] for domain in unseen])
    print(f"{args.figure}, mean ± standard deviation over seeds")
    table(rows, domains, lambda row, domain: level(row.get(domain, {})))
    if against := rows.get(args.against):
        print(f"\nminus `{args.against}`, with a 95 % interval over seeds")
        table(rows, domains, lambda row, domain: gain(row.get(domain, {}), against.get(domain, {})))
    else:
        print(f"\nno row `{args.against}` to compare with")


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
