"""Who came from what, as a Mermaid flowchart, which GitHub draws."""

from utils import checkpoint
from utils.errors import printable
from utils.files import sha256
from utils.tracking.folders import makers

ESCAPES = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;"}  # of text between quotes


def ancestry(path, runs):
    """The lines of a Markdown block about a checkpoint or bank, from what it says itself. runs: of
    `folders.find`; those that wrote a file of it, known by its digest, tell where it is today, and what else
    they were given. Raises UserError where it is none."""
    state = checkpoint.load(path, holds="format")
    digest = sha256(path)
    own = {"script": state.get("script"), "step": state.get("step")} | state.get("lineage", {})
    known = own.get("ancestors", {}) | {digest: own}
    made = makers(runs)
    named = {digest: str(path)}  # {sha256: path}, of files that flags named
    nodes, edges, waiting = {}, {}, [digest]
    while waiting:
        child = waiting.pop(0)
        if child in nodes:
            continue
        run, name = made.get(child, (None, None))
        facts = (run or {}) | {key: value for key, value in known.get(child, {}).items() if value is not None}
        data = facts.get("data") or {}
        today = f"{run['folder']}/{name}" if run and child != digest else None
        nodes[child] = _about(child, facts, today, named.get(child))
        given = dict.fromkeys(facts.get("parents") or [], "")
        for given_path, file in (run or {}).get("files", {}).items():
            photos = [held["path"] for held in data.values()]
            if file["flag"] not in data and given_path not in photos:  # of photos it is said below
                named[file["sha256"]] = given_path
                given[file["sha256"]] = file["flag"]
        edges |= {(parent, child): flag for parent, flag in given.items()}
        waiting += given
        for texts, split in _data(data):
            nodes[texts] = texts
            edges[texts, child] = ", ".join(filter(None, [edges.get((texts, child)), split]))
    if "seen" in own:
        nodes[digest].append(f"has seen {len(own['seen'])} photos")
    elif "lineage" not in state and digest not in made:
        nodes[digest].append("older than lineage: nothing is known of what it came from")
    number = {key: f"n{i}" for i, key in enumerate(nodes)}
    lines = ["```mermaid", "flowchart TD"]
    for key, texts in nodes.items():
        begin, end = ("[(", ")]") if isinstance(key, tuple) else ("[", "]")
        lines.append(f'    {number[key]}{begin}"{"<br>".join(map(_escaped, texts))}"{end}')
    for (parent, child), flag in edges.items():
        lines.append(f"    {number[parent]} --{'>' if not flag else f'>|{flag}|'} {number[child]}")
    return [*lines, f"    style {number[digest]} stroke-width:3px", "```"]


def _about(digest, facts, today, named):
    """What a node says. today: where the file is, if that is known. named: its path, where a flag gave it."""
    then = f"{facts['out']} (then)" if facts.get("out") else "where it is, nobody knows"
    step = f"step {facts['step']}" if facts.get("step") is not None else None
    commit = f"commit {facts['commit'][:10]}" if facts.get("commit") else None
    place = today or (then if facts and not named else named) or then
    return list(filter(None, [facts.get("script"), place, step, commit, digest[:12]]))


def _data(data):
    """[(what a node says, split)] of the photos that a run was given."""
    for split, held in data.items():
        digest = [held["sha256"][:12]] if held["sha256"] else []  # none where they are rendered
        people = f"{held['photos']} photos of {held['people']} people"
        yield (str(held["path"]), people, *digest), split


def _escaped(text):
    return "".join(ESCAPES.get(char, char) for char in printable(text))
