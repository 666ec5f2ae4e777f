r"""The data engine: how to augment these few faces, which of them serve the reward, and which look wrong.

Run:    python augment.py --data FOLDER --limit 16 --out runs/augment         gate, search, allocate
        python augment.py --data FOLDER --policy FILE --preview               what a policy does, as a picture
        python augment.py --data FOLDER --policy FILE --materialise 500 DIR   ... and as pairs on disk
Needs:  labelled faces of two people at the very least; no photo of the test split is ever read
Writes: policy.json, engine_report.md, moves.jsonl, photos.json (how each looks to a network that has not
        learned from it), arms.jsonl (every run), pictures, TensorBoard events
Expect: README.md, "The data engine"     -> train_finetune.py, train_reward.py --augment OUT/policy.json

1. Gate: ks_test.py says how far each operation may go before photos are no longer drawn like themselves.
2. Search: arms (policies and flags) by successive halving; each run is train_finetune.py as a command. A
   third of the arms goes on to one more fold of people, by its gain over "none" minus one standard error;
   runs are equally long, since in short ones weak augmentation looks best. "none" and "cutmix", the best
   guess before any run, are never cut; at last an arm has to beat "cutmix" by one standard error (where
   that is no arm, "randaugment", else "none").
3. Control: as an arm, the strength follows the gap between training and held-out score during the run.
4. Allocate: out-of-fold predictions say which masks contradict the network confidently (suspects), and on
   which photos drawn masks disagree; arms then decide what to tune on rewards, if anything.
Killed, the same command goes on: every finished run is a line of arms.jsonl and is not run again.
"""

import argparse
import functools
import json
import os
import pathlib
import shutil

import torch

from datasets import loading, transforms
from datasets.cache import CachedFaces
from datasets.faces import limit
from datasets.pairs import preview, write_pairs
from models import restore
from utils import checkpoint, dist, draw, engine, metrics, plot, runs
from utils.engine import ETA, folds_of, gain, rows_of, scaled, show, signals, survivors, winner
from utils.engine_report import markdown
from utils.errors import UserError, positive, run
from utils.log import RunLog

FINETUNE, REWARD, CONTROL = "train_finetune.py", "train_reward.py", "0.2"


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    g = p.add_argument_group("data")
    g.add_argument("--data", help="folder of labelled faces")
    g.add_argument("--limit", type=positive, help="labelled images, spread over people, "
                   "nested by --seed (default all)")  # fmt: skip
    g.add_argument("--gate-on", metavar="FOLDER", help="photos of the same kind for the gate, which needs "
                   "some forty people, or the --out of a ks_test.py --ops (default: all photos of --data "
                   "but test)")  # fmt: skip
    g.add_argument("--synthetic", type=float, default=0.0, metavar="SHARE",
                   help="of every batch, as one more arm (default 0, none)")  # fmt: skip
    g.add_argument("--size", type=positive, help="side that photos are stretched to, pixels (default 96)")
    g = p.add_argument_group("model")
    g.add_argument("--model", help="unet (default), or another of README.md")
    g = p.add_argument_group("search")
    g.add_argument("--steps", type=positive, default=600, help="of each run (default 600)")
    g.add_argument("--folds", type=positive, default=3, help="of the people (default 3)")
    g.add_argument("--batch-size", type=positive, default=16, help="images per process (default 16)")
    g.add_argument("--arms", nargs="+", metavar="ARM", help="to search, besides none: policy files, or some "
                   f"of {' '.join(ARMS)} (default {' '.join(DEFAULT)})")  # fmt: skip
    g.add_argument("--no-gate", action="store_true", help="search without asking how far operations may go")
    g.add_argument("--no-allocation", action="store_true", help="stop before the allocation")
    g = p.add_argument_group("a policy that is there")
    g.add_argument("--policy", metavar="FILE", help="look at it, instead of searching")
    g.add_argument("--preview", action="store_true", help="draw what it does to these faces")
    g.add_argument("--materialise", nargs=2, metavar=("N", "DIR"), help="write N augmented pairs")
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=int, default=0, help="labels, folds, every run (default 0)")
    g.add_argument(
        "--jobs", type=positive, help="runs at a time (default 1 on a GPU, else one a core, up to 8)"
    )
    g.add_argument("--amp", choices=["off", "bf16", "fp16"],
                   help="precision of the forward pass (default bf16 on a GPU, off on a CPU)")  # fmt: skip
    g.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/augment", help="run folder (default runs/augment)")
    return p


# ---- the arms

