"""docs/reliability.md shows what was measured, of experiments that are there."""

import json

from break_guards import GUARDS
from run import EXPERIMENTS, PAGE, RESULTS, ROOT, table


def test_every_experiment_is_there():
    assert {f"R{i}" for i in range(1, 32)} <= EXPERIMENTS.keys()
    for name, (_, _, tests) in EXPERIMENTS.items():
        for test in tests if isinstance(tests, list) else []:
            file, _, function = test.partition("::")
            assert f"def {function.partition('[')[0]}(" in (ROOT / file).read_text() or not function, (
                name,
                test,
            )


def test_every_guard_is_where_it_is_broken():
    for _, guard, file, text, _, test in GUARDS:
        assert (ROOT / file).read_text().count(text) == 1, f"{guard}: {file} has another text by now"
        assert f"| {guard} | [{file}](../{file}) | yes |" in PAGE.read_text(), f"{guard}: not seen to fail"
        file, _, function = test.partition("::")
        assert f"def {function.partition('[')[0]}(" in (ROOT / file).read_text() or not function


def test_the_page_shows_the_rows_and_all_passed():
    rows = {row["id"]: row for row in json.loads(RESULTS.read_text())}
    assert table(rows) in PAGE.read_text(), "python tests/reliability/run.py writes it"
    for name, row in rows.items():
        assert name[1:].isdecimal() is False or not row["n"] or row["passed"] == row["n"], row
