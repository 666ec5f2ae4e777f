r"""The data engine: how to augment these few faces, which of them serve the reward, and which look wrong.

Run:    python augment.py --data FOLDER --limit 16 --out runs/augment         gate, search, allocate
        python augment.py --data FOLDER --policy FILE --preview               what a policy does, as a picture
        python augment.py --data FOLDER --policy FILE --materialise 500 DIR   ... and as pairs on disk
Needs:  labelled faces of two people at the very least; no photo of the test split is ever read
Writes: policy.json, finetune.ids.json, reward.ids.json, engine_report.md, moves.jsonl, photos.json (how each
        looks to a network that has not learned from it), arms.jsonl (every run), pictures, TensorBoard events
Expect: docs/engine.md   -> train_finetune.py, train_reward.py, both with --augment and --ids of these files

1. Gate: ks_test.py says how far each operation may go before photos are no longer drawn like themselves.
2. Search: arms (policies and flags) by successive halving; each run is train_finetune.py as a command. A
   third of the arms goes on to one more fold of people, by its gain over "none" minus one standard error;
   runs are equally long, since in short ones weak augmentation looks best. "none" and "cutmix", the best
   guess before any run, are never cut; at last an arm has to beat "cutmix" by one standard error (where
   that is no arm, "randaugment", else "none").
3. Allocate: out-of-fold predictions say which masks contradict the network confidently (suspects), and on
   which photos drawn masks disagree; arms then decide what to tune on rewards, if anything.
Killed, the same command goes on: every finished run is a line of arms.jsonl and is not run again.
"""

import functools
import json
import os
import pathlib
import shlex
import shutil

import torch

from datasets import policies, splits, summary
from datasets.cache import CachedFaces
from datasets.faces import limit
from datasets.images import to_float
from datasets.operations import GEOMETRY, UNITS
from datasets.pairs import preview, write_pairs
from models import restore
from utils import checkpoint, cli, dist, draw, lineage, metrics
from utils.engine import decisions, report, runs
from utils.errors import UserError
from utils.files import read_json, sha256, write_whole
from utils.log import RunLog

FINETUNE, REWARD = "train_finetune.py", "train_reward.py"
ARMS = {
    "none": "no augmentation",
    "randaugment": "as published, two operations of medium strength",
    "trivial": "as published, one operation of any strength",
    "cutmix": "RandAugment, and CutMix on every other image",
    "full": "all operations at full scale",
    "geometric": "geometry alone, at full scale",
    "standardise": "full scale; every channel of every photo to mean 0, variance 1",
    "half": "all operations at half the scale",
    "quarter": "all operations at a quarter of the scale",
    "photometric": "colour alone, at full scale",
    "grey-world": "full scale; the light's colour is taken out of every photo, before and after training",
}
DEFAULT = list(ARMS)[:7]
SAFE = "cutmix", "randaugment", "none"  # the first of them that is an arm has to be beaten


def get_parser():
    p = cli.parser(__doc__)
    g = p.add_argument_group("data")
    g.add_argument("--data", help="folder of faces, its layout recognised")
    cli.add_who_trains(g)
    gate = "photos to ask the gate on, or a finished ks_test.py --ops; --data but its test split by default"
    g.add_argument("--gate-on", metavar="FOLDER", help=gate)
    arm = "one more arm: share of every batch that is synthetic faces"
    g.add_argument("--synthetic", type=cli.share, default=0.0, metavar="SHARE", help=arm)
    g.add_argument("--size", type=cli.positive, default=96, help="side that photos are stretched to, pixels")
    g.add_argument("--model", help="as train_finetune.py")
    g = p.add_argument_group("search")
    arms = f"beside none: policy files, or some of {' '.join(ARMS)}; by default {' '.join(DEFAULT)}"
    g.add_argument("--arms", nargs="+", metavar="ARM", help=arms)
    g.add_argument("--steps", type=cli.positive, default=600, help="optimiser steps")
    g.add_argument("--folds", type=cli.positive, help="of the people; by default 3, 2 of two people")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    g.add_argument("--no-gate", action="store_true", help="search without asking how far operations may go")
    g.add_argument("--no-allocation", action="store_true", help="stop before the allocation")
    g = p.add_argument_group("a policy that is there")
    g.add_argument("--policy", metavar="FILE", help="look at it, instead of searching")
    g.add_argument("--preview", action="store_true", help="draw what it does to these faces")
    g.add_argument(
        "--materialise", nargs=2, metavar=("N", "DIR"), help="write N augmented pairs to a new folder"
    )
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=cli.seed, default=0, help="of order, augmentation and all that is drawn")
    g.add_argument("--jobs", type=cli.positive, help="runs at a time; by default 1 on a GPU, else one a core")
    cli.add_device_flags(g)
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/augment", metavar="FOLDER", help="run folder")
    return p


