"""A script for tests of utils/engine/runs.py: writes its first word into --out, or fails, or does both; or
writes its pid there and waits."""

import os
import pathlib
import sys
import time

if sys.argv[1] == "fail":
    sys.exit(print("it was asked to", file=sys.stderr) or 1)
out = pathlib.Path(sys.argv[3])
out.mkdir(parents=True)
if sys.argv[1] == "wait":
    (out / "pid").write_text(f"{os.getpid()}\n")
    time.sleep(600)
(out / "said").write_text(sys.argv[1])
sys.exit(3 if sys.argv[1] == "collapse" else 0)
