"""The parts of benchmarks/speed: two of them run, as small as can be; no time is asserted."""

import math

import pytest

TINY = {
    "augmentation.py": ["--repeats", 2, "--batches", 1, "--sizes", 16],
    "start.py": ["--only", "photos", "--repeats", 1, "--photos", 8, "--side", 24, "--size", 16],
}
TABLES = {"augmentation.py": [1], "start.py": [2]}  # their rows


@pytest.fixture(scope="module")
def said(calls):
    """{name: the tables, rows of cells} of each part."""
    found = calls(*[[f"benchmarks/speed/{name}", *flags] for name, flags in TINY.items()])
    tables = {}
    for name, done in zip(TINY, found, strict=True):
        parts = [part.splitlines() for part in done.stdout.split("\n\n") if "|---" in part]
        tables[name] = [[row.strip("| ").split(" | ") for row in part if row[:2] == "| "] for part in parts]
    return tables


@pytest.mark.parametrize("name", TINY)
def test_a_part_prints_its_tables(said, name):
    assert [len(rows) - 1 for rows in said[name]] == TABLES[name]
    for heads, *rows in said[name]:
        for row in rows:
            assert len(row) == len(heads)
            assert all(math.isfinite(float(cell.split()[0])) for cell in row[1:]), row


@pytest.mark.parametrize("name", ["bare", "train", "steps", "evaluate", "growth"])
def test_flags_of_the_other_parts(call, name):
    assert f"python benchmarks/speed/{name}.py" in call(f"benchmarks/speed/{name}.py", "--help").stdout
