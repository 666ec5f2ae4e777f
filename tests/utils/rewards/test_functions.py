"""Reward functions of a user's own: whatever they do, one line says which and what."""

import pytest
import torch
from conftest import refusal

from utils.rewards.rewards import LABEL_FREE, build, load

MASKS = torch.zeros(4, 2, 2, dtype=torch.long)
ANSWERS = {
    "raise RuntimeError('server\\n   down')": "RuntimeError: server down ({file}:3)",
    "return helper()": "ZeroDivisionError: division by zero ({file}:1)",
    "return torch.zeros(4).view(7)": "RuntimeError: shape '[7]' is invalid for input of size 4 ({file}:3)",
    "raise SystemExit(3)": "left by sys.exit(3)",
    "return torch.full((4,), float('nan'))": "need one finite number for each of 4 masks, got nan",
    "return [0.5, float('-inf'), 1, 1]": "need one finite number for each of 4 masks, got -inf",
    "return torch.zeros(4, 1)": "need one finite number for each of 4 masks, got shape (4, 1)",
    "return 0.5": "need one finite number for each of 4 masks, got shape ()",
    "return None": "got None",
    "return ['good'] * 4": "got ['good', 'good', 'good', 'good']",
    "return torch.zeros(4) * 1j": "got tensor([0.+0.",
    "return {}": "got {{}}",
}
FILES = {
    "import nothing": "cannot be imported: ModuleNotFoundError: No module named 'nothing' ({file}:1)",
    "def reward(preds, labels)": "cannot be imported: SyntaxError: expected ':' ({file}:1)",
    "raise SystemExit": "cannot be imported: left by sys.exit()",
    "def rewards(preds, labels): pass": "has no function reward (did you mean rewards?)",
    "reward = 3": "has no function reward",
    "def reward(preds): pass": "need reward(preds, labels), got reward(preds)",
    "def reward(preds, labels, *, size): pass": "got reward(preds, labels, *, size)",
}


@pytest.mark.parametrize("line", ANSWERS)
def test_an_answer_that_is_none_is_one_line(tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(f"helper = lambda: 1 / 0\ndef reward(preds, labels):\n    {line}\nimport torch\n")
    reward, _ = build([f"{path}:reward"], "ab")
    said = refusal(reward, MASKS, MASKS)
    assert said.startswith(f"reward {path}:reward: ") and ANSWERS[line].format(file=path) in said


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_cannot_serve_is_one_line(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    said = refusal(build, [f"{path}:reward"], "ab")
    assert said.startswith(f"reward {path}:reward: ") and FILES[text].format(file=path) in said


def test_numbers_of_any_kind_are_taken(tmp_path):
    path = tmp_path / "mine.py"
    kinds = ["[1, 1, 0, 0]", "preds.new_tensor([1, 1, 0, 0]).bfloat16()", "np.arange(4) < 2"]
    lines = [f"def kind{i}(preds, labels): return {kind}" for i, kind in enumerate(kinds)]
    path.write_text("\n".join(["import numpy as np", *lines]))
    for i in range(len(kinds)):
        found = build([f"{path}:kind{i}"], "ab")[0](MASKS, MASKS)
        assert found.tolist() == [1, 1, 0, 0] and found.dtype == torch.double


def test_a_reward_that_needs_labels_is_said_to(tmp_path):
    said = refusal(load, "f1", LABEL_FREE, ("masks", "photos"))
    assert said == "reward f1 needs labels; here: anatomy, or FILE.py:FUNCTION"
    assert "anatony is not known (did you mean anatomy?)" in refusal(load, "anatony", LABEL_FREE, ("a", "b"))