def make_arms(gated, synthetic, names):
    """{name: {"policy", "flags", "gated", "what"}}. gated: the policy of ks_test.py --ops, or None, where the
    gate cannot tell; then operations go half as far as they can at full scale."""
    known, gated = bool(gated), gated or {"ops": policies.WIDE, "scale": 0.5, "flip": 0.5}
    ops = gated["ops"] if gated["scale"] else []
    top = gated["scale"] or 1.0
    at = functools.partial(decisions.scaled, flip=gated["flip"])
    full = at(ops, top)
    geometry = [op for op in ops if op["name"] in GEOMETRY]
    colour = [op for op in ops if op["name"] not in GEOMETRY]
    published = {name: policies.POLICIES[name] for name in ("none", "randaugment", "trivial", "cutmix")}
    limited = {
        "full": full,
        "geometric": at(geometry, top),
        "standardise": full,
        "half": at(ops, top / 2),
        "quarter": at(ops, top / 4),
        "photometric": at(colour, top),
        "grey-world": full,
    }
    flags = {name: ["--preprocess", name] for name in ("standardise", "grey-world")}
    what = dict(ARMS)
    if synthetic:
        limited["synthetic"], flags["synthetic"] = full, ["--synthetic", str(synthetic)]
        what["synthetic"] = f"full scale; synthetic faces are {synthetic:.0%} of each batch"
    limited = {name: policy for name, policy in limited.items() if policy["ops"]}  # the gate may pass none
    files = {name: policies.load_policy(name) for name in names or [] if name.endswith(".json")}
    every = published | limited | files
    if twice := [name for name in names or [] if names.count(name) > 1]:
        raise UserError(f"--arms {' '.join(names)}: {twice[0]} is named twice")
    if unknown := set(names or []) - every.keys():
        raise UserError(f"--arms {' '.join(sorted(unknown))}: there is {' '.join(every)}, or FILE.json")
    chosen = {"none", *(names or every.keys() & {*DEFAULT, "synthetic"})}
    arms = {}
    for name in [name for name in every if name in chosen]:
        title = pathlib.Path(name).stem  # of a file; its path would not do for a folder of runs
        if title in arms:
            raise UserError(f"--arms {' '.join(sorted(chosen))}: two have one name")
        arms[title] = {
            "policy": every[name],
            "flags": flags.get(name, []),
            "gated": name == "none" or known and name in limited,
            "what": what.get(name, "of a file"),
        }
    return arms


