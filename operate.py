"""Watch photos as they come in, train again where they have drifted, promote only what is shown to be better.

Run:    python operate.py init --champion runs/a/best.pt --reference PHOTOS --guard LABELLED --out ops
        python operate.py watch ops NEW_PHOTOS         has it drifted? exit status 0 no, 1 yes, 3 cannot tell
        python operate.py improve ops --audit LABELLED search, train, judge: 0 better, 1 not, 4 needs masks
        python operate.py promote ops                  what was judged better; or CHECKPOINT, judged first
        python operate.py rollback ops                 to the champion before, bit for bit
        python operate.py status ops
Needs:  a face parser, the champion; photos like those that it is for, the reference; masks of people who
        trained nothing, the guard; masks of a few photos of each drift, the audit, or a scorer of masks
Writes: into ops: operate.json, champion.json, store/, watch.jsonl, decisions.jsonl, history.jsonl, batches/,
        improve/ and, for people, page.html   -> predict.py --init ops
Expect: docs/operate.md

A batch is told from the reference by ks_test.py, or not; two that are, in a row, are a drift. A candidate is
better where guard people lose next to nothing and audit people gain: lower bounds of paired differences over
people, whose level is spent over all candidates that an audit set has judged. Killed anywhere, the champion
is the old or the new one, and the same command goes on.
"""

import datetime
import functools
import math
import os
import pathlib
import shlex
import shutil

import numpy as np
import torch

from datasets import incoming, splits
from datasets.cache import CachedFaces
from datasets.faces import Faces, counted
from datasets.images import read_square, to_float
from datasets.pairs import write_samples
from datasets.policies import load_policy
from models import restore
from utils import checkpoint, cli, dist, draw, files, jsonl, lineage, metrics
from utils.engine import runs
from utils.errors import UserError
from utils.operate import decisions, record, store
from utils.operate.page import page
from utils.rewards.scorer import Scorer, code_of

EXIT = {"not asked": 0, "no": 0, "suspected": 0, "yes": 1, "cannot tell": 3}  # of `watch` and `status`
FEW = 20  # people
WAITS = 4  # exit status of `improve` where somebody has to label photos first
SEARCH = "--arms randaugment cutmix --folds 2 --steps 300 --no-gate --no-allocation"
SCORES = "--score-budget 1000 --limit 16 --steps 300 --eval-every 300"
SCRIPTS = {"search": "augment.py", "student": "train_student.py", "scores": "train_scores.py"}
OWN = "--data --ids --teacher --init --unlabelled --augment --reward --policy --seed --out --resume".split()
SMOKE = 8  # photos that a checkpoint has to parse before it is promoted
STRANGEST, DIFFERENCES = 12, 8  # photos on the page
LOOKS = 64  # photos of which `DIFFERENCES` are shown
BATCH = 16  # photos that are parsed at once


