"""Drift is two rejections in a row; luck does not pass the bound, however often it is tried."""

import math

import numpy as np
import pytest
from scipy import stats

from utils.ks import test as ks
from utils.operate import decisions

NOISE, DELTA, ALPHA = 0.01, 0.01, 0.05
GUARDS, AUDITED = 12, 6  # people
MARKS = {"P": "PASS", "R": "REJECT", "u": "UNDERPOWERED", "b": "BLIND"}


def watched(marks):
    """Rows of watch.jsonl; batch 1 is the first."""
    return [{"batch": i, "status": MARKS[mark], "people": 32} for i, mark in enumerate(marks, 1)]


# ---- drift


@pytest.mark.parametrize(
    "marks, answer, batches",
    [
        ("", "cannot tell", []),
        ("ub", "cannot tell", []),
        ("P", "no", []),
        ("R", "suspected", [1]),
        ("RR", "yes", [1, 2]),
        ("PRPR", "suspected", [4]),
        ("RRP", "no", []),
        ("PRRR", "yes", [2, 3, 4]),
        ("RuR", "yes", [1, 3]),
        ("PRbu", "suspected", [2]),
        ("RRu", "yes", [1, 2]),
        ("Pu", "cannot tell", []),
        ("RRPb", "cannot tell", []),
    ],
)
def test_two_rejections_in_a_row_are_drift(marks, answer, batches):
    assert decisions.drift(watched(marks)) == (answer, batches)


def test_drift_that_was_answered_is_over():
    rows = watched("RRRuR")
    assert decisions.drift(rows, after=2) == ("yes", [3, 5])
    assert decisions.drift(rows, after=3) == ("suspected", [5])
    assert decisions.drift(rows, after=5) == ("cannot tell", [])


def test_a_batch_that_was_watched_twice_is_one():
    assert decisions.drift(watched("R") * 2) == ("suspected", [1])
    assert decisions.drift(watched("PR") + [{"batch": 2, "status": "PASS"}]) == ("no", [])


def alarms(make, streams, people=32, batches=25):
    """Of clean streams against a reference of each: the shares with one rejection and with an alarm."""
    everyone = [(np.arange(people), np.arange(people))]
    found = []
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        reference, rows, answers = make(rng, people), [], []
        for batch in range(1, batches + 1):
            p = ks.gate(reference, make(rng, people), everyone, [seed, batch], 59)["p"]
            rows.append({"batch": batch, "status": "REJECT" if p <= 0.05 else "PASS"})
            answers.append(decisions.drift(rows)[0])
        found.append([bool({"suspected", "yes"} & set(answers)), "yes" in answers])
    return np.mean(found, 0)


def heavy(rng, people):
    """Student's t of three degrees of freedom, correlated by .5."""
    return rng.standard_t(3, (people, 1)) + rng.standard_t(3, (people, 8))


def test_clean_streams_alarm_rarely():
    """benchmarks/drift_streams.py has the figures of 3000 streams."""
    once, twice = alarms(heavy, 100)
    assert twice <= 0.1 and once >= 0.35, "and a single rejection would have been no rule"


# ---- the bound


def test_the_levels_sum_to_alpha():
    spent = sum(decisions.level(0.05, k) for k in range(1, 100_000))
    assert spent < 0.05 and spent == pytest.approx(0.05, rel=1e-4)
    assert decisions.level(0.05, 1) == pytest.approx(0.0304, abs=1e-4)


def test_the_bound_is_that_of_a_paired_t_test():
    x = np.random.default_rng(0).normal(0.01, 0.02, 7)
    for level in (0.05, 0.003):
        bound = decisions.lower_bound(list(x), level)
        expected = stats.ttest_1samp(x, 0, alternative="greater").confidence_interval(1 - level).low
        assert bound == pytest.approx(expected, abs=1e-12)
        assert stats.ttest_1samp(x, bound, alternative="greater").pvalue == pytest.approx(level)
    assert decisions.lower_bound([0.5], 0.05) == decisions.lower_bound([], 0.05) == -math.inf
    assert decisions.lower_bound([0.25, 0.25, 0.25], 0.05) == 0.0, "coarse, not sure"
    assert decisions.lower_bound([-0.25, -0.25], 0.05) == -0.25


@pytest.mark.parametrize("people", [2, 3, 4, 6])
def test_coarse_scores_promote_equal_candidates_rarely(people):
    rng = np.random.default_rng(people)
    histories = rng.choice([-1.0, 0.0, 0.0, 1.0], (400, 20, people))  # better by a vote, equal, or worse
    levels = [decisions.level(ALPHA, k) for k in range(1, 21)]
    promoted = [
        any(decisions.lower_bound(*each) > 0 for each in zip(rows, levels, strict=True)) for rows in histories
    ]
    assert np.mean(promoted) <= 0.05


