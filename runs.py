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
import itertools
import json
import math
import os
import re
import statistics

from scipy.stats import t

from datasets import cache
from datasets.again import identify_again
from models import has_instances
from utils import checkpoint, cli, files
from utils.errors import UserError
from utils.tracking.chart import ancestry
from utils.tracking.export import to_mlflow
from utils.tracking.folders import chosen_by, find, makers, trouble
from utils.tracking.render import common, markdown, page, shown

FREE = ("seed", "out", "resume", "device", "workers")  # flags in which the runs of a row may differ


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


# ---- which runs are a row


def settings(run, made, folders, seeds, below=()):
    """{flag: plain value} of what tells a run from others: no `FREE` flag, none that is off. A file that a
    known run wrote is that run's settings. Any other is its path, with SEED where runs of other seeds were
    given files so named; where none was, with its digest.

    made: `makers`. folders: {path: run}. seeds: {pattern: seeds of the runs that were given such a path}.
    below: folders of the runs that began from this one.
    """
    below = (*below, run["folder"])

    def meaning(word):
        path = path_of(word)
        digest = run["files"].get(path, {}).get("sha256")
        if not (digest or path.endswith((".pt", ".json"))):
            return word
        maker = made[digest][0] if digest in made else folders.get(os.path.realpath(os.path.dirname(path)))
        if maker and maker["folder"] not in below:
            return [maker["script"], settings(maker, made, folders, seeds, below), os.path.basename(path)]
        pattern = max(patterns(path, run["args"].get("seed")), key=lambda pattern: len(seeds[pattern]))
        return [word, digest] if pattern == path else pattern

    kept = {k: v for k, v in run["args"].items() if k not in FREE and v not in (None, False, [])}
    return {k: [*map(meaning, v)] if isinstance(v, list) else meaning(v) for k, v in kept.items()}


def path_of(word):
    """The path that a value of a flag may be; "" of numbers."""
    return (files.file_of(word) or word) if isinstance(word, str) else ""


def patterns(path, seed):
    """The path, and what it is with SEED in one or more of the places where the seed stands in it."""
    parts = re.split(rf"(?<!\d){seed}(?!\d)", path, maxsplit=6)
    for between in itertools.product([str(seed), "SEED"], repeat=len(parts) - 1):
        yield "".join(itertools.chain(*zip(parts, [*between, ""], strict=True)))


def all_settings(runs):
    """Give each run its `settings`."""
    seeds = collections.defaultdict(set)
    for run in runs:
        seed = run["args"].get("seed")
        for value in run["args"].values():
            for word in value if isinstance(value, list) else [value]:
                for pattern in patterns(path_of(word), seed):
                    seeds[pattern].add(seed)
    made, folders = makers(runs), {os.path.realpath(run["folder"]): run for run in runs}
    for run in runs:
        run["settings"] = settings(run, made, folders, seeds)


def differing(runs):
    """The flags of which these runs have several values."""
    flags = dict.fromkeys(flag for run in runs for flag in run["args"] if flag not in FREE)
    values = lambda flag: {as_key(run["settings"].get(flag)) for run in runs if flag in run["args"]}
    return [flag for flag in flags if len(values(flag)) > 1]


def rows_of(runs, by, name):
    """Lists of runs, the best first: those of one script with the same settings, or the same values of the
    flags `by`. name: of the figure."""
    rows = collections.defaultdict(list)
    for run in runs:
        own = run["settings"]
        key = {flag: own.get(flag, run["args"].get(flag)) for flag in by} if by else own
        rows[as_key([run["script"], key])].append(run)
    return sorted(
        rows.values(), key=lambda row: -statistics.fmean(by_seed(row, name).values() or [-math.inf])
    )


def as_key(plain):
    return json.dumps(plain, sort_keys=True)


# ---- figures


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
    half = t.ppf(0.975, n - 1) * statistics.stdev(changes) / math.sqrt(n) if n > 1 else math.nan
    return statistics.fmean(changes) if n else math.nan, half, n


def cpu_minutes(runs):
    """(mean of a run, all its starts summed; whether some start is not known) or None."""
    starts = [start.get("cpu_seconds") for run in runs for start in (run, *run["earlier"])]
    return (sum(filter(None, starts)) / 60 / len(runs), None in starts) if any(starts) else None


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
    minutes, partly = cpu_minutes(runs) or (math.nan, False)
    return "–" if math.isnan(minutes) else "≥ " * partly + f"{minutes:.1f}"


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


def check_files(run, elsewhere):
    """[(whether it is wrong, line)] of the outputs of a run and the files that its flags named. elsewhere():
    {sha256: path} of what lies in the folders that are searched."""
    listed = [(run["folder"] / name, digest, "") for name, digest in run["outputs"].items()]
    listed += [(path, f["sha256"], f" (--{f['flag']})") for path, f in run["files"].items()]
    found = []
    for path, digest, flag in listed:
        there = os.path.isfile(path)
        if there and files.sha256(path) == digest:
            continue
        place = elsewhere().get(digest)
        what = "changed" if there else "moved" if place else "missing"
        of = f"{path}{flag} of {run['folder']}" if flag else path
        where = f"; what it was lies in {place}" if place else ""
        found.append((what != "moved", f"{what}: {of}{where}"))
    return found


def check_data(run):
    """The same of the photos and masks that a training run was given."""
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


def lying_in(folders):
    """{sha256: path} of all files in folders."""
    found = (
        os.path.join(path, name) for folder in folders for path, _, names in os.walk(folder) for name in names
    )
    return {files.sha256(path): path for path in found if os.path.isfile(path)}


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
    all_settings(runs)
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