def get_parser():
    p = cli.parser(__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, what):
        g = commands.add_parser(name, help=what, description=what, formatter_class=cli.HelpFormatter)
        g.add_argument("ops", metavar="OPS", help="folder of `operate.py init`")
        return g

    what = "begin: a champion, and what it is judged by"
    g = commands.add_parser("init", help=what, description=what, formatter_class=cli.HelpFormatter)
    g.add_argument("--champion", metavar="FILE", required=True, help="checkpoint of a face parser")
    reference = "photos like those that it is for; a copy of them is what batches are compared with"
    g.add_argument("--reference", metavar="FOLDER", required=True, help=reference)
    guard = "labelled photos of the same kind, of people who trained nothing"
    g.add_argument("--guard", metavar="FOLDER", required=True, help=guard)
    scorer = "function that scores masks of audit photos, which then need no labels; see train_scores.py"
    g.add_argument("--scorer", metavar="FILE.py:FUNCTION", help=scorer)
    kinds = "numbers of an image that are compared (docs/ks.md)"
    g.add_argument(
        "--features", nargs="+", choices=["encoder", "pixel"], default=["encoder", "pixel"], help=kinds
    )
    g.add_argument("--n", type=cli.positive, default=32, help="people a side; more see smaller shifts")
    g.add_argument("--alpha", type=float, default=0.05, help="level of the test")
    delta = "mean F1 that guard people may lose, by its lower bound"
    g.add_argument("--delta", type=cli.share, default=0.01, metavar="F1", help=delta)
    search = "flags of augment.py, as one word; none: no search"
    g.add_argument("--search", default=SEARCH, metavar="FLAGS", help=search)
    g.add_argument("--student", metavar="FLAGS", help="flags of train_student.py, as one word")
    scores = "flags of train_scores.py beside --scorer, as one word; none: no such tuning"
    g.add_argument("--scores", default=SCORES, metavar="FLAGS", help=scores)
    g.add_argument("--seeds", type=cli.positive, default=2, help="students of each recipe")
    g.add_argument("--seed", type=cli.seed, default=0, help="of order, augmentation and all that is drawn")
    g.add_argument("--out", default="ops", metavar="FOLDER", help="run folder")

    g = command("watch", "ask whether new photos are drawn like the reference")
    g.add_argument("photos", metavar="NEW_PHOTOS", help="a data set, or a folder of photos")
    g = command("improve", "search, train and judge on batches that have drifted")
    audit = "labelled photos of the new kind, which train nothing"
    g.add_argument("--audit", metavar="FOLDER", help=audit)
    batches = "improve on these, whether they have drifted or not"
    g.add_argument("--batches", type=cli.positive, nargs="+", metavar="BATCH", help=batches)
    g.add_argument("--promote", action="store_true", help="promote at once what is judged better")
    g.add_argument("--abandon", action="store_true", help="give up an improvement that is not at its end")
    g.add_argument("--device", help="cpu or cuda; a GPU where there is one")
    g = command("promote", "make what was judged better the champion")
    g.add_argument("candidate", metavar="CHECKPOINT", nargs="?", help="judge this one first, by --audit")
    g.add_argument("--audit", metavar="FOLDER", help=audit)
    g.add_argument("--device", help="cpu or cuda; a GPU where there is one")
    g = command("rollback", "make an earlier champion the champion again, bit for bit")
    g.add_argument(
        "version", metavar="VERSION", type=cli.positive, nargs="?", help="the one before by default"
    )
    command("status", "say who is champion, whether photos drift, and what to do next")
    return p


# ---- what is on disk


def now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def champion_of(ops):
    """(`store.champion`, its checkpoint)."""
    champion = store.champion(ops)
    return champion, checkpoint.load(champion["path"])


def last_line(error):
    """What a script said last, of a mistake."""
    return error.splitlines()[-1].removeprefix("error: ") if error else ""


# ---- judging


def parse(state, data, device):
    """(N, S, S) uint8: what a checkpoint says of all photos of a data set."""
    net = restore(state, device)
    preds = []
    for first in range(0, len(data), BATCH):
        images = data[list(range(first, min(first + BATCH, len(data))))]["image"]
        with torch.no_grad():
            preds.append(net(to_float(images.to(device)))["semantic"].argmax(1).byte().cpu())
    return torch.cat(preds)


def rows_of_people(data):
    people = sorted({*data.groups})
    return {person: [i for i, p in enumerate(data.groups) if p == person] for person in people}


def f1_of_people(preds, data, num_classes):
    """{person: mean F1 over the pixels of all their photos}."""
    labels = data[list(range(len(data)))]["semantic"]
    counts = metrics.confusion(preds, labels, num_classes)
    f1 = {person: metrics.mean_f1(counts[rows].sum(0)) for person, rows in rows_of_people(data).items()}
    return {person: float(value.nan_to_num(0.0)) for person, value in f1.items()}


def scores_of_people(preds, data, scorer):
    """{person: mean score of the masks of all their photos}."""
    scores = scorer(preds, data.paths).nanmean(1)
    return {person: float(scores[rows].mean()) for person, rows in rows_of_people(data).items()}


def guard_of(config, classes):
    """(Faces, samples) of the guard, which has to be that of `init`."""
    guard = incoming.labelled_photos(config["guard"], classes)
    if incoming.digests(guard[1]) != config["guard_digests"]:
        raise UserError(f"{config['guard']}: not the photos and masks of `init`; put them back")
    return guard


def scorer_of(config, classes, ops):
    """The scorer of `init`, None without one."""
    if not config["scorer"]:
        return None
    scorer = Scorer([config["scorer"]], classes, ops / "scores.jsonl")
    if scorer.code != config["scorer_code"]:
        raise UserError(f"{config['scorer']}: not the file of `init`; put it back")
    return scorer


