"""Reward functions of a user's own: whatever they do, one line says which and what."""

import pathlib
import signal

import pytest
import torch
from conftest import refusal

from utils import dist
from utils.rewards.rewards import LABEL_FREE, build, describe, load

MASKS = torch.zeros(4, 2, 2, dtype=torch.long)
ANSWERS = {
    "raise RuntimeError('server\\n   down')": "RuntimeError: server down ({file}:3)",
    "return helper()": "ZeroDivisionError: division by zero ({file}:1)",
    "return torch.zeros(4).view(7)": "RuntimeError: shape '[7]' is invalid for input of size 4 ({file}:3)",
    "raise SystemExit(3)": "left by sys.exit(3)",
    "return torch.full((4,), float('nan'))": "need one finite number for each of 4 masks, got nan",
    "return [0.5, float('-inf'), 1, 1]": "got -inf; need numbers of at most 1e+09 in size",
    "return torch.zeros(4, 1)": "need one finite number for each of 4 masks, got shape (4, 1)",
    "return 0.5": "need one finite number for each of 4 masks, got shape ()",
    "return None": "got None",
    "return ['good'] * 4": "got ['good', 'good', 'good', 'good']",
    "return torch.zeros(4) * 1j": "got tensor([0.+0.",
    "return {}": "got {{}}",
    "return [0, 0, 0, -1e300]": "got -1e+300; need numbers of at most 1e+09 in size",
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


def test_a_function_leaves_the_working_directory_alone(tmp_path, monkeypatch):
    """Each call begins where the command was started, whatever the import or the last call did."""
    monkeypatch.chdir(tmp_path)
    for name in ("begin", "end"):
        (tmp_path / name).mkdir()
    body = "def reward(preds, labels):\n    os.chdir('end')\n    return [1.0] * len(preds)\n"
    (tmp_path / "mine.py").write_text(f"import os\nos.chdir('begin')\n{body}")
    reward, _ = build(["mine.py:reward"], "ab")
    assert [reward(MASKS, MASKS).tolist() for _ in range(2)] == 2 * [[1] * 4]
    assert pathlib.Path.cwd() == tmp_path


def test_a_second_signal_ends_the_process_and_not_the_function(tmp_path):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    path = tmp_path / "mine.py"
    kill = "os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01)"
    path.write_text(f"import os, signal, time\ndef reward(preds, labels):\n    {kill}\n    {kill}\n")
    reward, _ = build([f"{path}:reward"], "ab")
    dist.Stop()
    with pytest.raises(SystemExit) as left:
        reward(MASKS, MASKS)
    assert left.value.code == 128 + signal.SIGINT
    for number, handler in handlers.items():
        signal.signal(number, handler)


WEIGHTS = [
    (["f1=-1"], [], "need weights of at least zero"),
    (["anatomy=-1", "{file}:reward=2"], [], "FILE.py:FUNCTION alone may weigh less"),
    (["f1=0", "{file}:reward=0"], [], "one of them above"),
    (["{file}:reward=1e99"], [], "of at most 1e9 in size"),
    (["{file}:reward"], ["skin=2"], "class weight skin=2: has no effect on reward {file}:reward"),
    (["anatomy"], ["skin=2"], "has no effect on reward anatomy"),
    (["f1", "boundary_f1"], ["background=2"], "has no effect on reward f1 boundary_f1"),
    (["worst_f1"], ["skin=2"], "has no effect on reward worst_f1"),
    (["f1"], ["skin=0", "nose=0"], "leave no class to reward f1"),
]


@pytest.mark.parametrize(("words", "class_weights", "says"), WEIGHTS)
def test_weights_that_say_nothing_or_the_opposite_are_refused(tmp_path, words, class_weights, says):
    path = tmp_path / "mine.py"
    path.write_text("def reward(preds, labels): return [1.0] * len(preds)\n")
    words, says = [word.format(file=path) for word in words], says.format(file=path)
    assert says in refusal(build, words, ["background", "skin", "nose"], class_weights)


def test_weights_that_say_something_are_taken(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def reward(preds, labels): return [1.0] * len(preds)\n")
    names = ["background", "skin", "nose"]
    for words, class_weights in [
        ([f"{path}:reward=-1", "f1=0"], []),
        (["accuracy"], ["skin=2"]),
        (["f1", "dice"], ["background=2"]),
        (["worst_f1"], ["nose=0"]),
        (["anatomy"], ["skin=1"]),
    ]:
        build(words, names, class_weights)


def test_what_anatomy_sees_is_said():
    said = describe(["anatomy=2", "my.py:score"], ["background", "skin", "hair", "left eye", "right eye"])
    assert said == "anatomy=2 (of skin, eyes) + my.py:score"


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
