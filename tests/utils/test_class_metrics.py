"""Figures of classification against hand-made cases and plain loops."""

import pytest
import torch
from conftest import refusal
from scipy import stats

from utils import class_metrics, metrics

CLASSES = ["ant", "bee", "cat", "dog"]


def ap(scores, relevant):
    return class_metrics.average_precision(torch.tensor(scores), torch.tensor(relevant, dtype=torch.bool))


def measured(n=60, k=4, labelled=None, sure=1):
    """Random probabilities, right more often than not, of labels below `labelled`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, labelled or k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator, dtype=torch.double)
    logits[torch.arange(n), labels] += sure
    return {"probs": logits.softmax(1), "labels": labels}


# ---- average precision


def test_average_precision_of_the_textbook():
    """Precision 1 at the first relevant one, 2/3 at the second: their mean, (1 + 2/3) / 2."""
    assert ap([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx(5 / 6)
    assert ap([0.7, 0.9, 0.8], [1, 1, 0]) == pytest.approx(5 / 6), "in any order"
    assert ap([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert ap([3.0, 2.0, 1.0], [1, 1, 0]) == 1 and ap([3.0, 2.0, 1.0], [0, 0, 1]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("relevant", [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]])
def test_images_of_one_score_come_in_together(relevant):
    """... whatever their order: all tie, so the precision is the share of relevant ones."""
    assert ap([0.5] * 4, relevant) == 0.5
    assert ap([0.9, *[0.5] * 4], [1, *relevant]) == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 5)


def test_where_nothing_can_be_ranked_there_is_no_average_precision():
    assert torch.tensor([ap([0.1, 0.2], [0, 0]), ap([0.1, 0.2], [1, 1])]).isnan().all()


# ---- the summary


def test_a_summary_against_plain_loops():
    found = measured(labelled=3)
    probs, labels = found["probs"].tolist(), found["labels"].tolist()
    preds = [row.index(max(row)) for row in probs]
    pairs = list(zip(labels, preds, strict=True))
    f1 = []
    for k in range(4):
        right = sum(truth == guess == k for truth, guess in pairs)
        f1.append(2 * right / sum((truth == k) + (guess == k) for truth, guess in pairs))
    precision = []
    for k in range(3):
        rows = sorted(((row[k], truth == k) for row, truth in zip(probs, labels, strict=True)), reverse=True)
        hits = [i for i, (_, relevant) in enumerate(rows) if relevant]
        precision.append(sum((n + 1) / (i + 1) for n, i in enumerate(hits)) / len(hits))
    error = 0
    for low in range(15):
        inside = [i for i, row in enumerate(probs) if low / 15 <= max(row) < (low + 1) / 15]
        error += abs(sum(max(probs[i]) - (preds[i] == labels[i]) for i in inside)) / len(probs)
    result = class_metrics.summary(found, CLASSES)
    assert f1[3] == 0 == result["f1"]["dog"], "guessed only: scored, 0"
    assert result["ap"].pop("dog") is None, "no image: not scored"
    assert list(result["f1"].values()) == pytest.approx(f1, abs=1e-6)
    assert list(result["ap"].values()) == pytest.approx(precision, abs=1e-6)
    assert result["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / 60, abs=1e-6)
    assert result["macro_f1"] == pytest.approx(sum(f1) / 4, abs=1e-6)
    assert result["map"] == pytest.approx(sum(precision) / 3, abs=1e-6)
    assert result["ece"] == pytest.approx(error, abs=1e-6) and error > 0.05
    assert result["confusion"] == [[pairs.count((i, j)) for j in range(4)] for i in range(4)]
    assert list(result["support"].values()) == [labels.count(k) for k in range(4)]
    assert result["n_images"] == 60


def test_a_class_that_is_neither_labelled_nor_guessed_is_not_scored():
    found = {"probs": torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0]]).double(), "labels": torch.tensor([0, 1])}
    result = class_metrics.summary(found, CLASSES[:3])
    assert result["f1"] == result["ap"] == {"ant": 1, "bee": 1, "cat": None}
    assert result["macro_f1"] == result["map"] == result["accuracy"] == 1
    assert result["ci95"]["accuracy"][0] < 0.5, "two images say little"
    assert "val/f1/bee" in (tags := class_metrics.scalars("val", result)) and "val/f1/cat" not in tags
    assert {"val/accuracy", "val/macro_f1", "val/map", "val/ece"} < tags.keys()


def test_more_classes_than_255():
    labels = torch.tensor([255, 299, 255])
    probs = torch.nn.functional.one_hot(torch.tensor([255, 299, 299]), 300).double()
    result = class_metrics.summary({"probs": probs, "labels": labels}, [str(i) for i in range(300)])
    assert result["accuracy"] == pytest.approx(2 / 3, abs=1e-6) and result["confusion"][255][299] == 1


@pytest.mark.parametrize("right", [0, 8, 10])
def test_the_interval_against_scipy(right):
    expected = list(stats.binomtest(right, 10).proportion_ci(method="wilson"))
    assert class_metrics.interval(right / 10, 10) == pytest.approx(expected, abs=1e-4)


# ---- the table


def test_a_table_of_few_classes_has_them_all_and_the_confusion_matrix():
    result = class_metrics.summary(measured(), CLASSES)
    text = class_metrics.table(result)
    assert text.startswith(f"accuracy {result['accuracy']:.3f}  macro_f1 ")
    lines = [line.split() for line in text.splitlines()]
    for i, name in enumerate(CLASSES):
        assert [name, f"{result['f1'][name]:.3f}", f"{result['ap'][name]:.3f}"] in [x[:3] for x in lines]
        assert [str(i), name, *map(str, result["confusion"][i])] in lines


def test_a_table_of_many_classes_is_short():
    """The worst, the worst first, and what is confused most."""
    found = measured(3000, 100, sure=3)
    names = [f"class {k}" for k in range(100)]
    found["labels"][:200], found["probs"][:200] = 7, 0
    found["probs"][:200, 9] = 1  # sure, and wrong
    lines = class_metrics.table(class_metrics.summary(found, names)).splitlines()
    assert len(lines) < 30 and "the worst 10 of 100 classes:" in lines
    rows = lines[lines.index("the worst 10 of 100 classes:") + 2 :][:10]
    scores = [float(row[16:22]) for row in rows]
    assert scores == sorted(scores) and rows[0].startswith(("class 7 ", "class 9 "))
    assert any(line.startswith("200 of ") and line.endswith("class 7 taken for class 9") for line in lines)


# ---- measuring


class Data:
    def __init__(self, found):
        self.found = found

    def __len__(self):
        return len(self.found["labels"])

    def __getitem__(self, rows):
        return {"image": self.found["probs"][rows].log(), "class": self.found["labels"][rows]}


@pytest.mark.parametrize("world", [1, 2, 7])
def test_measuring_in_parts_and_by_several_processes(monkeypatch, world):
    """Five images: two processes have none of an equal number, seven have too few."""
    data, gathered = Data(measured(5)), []
    monkeypatch.setattr(class_metrics.dist, "gather_rows", lambda rows, n: gathered.append(rows) or rows)
    for rank in range(world):
        class_metrics.measure(lambda x: {"class": x, "domain": x}, data, ["class"], 2, rank, world)
    for what, tensors in (("probs", gathered[::2]), ("labels", gathered[1::2])):
        whole = torch.zeros_like(data.found[what])
        for rank, rows in enumerate(tensors):
            assert len(rows) == len(whole[rank::world])
            whole[rank::world] = rows
        assert torch.allclose(whole, data.found[what])


def test_logits_that_are_not_finite_are_refused():
    """As `metrics.measure` does."""

    def predict(images):
        return {"class": images.where(images < -1, torch.nan)}

    said = refusal(class_metrics.measure, predict, Data(measured(5)), ["class"])
    assert "not finite" in said and "--amp off" in said
    assert said == refusal(metrics.check_finite, torch.tensor([torch.inf]))