def judge(ops, config, candidate, audit, scorer, device, facts):
    """Whether a checkpoint is better than the champion: a row of decisions.jsonl, which is written.

    audit: (Faces, samples). scorer: of masks of these; None: by their labels. facts: {key: value}, more of
    the row.
    """
    champion, state = champion_of(ops)
    digest, rival = files.sha256(candidate), checkpoint.load(candidate)
    checkpoint.refuse_unlike("CHECKPOINT", [champion["path"], candidate], [state, rival])
    classes = state["data"]["classes"]
    guard = guard_of(config, classes)
    for judges in (guard, audit):
        incoming.refuse_seen(judges[1], state, champion["path"])
        incoming.refuse_seen(judges[1], rival, candidate)

    judging, guarding = ({*incoming.short_digests(judges[1]).values()} for judges in (audit, guard))
    reference = splits.open_any(ops / "reference").splits["unlabelled"]
    if old := judging & (guarding | {*incoming.short_digests(reference).values()}):
        raise UserError(
            f"{len(old)} of {len(judging)} audit photos are of the guard or the reference, the old kind; an "
            "audit has photos of the new one"
        )

    def differences(judges, score):
        data = CachedFaces(*judges, state["args"]["size"])
        before, after = (score(parse(each, data, device), data) for each in (state, rival))
        return {person: after[person] - before[person] for person in before}

    f1 = functools.partial(f1_of_people, num_classes=len(classes))
    score = functools.partial(scores_of_people, scorer=scorer) if scorer else f1
    photos = sorted(judging | {s.group for s in audit[1]})
    k = 1 + decisions.candidates_before(record.decided(ops), photos)
    kept, won = differences(guard, f1), differences(audit, score)
    found = decisions.verdict(kept, won, k, config["alpha"], config["delta"])
    row = {
        "time": now(),
        "candidate": record.inside(candidate, ops),
        "sha256": digest,
        "champion": champion["sha256"],
        "verdict": "better" if found["better"] else "refused",
        "why": found["why"],
        "guard": found["guard"] | {"differences": kept},
        "audit": found["audit"] | {"differences": won},
        "audit_photos": photos,
        **facts,
    }
    jsonl.append(ops / "decisions.jsonl", row)
    print(f"{candidate}: {row['why']}")
    return row


def smoke_test(ops, device):
    """A function of a checkpoint's path: a UserError where it cannot parse photos of the reference."""
    faces = splits.open_any(ops / "reference")
    samples = faces.splits["unlabelled"][:SMOKE]

    def check(path):
        state = checkpoint.load(path)
        images = torch.stack([read_square(s.image, state["args"]["size"]) for s in samples])
        with torch.no_grad():
            logits = restore(state, device, path)(to_float(images.to(device)))["semantic"]
        if not logits.isfinite().all():
            raise UserError(f"{path}: says what is not finite about photos of the reference")

    return check


# ---- commands


