"""Is the level kept, and what is seen? `gate` of utils/ks/test.py, and KSDrift of alibi-detect.

Run:    python benchmarks/ks_calibration.py --data FASSEG --init runs/finetune/best.pt
Needs:  alibi-detect, in an environment of its own (it holds numpy below 2); --data, a folder of FASSEG's V2
        and V3, and --init, a parser that has seen no V2, for the rows on photos; the rest is made here
Writes: the markdown file, if one is named
Expect: benchmarks/ks_calibration.md

Both get the same features and the same pairs of sides, and answer yes or no at .05; a rate is the share of
the trials with a yes. KSDrift is as it comes: asymptotic p, Bonferroni or FDR over the features. Ours is
max-T by permutation (499), people and not rows, in one split and in 15 combined by twice the
median p, looked at after each.

level  both sides are drawn alike: more than 5 % is false alarm. With K copies of an image, or many photos
       of a person, KSDrift is given every row, since it knows no groups; ours is told whose row is whose
power  2 n people in one pool, n of them changed, as in a test of a policy: KSDrift and one split
       get the same n against n, and 15 splits divide the pool 15 times. Ratios are to KSDrift with
       Bonferroni in the same trials, where it sees more than a fifth; "-" elsewhere

Features are normal, correlated by .5 (one factor), of standard deviation 1. ReLU: the same, negative ones
0, the last one constant. Copies and photos of a person are correlated by .9 and .8, drawn alike all the same.
"""

import contextlib
import functools
import io
import logging
import math
import pathlib
import sys
import time
import warnings

import numpy as np
import scipy
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from ks_test import render  # noqa: E402
from utils import checkpoint, cli  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.ks import features  # noqa: E402
from utils.ks import test as ks  # noqa: E402

try:  # it talks while it is imported
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import alibi_detect
        from alibi_detect.cd import KSDrift
except ImportError:
    alibi_detect = None

ALPHA, SPLITS, ENOUGH = 0.05, 15, 0.2
HEAVY = 1600  # numbers of a side from which 15 splits are tried in a quarter of the trials
SIZES, WIDTHS, SHIFTS, EVERYWHERE = (16, 32, 100), (8, 24), (0.5, 0.75, 1.0, 1.5), 0.4
FASSEG_SIZE = 128


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("--data", metavar="FOLDER", help="with FASSEG's V2 and V3 in it ; not tested without")
    p.add_argument("--init", metavar="FILE", help="checkpoint whose softmax V2 is read by")
    p.add_argument(
        "--trials", type=cli.positive, default=400, help="of each row; three quarters of them for power"
    )
    p.add_argument("--out", metavar="FILE", help="write the tables here too")
    return p


# ---- features (rows, d), and pairs: table a, table b, our splits, their two sets of rows


def normal(rng, n, d):
    return math.sqrt(0.5) * (rng.normal(size=(n, 1)) + rng.normal(size=(n, d)))


def relu(rng, n, d):
    table = np.maximum(normal(rng, n, d), 0)
    table[:, -1] = 7.0
    return table


def repeated(rng, people, times, d, alike):
    """(people x times, d): a person's rows next to each other, correlated by `alike`, each like `normal`."""
    own = normal(rng, people, d).repeat(times, 0)
    return math.sqrt(alike) * own + math.sqrt(1 - alike) * normal(rng, people * times, d)


def pool(table, seed, shift=0.0):
    """Half of the people of a pool, shifted, against the others."""
    people = ks.by_person(range(len(table)))
    n = len(table) // 2
    splits = ks.draw_splits(people, people, n, n, SPLITS, seed)
    return table + shift, table, splits, splits[0]


def sets(table, whose, first, seed):
    """The first rows against the others; whose: the person of each row."""
    one, two = ks.by_person(whose[:first]), ks.by_person(whose[first:], first)
    splits = ks.draw_splits(one, two, *ks.sizes(one, two), SPLITS, seed)
    return table, table, splits, (np.arange(first), np.arange(first, len(table)))


def alike_pool(rng, seed, make, n, d):
    return pool(make(rng, 2 * n, d), seed)


def shifted(rng, seed, make, n, d, size, everywhere=False):
    table, shift = make(rng, 2 * n, d), np.zeros(d)
    shift[slice(None) if everywhere else rng.integers(d)] = size
    return pool(table, seed, shift * table.std(0))


