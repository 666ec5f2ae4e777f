"""The scripts are copies that must not drift, arrows point one way, and documented commands parse."""

import argparse
import ast
import importlib
import pathlib
import re
import shlex

import pytest
from conftest import ROOT

SCRIPTS = {
    path.name: importlib.import_module(path.stem)
    for path in sorted(ROOT.glob("*.py"))
    if "def get_parser" in path.read_text()
}
TREES = {name: ast.parse((ROOT / name).read_text()) for name in SCRIPTS}
# of each script's own kind: defaults, what may be chosen, and words of help
OWN = set(
    "--steps --lr --augment --out --eval-every --init --data --model --size --split --reward --estimator "
    "--samples --temperature --limit --val-fraction --synthetic --unlabelled --ema --weights "
    "--batch-size --loss --features --optimizer".split()
)
SECTIONS = "setup data model target optimizer resume train mine test gate search allocate finish".split()


def parsers(parser):
    """It, and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def flags(script):
    """{"--lr": {"type", "nargs", "choices", "metavar", "action", "default"}} of one script, its sub-commands
    included, where a flag is the same in all."""
    keys = ("type", "nargs", "metavar", "choices", "default", "help")
    found = {}
    for parser in parsers(SCRIPTS[script].get_parser()):
        for action in parser._actions:
            spec = {key: getattr(action, key) for key in keys} | {"action": type(action).__name__}
            for option in action.option_strings:
                assert found.setdefault(option, spec) == spec, (script, parser.prog, option)
    return found


def reads(tree):
    """Names X that are read as args.X, or as config["X"], what operate.py keeps of its flags."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "args"
    } | {
        getattr(node.slice, "value", None)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "config"
    }


def test_there_are_scripts():
    assert {"train_finetune.py", "train_reward.py", "train_scores.py", "evaluate.py"} <= SCRIPTS.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_flag_is_dead(name):
    read = reads(TREES[name])
    if "cli.start_run(" in (ROOT / name).read_text():
        read |= {"out", "resume"}
    assert not [
        f for f in flags(name) if f.startswith("--") and f[2:].replace("-", "_") not in read | {"help"}
    ]


def test_a_flag_means_the_same_everywhere():
    first = {}
    for name in SCRIPTS:
        for flag, spec in flags(name).items():
            spec = {
                k: v for k, v in spec.items() if flag not in OWN or k not in ("default", "choices", "help")
            }
            if (name, flag) == ("evaluate.py", "--init"):  # which takes several, to vote
                spec["nargs"] = None
            assert first.setdefault(flag, spec) == spec, (name, flag)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shape_of_a_script(name):
    text, doc = (ROOT / name).read_text(), ast.get_docstring(TREES[name])
    assert all(f"{part}:" in doc for part in ("Run", "Needs", "Writes"))
    found = re.findall(r"^    # ---- (\w+) ----$", text, re.M)
    assert found == [s for s in SECTIONS if s in found] and found
    assert "sys.argv" not in text, "flags are read by the parser alone"