def init(args, ops):
    if not 0 < args.alpha < 1:
        raise UserError(f"--alpha {args.alpha}: need a level between 0 and 1")
    scored = None if args.scorer or args.scores == SCORES else "without --scorer"
    cli.refuse_without_effect(args, {"scores": scored})
    names = {path.name for path in ops.iterdir()} - {".lock"}
    if names and not any(name.startswith("operate.json") for name in names):  # else an `init` was killed
        raise UserError(f"--out {ops}: holds other files; name a new folder")
    state = checkpoint.load(args.champion)
    classes = state["data"]["classes"]
    _, guard = incoming.labelled_photos(args.guard, classes)
    people = {s.group for s in guard}
    if len(people) < 2:
        raise UserError(f"--guard {args.guard}: one person alone; a bound over people needs two at least")
    incoming.refuse_seen(guard, state, args.champion)
    photos = incoming.without_test(splits.open_any(args.reference))
    if len({s.group for s in photos}) < 2:
        raise UserError(f"--reference {args.reference}: {counted(len(photos), 'photo')}; a test needs more")
    labelled = record.taught(state)["args"]
    if not os.path.isdir(data := labelled["data"]):  # synthetic faces, too
        raise UserError(f"{args.champion}: trained on {data}, no folder here; students need its photos")
    kept = ("features", "n", "alpha", "delta", "search", "student", "scores", "seeds", "seed")
    config = {key: getattr(args, key) for key in kept}
    config |= {"guard": os.path.abspath(args.guard), "guard_digests": incoming.digests(guard)}
    config["scorer"] = os.path.abspath(args.scorer) if args.scorer else None
    config["scorer_code"] = code_of([args.scorer]) if args.scorer else None
    config |= {"data": os.path.abspath(data), "ids": incoming.ids_of(labelled)}
    config |= {"allow_empty": labelled.get("allow_empty"), "augment": record.policy_of(state)}
    config["size"] = state["args"]["size"]
    scorer_of(config, classes, ops)
    for name, script in SCRIPTS.items():
        if getattr(args, name) not in ("", "none", SEARCH, SCORES):
            check_flags(name, script, getattr(args, name))
    runs.write_json(ops, "operate.json", config)
    shutil.rmtree(ops / "reference", ignore_errors=True)  # of an `init` that was killed
    write_samples(ops / "reference", photos, meaning(state))
    device = dist.init(None)[2]
    store.promote(ops, args.champion, "the champion of `init`", smoke_test(ops, device))
    count = len({s.group for s in photos})
    print(f"{ops}: {args.champion} is champion; {len(photos)} reference photos of {count} people")
    print(f"guard: {counted(len(guard), 'photo')} of {len(people)} people")
    if count < FEW:
        print(f"note: with fewer than {FEW} reference people the test sees great changes alone (docs/ks.md)")
    return 0


def meaning(state):
    """What a checkpoint says that labels mean, for `write_samples`."""
    known = state["data"]
    return Faces("folder", known["classes"], [], known["flip_pairs"], {}, None)


def check_flags(name, script, words):
    """A UserError where a script does not know flags that `init` was given for it, or the operator gives
    them."""
    given = [word.partition("=")[0] for word in shlex.split(words)]
    if own := [flag for flag in given if flag in OWN]:
        raise UserError(f"--{name}: {own[0]} is the operator's to give; leave it out")
    _, error = runs.call(script, shlex.split(words))  # it begins nothing, since it lacks what it needs
    if "needed" not in (said := last_line(error)):
        raise UserError(f"--{name}: {script}: {said}")


def watch(args, ops):
    config = files.read_json(ops / "operate.json")
    rows = record.watched(ops)
    photos = incoming.without_test(splits.open_any(args.photos))
    digests = incoming.short_digests(photos)
    before = {digest for row in rows for digest in row["photos"]}
    new = {digests[s.image]: s for s in photos if digests[s.image] not in before}  # none twice
    if not new:
        raise UserError(f"{args.photos}: all of its {len(photos)} photos were in a batch before")
    number = rows[-1]["batch"] + 1 if rows else 1
    folder = ops / f"batches/{number:03d}"
    shutil.rmtree(folder, ignore_errors=True)  # of a `watch` that was killed
    folder.mkdir(parents=True)
    write_samples(folder / "photos", new.values(), meaning(champion_of(ops)[1]))
    people = len({s.group for s in new.values()})
    row = {"batch": number, "time": now(), "source": str(args.photos), "photos": list(new), "people": people}
    row |= {"status": "UNDERPOWERED", "verdict": "No verdict: one person alone; more people are needed."}
    row |= dict.fromkeys(("p", "d_max", "d_critical", "feature"))
    if people > 1:
        flags = ["--real", ops / "reference", "--other", folder / "photos", "--features", *config["features"]]
        flags += ["--drop-copies", "--n", config["n"], "--size", config["size"], "--alpha", config["alpha"]]
        status, error = runs.call("ks_test.py", [*flags, "--seed", config["seed"], "--out", folder / "ks"])
        if not (folder / "ks/ks_report.json").is_file():
            raise UserError(f"ks_test.py: {last_line(error) or f'status {status}'}")
        found = files.read_json(folder / "ks/ks_report.json")
        row |= {key: found[key] for key in ("status", "verdict", "p", "d_max", "d_critical", "feature")}
    unlabelled = [each / "unlabelled" for each in (folder / "photos", ops / "reference")]
    strange = incoming.strangest(*unlabelled, STRANGEST, config["size"])
    shown = [{kind: square(each[kind]) for kind in ("photo", "nearest")} for each in strange]
    named = [each | {"id": stem(each["photo"]), "nearest_id": stem(each["nearest"])} for each in strange]
    record.write_pictures(folder / "strangest", named, shown)
    jsonl.append(ops / "watch.jsonl", row)
    left_out = f", {len(photos) - len(new)} seen before left out" if len(new) < len(photos) else ""
    print(f"batch {number}: {counted(len(new), 'photo')} of {people} people{left_out}: {row['status']}")
    print(row["verdict"])
    drift = record.drift_of(ops)[0]
    print(record.DRIFT[drift])
    return EXIT[drift]


