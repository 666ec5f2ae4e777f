"""Two-sample Kolmogorov-Smirnov tests for images: many features, one permutation null, people not photos.

A side is a table of features (rows, d), one row an image, and `people`, the rows of each person. Every
split draws n people for the one side and m others for the other, one image each, so that rows are
independent. What is tested is the largest KS distance over the features, by permuting who is on which
side (max-T: Westfall and Young, "Resampling-based multiple testing", 1993); splits are combined by twice
the median p (Meinshausen, Meier, Buehlmann, JASA 104, 2009), looked at after each split (`combine`),
valid however much they overlap.
"""

import math

import numpy as np
import scipy  # its parts load when they are first used

SHIFTS = np.arange(0.05, 3.01, 0.05)  # planted shifts, standard deviations
SEEN = 0.8  # a control or a shift counts as seen if this share of the splits rejects


def _ranks(features):
    """order (N, d), and where a block of ties ends: only there is an ECDF what it says."""
    order = np.argsort(features, 0, kind="stable")
    ranked = np.take_along_axis(features, order, 0)
    last = np.ones_like(ranked, bool)
    last[:-1] = ranked[1:] != ranked[:-1]
    return order, last


def _distances(order, last, side):
    """For the rows where `side` (..., N) holds against the others: KS distances (..., d) and the area
    between the two ECDFs over the ranks, the largest of all features (...). Both times n m, so whole
    numbers, and equal ones compare equal."""
    n = int(side.reshape(-1, side.shape[-1])[0].sum())
    whole = np.int32 if side.shape[-1] < 40_000 else np.int64  # n m must fit
    climb = np.where(side, side.shape[-1] - n, -n).astype(whole)[..., order].cumsum(-2, dtype=whole)
    apart = np.abs(np.where(last, climb, 0))
    return apart.max(-2), apart.sum(-2, dtype=np.int64).max(-1)


def distances(a, b):
    """The KS distance of each feature, (d,), in [0, 1]; ties as in scipy's ks_2samp. a: (n, d), b: (m, d)."""
    side = np.arange(len(a) + len(b)) < len(a)
    return _distances(*_ranks(np.concatenate([a, b])), side)[0] / (len(a) * len(b))


