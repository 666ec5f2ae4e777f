"""Whether what runs wrote, and what they were given, is what it was."""

import os

from utils.files import sha256


def check_files(run, elsewhere):
    """[(whether it is wrong, line)] of the outputs of a run and the files that its flags named. elsewhere():
    {sha256: path} of what lies in the folders that are searched."""
    listed = [(run["folder"] / name, digest, "") for name, digest in run["outputs"].items()]
    listed += [(path, f["sha256"], f" (--{f['flag']})") for path, f in run["files"].items()]
    found = []
    for path, digest, flag in listed:
        there = os.path.isfile(path)
        if there and sha256(path) == digest:
            continue
        place = elsewhere().get(digest)
        what = "changed" if there else "moved" if place else "missing"
        of = f"{path}{flag} of {run['folder']}" if flag else path
        where = f"; what it was lies in {place}" if place else ""
        found.append((what != "moved", f"{what}: {of}{where}"))
    return found


def lying_in(folders):
    """{sha256: path} of all files in folders."""
    found = (
        os.path.join(path, name) for folder in folders for path, _, names in os.walk(folder) for name in names
    )
    return {sha256(path): path for path in found if os.path.isfile(path)}