def improve(args, ops):
    config = files.read_json(ops / "operate.json")
    device = dist.init(args.device)[2]
    scorer = scorer_of(config, champion_of(ops)[1]["data"]["classes"], ops)
    if args.abandon:
        return abandon(ops)
    if not record.state_of(ops)["improving"]:
        plan(ops, config, args)
    begun = record.state_of(ops)
    folder = (ops / f"improve/{begun['improving']:03d}").absolute()
    planned = files.read_json(folder / "plan.json")
    if args.batches and sorted(set(args.batches)) != planned["batches"]:
        named = " ".join(map(str, planned["batches"]))
        raise UserError(f"--batches: an improvement on {named} is not at its end; --abandon gives it up")
    teacher = ops.absolute() / f"store/{planned['champion']}.pt"
    state = checkpoint.load(teacher)
    if args.audit:  # before the work: a mask may be faulty
        audit = incoming.labelled_photos(args.audit, state["data"]["classes"])
        CachedFaces(*audit, config["size"])
        scorer = None
    flags = ["--data", config["data"]]
    flags += ["--ids", folder / "ids.json"] if config["ids"] else []
    flags += ["--allow-empty", *config["allow_empty"]] if config["allow_empty"] else []
    common = ["--seed", config["seed"], "--device", device.type]

    # ---- search
    arms = {"old": record.recipe(ops, config, planned["champion"])}
    if config["search"] != "none":
        if not (folder / "search/policy.json").is_file():
            print("search:  augment.py")
            flags_of_search = ["--size", config["size"], "--model", state["args"]["model"]]
            flags_of_search += [*shlex.split(config["search"]), *common, "--out", folder / "search"]
            status, error = runs.call("augment.py", [*flags, *flags_of_search])
            if status:
                raise UserError(f"augment.py: {last_line(error) or f'status {status}'}")
        policy = files.read_json(folder / "search/policy.json")
        if policy["search"]["flags"]:
            raise UserError(
                f"--search: {policy['kind']} won, which changes more than augmentation; leave it out"
            )
        if policy["kind"] != arms["old"]:
            arms["new"] = str(folder / "search/policy.json")
        print(f"search:  the policy {policy['kind']} won")

    # ---- train
    ledger = runs.Ledger(folder / "runs.jsonl")
    seeds = range(config["seed"], config["seed"] + config["seeds"])

    def train(script, jobs):
        """Paths of last.pt of all runs. jobs: {run: flags}."""
        print(f"train:   {script}, {counted(len(jobs), 'run')}")
        jobs = [{"run": name, "script": script, "flags": words} for name, words in jobs.items()]
        at_once = 1 if device.type == "cuda" else min(len(jobs), os.cpu_count() or 1)
        done = runs.run_all(jobs, folder / "runs", ledger, lambda job, path: {}, at_once)
        return {row["run"]: folder / "runs" / row["run"] / "last.pt" for row in done}

    unlabelled = ["--unlabelled", folder / "photos"]
    same = ["--teacher", teacher, *flags, *unlabelled, "--device", device.type]
    same += shlex.split(config["student"] or "")
    jobs = {
        f"student/{arm}/{seed}": [*same, "--augment", augment, "--seed", seed]
        for arm, augment in arms.items()
        for seed in seeds
    }
    candidates = train("train_student.py", jobs)
    if scorer and config["scores"] != "none":
        same = [*unlabelled, "--reward", config["scorer"], *shlex.split(config["scores"])]
        jobs = {
            name.replace("student", "scores"): [*same, *common, "--init", path]
            for name, path in candidates.items()
        }
        candidates = train("train_scores.py", jobs)

    # ---- judge
    if scorer:
        faces = splits.open_any(folder / "label")
        audit = faces, faces.splits["unlabelled"]
    elif not args.audit:
        print(
            f"waits:   {counted(len(candidates), 'candidate')}; label photos of {folder}/label, which trained"
        )
        print("         nothing, or others like them: photos in images/, masks of the same names in labels/;")
        print("         then --audit LABELLED")
        return WAITS
    came = {digest for row in record.watched(ops) for digest in row["photos"]}
    if not came & {*incoming.short_digests(audit[1]).values()}:
        print("note:    no audit photo has come in with a batch; are they of the new kind?")
    judged = [row for row in record.decided(ops) if row.get("improve") == begun["improving"]]
    facts = {"improve": begun["improving"], "batches": planned["batches"]}
    for name, candidate in candidates.items():
        if any(row["verdict"] == "better" for row in judged):
            break
        if files.sha256(candidate) not in [row["sha256"] for row in judged]:
            facts["augment"] = record.inside(arms[name.split("/")[1]], ops)
            judged.append(judge(ops, config, candidate, audit, scorer, device, facts))
    compare(ops, judged[-1], folder / "photos", device)
    decided = max(begun["decided"], *planned["batches"])
    closed = {"improving": None, "improvements": begun["improving"], "decided": decided}
    runs.write_json(ops, "state.json", closed)
    if judged[-1]["verdict"] != "better":
        print(f"none of {counted(len(candidates), 'candidate')} is shown to be better: the champion stays")
        return 1
    return serve(ops, judged[-1], device) if args.promote else 0