def imported(path):
    """The modules that a file imports, by their first names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)


def test_arrows_point_one_way():
    scripts = {name.removesuffix(".py") for name in SCRIPTS}
    forbidden = {
        "utils": {"datasets", "models"} | scripts,
        "datasets": {"models"} | scripts,
        "models": scripts,
    }
    for path in ROOT.glob("*.py"):
        assert not scripts & {*imported(path)}, f"{path.name} imports another script"
    for folder, names in forbidden.items():
        for path in (ROOT / folder).rglob("*.py"):
            assert not names & {*imported(path)}, path


def test_plain_values_go_into_packages():
    """`args` never leaves its script, but for utils/cli.py, whose subject it is."""
    for folder in ("utils", "datasets", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and path.name != "cli.py":
                    assert "args" not in [a.arg for a in node.args.args], f"{path}: {node.name}"


# ---- what is copied on purpose


def fences(text):
    """{name: text between `# >>> shared: NAME` and `# <<< shared: NAME`}; whatever is opened is closed."""
    found = dict(re.findall(r"^ *# >>> shared: (.+)\n((?:.*\n)*?) *# <<< shared: \1$", text, re.M))
    assert len(found) == text.count("# >>> shared: ") == text.count("# <<< shared: ")
    return found


def test_shared_text_is_the_same_to_the_letter():
    found = {}
    for name in SCRIPTS:
        for fence, text in fences((ROOT / name).read_text()).items():
            found.setdefault(fence, {})[name] = text
    assert {"schedule", "predict", "cadence", "optimiser step", "finish", "start"} <= found.keys()
    for fence, texts in found.items():
        assert len(texts) > 1, f"{fence} is shared by nobody: {texts.keys()}"
        assert len(set(texts.values())) == 1, f"{fence} has drifted apart in {', '.join(texts)}"
    training = [name for name in SCRIPTS if name.startswith("train_")]
    assert set(training) <= found["schedule"].keys() & found["optimiser step"].keys() & found["finish"].keys()


def test_no_line_is_packed_by_hand():
    for path in ROOT.rglob("*.py"):
        if path != pathlib.Path(__file__):
            assert not re.search(r"# fmt: *(skip|off)", path.read_text()), path


# ---- documented commands


def commands(text):
    """Every `python x.py ...` in a text, with continued lines joined and what is no flag of it cut off."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"python (\w+\.py)([^\n`#&|;]*)", text)
    return [(script, rest) for script, rest in found if script in SCRIPTS]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_of_the_documentation_parse(page, capsys):
    for script, rest in commands(page.read_text()):
        words = [word for word in shlex.split(rest) if word not in ("...", "…")]
        try:
            SCRIPTS[script].get_parser().parse_args(words)
        except SystemExit as ended:
            assert ended.code == 0, f"python {script} {rest}: {capsys.readouterr().err}"  # --help ends with 0


def test_the_documentation_has_commands():
    assert sum(len(commands(page.read_text())) for page in PAGES) > 20
    assert {script for page in PAGES for script, _ in commands(page.read_text())} == SCRIPTS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_flags_of_recipes_and_docstrings_are_known():
    texts = [path.read_text() for path in (ROOT / "recipes").glob("*.sh")]
    texts += [ast.get_docstring(tree) for tree in TREES.values()]
    found = [command for text in texts for command in commands(text)]
    assert len(found) >= 20
    for script, rest in found:
        used = [word for word in shlex.split(rest, posix=False) if word.startswith("--")]
        assert not [word for word in used if word not in flags(script)], (script, rest)


def test_the_flags_that_operate_hands_on_parse():
    operate = SCRIPTS["operate.py"]
    for script, words in {"augment.py": operate.SEARCH, "train_scores.py": operate.SCORES}.items():
        SCRIPTS[script].get_parser().parse_args(shlex.split(words))


def test_no_file_that_a_run_reads_is_left_out_of_its_lineage():
    from utils import cli

    others = {"json", "onnx", "html", "lineage", "policy", "champion"}  # which are written, or of no run
    for name in SCRIPTS:
        files = {k.strip("-") for k, v in flags(name).items() if v["metavar"] in ("FILE", "POLICY", "BANK")}
        assert files <= {*cli.FILES} | others, name
        if "augment" in files and name != "ks_test.py":
            assert "chosen_by(args.augment, policy)" in (ROOT / name).read_text(), name


def test_choices_of_flags_are_those_of_the_data_sets():
    """utils/cli.py may not import datasets or scripts, so it repeats their names."""
    from datasets.celebamask import PART_ORDERS
    from datasets.policies import POLICIES
    from datasets.synthetic import SCHEMES
    from utils import cli

    assert {*cli.NAMES["augment"]} == {*POLICIES}
    assert {*cli.NAMES["arms"]} >= {*SCRIPTS["augment.py"].ARMS, "synthetic"}
    assert set(SCHEMES) == set(cli.CLASS_LISTS) and set(PART_ORDERS) == set(cli.PART_ORDERS)
