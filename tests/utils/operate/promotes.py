"""Promotes a file and rolls back; killed at the moment-th line of what writes and reads, 0: never.

python tests/utils/operate/promotes.py OPS FILE MOMENT    says what is done, and at last how many lines it had
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from utils.operate import store  # noqa: E402

MODULES = ("store.py", "files.py", "jsonl.py", "shutil.py", "hashlib.py")  # the last two copy and hash
lines = 0


def count(frame, event, arg):
    global lines
    if event == "call" and os.path.basename(frame.f_code.co_filename) not in MODULES:
        return None
    lines += event == "line"
    if event == "line" and lines == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    return count


def work(ops, file):
    store.promote(ops, file, "better", lambda path: None)
    os.write(1, b"promoted\n")
    store.rollback(ops)
    os.write(1, b"rolled back\n")


if __name__ == "__main__":
    ops, file, moment = sys.argv[1:]
    moment = int(moment)
    sys.settrace(count)
    work(ops, file)
    sys.settrace(None)
    print(lines)