def copied(rng, seed, images, times, both, d=8):
    """`images` a side; `times` copies of each on one side or on both."""
    one, two = (repeated(rng, images, k, d, 0.9) for k in (times, times if both else 1))
    whose = [*np.arange(images).repeat(times), *(images + np.arange(images).repeat(len(two) // images))]
    return sets(np.concatenate([one, two]), whose, len(one), seed)


def persons(rng, seed, table, whose):
    """People at random to two sides, with all their photos."""
    names = rng.permutation(sorted(set(whose)))
    left = set(names[: len(names) // 2].tolist())
    rows = sorted(range(len(whose)), key=lambda i: whose[i] not in left)
    return sets(table[rows], [whose[i] for i in rows], sum(w in left for w in whose), seed)


def photographed(rng, seed, people, photos, d=8):
    whose = np.arange(people).repeat(photos).tolist()
    return persons(rng, seed, repeated(rng, people, photos, d, 0.8), whose)


# ---- trials


def theirs(a, b, correction="bonferroni"):
    return bool(KSDrift(a, p_val=ALPHA, correction=correction).predict(b)["data"]["is_drift"])


def measure(case, trials):
    """Shares of yes: one split, 15 splits, Bonferroni, FDR; and the ratios of ours to Bonferroni."""
    answers = {"one": [], "many": [], "bonferroni": [], "fdr": []}
    for seed in range(trials):
        a, b, splits, (rows, others) = case(np.random.default_rng([seed, 9]), seed)
        answers["one"].append(ks.gate(a, b, splits[:1], seed)["p"] <= ALPHA)
        if len(rows) * a.shape[1] < HEAVY or len(splits) == 1 or 4 * seed < trials:
            answers["many"].append(ks.gate(a, b, splits, seed)["p"] <= ALPHA)
        for name in ("bonferroni", "fdr"):
            answers[name].append(theirs(a[rows], b[others], name))
    ratios = []
    for name in ("one", "many"):
        other = np.mean(answers["bonferroni"][: len(answers[name])])
        ratios.append(np.mean(answers[name]) / other if other > ENOUGH else math.nan)
    return [np.mean(x) for x in answers.values()], ratios


def table_of(say, title, cases, trials, power=False):
    say(f"\n| {title} | one split | 15 splits | KSDrift | its FDR |" + " ratio | of 15 |" * power)
    say("|---" * (5 + 2 * power) + "|")
    for name, case in cases.items():
        rates, ratios = measure(case, trials)
        shown = [f"{100 * r:.1f}" for r in rates]
        if power:
            shown += ["-" if math.isnan(r) else f"{r:.2f}" for r in ratios]
        say(f"| {name} | " + " | ".join(shown) + " |")


def promised(n, d):
    """Without chance: the least distance at which KSDrift (Bonferroni) says yes, in 1 / n; its p there; the
    exact p; and how often one of d independent features reaches it where nothing differs."""
    for steps in range(1, n + 1):
        pair = np.arange(n), np.arange(n) + steps - 0.5
        if (p := stats.ks_2samp(*pair, method="asymp").pvalue) < ALPHA / d:
            break
    exact = stats.ks_2samp(*pair, method="exact").pvalue
    return steps, p, exact, 100 * (1 - (1 - exact) ** d)


def seconds(n, d, repeats=25):
    """Median milliseconds of one split and of KSDrift, in turns, and the median ratios of 1 and 15 splits."""
    a, b, splits, (rows, others) = alike_pool(np.random.default_rng(0), 0, normal, n, d)
    found = []
    for _ in range(repeats):
        at = [time.perf_counter()]
        for call in (
            lambda: ks.gate(a, b, splits[:1], 0),
            lambda: ks.gate(a, b, splits, 0),
            lambda: theirs(a[rows], b[others]),
        ):
            call()
            at.append(time.perf_counter())
        found.append(np.diff(at))
    one, many, other = np.array(found).T
    return [np.median(x) for x in (1000 * one, 1000 * other, one / other, many / other)]


# ---- photos


def photographs(args, notes):
    """(bbsd of V2, one row a person; pixel features of V3; whose row of V3 is whose)"""
    from datasets import sides, splits
    from datasets.cache import CachedFaces
    from models import restore

    state, root = checkpoint.load(args.init), pathlib.Path(args.data)
    classes, seen = state["data"]["classes"], sides.trained_on(args.init)[0]
    side, more = sides.open_side(str(root / "V2"), ["train", "test"], None, 64, FASSEG_SIZE, 0, classes, seen)
    side, _, dropped = sides.refuse_copies(side, None, True)
    notes += [line.replace(str(root), root.name) for line in more + dropped]
    net = restore(state, "cpu")
    extract = features.extractor(["bbsd"], net, len(classes), "cpu", 16)
    found = extract(render(side.images), side.labels)["bbsd"]
    columns = [i for _, i, _ in features.choose_columns({"bbsd": found}, classes)]
    faces = splits.open_any(str(root / "V3"))
    samples = [s for split in faces.splits.values() for s in split]
    photos = CachedFaces(faces, samples, 2 * FASSEG_SIZE)
    batches = (range(i, min(i + 32, len(photos))) for i in range(0, len(photos), 32))
    pixel = [features.pixel(render(photos[list(rows)]["image"]).float() / 255) for rows in batches]
    whose = photos.groups
    notes.append(
        f"V2: {len(found)} people, {len(columns)} numbers of bbsd; V3: {len(set(whose))} people, "
        f"{len(whose)} photos, {pixel[0].shape[1]} pixel features"
    )
    return found[:, columns], np.concatenate([p.double().numpy() for p in pixel]), whose


def main(args):
    # ---- setup ----
    if alibi_detect is None:
        raise UserError(
            "no alibi-detect here; in an environment of its own: pip install -r requirements.txt alibi-detect"
        )
    if bool(args.data) != bool(args.init):
        raise UserError("--data and --init: the rows on photos need both")
    lines, notes, part = [], [], functools.partial

    def say(line):
        lines.append(line)
        print(line, flush=True)

    say(
        f"alibi-detect {alibi_detect.__version__}, numpy {np.__version__}, scipy {scipy.__version__}; "
        f"{args.trials} trials a row"
    )
    grid = [(n, d) for d in WIDTHS for n in SIZES]

    # ---- level ----
    level = {
        f"one image a person, n = {n}, d = {d}": part(alike_pool, make=normal, n=n, d=d) for n, d in grid
    }
    level |= {f"ReLU and a constant, n = {n}, d = 8": part(alike_pool, make=relu, n=n, d=8) for n in SIZES}
    for both in (False, True):
        where = "both sides" if both else "one side"
        level |= {
            f"50 images a side, {k} copies of each on {where}": part(copied, images=50, times=k, both=both)
            for k in (1, 5, 20)
        }
    level["15 people, 26 photos of each"] = part(photographed, people=15, photos=26)
    v2, real = None, {}
    if args.data:
        v2, v3, whose = photographs(args, notes)
        take = lambda rng, n, d: v2[rng.permutation(len(v2))[:n]]
        half, d = len(v2) // 2, v2.shape[1]
        level[f"FASSEG V2, bbsd, n = {half}, d = {d}"] = part(alike_pool, make=take, n=half, d=d)
        name = f"FASSEG V3, pixel, {len(set(whose))} people, 26 photos of each"
        level[name] = part(persons, table=v3, whose=whose)
        real = {
            f"FASSEG V2, bbsd, n = {half}, d = {d}: {s} sd in one": part(
                shifted, make=take, n=half, d=d, size=s
            )
            for s in SHIFTS
        }
    table_of(say, "false alarms, %", level, args.trials)

    # ---- power ----
    power = {}
    for n, d in grid:
        where, at = f"n = {n}, d = {d}", part(shifted, make=normal, n=n, d=d)
        power |= {f"{where}: {s} sd in one": part(at, size=s) for s in SHIFTS}
        power[f"{where}: {EVERYWHERE} sd in all"] = part(at, size=EVERYWHERE, everywhere=True)
    table_of(say, "seen, %", power | real, max(1, 3 * args.trials // 4), power=True)

    # ---- KSDrift's p ----
    say("\n| its least distance | n D | its p | exact p | false alarms, d independent features, % |")
    say("|---|---|---|---|---|")
    for n, d in [(7, 8), (7, 24), *grid]:
        say("| n = {}, d = {} | {} | {:.5f} | {:.5f} | {:.1f} |".format(n, d, *promised(n, d)))

    # ---- time ----
    say("\n| time | one split, ms | KSDrift, ms | ratio | of 15 splits |\n|---|---|---|---|---|")
    for n, d in grid:
        say("| n = {}, d = {} | {:.1f} | {:.1f} | {:.2f} | {:.1f} |".format(n, d, *seconds(n, d)))
    say("\n" + "\n".join(notes or ["no --data: nothing on photos"]))
    if args.out:
        pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(args.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