def abandon(ops):
    """Give up the improvement that is not at its end; its batches wait for another one."""
    begun = record.state_of(ops)
    if not begun["improving"]:
        raise UserError("--abandon: no improvement is under way")
    closed = {"improving": None, "improvements": begun["improving"], "decided": begun["decided"]}
    runs.write_json(ops, "state.json", closed)
    print(f"improvement {begun['improving']} is given up; what it made stays in {ops}/improve")
    return 0


def plan(ops, config, args):
    """Choose batches, keep photos from training that are to judge, and write it down."""
    drift, batches = record.drift_of(ops)
    if args.batches:
        batches = sorted(set(args.batches))
        if unknown := set(batches) - {row["batch"] for row in record.watched(ops)}:
            raise UserError(f"--batches {min(unknown)}: there is no such batch")
    elif drift != "yes":
        raise UserError(f"{ops}: {record.DRIFT[drift]}; --batches N improves on batch N in any case")
    champion, state = champion_of(ops)
    classes = state["data"]["classes"]
    samples = []
    for batch in batches:
        found = splits.open_any(ops / f"batches/{batch:03d}/photos").splits["unlabelled"]
        samples += [s._replace(id=s.id.replace("unlabelled", str(batch), 1)) for s in found]
    digests = incoming.short_digests(samples)
    guard = {*incoming.short_digests(guard_of(config, classes)[1]).values()}
    seen = lineage.seen(state)
    samples = [s for s in samples if digests[s.image] not in guard]
    judging = incoming.to_label([s for s in samples if digests[s.image] not in seen])
    if args.audit:
        _, audit = incoming.labelled_photos(args.audit, classes)
        known = {*incoming.short_digests(audit).values()}
        judging = [s for s in samples if digests[s.image] in known]
    train = [s for s in samples if s not in judging]
    if not train:
        raise UserError(f"batches {batches}: every photo judges, and none is left to train on")
    if not judging and not args.audit:
        raise UserError(f"batches {batches}: the champion has seen every photo; --audit LABELLED judges")
    load_policy(record.recipe(ops, config, champion["sha256"]))  # a file may be gone
    before = record.state_of(ops)
    number = before["improvements"] + 1
    folder = ops / f"improve/{number:03d}"
    shutil.rmtree(folder, ignore_errors=True)  # of a plan that a kill left unfinished
    folder.mkdir(parents=True)
    write_samples(folder / "photos", train, meaning(state))
    if not args.audit:
        write_samples(folder / "label", judging, meaning(state))
    if config["ids"]:
        runs.write_json(folder, "ids.json", config["ids"])
    runs.write_json(folder, "plan.json", {"batches": batches, "champion": champion["sha256"]})
    runs.write_json(ops, "state.json", before | {"improving": number})
    named = ", ".join(map(str, batches))
    print(f"improve: batches {named}: {len(train)} photos to train on, {len(judging)} kept to judge by")