ARMS = {
    "none": "no augmentation",
    "randaugment": "as published, two operations of medium strength",
    "trivial": "as published, one operation of any strength",
    "cutmix": "RandAugment, and CutMix on every other image",
    "full": "all operations at full scale",
    "geometric": "geometry alone, at full scale",
    "controlled": "strength follows the gap to held-out people",
    "standardise": "full scale; every channel of every photo to mean 0, variance 1",
    "half": "all operations at half the scale",
    "quarter": "all operations at a quarter of the scale",
    "photometric": "colour alone, at full scale",
    "grey-world": "full scale; the light's colour is taken out of every photo, before and after training",
}
DEFAULT = list(ARMS)[:8]  # a search over three folds then takes fifteen runs
SAFE = "cutmix", "randaugment", "none"  # the first of them that is an arm has to be beaten


def make_arms(gated, synthetic, names):
    """{name: {"policy", "flags", "gated", "what"}}. gated: the policy of ks_test.py --ops, or None, where the
    gate cannot tell; then operations go half as far as they can at full scale."""
    gated, known = gated or {"ops": transforms.WIDE, "scale": 0.5, "flip": 0.5}, bool(gated)
    ops, top = gated["ops"] if gated["scale"] else [], gated["scale"] or 1.0
    at = functools.partial(scaled, flip=gated["flip"])
    full = at(ops, top)
    geometry = [op for op in ops if op["name"] in transforms.GEOMETRY]
    colour = [op for op in ops if op["name"] not in transforms.GEOMETRY]
    arms = {
        "none": (transforms.POLICIES["none"], [], True),
        "randaugment": (transforms.POLICIES["randaugment"], [], False),
        "trivial": (transforms.POLICIES["trivial"], [], False),
        "full": (full, [], known),
        "half": (at(ops, top / 2), [], known),
        "quarter": (at(ops, top / 4), [], known),
        "geometric": (at(geometry, top), [], known),
        "photometric": (at(colour, top), [], known),
        "cutmix": (transforms.POLICIES["cutmix"], [], False),
        "controlled": ({**at(ops, top / 2), "scale_max": top}, ["--control", CONTROL], known),
        "grey-world": (full, ["--preprocess", "grey-world"], known),
        "standardise": (full, ["--preprocess", "standardise"], known),
    }
    what = dict(ARMS)
    if synthetic:
        arms["synthetic"] = (full, ["--synthetic", str(synthetic)], known)
        what["synthetic"] = f"full scale; synthetic faces are {synthetic:.0%} of each batch"
    # a gate may have passed no operation of a kind
    arms = {name: arm for name, arm in arms.items() if arm[0]["ops"] or name == "none"}
    for file in [name for name in names or [] if name.endswith(".json")]:
        policy = {k: v for k, v in transforms.load_policy(file).items() if k != "allocation"}
        arms[file], what[file] = (policy, [], False), "of a file"
    if unknown := set(names or []) - arms.keys():
        raise UserError(f"--arms {' '.join(sorted(unknown))}: there is {' '.join(arms)}, or FILE.json")
    title = lambda name: pathlib.Path(name).stem  # of a file; its path would not do for a folder of runs
    default = [*DEFAULT, "synthetic"]
    keys, chosen = ("policy", "flags", "gated", "what"), {"none", *(names or arms.keys() & default)}
    if len({title(name) for name in chosen}) < len(chosen):
        raise UserError(f"--arms {' '.join(sorted(chosen))}: two have one name")
    return {title(n): dict(zip(keys, (*arms[n], what[n]), strict=True)) for n in arms if n in chosen}


# ---- the gate and the runs


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
    report = json.loads((folder / "ks_report.json").read_text())
    if not report["ops"] and report["status"] in ("PASS", "REJECT"):  # too few people: none is looked at
        raise UserError(f"--gate-on {folder}: was not written by ks_test.py --ops")
    policy = None  # the gate cannot tell
    if report["status"] in ("PASS", "REJECT"):
        passed = report["status"] == "PASS"
        policy = json.loads((folder / "policy.json").read_text()) if passed else {"ops": [], "scale": 0.0}
        # BLIND, as it often is, says nothing against the mirror image of a face
        policy["flip"] = 0.0 if report["ops"].get("flip", {}).get("status") == "REJECT" else 0.5
    return policy, f"{report['status']}: {report['verdict']}"


