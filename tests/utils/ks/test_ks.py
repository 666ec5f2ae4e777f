"""The KS test against scipy, against chance, and against everything that fools such tests on images."""

import numpy as np
import pytest
import torch
from scipy import stats

from utils.ks import features
from utils.ks import test as ks


def persons(n, photos=1, name="p"):
    return ks.by_person([f"{name}{i}" for i in range(n) for _ in range(photos)])


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_distances_are_those_of_scipy_with_ties(decimals):
    rng = np.random.default_rng(decimals)
    a, b = np.round(rng.normal(size=(40, 6)), decimals), np.round(rng.normal(0.3, 1, (33, 6)), decimals)
    a[:, 5], b[:, 5] = np.maximum(a[:, 5], 0), np.maximum(b[:, 5], 0)  # half of it ties, as after a ReLU
    expected = [stats.ks_2samp(a[:, j], b[:, j]).statistic for j in range(6)]
    np.testing.assert_allclose(ks.distances(a, b), expected, atol=1e-12)


def test_a_constant_feature_says_nothing():
    test = ks.two_sample(np.ones((20, 1)), np.ones((20, 1)), np.random.default_rng(0), 99)
    assert test["d"] == [0] and test["p"] == 1
    a, b = np.random.default_rng(1).normal(size=(2, 20, 3))
    with_it = [np.column_stack([x, np.full(20, 7.0)]) for x in (a, b)]
    plain = ks.two_sample(a, b, np.random.default_rng(0), 99)
    assert ks.two_sample(*with_it, np.random.default_rng(0), 99)["p"] == plain["p"]


def test_p_is_never_zero_and_agrees_with_the_exact_one():
    a, b = np.arange(30.0)[:, None], np.arange(30.0)[:, None] + 100
    assert ks.two_sample(a, b, np.random.default_rng(0), 99)["p"] == 0.01
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(25, 1)), rng.normal(0.5, 1, (25, 1))
    exact = stats.ks_2samp(a[:, 0], b[:, 0], method="exact").pvalue
    assert ks.two_sample(a, b, np.random.default_rng(0), 4999)["p"] == pytest.approx(exact, abs=0.02)


def test_the_null_is_uniform_and_the_combined_gate_keeps_its_level():
    """G7, with features that hang together and some that tie."""
    p, combined = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        table = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 10))
        table[:, 0] = np.round(table[:, 0])
        splits = ks.draw_splits(persons(60), persons(60), 30, 30, 5, seed)
        first = ks.gate(table, table, splits[:1], seed, 199)
        p.append(first["p"])
        combined.append(ks.gate(table, table, splits, seed, 199)["p"])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(combined) <= 0.05) <= 0.09


def test_photos_of_one_person_are_one_witness():
    """Split by image, two sets of the same distribution but other people are told apart; by person, not."""
    by_image, by_person = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        groups = [f"p{i}" for i in range(24) for _ in range(10)]
        table = rng.normal(size=(24, 4)).repeat(10, 0) + 0.1 * rng.normal(size=(240, 4))
        one, two = (ks.by_person(g, f) for g, f in ((groups[:120], 0), (groups[120:], 120)))
        n, m = ks.sizes(one, two)
        assert (n, m) == (12, 12)
        by_person.append(
            ks.gate(table, table, ks.draw_splits(one, two, n, m, 5, seed), seed, 99)["p"] <= 0.05
        )
        rows = [(np.arange(120), np.arange(120, 240))]
        by_image.append(ks.gate(table, table, rows, seed, 99)["p"] <= 0.05)
    assert np.mean(by_image) > 0.9 and np.mean(by_person) <= 0.15


def test_a_split_takes_each_person_once_and_on_one_side():
    groups = [f"p{i % 9}" for i in range(40)]
    people = ks.by_person(groups)
    for a, b in ks.draw_splits(people, people, *ks.sizes(people, people), 20, 0):
        assert len({groups[i] for i in (*a, *b)}) == len(a) + len(b) == 8 + (len(a) != len(b))
    one, two = ks.by_person(["a", "b", "c", "d", "d"]), ks.by_person(["c", "d", "x"], 5)
    n, m = ks.sizes(one, two)
    assert n + m == 5 and m >= 2
    for a, b in ks.draw_splits(one, two, n, m, 20, 0):
        named = ["a", "b", "c", "d", "d", "c", "d", "x"]
        assert len({named[i] for i in (*a, *b)}) == 5 and max(a) < 5 <= min(b)


def test_one_split_where_there_is_but_one():
    one, two = persons(8), ks.by_person([f"q{i}" for i in range(9)], 8)
    assert len(ks.draw_splits(one, two, 8, 9, 15, 0)) == 1
    assert len(ks.draw_splits(one, two, 7, 9, 15, 0)) == 15
    assert ks.combine([0.04]) == 0.04 and ks.combine([0.5, 0.04, 0.01]) == 0.08


def test_splits_that_are_drawn_alike_are_combined_at_their_level():
    """As dependent as can be, independent, and between: 5 % of false alarms at most, and never more p than
    twice the median of all."""
    rng = np.random.default_rng(0)
    for share in (0, 0.5, 0.9, 1):
        z = np.sqrt(share) * rng.normal(size=(4000, 1)) + np.sqrt(1 - share) * rng.normal(size=(4000, 15))
        p = stats.norm.sf(z)
        combined = np.array([ks.combine(row) for row in p])
        assert np.mean(combined <= 0.05) <= 0.06
        assert (combined <= np.minimum(1, 2 * np.median(p, 1)) + 1e-12).all()
    assert ks.combine([0.01, 0.9, 0.9]) == 0.02 and ks.combine([0.9, 0.9, 0.01]) == 1