def compare(ops, row, folder, device):
    """Draw the photos of a folder on which a candidate and the champion of then disagree most."""
    paths = (ops / f"store/{row['champion']}.pt", ops / row["candidate"])
    states = [checkpoint.load(path) for path in paths]
    faces = splits.open_any(folder)
    samples = faces.splits["unlabelled"]
    samples = samples[:: math.ceil(len(samples) / LOOKS)]
    data = CachedFaces(faces, samples, states[0]["args"]["size"])
    before, after = (parse(state, data, device) for state in states)
    shares = (before != after).float().mean((1, 2))
    worst = shares.argsort(descending=True)[:DIFFERENCES].tolist()
    photos = draw.photos_of(data[worst]["image"])
    colors = states[0]["data"]["colors"]
    masks = [(photos / 2 + draw.colorise(ids[worst], colors) / 2).astype(np.uint8) for ids in (before, after)]
    shown = [
        {"photo": photo, "champion": one, "candidate": other}
        for photo, one, other in zip(photos, *masks, strict=True)
    ]
    named = [{"id": stem(samples[i].image), "share": shares[i].item()} for i in worst]
    record.write_pictures(ops / "differences", named, shown)


def square(path, side=128):
    """A photo as (side, side, 3) uint8."""
    return draw.photos_of(read_square(path, side)[None])[0]


def stem(path):
    return pathlib.Path(path).stem


def promote(args, ops):
    device = dist.init(args.device)[2]
    champion, state = champion_of(ops)
    if args.candidate:
        if not args.audit:
            raise UserError(f"{args.candidate}: needs --audit FOLDER, labelled photos that judge it")
        config = files.read_json(ops / "operate.json")
        audit = incoming.labelled_photos(args.audit, state["data"]["classes"])
        facts = {"batches": [], "augment": record.policy_of(checkpoint.load(args.candidate))}
        row = judge(ops, config, args.candidate, audit, None, device, facts)
        compare(ops, row, ops / "reference", device)
        return serve(ops, row, device) if row["verdict"] == "better" else 1
    cli.refuse_without_effect(args, {"audit": "without a CHECKPOINT to judge"})
    if not (better := record.better(ops)):
        raise UserError(f"{ops}: nothing was judged better than version {champion['version']}; improve first")
    return serve(ops, better, device)


def serve(ops, row, device):
    """Promote the candidate of a row of decisions.jsonl."""
    candidate = (ops / row["candidate"]).resolve()
    if not candidate.is_file() or files.sha256(candidate) != row["sha256"]:
        raise UserError(f"{candidate}: is not the file that was judged better")
    version = store.promote(ops, candidate, row["why"], smoke_test(ops, device))
    print(f"{ops}: version {version} is champion, {candidate}")
    return 0


def rollback(args, ops):
    version = store.rollback(ops, args.version)
    print(f"{ops}: version {version} is champion again")
    return 0


def status(args, ops):
    champion = store.champion(ops)
    if "fallback" in champion:
        print(champion["fallback"])
    print(f"{ops}: version {champion['version']} is champion, {champion['path']}, of {champion['run']}")
    if number := record.state_of(ops)["improving"]:
        print(f"improvement {number} is not at its end: {ops}/improve/{number:03d}")
    drift = record.drift_of(ops)[0]
    print(record.DRIFT[drift])
    return EXIT[drift]


COMMANDS = {"init": init, "watch": watch, "improve": improve, "promote": promote, "rollback": rollback}


def main(args):
    # ---- setup ----
    runs.end_on_signals("the same command goes on")
    begins = args.command == "init"
    ops = pathlib.Path(args.out if begins else args.ops)
    begun = (ops / "champion.json").is_file() or (ops / "history.jsonl").is_file()
    if begins and begun:
        raise UserError(f"--out {ops}: holds an operator already; name another folder")
    if not begins and not begun:
        raise UserError(f"{ops}: no operator there; `python operate.py init --out {ops}` begins one")
    if args.command == "status":
        code = status(args, ops)
    else:
        files.lock(ops)
        if not begins:
            store.recover(ops)
        code = COMMANDS[args.command](args, ops)
        files.write_whole(ops / "page.html", page(record.facts(ops, now())))

    # ---- finish ----
    print(f"see:     {ops}/page.html", f"next:    {record.next_command(ops)}", sep="\n")
    return code


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
