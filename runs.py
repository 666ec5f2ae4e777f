r"""Compare runs, and tell who came from what. Run folders are read only.

Run:    python runs.py runs [runs2 ...]                       a table: seeds grouped, differences, cost
        python runs.py runs --by augment --baseline runs/a/0  a row for each value of a flag
        python runs.py runs --html runs.html                  the table as a page, with curves
        python runs.py --lineage runs/student/best.pt [runs]  what a model came from, as a chart
        python runs.py runs --check                           every digest again
        python runs.py runs --mlflow sqlite:///mlflow.db      the runs as MLflow's
Needs:  run folders: lineage.json and metrics.jsonl (older ones: args.json and metrics.jsonl)
Writes: Markdown on stdout; the page; MLflow's store
Expect: exit status 0; of --check 1 where something is changed or missing

Runs of one script whose flags differ in nothing but the seed are a row, also where the seed chose the files
that they began from. A difference is paired by seed, with its 95 % t interval. Runs that did not end well
count in no mean, and are named.
"""

import collections
import difflib
import functools
import math
import os
import statistics

import scipy  # its parts load when they are first used

from datasets import cache
from datasets.again import identify_again
from models import has_instances
from utils import checkpoint, cli, files
from utils.errors import UserError
from utils.tracking.chart import ancestry
from utils.tracking.check import check_files, lying_in
from utils.tracking.export import to_mlflow
from utils.tracking.folders import chosen_by, find, trouble
from utils.tracking.groups import add_settings, as_key, differing
from utils.tracking.render import common, markdown, page, shown


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("folders", metavar="FOLDER", nargs="*", help="where to look for run folders")
    g = p.add_argument_group("table")
    by = "a row for each value of these flags, in place of one for each set of flags"
    g.add_argument("--by", nargs="+", metavar="FLAG", help=by)
    baseline = "a run folder: compare with the row that it is in; the best row"
    g.add_argument("--baseline", metavar="RUN", help=baseline)
    figure = "of metrics.jsonl at the best step, or FILE.json of evaluate.py; what chose best.pt"
    g.add_argument("--figure", metavar="NAME", help=figure)
    g.add_argument("--html", metavar="FILE", help="write the table as a page, in place of Markdown")
    g = p.add_argument_group("in place of a table").add_mutually_exclusive_group()
    came = "chart what a checkpoint or a bank came from; run folders tell where that is today"
    g.add_argument("--lineage", metavar="FILE", help=came)
    g.add_argument("--check", action="store_true", help="read files and data again, and compare digests")
    g.add_argument("--mlflow", metavar="URI", help="write the runs into a store of MLflow")
    return p


# ---- rows, and their figures


def rows_of(runs, by, name):
    """Lists of runs, the best first: those of one script with the same settings, or the same values of the
    flags `by`. name: of the figure."""
    rows = collections.defaultdict(list)
    for run in runs:
        own = run["settings"]
        key = {flag: own.get(flag, run["args"].get(flag)) for flag in by} if by else own
        rows[as_key([run["script"], key])].append(run)
    height = lambda row: statistics.fmean(by_seed(row, name).values() or [-math.inf])
    return sorted(rows.values(), key=height, reverse=True)


def by_seed(runs, name):
    """{seed: figure} of the runs that ended well; where several have one seed, their mean."""
    found = collections.defaultdict(list)
    for run in runs:
        if not trouble(run) and name in run["shown"]:
            found[run["args"].get("seed")].append(run["shown"][name])
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def paired(values, others):
    """(mean, half of its 95 % t interval, number of seeds) of the differences of two {seed: figure}, over the
    seeds that both have; NaN where there are too few."""
    changes = [values[seed] - others[seed] for seed in values if seed in others]
    n = len(changes)
    half = scipy.stats.t.ppf(0.975, n - 1) * statistics.stdev(changes) / math.sqrt(n) if n > 1 else math.nan
    return statistics.fmean(changes) if n else math.nan, half, n


# ---- the table


def spread(values):
    """{seed: figure} as mean ± standard deviation."""
    found = [*values.values()]
    deviation = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.4f}{deviation}" if found else "–"


def change(values, others):
    mean, half, n = paired(values, others)
    if n < 2:
        return f"{mean:+.4f} (1 seed, no interval)" if n else "no common seeds"
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}], {n} seeds"


def cost(runs):
    """CPU minutes of a run, all its starts together, in the mean; ≥ where some start did not tell."""
    starts = [start.get("cpu_seconds") for run in runs for start in (run, *run["earlier"])]
    if not any(starts):
        return "–"
    return "≥ " * (None in starts) + f"{sum(filter(None, starts)) / 60 / len(runs):.1f}"


