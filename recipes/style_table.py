"""What styles_words.sh and styles_photo.sh measured: each row in each domain, mean ± deviation over seeds.

python recipes/style_table.py runs/styles_words [--figure miou] [--against more]

Below it what each row gains over the row `more`, seed by seed, as a mean with Student's 95 % interval. A row
that is called as a domain was mined for its phrase: `its own phrase` has in each domain that row, `another's`
the mean of the others. `unseen` is the mean of all domains but daylight.
"""

import argparse
import json
import statistics
from pathlib import Path

from scipy import stats

# the order of columns and of rows; rows that are not here come last
DOMAINS = "daylight night fog snow sketch red_light rain dusk".split()
ROWS = "source more own random adain mixstyle augment augmented mined uniform beta".split() + DOMAINS
ROWS += ["its own phrase", "another's", "words", "famix", "labels"]


def read(root, figure):
    """{row: {domain: {seed: figure}}} of ROOT/SEED/ROW/DOMAIN.json."""
    rows = {}
    for path in sorted(root.glob("*/*/*.json")):
        if path.stem in DOMAINS:
            seed, row, _ = path.relative_to(root).parts
            rows.setdefault(row, {}).setdefault(path.stem, {})[seed] = json.loads(path.read_text())[figure]
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


def level(values):
    values = list(values.values())
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}".replace("0.", ".")


def gain(values, others):
    change = [values[seed] - others[seed] for seed in values if seed in others]
    if not change:
        return ""
    text = f"{statistics.mean(change):+.3f}"
    if len(change) > 2:  # of two the interval would say nothing
        text += f" ± {stats.sem(change) * stats.t.ppf(0.975, len(change) - 1):.3f}"
    return text.replace("0.", ".").replace("-", "−")


def table(rows, domains, cell):
    print(f"\n| row | {' | '.join(domains)} |\n|---|{'---|' * len(domains)}")
    for name in sorted(rows, key=lambda name: (ROWS.index(name) if name in ROWS else len(ROWS), name)):
        row = rows[name]
        print(f"| {name} | {' | '.join(cell(row, domain) for domain in domains)} |")


def main(args):
    rows = read(Path(args.root), args.figure)
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


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("root")
p.add_argument("--figure", default="mean_f1")
p.add_argument("--against", metavar="ROW", default="more")
main(p.parse_args())
