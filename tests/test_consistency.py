"""The scripts are copies that must not drift, and the README's commands must parse."""

import ast
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = {
    path.name: ast.parse(path.read_text()) for path in ROOT.glob("*.py") if "add_argument" in path.read_text()
}
RECIPE_FLAGS = {"--steps", "--lr", "--augment", "--out", "--eval-every", "--init", "--data"}
RECIPE_FLAGS |= {"--reward", "--estimator", "--samples", "--temperature"}  # of each script's own kind
SECTIONS = ["setup", "data", "model", "optimizer", "resume", "train", "test", "gate", "search", "allocate"]
SECTIONS += ["finish"]


def flags(tree):
    """{"--lr": {"type": "float", "help": ...}} of one script, as written."""
    return {
        node.args[0].value: {k.arg: ast.unparse(k.value) for k in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
    }


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_flag_is_dead(name):
    read = {
        node.attr
        for node in ast.walk(SCRIPTS[name])
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "args"
    }
    dead = [f for f in flags(SCRIPTS[name]) if f.lstrip("-").replace("-", "_") not in read]
    assert not dead


def test_a_flag_means_the_same_everywhere():
    first = {}
    for name, tree in SCRIPTS.items():
        for flag, spec in flags(tree).items():
            if flag in RECIPE_FLAGS:
                spec = {k: spec.get(k) for k in ("type", "action", "nargs", "metavar")}
            else:
                spec.pop("help")
            assert first.setdefault(flag, spec) == spec, (name, flag)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shape_of_a_script(name):
    text = (ROOT / name).read_text()
    doc = ast.get_docstring(SCRIPTS[name])
    assert all(f"{part}:" in doc for part in ("Run", "Needs", "Writes"))
    found = re.findall(r"^    # ---- (\w+) ----$", text, re.M)
    assert found == [s for s in SECTIONS if s in found] and found
    assert text.count("\n") <= 400
    siblings = {n.removesuffix(".py") for n in SCRIPTS}
    for node in ast.walk(SCRIPTS[name]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {getattr(node, "module", None) or ""} | {a.name for a in node.names}
            assert not names & siblings, "a script imports another"


def test_arrows_point_one_way():
    for folder, forbidden in (("utils", {"datasets", "models"}), ("datasets", {"models"})):
        for path in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    module = getattr(node, "module", None) or node.names[0].name
                    assert module.split(".")[0] not in forbidden, path


def commands(text):
    """Every `python x.py ...` in a text, with continued lines joined and prompts of shell removed."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"python (\w+\.py)([^\n`#&|]*)", text)
    return [(script, rest) for script, rest in found if script in SCRIPTS]


def test_the_commands_of_the_readme_and_recipes_parse():
    texts = [(ROOT / "README.md").read_text()]
    texts += [path.read_text() for path in (ROOT / "recipes").glob("*.sh")]
    found = [c for text in texts for c in commands(text)]
    assert len(found) >= 5
    for script, rest in found:
        known = flags(SCRIPTS[script])
        used = [word for word in shlex.split(rest) if word.startswith("--")]
        assert not [w for w in used if w not in known], (script, rest)
