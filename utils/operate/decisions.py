"""What an operator decides by: have photos drifted, and is a candidate better than the champion?"""

import math

import numpy as np
import scipy  # its parts load when they are first used

GUARD_LEVEL = 0.05  # of the bound for people of the old domain


def drift(rows, after=0):
    """Whether the photos of late are drawn unlike the reference: (verdict, batches).

    rows: dicts with the number of a "batch" and a "status" as ks_test.py gives it, in order; those of batches
    up to `after` do not count, and of several of one batch the last does. verdict: "yes" where the last two
    batches that could tell were rejected, since all of them are held against one reference: a chance
    rejection at .05 is certain in the long run, two in a row are rare (benchmarks/drift_streams.md);
    "suspected" where the last one was. UNDERPOWERED and BLIND neither count nor break: where such a batch is
    the latest and nothing is suspected, or where there is none, "cannot tell"; else "no". batches: the
    numbers of those in the present run of rejections.
    """
    status = {row["batch"]: row["status"] for row in rows if row["batch"] > after}
    told = [batch for batch, what in status.items() if what in ("PASS", "REJECT")]
    passed = [i for i, batch in enumerate(told) if status[batch] == "PASS"]
    rejected = told[passed[-1] + 1 :] if passed else told
    if rejected:
        return ("yes" if len(rejected) > 1 else "suspected"), rejected
    return ("no" if told and told[-1] == list(status)[-1] else "cannot tell"), []


def level(alpha, k):
    """The level of the k-th candidate, from 1: alpha 6 / (pi^2 k^2), which sum to alpha.

    So luck promotes none of ever so many equal candidates but with a probability of alpha, whatever hangs
    together between them (union bound), as when all are compared with one champion on the same people. It
    holds when a promotion changes the champion in between: the new one was chosen for having looked good on
    these very people, so the next difference comes out too small rather than too large. So k goes on counting
    for as long as the audit people do.
    """
    return alpha * 6 / (math.pi * k) ** 2


def lower_bound(differences, level):
    """One-sided paired t bound: the mean of `differences`, one for each of G people, is above it but with a
    probability of `level`: mean - t_{1 - level, G - 1} s / sqrt(G).

    -inf below two people; at most 0 where s = 0, which says that scores are coarse and not that they are
    sure. Exact where differences are normal, cautious where their tails are heavy; a rare great loss that
    none of these people shows is not seen.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return -math.inf
    if values.min() == values.max():
        return float(min(values[0], 0.0))
    half = -scipy.special.stdtrit(len(values) - 1, level) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half)


def verdict(guard, audit, k, alpha, delta):
    """Whether a candidate takes the champion's place: not worse on people of the old domain, and better on
    those of the new one.

    guard, audit: {person: the candidate's score - the champion's}; k: its number among the candidates that
    these audit people have judged, from 1. It is better if the lower bound of the guard people is above
    -delta at .05 (not spent over candidates: who does harm needs luck on the audit people, too), and that of
    the audit people above 0 at `level(alpha, k)`. Returns {"better": bool, "why": a sentence, "guard":
    {"mean", "bound", "level", "people"}, "audit": the same and "k"}; the mean of nobody is nan.
    """
    kept = _summary(guard, GUARD_LEVEL)
    won = _summary(audit, level(alpha, k)) | {"k": k}
    harmless, gains = kept["bound"] > -delta, won["bound"] > 0
    sides = [
        f"guard: {_in_words(kept)}, {'above' if harmless else 'not above'} {-delta:+.4f}",
        f"audit: {_in_words(won)}, {'above' if gains else 'not above'} 0, as candidate {k} on these people",
    ]
    why = f"{'better' if harmless and gains else 'not shown to be better'}: {'; '.join(sides)}"
    return {"better": harmless and gains, "why": why, "guard": kept, "audit": won}


def candidates_before(rows, photos):
    """How many earlier candidates were judged on an audit set that shares a photo with this one.

    rows: earlier decisions, dicts with a list "audit_photos"; photos: digests of this audit set. All who were
    judged by any one photo then have a k of at least 1, 2, 3, ..., so that their levels sum to no more than
    alpha; a set of other photos begins anew, at an alpha of its own. Names of people among `photos` count,
    too.
    """
    photos = set(photos)
    return sum(not photos.isdisjoint(row.get("audit_photos", [])) for row in rows)


def _summary(differences, level):
    values = list(differences.values())
    mean = float(np.mean(values)) if values else math.nan
    return {"mean": mean, "bound": lower_bound(values, level), "level": level, "people": len(values)}


def _in_words(found):
    if found["people"] < 2:
        return f"people: {found['people']}, too few for a bound"
    return (
        f"{found['mean']:+.4f} on average over {found['people']} people, lower bound {found['bound']:+.4f} "
        f"(level {found['level']:.2g})"
    )
