"""How often does a stream of batches raise a false alarm of drift, and how soon a true one?

Run:    python benchmarks/drift_streams.py --out streams.md
Needs:  nothing, it is simulated
Writes: the markdown file, if one is named
Expect: benchmarks/drift_streams.md

A stream is 25 batches of 32 people, each tested at .05 against one frozen reference of 32 by `gate` of
utils/ks/test.py (8 features, one photo a person, so one split). An alarm is what `drift` of
utils/operate/decisions.py answers "yes" to, two rejections in a row; single rejections are counted beside it.

independent  8 normal features
heavy        one factor and 8 own parts, Student's t of 3 degrees of freedom: correlated by .5, all of sd 1
drift        every batch is shifted in one feature, chosen for the stream, by so many sd
"""

import math
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from utils import cli  # noqa: E402
from utils.files import write_whole  # noqa: E402
from utils.ks import test as ks  # noqa: E402
from utils.operate import decisions  # noqa: E402

BATCHES, PEOPLE, WIDTH, ALPHA = 25, 32, 8, 0.05
SHIFTS = (0.5, 1.0, 2.0)


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("--streams", type=cli.positive, default=3000, help="clean ones; of drifted, a fifth")
    p.add_argument("--permutations", type=cli.positive, default=199, help="of each test")
    p.add_argument("--out", metavar="FILE", help="write the tables here too")
    return p


def independent(rng):
    return rng.normal(size=(PEOPLE, WIDTH))


def heavy(rng):
    factor, own = rng.standard_t(3, (PEOPLE, 1)), rng.standard_t(3, (PEOPLE, WIDTH))
    return math.sqrt(0.5 / 3) * (factor + own)  # the variance of t is 3


def stream(make, seed, permutations, shift=0.0):
    """Rows as of watch.jsonl, one a batch, as they come."""
    rng = np.random.default_rng(seed)
    reference = make(rng)
    moved = np.eye(WIDTH)[rng.integers(WIDTH)] * shift
    everyone = [(np.arange(PEOPLE), np.arange(PEOPLE))]
    for batch in range(1, BATCHES + 1):
        p = ks.gate(reference, make(rng) + moved, everyone, [seed, batch], permutations)["p"]
        yield {"batch": batch, "status": "REJECT" if p <= ALPHA else "PASS"}


def first_alarm(rows):
    """(the batch of the first rejection, that of the first alarm), inf where there is none."""
    seen, rejected = [], math.inf
    for row in rows:
        seen.append(row)
        if row["status"] == "REJECT":
            rejected = min(rejected, row["batch"])
        if decisions.drift(seen)[0] == "yes":
            return rejected, row["batch"]
    return rejected, math.inf


def share(values):
    """A share in %, with its standard error."""
    p = np.mean(values)
    return f"{100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / len(values)):.1f}"


def main(args):
    lines = []

    def say(text):
        print(text, flush=True)
        lines.append(text)

    n, permutations = args.streams, args.permutations
    say(f"{n} clean streams a row, {n // 5} with drift; {permutations} permutations\n")
    say("| clean streams | one rejection or more, % | two in a row, % |\n|---|---|---|")
    for make in (independent, heavy):
        found = np.array([first_alarm(stream(make, seed, permutations)) for seed in range(n)])
        say(f"| {make.__name__} | {share(found[:, 0] < math.inf)} | {share(found[:, 1] < math.inf)} |")
    say("\n| drift from the first batch on | alarm within 25, % | median batch | nine in ten |")
    say("|---|---|---|---|")
    for make in (independent, heavy):
        for shift in SHIFTS:
            found = [first_alarm(stream(make, seed, permutations, shift))[1] for seed in range(n // 5)]
            half, most = np.quantile(found, (0.5, 0.9), method="higher")
            ends = " | ".join("later" if math.isinf(each) else f"{each:.0f}" for each in (half, most))
            say(f"| {make.__name__}, {shift} sd in one feature | {share(np.isfinite(found))} | {ends} |")
    if args.out:
        write_whole(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