def run_gate(real, size, seed, device, folder):
    """(policy or None, one line about it): ks_test.py --ops on every photo that there is but test; or what
    it found before, if its report is in the folder."""
    if not (folder / "ks_report.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        flags = ["--real", real, "--ops", "--drop-copies", "--size", size, "--seed", seed, "--device", device]
        status, error = runs.call("ks_test.py", [*flags, "--out", folder])
        if status == 2 or not (folder / "ks_report.json").is_file():
            last = error.splitlines()[-1].removeprefix("error: ") if error else f"status {status}"
            raise UserError(f"the gate: {last}; --gate-on takes other photos, and --no-gate does without")
    try:
        found = read_json(folder / "ks_report.json")
        known = found["ops"] or found["status"] not in ("PASS", "REJECT")  # too few people: none is looked at
    except (UserError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"--gate-on {folder}: was not written by ks_test.py --ops")
    policy = None  # the gate cannot tell
    if found["status"] in ("PASS", "REJECT"):
        passed = found["status"] == "PASS"
        policy = read_json(folder / "policy.json") if passed else {"ops": [], "scale": 0.0}
        # BLIND, as it often is, says nothing against the mirror image of a face
        policy["flip"] = 0.0 if found["ops"].get("flip", {}).get("status") == "REJECT" else 0.5
    return policy, f"{found['status']}: {found['verdict']}"


def job_of(run, script, train, held, policy, steps, flags, write):
    """A run of a training script on the photos `train`, scored on those held out; see `runs.run_all`."""
    _, arm, fold = run.split("/")
    ids = write(f"jobs/{run}/ids.json", {"train": train, "val": held})
    policy = write(f"jobs/{run}/policy.json", policy)
    flags = [*flags, "--ids", ids, "--augment", policy, "--steps", steps, "--eval-every", steps]
    row = {"arm": arm, "fold": int(fold), "steps": steps}
    return {"run": run, "script": script, "flags": flags, "held": held, "row": row, "keep": False}


def as_words(**flags):
    """["--data", "faces", ...]: those flags of a command that have a value."""
    given = {f"--{name.replace('_', '-')}": value for name, value in flags.items() if value is not None}
    return [word for pair in given.items() for word in pair]


def tuning(allocation, flags):
    """(script, flags) of the steps after the first ones, in a way of `decisions.ALLOCATIONS`."""
    return (REWARD, ["--ce-weight", 1]) if allocation in decisions.REWARDED else (FINETUNE, flags)


def show_policy(args, policy, faces, data, out):
    """Preview a policy that is there, or write pairs with it, as strong as its schedule ends."""
    policy = policies.at_step(policy, 10**9)
    if args.preview:
        out.mkdir(parents=True, exist_ok=True)
        draw.write(out / "preview.png", preview(data, faces, policy, args.seed))
        print(f"wrote:   {out}/preview.png")
    if args.materialise:
        count, folder = args.materialise
        if not count.isdecimal():
            raise UserError(f"--materialise {count} {folder}: need a number and a folder")
        write_pairs(data, faces, policy, args.seed, int(count), folder)
        print(f"wrote:   {count} pairs")
        print(f"next:    python train_finetune.py --data {folder} --augment none --out {folder}_finetune")


def main(args):
    # ---- setup ----
    runs.end_on_signals(f"the same command {'begins again' if args.policy else 'goes on'}")
    out = pathlib.Path(args.out)
    device = dist.init(args.device)[2]
    write = functools.partial(runs.write_json, out)
    if not args.data:
        raise UserError("--data is needed: a folder of labelled faces")
    if bool(args.policy) != bool(args.preview or args.materialise):
        raise UserError("--policy FILE: with --preview or --materialise N DIR, which need it")
    search = "beside --policy, which is there already" if args.policy else None
    names = ("arms", "folds", "gate_on", "no_gate", "no_allocation")
    cli.refuse_without_effect(args, dict.fromkeys(names, search))
    cli.refuse_without_effect(args, {"gate_on": "beside --no-gate" if args.no_gate else None})
    num_jobs = args.jobs or (1 if device.type == "cuda" else min(8, os.cpu_count() or 1))

    # ---- data ----
    faces = splits.open_any(args.data)
    if ids := splits.ids_file(args.ids, args.data, None, args.limit):
        faces = splits.take_ids(faces, ids)
    labelled = [s for s in faces.splits.get("train", []) if s.label is not None]  # the test split stays shut
    if not labelled:
        raise UserError(f"{args.data}: no labelled training photos")
    labelled = limit(labelled, args.limit, args.seed) if args.limit else labelled
    data = CachedFaces(faces, labelled, args.size)
    row_of = {s.id: i for i, s in enumerate(labelled)}
    if args.policy:
        return show_policy(args, policies.load_policy(args.policy), faces, data, out)
    held = summary.inspect({"train": data}, faces.classes)
    cli.check_allowed(args.allow_empty, faces.classes)
    summary.refuse_empty(held, args.allow_empty or [])
    print(summary.table(held), *faces.notes, sep="\n  ")
    folds, people = decisions.folds_of(labelled, args.folds)
    args.folds = len(folds)
    asked_for = make_arms(None, args.synthetic, args.arms)  # mistakes in names show now
    files = {name: arm["policy"] for name, arm in asked_for.items() if name not in ARMS}
    runs.begin(out, vars(args), {"photos": list(row_of), "files": files})
    ledger = runs.Ledger(out / "arms.jsonl")
    log = RunLog(out, vars(args))
    named = cli.files_of(args)
    origin_of = functools.partial(lineage.origin, "augment.py", args.out, held, {"train": args.data}, named)
    starts = {}
    for path in [name for name in args.arms or [] if name in named]:
        starts |= policies.chosen_by(path, policies.load_policy(path))
    lineage.begin(out, origin_of(starts), vars(args), named)
    same = as_words(data=args.data, size=args.size, seed=args.seed, batch_size=args.batch_size, amp=args.amp)
    model = as_words(model=args.model)
    # a fold may lack a class that the others have
    common = [*same, "--device", device.type, "--allow-empty", *faces.classes]

    def predict_photos(folder, ids):
        """logits (B, K, S, S) and labels (B, S, S) of photos, by the last weights in a run folder."""
        net = restore(checkpoint.load(folder / "last.pt"), device)
        batch = data[[row_of[i] for i in ids]]
        with torch.no_grad():
            pieces = [net(to_float(x.to(device)))["semantic"].float() for x in batch["image"].split(16)]
        return torch.cat(pieces), batch["semantic"].to(device)

    def finish(job, folder):
        """The row of the ledger: F1 of each photo held out. Weights are kept where `job` says so."""
        logits, labels = predict_photos(folder, job["held"])
        f1 = metrics.mean_f1(metrics.confusion(logits.argmax(1), labels, len(faces.classes))).nan_to_num(0.0)
        for name in ("best.pt", *([] if job["keep"] else ["last.pt"])):
            (folder / name).unlink(missing_ok=True)
        return {**job["row"], "f1": dict(zip(job["held"], f1.tolist(), strict=True))}

    def compare(jobs, baseline):
        """{arm: {photo: F1}} of jobs over all folds, and {arm: (gain, standard error)} over the baseline."""
        scores = {}
        for row in runs.run_all(jobs, out / "runs", ledger, finish, num_jobs):
            scores.setdefault(row["arm"], {}).update(row["f1"])
        return scores, {arm: decisions.gain(f1, scores[baseline], people) for arm, f1 in scores.items()}

    # ---- gate ----
    real = pathlib.Path(args.gate_on or args.data)
    gate = real if (real / "ks_report.json").is_file() else out / "gate"
    gated, verdict = None, "not asked"
    if not args.no_gate:
        gated, verdict = run_gate(real, args.size, args.seed, device.type, gate)
    print(f"gate:    {verdict}")
    judged = policies.chosen_by(str(gate / "policy.json"), gated or {})
    named |= {path: {"flag": "gate_on", "sha256": sha256(path)} for path in judged}
    starts |= judged
    arms = make_arms(gated, args.synthetic, args.arms)

    # ---- search ----
    arms_left = list(arms)
    table = []
    safe = next(name for name in SAFE if name in arms)
    for rung in range(1, len(folds) + 1):  # those who go on are held to one fold of people more
        last = rung == len(folds)
        baseline = safe if last else "none"
        jobs = []
        for name, k in [(name, k) for name in arms_left for k in range(rung)]:
            train, held = folds[k]
            run_flags = [*common, *model, *arms[name]["flags"]]
            policy = arms[name]["policy"]
            run = f"search/{name}/{k}"
            job = job_of(run, FINETUNE, train, held, policy, args.steps, run_flags, write)
            jobs.append(job | {"keep": True})
        scores, gains = compare(jobs, baseline)
        arms_left = [decisions.winner(gains, safe)] if last else decisions.survivors(gains, safe)
        rows = decisions.rows_of(f"rung {rung}, over {baseline}", scores, gains, people, arms_left)
        log.scalars(rung, **{f"gain_over_{baseline}/{row['arm']}": row["gain"] for row in rows})
        print(decisions.show(rows))
        table += rows
    best = arms_left[0]
    chosen = arms[best]
    flags = arms[best]["flags"]
    winners = [out / f"runs/search/{best}/{k}" for k in range(len(folds))]
    for weights in {*out.glob("runs/search/*/*/last.pt")} - {folder / "last.pt" for folder in winners}:
        weights.unlink()

    # ---- allocate ----
    found, parsed, against = {}, {}, {}  # of each photo, by the network that has not learned from it
    for k, (_, held) in enumerate(folds):
        logits, labels = predict_photos(winners[k], held)
        parsed |= dict(zip(held, logits.argmax(1).byte().cpu(), strict=True))
        against |= dict(zip(held, decisions.contradicted(logits, labels).cpu(), strict=True))
        columns = decisions.signals(logits, labels, args.seed, torch.tensor([row_of[i] for i in held]))
        found |= {i: {name: float(v[j]) for name, v in columns.items()} for j, i in enumerate(held)}
    suspects = decisions.suspicious({i: f["contradiction"] for i, f in found.items()})
    shares = decisions.shares_of(list(row_of), suspects, found, folds)
    allocation = "ft"
    extra = max(1, args.steps // decisions.ETA)
    if not args.no_allocation:
        halves, jobs = [], []
        for k, (train, held) in enumerate(folds):
            for name, pair in shares.items():
                first, then = ([i for i in ids if i in train] for ids in pair)
                start = winners[k]
                if name == "disjoint":  # the only one that begins with other photos
                    start = out / f"runs/half/disjoint/{k}"
                    run = f"half/disjoint/{k}"
                    run_flags = [*common, *model, *flags]
                    job = job_of(run, FINETUNE, first, held, chosen["policy"], args.steps, run_flags, write)
                    halves.append(job | {"keep": True})
                script, more = tuning(name, flags)
                run = f"extra/{name}/{k}"
                run_flags = [*common, "--init", start / "last.pt", "--lr", "1e-3", *more]
                jobs.append(job_of(run, script, then, held, chosen["policy"], extra, run_flags, write))
        runs.run_all(halves, out / "runs", ledger, finish, num_jobs)
        scores, gains = compare(jobs, "ft")
        allocation = decisions.winner(gains, "ft")
        rows = decisions.rows_of("allocation, over ft", scores, gains, people, [allocation])
        print(decisions.show(rows))
        table += rows
    reasons = {}
    for i in suspects:
        mask = data[[row_of[i]]]["semantic"][0]
        reasons[i] = decisions.main_confusion(mask, parsed[i], against[i], faces.classes)
    moves = decisions.moves_of(list(row_of), found, reasons, allocation, shares[allocation][1])

    # ---- finish ----
    ft, reward = shares[allocation]
    finetune_ids = write("finetune.ids.json", {"train": ft})
    reward_ids = write("reward.ids.json", {"train": [i for i in row_of if i in set(reward)]})
    searched = {
        "arm": best,
        "safe": safe,
        "flags": flags,
        "steps": args.steps,
        "folds": len(folds),
        "images": args.batch_size * sum(row["steps"] for row in ledger.rows.values()),
        "runs": len(ledger.rows),
        "allocated": not args.no_allocation,
        "allocation": allocation,
    }
    gate_said = {"verdict": verdict, "gated": chosen["gated"]}
    policy = {**chosen["policy"], "schema": 1, "kind": best, "seed": args.seed, "suspects": suspects}
    policy |= {"gate": gate_said, "search": searched, "lineage": lineage.as_json(origin_of(starts))}
    write("photos.json", {i: {name: round(v, 4) for name, v in found[i].items()} for i in row_of})
    write_whole(out / "moves.jsonl", "".join(json.dumps(move) + "\n" for move in moves))
    pictures = {"gains": report.gains(table), "faces": preview(data, faces, policy, args.seed)}
    if suspects:
        worst = sorted(suspects, key=lambda i: -found[i]["contradiction"])[:16]
        batch = data[[row_of[i] for i in worst]]
        preds, wrong = (torch.stack([of[i] for i in worst]) for of in (parsed, against))
        images = batch["image"]
        labels = batch["semantic"]
        scale = max(1, 192 // args.size)
        picture = draw.comparison(images, labels, preds, faces.colors, faces.classes, scale, wrong)
        pictures["suspects"] = picture
    for name, picture in pictures.items():
        log.image(0, f"engine/{name}", picture, f"{name}.png")
    log.close()
    same += ["--augment", out / "policy.json"]
    same += ["--allow-empty", *args.allow_empty] if args.allow_empty else []
    start = [*model, "--steps", args.steps, *flags, "--out", f"{out}_finetune"]
    commands = [[FINETUNE, *same, "--ids", finetune_ids, *start]]
    if not args.no_allocation:  # what won there
        script, more = tuning(allocation, flags)
        ids = reward_ids if script == REWARD else finetune_ids
        init = ["--init", f"{out}_finetune/last.pt", "--lr", "1e-3", "--steps", extra]
        commands.append([script, *init, *same, "--ids", ids, *more, "--out", f"{out}_tuned"])
    commands = [shlex.join(["python", *map(str, command)]) for command in commands]
    asked = "Asked before" if gate == real else f"Asked on all photos of {real.name} but its test split"
    asked = "" if args.no_gate else f"{asked}: [report]({os.path.relpath(gate, out)}/ks_report.md)."
    decided = {"ft": ft, "reward": reward, "people": people, "found": found, "moves": moves}
    page = report.markdown(policy, arms, table, decided, pictures, asked, commands, UNITS)
    write_whole(out / "engine_report.md", page)
    write("policy.json", policy)  # last: with it, all is there
    allocation = "not asked" if args.no_allocation else allocation
    print(f"policy:  {best}, allocation {allocation}, {len(suspects)} suspects; see {out}/engine_report.md")
    print("next:   ", "\nthen:    ".join(commands))


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