def tabulate(name, runs, by, baseline):
    """A table for `utils.tracking.render`. name: of the figure, None without. baseline: a run folder."""
    rows = rows_of(runs, by, name)
    held = [row for row in rows if any(is_in(run, baseline) for run in row)] if baseline else rows
    base = held[0] if held and len(rows) > 1 and by_seed(held[0], name) else None
    flags = by or differing([row[0] for row in rows])
    scripts = len({run["script"] for run in runs}) > 1
    tests = sorted({test for run in runs for test in run["shown"] if test.endswith(".json")} - {name})
    header = ["row", "runs", *["script"] * scripts, *flags, "seeds", *[name] * bool(name)]
    header += [f"against row {rows.index(base) + 1}"] if base else []
    lines, notes = [], []
    for i, row in enumerate(rows, 1):
        good = [run for run in row if not trouble(run)]
        bad = [run for run in row if trouble(run)]
        values = by_seed(row, name)
        seeds = {run["args"].get("seed") for run in good} - {None}
        cells = [str(i), common(str(run["folder"]) for run in row), *[row[0]["script"]] * scripts]
        cells += [common(shown(run["args"].get(flag)) for run in row) for flag in flags]
        cells += [shown(sorted(seeds)).replace(" ", ", ") + f" ({len(bad)} not counted)" * bool(bad)]
        cells += [spread(values)] if name else []
        cells += ["" if row is base else change(values, by_seed(base, name))] if base else []
        lines.append([*cells, *(spread(by_seed(row, test)) for test in tests), cost(good)])
        notes += [f"row {i}: not counted: {run['folder']} {trouble(run)}" for run in bad]
        if 0 < len(seeds) < len(good):
            notes.append(f"row {i}: several runs have one seed, which counts once, with their mean")
        if pooled := [flag for flag in differing(row) if flag not in by]:
            notes.append(f"row {i}: its runs differ in {', '.join(pooled)}, too")
    counted = [run for run in runs if not trouble(run)]
    if len({run["data"].get("val", {}).get("sha256") for run in counted} - {None}) > 1:
        notes.append("not all were validated on the same photos and masks")
    if len(commits := {shown(run.get("commit"))[:10] for run in counted}) > 1:
        notes.append(f"made by {len(commits)} versions of the code: {', '.join(sorted(commits))}")
    curves = [{str(run["folder"]): curve(run, name) for run in row} for row in rows]
    header += [*tests, "CPU min"]
    title = f"{name}: mean ± standard deviation over seeds" if name else "Without a figure"
    return {"title": title, "header": header, "rows": lines, "notes": notes, "curves": curves}


def curve(run, name):
    return [(step, row[name]) for step, row in sorted(run["rows"].items()) if name in row]


def is_in(run, folder):
    return os.path.realpath(run["folder"]) == os.path.realpath(folder)


def refuse_unknown(flag, words, known):
    """A UserError for words of a flag that are not known, with the nearest that is."""
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1, cutoff=0)
            raise UserError(f"--{flag} {word}: none of these runs has that; did you mean {near[0]}?")


# ---- every digest again


def check_data(run):
    """[(whether it is wrong, line)] of the photos and masks that a training run was given."""
    flags, found = run["args"], []
    for split, then in run["data"].items():
        of = f"{then['path']} ({split}) of {run['folder']}"
        if not then["sha256"]:  # rendered
            continue
        if not chosen_by(run):
            found.append((False, f"not opened again: {of}, since {run['script']} does not train"))
            continue
        try:
            classes, instances = None, False
            if run["script"] == "train_scores.py":
                classes = checkpoint.load(run["folder"] / "last.pt", holds="data")["data"]["classes"]
            elif split != "unlabelled" and not flags.get("scenes"):
                instances = has_instances(flags["model"])
            now = identify_again(flags, split, classes, instances)
        except UserError as error:
            found.append((True, f"data: {of}: {error}"))
            continue
        if now["sha256"] != then["sha256"]:
            counts = [f"{each['photos']} photos of {each['people']} people" for each in (then, now)]
            what = f"{counts[0]} then, {counts[1]} now; a photo, a mask, a class or a name is another"
            found.append((True, f"changed: {of}: {what}"))
    return found


def main(args):
    # ---- setup ----
    if not (args.folders or args.lineage):
        raise UserError("name the folders where runs are, such as runs (see --help)")
    other = next((f"beside --{name}" for name in ("lineage", "check", "mlflow") if getattr(args, name)), None)
    cli.refuse_without_effect(args, dict.fromkeys(("by", "baseline", "figure", "html"), other))
    if args.html:
        if not args.html.endswith(".html"):
            raise UserError(f"--html {args.html}: need a name that ends in .html; no other file is replaced")
        files.check_file(args.html)

    # ---- data ----
    runs = find(args.folders)
    if args.lineage:
        print(*ancestry(args.lineage, runs), sep="\n")
        return None
    if args.mlflow:
        for line in to_mlflow(args.mlflow, runs):
            print(line)
        return None

    # ---- test ----
    if args.check:
        cache.read_again()
        elsewhere = functools.cache(lambda: lying_in(args.folders))
        found = [line for run in runs for line in check_files(run, elsewhere) + check_data(run)]
        wrong = sum(is_wrong for is_wrong, _ in found)
        ended = f"{len(runs)} runs: " + (f"{wrong} changed or missing" if wrong else "all as it was")
        print(*(line for _, line in found), ended, sep="\n")
        return 1 if wrong else 0

    # ---- finish ----
    by = [flag.replace("-", "_") for flag in args.by or []]
    refuse_unknown("by", by, [flag for run in runs for flag in run["args"]])
    refuse_unknown(
        "figure", [args.figure] if args.figure else [], [name for run in runs for name in run["shown"]]
    )
    if args.baseline and not any(is_in(run, args.baseline) for run in runs):
        raise UserError(f"--baseline {args.baseline}: is none of these runs")
    add_settings(runs)
    groups = collections.defaultdict(list)
    for run in runs:
        has = not args.figure or args.figure in run["shown"] or trouble(run)
        groups[(args.figure or chosen_by(run)) if has else None].append(run)
    names = sorted(groups, key=lambda name: (name is None, name))
    tables = [tabulate(name, groups[name], by, args.baseline) for name in names]
    if args.html:
        files.write_whole(args.html, page(f"Runs in {' '.join(args.folders)}", tables))
        print(f"wrote:   {args.html}")
    else:
        print(*map(markdown, tables), sep="\n")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