def two_sample(a, b, rng, permutations=499):
    """One test of (n, d) against (m, d): {"d": (d,), "p", "p_energy", "null": (permutations,)}.

    p = (1 + how many permutations reach the largest distance) / (1 + permutations), never 0 (Phipson and
    Smyth, 2010); among equal largest distances, of which small samples have many, the largest area between
    ECDFs decides, so that p is uniform rather than conservative. null: the largest distances. p_energy: the
    same for the energy distance (Szekely and Rizzo, 2004) of standardised features, which sees what moves in
    several of them jointly. rng: numpy Generator.
    """
    pooled = np.concatenate([a, b]).astype(np.float64)
    side = np.arange(len(pooled)) < len(a)
    order, last = _ranks(pooled)
    sides = rng.permuted(np.tile(side, (permutations, 1)), axis=1)
    d, area = _distances(order, last, side)
    chunk = max(1, 2_000_000 // pooled.size)  # permutations at once: what a processor's cache holds
    parts = [_distances(order, last, sides[i : i + chunk]) for i in range(0, permutations, chunk)]
    null = np.concatenate([p[0].max(-1) for p in parts])
    areas = np.concatenate([p[1] for p in parts])
    reached = (null > d.max()) | (null == d.max()) & (areas >= area)

    scaled = pooled / np.where(pooled.std(0) > 0, pooled.std(0), 1)
    gap = scipy.spatial.distance.cdist(scaled, scaled)
    weight = np.where(np.vstack([side, sides]), 1 / len(a), -1 / len(b))
    energy = -((weight @ gap) * weight).sum(1)
    return {
        "d": d / (len(a) * len(b)),
        "p": (1 + reached.sum()) / (1 + permutations),
        "p_energy": (1 + (energy[1:] >= energy[0] - 1e-12).sum()) / (1 + permutations),
        "null": null / (len(a) * len(b)),
    }


def combine(p):
    """One p for splits that overlap: min(1, 2 x the least median of the first k of them); a single split's p
    is its own. Splits are drawn alike, in an order that means nothing, so that looking after each of them
    costs no level (exchangeable Markov inequality: Ramdas and Manole, 2304.02611; Gasparin, Wang and Ramdas,
    2404.03484). Twice the median of all is never smaller. The lower median where k is even."""
    if len(p) == 1:
        return float(p[0])
    return float(min(1.0, 2 * min(sorted(p[:k])[(k - 1) // 2] for k in range(1, len(p) + 1))))


def level_of(alpha, splits):
    """The p below which one split votes to reject, so that the combined p is at most alpha."""
    return alpha / 2 if splits > 1 else alpha


def critical(null, level):
    """The distance beyond which a split has p <= level; inf where there is none."""
    k = math.floor(level * (len(null) + 1) + 1e-9) - 1  # permutations that may reach it
    return float(np.sort(null)[::-1][k]) if k >= 0 else math.inf


def smallest_p(n, m, permutations):
    """The smallest p that n against m can give at all: there are only so many ways to divide them."""
    ways = math.comb(n + m, n) / (2 if n == m else 1)  # swapping equal sides changes no distance
    return max(1 / ways, 1 / (1 + permutations))


# ---- splits


def by_person(groups, first=0):
    """{person: rows} of a list with the person of each row, from row `first` on."""
    people = {}
    for row, group in enumerate(groups, first):
        people.setdefault(group, []).append(row)
    return people


def sizes(a, b, n=None):
    """How many people a side there can be, at most n: (n_a, n_b). a, b: {person: rows}. People who are on
    both sides serve only one of them in a split."""
    shared = len(a.keys() & b.keys())
    only_a = len(a) - shared
    only_b = len(b) - shared
    to_a = min(max((only_b + shared - only_a + 1) // 2, 0), shared)
    most = only_a + to_a, only_b + shared - to_a
    return tuple(min(n or k, k) for k in most)


def split(a, b, n, m, rng):
    """Rows of n people of `a` and of m other people of `b`, one image of each: two int arrays."""
    shared = sorted(a.keys() & b.keys())
    shared = [shared[i] for i in rng.permutation(len(shared))]
    least = n - (len(a) - len(shared))
    most = len(b) - m  # of those shared, how many go to `a`
    to_a = (max(least, 0) + min(most, len(shared))) // 2
    chosen = []
    for side, others, count in ((a, shared[to_a:], n), (b, shared[:to_a], m)):
        free = sorted(side.keys() - set(others))
        free = [free[i] for i in rng.permutation(len(free))[:count]]
        chosen.append(np.array([side[person][rng.integers(len(side[person]))] for person in free]))
    return chosen


def draw_splits(a, b, n, m, count, seed):
    """`count` splits, or a single one where there is nothing to choose. A function of the seed, so that
    every magnitude of every operation is compared on the same people."""
    fixed = not a.keys() & b.keys() and len(a) == n and len(b) == m
    fixed = fixed and all(len(rows) == 1 for rows in (*a.values(), *b.values()))
    return [split(a, b, n, m, np.random.default_rng([seed, r])) for r in range(1 if fixed else count)]


# ---- the gate and its self-checks


def gate(a, b, splits, seed, permutations=499, alpha=0.05):
    """Tables a (rows, d) and b (rows, d) over `splits` -> one verdict's figures, as plain numbers.

    p, p_energy: combined; reject_share: of the splits; d: each feature's median distance; d_max, and its
    `feature` (an index); d_critical: the median of what a split's largest distance must exceed;
    d_upper: with 95 % confidence, the true distances of the first split are below it (Dvoretzky, Kiefer,
    Wolfowitz; Massart 1990; union over features and sides).
    """
    tests = [
        two_sample(a[rows], b[others], np.random.default_rng([seed, r, 1]), permutations)
        for r, (rows, others) in enumerate(splits)
    ]
    level = level_of(alpha, len(splits))
    d = np.median([t["d"] for t in tests], 0)
    n, m = (len(rows) for rows in splits[0])
    bound = math.log(2 * a.shape[1] / 0.025) / 2
    return {
        "p": combine([t["p"] for t in tests]),
        "p_energy": combine([t["p_energy"] for t in tests]),
        "reject_share": float(np.mean([t["p"] <= level for t in tests])),
        "d": d.tolist(),
        "d_max": float(d.max()),
        "feature": int(d.argmax()),
        "d_critical": float(np.median([critical(t["null"], level) for t in tests])),
        "d_upper": min(1.0, float(tests[0]["d"].max()) + math.sqrt(bound / n) + math.sqrt(bound / m)),
    }


def null_p(table, people, n, seed, runs=200, permutations=499):
    """p of `runs` tests of real against real, n people a side: (runs,). Uniform if the test is right; that
    photos of one person go under several names it cannot find, since sides are drawn at random."""
    halves = [split(people, people, n, n, np.random.default_rng([seed, r, 2])) for r in range(runs)]
    return np.array(
        [
            two_sample(table[a], table[b], np.random.default_rng([seed, r, 3]), permutations)["p"]
            for r, (a, b) in enumerate(halves)
        ]
    )


def smallest_shift(table, splits, seed, permutations=499, alpha=0.05):
    """The smallest of `SHIFTS`, planted in one feature of one side, that is seen in `SEEN` of the splits
    whichever feature that varies it is; inf if none is. table: (rows, d), the same for both sides, so that
    nothing else differs. Returns it and the share of splits that see each of `SHIFTS` in the feature
    where it is seen least. Splits of one table are what they are: other people may be seen otherwise."""
    level = level_of(alpha, len(splits))
    spread = table.std(0)
    moving = spread > 0
    seen = np.zeros((len(SHIFTS), moving.sum()))
    for r, (rows, others) in enumerate(splits):
        test = two_sample(table[rows], table[others], np.random.default_rng([seed, r, 1]), permutations)
        threshold = critical(test["null"], level)
        for i, shift in enumerate(SHIFTS):
            d = distances(table[rows], table[others] + shift * spread)[moving]
            seen[i] += (d > threshold) / len(splits)
    least = seen.min(1) if moving.any() else np.zeros(len(SHIFTS))
    enough = np.flatnonzero(least >= SEEN - 1e-9)
    return float(SHIFTS[enough[0]]) if enough.size else math.inf, least


# ---- copies


def copies(thumbs_a, groups_a, thumbs_b=None, groups_b=None, least=0.995):
    """Pairs of rows that show the same photo under two persons' names, or mirrored, resaved, a little
    brighter. thumbs: (rows, s, s) grey thumbnails; pairs are of `a` and `b`, or within `a` alone.

    Two photos of one face seldom correlate above .98 at 16 x 16, JPEG copies above .999 (FASSEG V2, V3).
    """
    within = thumbs_b is None
    thumbs_b, groups_b = (thumbs_a, groups_a) if within else (thumbs_b, groups_b)

    def unit(thumbs):
        flat = thumbs.reshape(len(thumbs), -1).astype(np.float64)
        flat = flat - flat.mean(1, keepdims=True)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)

    one = unit(thumbs_a)
    two = unit(thumbs_b)
    mirrored = unit(thumbs_b[..., ::-1])
    alike = np.maximum(one @ two.T, one @ mirrored.T) > least
    other = np.array(groups_a, object)[:, None] != np.array(groups_b, object)[None]
    alike &= other if within else True
    if within:
        alike = np.triu(alike, 1)
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(alike), strict=True)]