# ---- the verdict


def people(differences):
    return {f"person {i}": float(d) for i, d in enumerate(differences)}


def spread(mean, sd, n):
    """n differences of just that mean and standard deviation."""
    x = np.random.default_rng(n).normal(size=n)
    return people(mean + sd * (x - x.mean()) / x.std(ddof=1))


UNHARMED = spread(0.001, 0.01, 12)


def test_a_real_gain_is_promoted():
    found = decisions.verdict(UNHARMED, spread(0.03, 0.015, 7), 1, ALPHA, DELTA)
    assert found["better"] is True
    half = stats.t.ppf(1 - ALPHA * 6 / math.pi**2, 6) * 0.015 / math.sqrt(7)
    assert found["audit"] == pytest.approx(
        {"mean": 0.03, "bound": 0.03 - half, "level": ALPHA * 6 / math.pi**2, "people": 7, "k": 1}
    )
    bound = 0.001 - stats.t.ppf(0.95, 11) * 0.01 / math.sqrt(12)
    assert found["guard"] == pytest.approx({"mean": 0.001, "bound": bound, "level": 0.05, "people": 12})
    assert found["why"] == (
        "better: guard: +0.0010 on average over 12 people, lower bound -0.0042 (level 0.05), above -0.0100; "
        "audit: +0.0300 on average over 7 people, lower bound +0.0169 (level 0.03), above 0, as candidate 1 "
        "on these people"
    )
    assert not decisions.verdict(UNHARMED, spread(0.03, 0.015, 7), 50, ALPHA, DELTA)["better"]


@pytest.mark.parametrize(
    "guard, audit, why",
    [
        (spread(-0.02, 0.01, 12), spread(0.03, 0.015, 7), "not above -0.0100; audit"),
        (spread(0.0, 0.03, 12), spread(0.03, 0.015, 7), "not above -0.0100; audit"),
        (UNHARMED, spread(0.0, 0.0, 7), "not above 0"),
        (UNHARMED, spread(0.01, 0.015, 7), "not above 0"),
        (UNHARMED, people([0.5]), "people: 1, too few for a bound, not above 0"),
        ({}, spread(0.03, 0.015, 7), "people: 0, too few for a bound, not above -0.0100"),
        (UNHARMED, people([0.03, math.nan, 0.03]), "not above 0"),
    ],
)
def test_what_is_not_shown_is_refused(guard, audit, why):
    found = decisions.verdict(guard, audit, 1, ALPHA, DELTA)
    assert found["better"] is False and why in found["why"]


# ---- many candidates


def promotions(seed, gains, shared=True, spent=True):
    """The gain, over the champion of then, of each candidate that takes its place. gains: of each candidate
    over the first champion. Scores are a model's gain and its own noise on each person: drawn once, so that
    all candidates meet one champion's luck, or (shared=False) anew for every comparison."""
    rng = np.random.default_rng(seed)
    draw = lambda: rng.normal(0, NOISE, GUARDS + AUDITED)
    champion, luck, found = 0.0, draw(), []
    for k, gain in enumerate(gains, 1):
        own = draw()
        differences = gain - champion + own - (luck if shared else draw())
        guard, audit = people(differences[:GUARDS]), people(differences[GUARDS:])
        first = ALPHA * math.pi**2 / 6, 1  # whose level is alpha itself
        alpha, k = (ALPHA, k) if spent else first
        if decisions.verdict(guard, audit, k, alpha, DELTA)["better"]:
            found.append(gain - champion)
            champion, luck = gain, own
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_equal_candidates_are_promoted_in_few_histories(shared):
    """Of 20 candidates each; without spending, a third of the histories or more promote one."""
    equal = [0.0] * 20
    assert np.mean([bool(promotions(seed, equal, shared)) for seed in range(400)]) <= 0.05
    assert np.mean([bool(promotions(seed, equal, shared, spent=False)) for seed in range(100)]) >= 0.25


def test_a_promotion_in_between_costs_no_level():
    """The fourth candidate is better, and the others after it are as good as it."""
    histories = [promotions(seed, [0.0] * 3 + [0.06] * 17) for seed in range(200)]
    assert np.mean([any(gain > 0 for gain in found) for found in histories]) > 0.9
    assert np.mean([any(gain <= 0 for gain in found) for found in histories]) <= 0.05


def test_candidates_before_are_those_of_a_photo_in_common():
    rows = [{"audit_photos": ["a", "b"]}, {"audit_photos": ["c"]}, {"waits": True}, {"audit_photos": ["b"]}]
    counts = {"a": 1, "b": 2, "bc": 3, "d": 0, "": 0}
    assert {each: decisions.candidates_before(rows, each) for each in counts} == counts
