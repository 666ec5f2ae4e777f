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

Runs of one script whose flags and photos differ in nothing but the seed are a row, also where the seed chose
the files that they began from. A difference is paired by seed, with its 95 % t interval. Runs that did not
end well count in no mean, and are named.
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
from utils.tracking.check import check_champions, check_files, lying_in
from utils.tracking.export import to_mlflow
from utils.tracking.folders import chosen_by, find, seen_from, trouble
from utils.tracking.groups import add_settings, as_key, differing, drawn
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
    sign = -1 if is_better_low(name) else 1
    height = lambda row: statistics.fmean([sign * x for x in by_seed(row, name).values()] or [-math.inf])
    return sorted(rows.values(), key=height, reverse=True)


def is_better_low(name):
    """Whether less of a figure is better: of a loss, an error of calibration, a divergence, a wait."""
    parts = (name or "").split("/")
    return any(part.endswith("_loss") or part in ("loss", "ece", "kl", "data_wait") for part in parts)


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
    """CPU minutes of a run, all its starts together, in the mean; ≥ where some start, or a process of it, did
    not tell."""
    starts = [start for run in runs for start in (run, *run["earlier"])]
    told = [start["cpu_seconds"] for start in starts if start.get("cpu_seconds")]
    if not told:
        return "–"
    minutes = f"{sum(told) / 60 / len(runs):.1f}"
    several = any((start.get("processes") or 1) > 1 for start in starts)  # of which one tells
    return f"≥ {minutes}" if several or len(told) < len(starts) else minutes


def tabulate(name, runs, by, baseline):
    """A table for `utils.tracking.render`. name: of the figure, None without. baseline: a run folder."""
    rows = rows_of(runs, by, name)
    base = base_of(rows, name, baseline)
    flags = by or differing([row[0] for row in rows])
    scripts = sorted({run["script"] for run in runs})
    tests = sorted({test for run in runs for test in run["tests"]} - {name})

    # ---- columns
    header = ["row", "runs"]
    if len(scripts) > 1:
        header.append("script")
    header += [*flags, "seeds"]
    if name:
        header.append(name)
    if base:
        header.append(f"against row {rows.index(base) + 1}")
    header += [*tests, "CPU min"]

    # ---- rows
    lines, notes = [], []
    for i, row in enumerate(rows, 1):
        good = [run for run in row if not trouble(run)]
        bad = [run for run in row if trouble(run)]
        values = by_seed(row, name)
        seeds = sorted({run["args"].get("seed") for run in good} - {None})
        cells = [str(i), common(run["name"] for run in row)]
        if len(scripts) > 1:
            cells.append(row[0]["script"])
        cells += [common(shown(run["args"].get(flag)) for run in row) for flag in flags]
        counted = ", ".join(map(str, seeds)) or "–"
        cells.append(f"{counted} ({len(bad)} not counted)" if bad else counted)
        if name:
            cells.append(spread(values))
        if base:
            cells.append("" if row is base else change(values, by_seed(base, name)))
        lines.append([*cells, *(spread(by_seed(row, test)) for test in tests), cost(good)])
        notes += [f"row {i}: not counted: {run['folder']} {trouble(run)}" for run in bad]
        notes += [f"left out: {fault}" for run in row for fault in run["faults"]]
        if 0 < len(seeds) < len(good):
            notes.append(f"row {i}: several runs have one seed, which counts once, with their mean")
        if pooled := [flag for flag in differing(row) if flag not in by]:
            notes.append(f"row {i}: its runs differ in {', '.join(pooled)}, too")
        if others := drawn_otherwise(row):
            notes.append(f"row {i}: each seed drew its own {others}, so a change of the data would not show")
    if not by:
        notes += same_names(rows)
    counted = [run for run in runs if not trouble(run)]
    notes += other_data(counted, [test for test in (*tests, name) if test])
    if len(commits := {shown(run.get("commit"))[:10] for run in counted}) > 1:
        notes.append(f"made by {len(commits)} versions of the code: {', '.join(sorted(commits))}")

    curves = [{str(run["folder"]): curve(run, name) for run in row} for row in rows]
    title = "no figure"
    if name:
        order = "lowest first, " if is_better_low(name) else ""
        title = f"{name}: {order}mean ± standard deviation over seeds"
    if len(scripts) == 1:
        title = f"{scripts[0]}, {title}"
    return {"title": title, "header": header, "rows": lines, "notes": notes, "curves": curves}