def job_of(run, script, train, held, policy, steps, flags, write, keep=False):
    """A run of a training script on the photos `train`, scored on those held out; see utils/runs.py."""
    arm, fold = run.split("/")[1:]
    ids = write(f"jobs/{run}/ids.json", {"train": train, "val": held})
    policy = write(f"jobs/{run}/policy.json", policy)
    looks = max(1, steps // 10) if "--control" in flags else steps
    flags = [*flags, "--ids", ids, "--augment", policy, "--steps", steps, "--eval-every", looks]
    return {"run": run, "script": script, "flags": flags, "held": held, "arm": arm, "fold": int(fold),
            "steps": steps, "keep": keep}  # fmt: skip


def use(policy, args, faces, data, out):
    """Look at a policy that is there, as strong as its schedule ends."""
    policy = transforms.at_step(policy, 10**9)
    if args.preview:
        out.mkdir(parents=True, exist_ok=True)
        draw.write(out / "preview.png", preview(data, faces, policy, args.seed))
        print(f"wrote:   {out}/preview.png")
    if args.materialise:
        count, folder = args.materialise
        if not count.isdecimal():
            raise UserError(f"--materialise {count} {folder}: need a number and a folder")
        write_pairs(data, faces, policy, args.seed, int(count), folder)
        print(f"wrote:   {count} pairs; next: python train_finetune.py --data {folder} --augment none")


def main(args):
    # ---- setup ----
    out, device = pathlib.Path(args.out), dist.init(args.device)[2]
    size, write = args.size or 96, functools.partial(runs.write_json, out)
    if not args.data:
        raise UserError("--data FOLDER: of whose faces?")
    if bool(args.policy) != bool(args.preview or args.materialise):
        raise UserError("--policy FILE: with --preview or --materialise N DIR, which need it")
    at_once = args.jobs or (1 if device.type == "cuda" else min(8, os.cpu_count() or 1))

    # ---- data ----
    faces = loading.open_any(args.data)
    labelled = [s for s in faces.splits.get("train", []) if s.label is not None]  # the test split stays shut
    if not labelled:
        raise UserError(f"{args.data}: no labelled training photos")
    labelled = limit(labelled, args.limit, args.seed) if args.limit else labelled
    policy = transforms.load_policy(args.policy) if args.policy else {}
    doubtful = policy.get("allocation", {}).get("quarantine", [])
    labelled = [s for s in labelled if s.id not in doubtful]
    data, row_of = CachedFaces(faces, labelled, size), {s.id: i for i, s in enumerate(labelled)}
    if policy:
        return use(policy, args, faces, data, out)
    folds, people = folds_of(labelled, args.folds)
    asked = make_arms(None, args.synthetic, args.arms)  # mistakes in names show now
    files = {name: arm["policy"] for name, arm in asked.items() if name not in ARMS}
    runs.begin(out, vars(args), {"photos": list(row_of), "files": files})
    ledger, log = runs.Ledger(out / "arms.jsonl"), RunLog(out, vars(args))
    every = ["--data", args.data, "--size", size, "--seed", args.seed, "--batch-size", args.batch_size,
             "--device", device.type, *(["--amp", args.amp] if args.amp else [])]  # fmt: skip
    fresh = [*every, *(["--model", args.model] if args.model else [])]

    def predict(folder, ids):
        """logits (B, K, S, S) and labels (B, S, S) of photos, by the last weights in a run folder."""
        model, batch = restore(checkpoint.load(folder / "last.pt"), device), data[[row_of[i] for i in ids]]
        with torch.no_grad():
            pieces = [
                model(transforms.normalise(x.to(device)))["semantic"].float()
                for x in batch["image"].split(16)
            ]
        return torch.cat(pieces), batch["semantic"].to(device)

    def finish(job, folder):
        logits, labels = predict(folder, job["held"])
        f1 = metrics.mean_f1(metrics.confusion(logits.argmax(1), labels, len(faces.classes))).nan_to_num(0.0)
        for name in ("best.pt", *([] if job["keep"] else ["last.pt"])):
            (folder / name).unlink(missing_ok=True)
        return {k: job[k] for k in ("arm", "fold", "steps")} | {
            "f1": dict(zip(job["held"], f1.tolist(), strict=True))
        }

    def compare(jobs, baseline):
        """{arm: {photo: F1}} of jobs over all folds, and {arm: (gain, standard error)} over the baseline."""
        rows, scores = runs.run_all(jobs, out / "runs", ledger, finish, at_once), {}
        for row in rows:
            scores.setdefault(row["arm"], {}).update(row["f1"])
        return scores, {arm: gain(f1, scores[baseline], people) for arm, f1 in scores.items() if baseline}

    # ---- gate ----
    real = pathlib.Path(args.gate_on or args.data)
    folder = real if (real / "ks_report.json").is_file() else out / "gate"
    gated, verdict = (
        (None, "not asked") if args.no_gate else run_gate(real, size, args.seed, device.type, folder)
    )
    print(f"gate:    {verdict}")
    arms = make_arms(gated, args.synthetic, args.arms)

    # ---- search ----
    alive, table, safe = list(arms), [], next(name for name in SAFE if name in arms)
    for rung in range(1, len(folds) + 1):  # those who go on are held to one fold of people more
        last = rung == len(folds)
        over = safe if last else "none"
        jobs = [job_of(f"search/{name}/{k}", FINETUNE, *folds[k], arms[name]["policy"], args.steps,
                       fresh + arms[name]["flags"], write, keep=True)
                for name in alive for k in range(rung)]  # fmt: skip
        scores, gains = compare(jobs, over)
        alive = [winner(gains, safe)] if last else survivors(gains, safe)
        rows = rows_of(f"rung {rung}, over {over}", scores, gains, people, alive)
        log.scalars(rung, **{f"gain_over_{over}/{row['arm']}": row["gain"] for row in rows})
        print(show(rows))
        table += rows
    best = alive[0]
    chosen = arms[best]
    controlled = "--control" in chosen["flags"]
    plain = [] if controlled else chosen["flags"]  # the schedule does it, where nobody is held out
    winners = [out / f"runs/search/{best}/{k}" for k in range(len(folds))]
    for weights in {*out.glob("runs/search/*/*/last.pt")} - {folder / "last.pt" for folder in winners}:
        weights.unlink()
    settled = chosen["policy"]  # as strong as the runs ended
    plan = {}
    if controlled:  # what the folds did on average; rounding may lift a mean above the cap
        held, cap = [checkpoint.load(f / "last.pt")["schedule"] for f in winners], settled["scale_max"]
        means = [[row[0][0], min(sum(s for _, s in row) / len(row), cap)] for row in zip(*held, strict=True)]
        settled, plan = {**settled, "scale": means[-1][1]}, {"schedule": means}

    # ---- allocate ----
    found, parsed, against, moves = {}, {}, {}, []
    for k, (_, held) in enumerate(folds):
        logits, labels = predict(winners[k], held)
        parsed |= dict(zip(held, logits.argmax(1).byte().cpu(), strict=True))
        against |= dict(zip(held, engine.contradicted(logits, labels).cpu(), strict=True))
        columns = signals(logits, labels, args.seed, torch.tensor([row_of[i] for i in held]))
        found |= {i: {name: float(v[j]) for name, v in columns.items()} for j, i in enumerate(held)}
    suspects = engine.suspicious({i: f["contradiction"] for i, f in found.items()})
    everybody, kept = list(row_of), [i for i in row_of if i not in suspects]  # no reward on doubtful masks
    routed = sorted(kept, key=lambda i: -found[i]["spread"])[: (len(kept) + 1) // 2]
    shares = {  # who fine-tunes, and who is in the steps after that
        "ft": (everybody, everybody),
        "cleaned": (kept, kept),
        "shared": (everybody, kept),
        "routed": (everybody, routed),
        "disjoint": (kept[::2], kept[1::2]),
    }
    if not suspects:
        del shares["cleaned"]
    everywhere = lambda ids: all(set(ids) & set(train) for train, _ in folds)
    shares = {arm: pair for arm, pair in shares.items() if everywhere(pair[0]) and everywhere(pair[1])}
    mode, extra = "ft", max(1, args.steps // ETA)
    if not args.no_allocation:
        halves, jobs = [], []
        for k, (train, held) in enumerate(folds):
            start, halfway = winners[k] / "last.pt", out / f"runs/half/disjoint/{k}/last.pt"
            mine = {arm: [[i for i in ids if i in train] for ids in pair] for arm, pair in shares.items()}
            if "disjoint" in mine:
                half = FINETUNE, mine["disjoint"][0], held, {**chosen["policy"], **plan}, args.steps
                halves.append(job_of(f"half/disjoint/{k}", *half, fresh + plain, write, keep=True))
            for arm, (_, ids) in mine.items():
                init = ["--init", halfway if arm == "disjoint" else start, "--lr", "1e-3"]
                rewarded = arm in engine.REWARDED
                script, more = (REWARD, ["--ce-weight", "1"]) if rewarded else (FINETUNE, plain)
                flags = [*every, *init, *more]
                jobs.append(job_of(f"extra/{arm}/{k}", script, ids, held, settled, extra, flags, write))
        compare(halves, None)
        scores, gains = compare(jobs, "ft")
        mode = winner(gains, "ft")
        rows = rows_of("allocation, over ft", scores, gains, people, [mode])
        print(show(rows))
        table += rows

    # ---- finish ----
    for i in row_of:
        f = found[i]
        if i in suspects:
            most = engine.dispute(data[[row_of[i]]]["semantic"][0], parsed[i], against[i], faces.classes)
            why = f"{f['contradiction']:.0%} contradicted by a network that has not seen it; mostly {most}"
            to = "quarantine" if mode == "cleaned" else "suspect"
            engine.say(moves, i, "labelled", to, "contradiction", f["contradiction"], why)
        elif mode in ("routed", "disjoint") and i in shares[mode][1]:
            signal = "spread" if mode == "routed" else None  # halves are every other photo
            why = f"{mode} won: {engine.ALLOCATIONS[mode]}"
            engine.say(moves, i, "labelled", "reward", signal, f.get(signal), why)
    ft, reward = shares[mode]
    images = args.batch_size * sum(row["steps"] for row in ledger.rows.values())
    searched = {"arm": best, "safe": safe, "flags": plain, "steps": args.steps, "folds": len(folds),
                "images": images, "runs": len(ledger.rows), "allocated": not args.no_allocation}  # fmt: skip
    quarantine = suspects if mode == "cleaned" else []
    allocation = {"mode": mode, "ft": ft, "reward": reward, "quarantine": quarantine}
    policy = {**chosen["policy"], **plan, "schema": 1, "kind": best, "seed": args.seed, "suspects": suspects,
              "allocation": allocation, "gate": {"verdict": verdict, "gated": chosen["gated"]},
              "search": searched}  # fmt: skip
    write("photos.json", {i: {name: round(v, 4) for name, v in found[i].items()} for i in row_of})
    (out / "moves.jsonl").write_text("".join(json.dumps(m) + "\n" for m in moves))
    names = [f"{r['stage']}: {r['arm']}" + f" ({r['fate']})" * bool(r["fate"]) for r in table]
    values, errors = ([r[k] for r in table] for k in ("gain", "se"))
    title = "gain on held-out people, and one standard error"
    made = {
        "gains": plot.bars(names, values, errors, title),
        "faces": preview(data, faces, policy, args.seed),
    }
    if suspects:
        worst = sorted(suspects, key=lambda i: -found[i]["contradiction"])[:16]
        batch = data[[row_of[i] for i in worst]]
        preds, where = (torch.stack([of[i] for i in worst]) for of in (parsed, against))
        shown = batch["image"], batch["semantic"], preds, faces.colors, faces.classes
        made["suspects"] = draw.comparison(*shown, scale=max(1, 192 // size), where=where)
    for name, picture in made.items():
        draw.write(out / f"{name}.png", picture)
        log.image(0, f"engine/{name}", picture)
    log.close()
    same = [f for f in every if f not in ("--device", device.type)]
    same += [*(["--limit", args.limit] if args.limit else []), "--val-fraction", 0]
    same += ["--augment", out / "policy.json"]
    model = ["--model", args.model] if args.model else []
    steps = [[FINETUNE, *same, *model, "--steps", args.steps, *plain, "--out", "runs/finetune"]]
    if not args.no_allocation:  # what won there
        script, more = (REWARD, ["--ce-weight", 1]) if mode in engine.REWARDED else (FINETUNE, plain)
        init = ["--init", "runs/finetune/last.pt", "--lr", "1e-3", "--steps", extra]
        steps.append([script, *init, *same, *more, "--out", "runs/tuned"])
    commands = [" ".join(map(str, ["python", *step])) for step in steps]
    asked = "Asked before" if folder == real else f"Asked on all photos of {real.name} but its test split"
    asked = "" if args.no_gate else f"{asked}: [report]({os.path.relpath(folder, out)}/ks_report.md)."
    page = markdown(policy, arms, table, found, people, moves, made, asked, commands)
    (out / "engine_report.md").write_text(page)
    write("policy.json", policy)  # last: with it, all is there
    say_so = f"{best}, allocation {mode}, {len(suspects)} photos to look at"
    print(f"policy:  {say_so}; see {out}/engine_report.md")
    print("next:   ", "\nthen:    ".join(commands))


if __name__ == "__main__":
    run(main, get_parser().parse_args())
