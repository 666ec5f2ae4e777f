"""For tests of utils/engine/runs.py: python two_runs.py FOLDER starts two runs of ten minutes."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from utils.engine import runs  # noqa: E402

runs.end_on_signals("the same command goes on")
folder = pathlib.Path(sys.argv[1])
jobs = [{"run": f"r/{i}", "script": "tests/utils/engine/echo_out.py", "flags": ["wait"]} for i in range(2)]
print("waiting")
runs.run_all(jobs, folder / "runs", runs.Ledger(folder / "arms.jsonl"), None, at_once=2)
