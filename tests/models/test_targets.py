"""Files of embedded phrases, which recipes write and mine_styles.py reads."""

import pytest
import torch
from conftest import refusal

from models import targets
from models.styles import digest
from utils import checkpoint


def test_a_phrase_stands_for_each_class():
    rows = targets.with_classes(["the {class} at night", "a face"], ["upper_lip", "nose"])
    assert rows == [
        ("the {class} at night", "upper_lip", "the upper lip at night"),
        ("the {class} at night", "nose", "the nose at night"),
        ("a face", None, "a face"),
    ]
    assert targets.with_classes([]) == [], "the tower alone"


def test_the_classes_of_a_parser(finetuned):
    file = finetuned / "best.pt"
    classes = checkpoint.load(file)["data"]["classes"]
    assert [name for _, name, _ in targets.with_classes(["a {class}"], source=file)] == classes


@pytest.mark.parametrize("phrase, names", [("the {class}", None), ("a face", ["nose"])])
def test_classes_without_phrases_for_them(phrase, names):
    assert "of no use without the other" in refusal(targets.with_classes, [phrase], names)


def test_the_file(tmp_path):
    rows = targets.with_classes(["a {class}", "a face"], ["nose"])
    tower, embeddings = [torch.ones(3), torch.zeros(2, 2)], torch.eye(2)
    targets.save(tmp_path / "t.pt", rows, embeddings, tower, "tiny")
    found = torch.load(tmp_path / "t.pt", weights_only=True)
    assert torch.equal(found.pop("embeddings"), embeddings)
    words = {"phrases": ["a {class}", "a face"], "classes": ["nose", None]}
    assert found == {**words, "tower": digest(tower), "clip": "tiny"}
    said = refusal(targets.save, tmp_path / "nan.pt", rows, embeddings / 0, tower, "tiny")
    assert "tiny: gives embeddings that are not finite" in said and not (tmp_path / "nan.pt").exists()