def test_four_people_a_side_can_never_be_told_apart():
    """G5: there are only 35 ways to divide eight people."""
    assert ks.smallest_p(4, 4, 499) == pytest.approx(1 / 35)
    assert ks.smallest_p(4, 4, 499) > ks.level_of(0.05, 15) > ks.smallest_p(5, 5, 499)
    assert ks.smallest_p(20, 20, 499) == 1 / 500


def test_the_critical_distance_is_where_p_crosses_the_level():
    rng = np.random.default_rng(0)
    test = ks.two_sample(rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), rng, 199)
    threshold = ks.critical(test["null"], 0.05)
    reach = lambda d: (1 + (test["null"] >= d).sum()) / 200
    assert reach(threshold) > 0.05 >= reach(threshold + 1e-9)
    assert ks.critical(test["null"], 0.001) == np.inf


def test_a_planted_shift_is_seen_the_better_the_more_people_there_are():
    rng = np.random.default_rng(0)
    seen = {}
    for n in (10, 100):
        table = rng.normal(size=(2 * n, 8))
        splits = ks.draw_splits(persons(2 * n), persons(2 * n), n, n, 9, 0)
        seen[n], shares = ks.smallest_shift(table, splits, 0, 199)
        assert shares[-1] >= shares[0] and len(shares) == len(ks.SHIFTS)
    assert 0.3 < seen[100] < 1.0 < 1.4 < seen[10]


def test_the_upper_bound_holds_for_a_known_distance():
    """Two normals 0.6 apart have D = 2 Phi(.3) - 1 = .236."""
    rng, held = np.random.default_rng(0), []
    for seed in range(60):
        table = np.concatenate([rng.normal(size=(50, 2)), rng.normal(0.6, 1, (50, 2))])
        one, two = persons(50), ks.by_person([f"q{i}" for i in range(50)], 50)
        held.append(
            ks.gate(table, table, ks.draw_splits(one, two, 50, 50, 1, seed), seed, 19)["d_upper"] >= 0.236
        )
    assert np.mean(held) >= 0.95


def test_energy_sees_what_moves_jointly():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100, 2))
    b[:, 1] = b[:, 0]  # each feature alone is distributed as before
    test = ks.two_sample(a, b, rng, 199)
    assert test["p"] > 0.05 >= test["p_energy"]


def test_equal_distances_are_told_apart_by_one_feature_not_by_all():
    """Small samples tie in their largest distance. Where one of 24 features moves, the others are noise."""
    seen = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = np.sqrt(0.5) * (rng.normal(size=(2, 16, 1)) + rng.normal(size=(2, 16, 24)))
        a[:, 3] += 1.5
        seen.append(ks.two_sample(a, b, rng, 199)["p"] <= 0.05)
    assert np.mean(seen) > 0.68  # .74; with the sum of all areas .625


def test_copies_are_found_and_other_people_are_not():
    thumbs = np.random.default_rng(0).normal(size=(5, 16, 16))
    thumbs[3] = thumbs[1] * 1.2 + 0.3  # resaved, brighter
    thumbs[4] = thumbs[2][:, ::-1]
    people = list("abcde")
    assert ks.copies(thumbs, people) == [(1, 3), (2, 4)]
    assert ks.copies(thumbs, list("abcbc")) == []  # within one person they do no harm: a split takes one
    assert ks.copies(thumbs[:2], people[:2], thumbs[2:], people[2:]) == [(1, 1)]
    assert ks.copies(np.ones((2, 16, 16)), ["a", "b"]) == []


def test_bbsd_counts_and_places_the_classes():
    probs = torch.zeros(1, 3, 8, 8)
    probs[:, 1, :4] = 1  # the upper half
    probs[:, 0, 4:] = 1
    found = features.bbsd(probs)[0]
    assert found[:3].tolist() == [0.5, 0.5, 0] and found[3] == 0
    x, y = found[4:].view(3, 2).T
    assert x.abs().max() < 1e-6 and y[1] == pytest.approx(-0.5, abs=2e-3) and y[0] == -y[1] and y[2] == 0
    columns = features.bbsd_columns(np.array([0.5, 0.49, 0.01]), ["bg", "skin", "nose"])
    assert [name for _, name in columns][3:] == ["entropy", "x bg", "y bg", "x skin", "y skin"]
    wide = features.bbsd_columns(np.full(17, 1 / 17), [str(i) for i in range(17)])
    assert len(wide) == features.MAX_FEATURES and len({i for i, _ in wide}) == features.MAX_FEATURES


def test_pixel_features_move_where_they_should():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    names, plain = features.PIXEL, features.pixel(images)
    assert plain.shape == (2, len(names))
    at = dict(zip(names, range(12), strict=True))
    assert (features.pixel(images + 0.3)[:, at["luma"]] > plain[:, at["luma"]] + 0.29).all()
    red = images.clone()
    red[:, 0] *= 2
    assert (features.pixel(red)[:, at["red"]] > plain[:, at["red"]] + 0.1).all()
    lit = images.clone()
    lit[..., 16:] *= 2
    assert (features.pixel(lit)[:, at["x luma"]] > plain[:, at["x luma"]] + 0.1).all()


def test_mask_shares_leave_out_what_is_not_labelled():
    labels = torch.tensor([[[0, 1], [1, 255]]], dtype=torch.uint8)
    torch.testing.assert_close(features.mask(labels, 3), torch.tensor([[1 / 3, 2 / 3, 0]]))