def base_of(rows, name, baseline):
    """The row that the others are compared with: that of the run folder `baseline`, else the first; None
    where there is no other, or it has no figure."""
    held = rows
    if baseline:
        held = [row for row in rows if any(is_in(run, baseline) for run in row)]
    return held[0] if held and len(rows) > 1 and by_seed(held[0], name) else None


# ---- what the table does not show


def drawn_otherwise(row):
    """The splits, in words, of which the seed drew other photos for the runs of a row."""
    held = collections.defaultdict(set)
    for run in row:
        for split, facts in run["data"].items():
            if drawn(run, split):
                held[split].add(facts["sha256"])
    return ", ".join(split for split, digests in held.items() if len(digests) > 1)


def same_names(rows):
    """Lines about flags of which rows differ, though what they name is called the same."""
    notes = []
    for flag in sorted({flag for row in rows for flag in row[0]["settings"]}):
        alike = collections.defaultdict(dict)  # {(script, name): {what it holds: rows}}
        for i, row in enumerate(rows, 1):
            run = row[0]
            name, holds = shown(run["args"].get(flag)), as_key(run["settings"].get(flag))
            alike[run["script"], name].setdefault(holds, []).append(i)
        for (_, text), held in alike.items():
            if len(held) > 1:
                which = " and ".join(", ".join(map(str, each)) for each in held.values())
                what = f"{flag} is {text} by name; what it holds is not the same, or not known of all"
                notes.append(f"rows {which}: {what}")
    return notes


def other_data(runs, columns):
    """Lines about figures of runs that are not of the same photos and masks. columns: names of figures."""
    notes = []
    if len({run["data"].get("val", {}).get("sha256") for run in runs} - {None}) > 1:
        notes.append("not all were validated on the same photos and masks")
    for column in columns:
        scored = [run["tests"][column] for run in runs if column in run["tests"]]
        splits = sorted({split for split, _ in scored})
        if len(splits) > 1 or len({digest for _, digest in scored} - {None}) > 1:
            notes.append(f"{column}: not all are of the same photos and masks ({', '.join(splits)})")
    return notes


def curve(run, name):
    return [(step, row[name]) for step, row in sorted(run["rows"].items()) if name in row]


def is_in(run, folder):
    return os.path.realpath(run["folder"]) == os.path.realpath(folder)


def refuse_unknown(flag, words, known):
    """A UserError for words of a flag that are not known, with the nearest that is."""
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1, cutoff=0)
            hint = f"that; did you mean {near[0]}?" if near else f"any {flag}"
            raise UserError(f"--{flag} {word}: none of these runs has {hint}")


# ---- every digest again


def check_data(run):
    """([(whether it is wrong, line)], how many splits were read) of the photos and masks that a training run
    was given."""
    flags, found, read = run["args"], [], 0
    flags = flags | {k: seen_from(run, flags[k]) for k in ("data", "unlabelled", "ids") if flags.get(k)}
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
            found.append((True, f"data: {of}: {'; '.join(str(error).splitlines())}"))
            continue
        read += 1
        if now["sha256"] != then["sha256"]:
            counts = [f"{each['photos']} photos of {each['people']} people" for each in (then, now)]
            what = f"{counts[0]} then, {counts[1]} now; a photo, a mask, a class or a name is another"
            found.append((True, f"changed: {of}: {what}"))
    return found, read


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
        found, num_files = check_champions(args.folders)
        num_splits = 0
        for run in runs:
            of_files, num = check_files(run, elsewhere)
            of_data, read = check_data(run)
            num_files, num_splits = num_files + num, num_splits + read
            found += of_files + of_data
        wrong = sum(is_wrong for is_wrong, _ in found)
        print(*(line for _, line in found), sep="\n", end="\n" if found else "")
        result = f"{wrong} changed or missing" if wrong else "all as it was"
        print(f"{len(runs)} runs, {num_files} files and {num_splits} sets of photos checked: {result}")
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
    root = os.path.commonpath(map(os.path.abspath, args.folders))
    groups = collections.defaultdict(list)
    for run in runs:
        name = os.path.relpath(run["folder"], root)
        run["name"] = os.path.basename(root) if name == "." else name
        figure = args.figure or chosen_by(run)
        if args.figure and args.figure not in run["shown"] and not trouble(run):
            figure = None
        groups[figure, "" if by or args.baseline else run["script"]].append(run)
    order = sorted(groups, key=lambda group: (group[0] is None, group))
    tables = [tabulate(figure, groups[figure, script], by, args.baseline) for figure, script in order]
    if args.html:
        files.write_whole(args.html, page(f"Runs in {' '.join(args.folders)}", tables))
        print(f"wrote:   {args.html}")
    else:
        print(*map(markdown, tables), sep="\n")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
