"""What the data engine decides by: gains on held-out people, and out-of-fold predictions of each photo."""

import math

import numpy as np
import torch

from utils import metrics, rng
from utils.errors import UserError
from utils.policy import sample

ETA = 3  # a rung keeps a third of the arms
CONFIDENT = 0.9  # probability from which a prediction that contradicts its label counts against the label
SUSPECT = 3.5, 0.05  # robust deviations above the others (Iglewicz and Hoaglin, 1993), and at least so much
ALLOCATIONS = {
    "ft": "more steps of fine-tuning on all photos",
    "cleaned": "as many without the suspects, which go into quarantine",
    "shared": "reward tuning on the photos that were fine-tuned on",
    "routed": "reward tuning on the half whose drawn masks disagree most",
    "disjoint": "fine-tuning on one half, reward tuning on the other",
}
REWARDED = "shared", "routed", "disjoint"
MASKS = 8  # drawn of each photo, out of fold, to see what is undecided


def scaled(ops, scale, flip=0.5):
    """A policy of one operation an image, uniform up to `scale` times its bounds."""
    return {"schema": 1, "flip": flip, "num_ops": 1, "p_identity": 0.1, "levels": [0, 30], "scale": scale,
            "ops": [{**op, "weight": 1.0} for op in ops]}  # fmt: skip


def with_cutmix(policy):
    """A policy, and a box of half a side from another photo in half of the images: a regulariser, which
    reward tuning leaves out."""
    share = 1 - 0.5 ** (1 / policy["num_ops"])  # of each operation drawn, so that half of the images get one
    drawn = share / (1 - policy["p_identity"])
    weight = sum(op["weight"] for op in policy["ops"]) * drawn / (1 - drawn)
    bound = 0.5 * 30 / policy["levels"][1] / policy["scale"]
    box = {"name": "cutmix", "m_neg": 0.0, "m_pos": bound, "weight": weight}
    return {**policy, "ops": [*policy["ops"], box]}


def folds_of(samples, count):
    """[(train ids, held-out ids)]: whole people, dealt out so that folds hold about as many photos."""
    people = {}
    for s in samples:
        people.setdefault(s.group, []).append(s.id)
    if len(people) < 2 or count < 2:
        raise UserError(f"{count} folds of {len(people)} people: need two of each at the least")
    held = [[] for _ in range(min(count, len(people)))]
    for person in sorted(people, key=lambda p: (-len(people[p]), p)):
        min(held, key=len).extend(people[person])
    return [([s.id for s in samples if s.id not in fold], fold) for fold in held], people


def gain(scores, baseline, people):
    """(mean, standard error) over people of what an arm wins on held-out photos. scores: {id: F1}, of all
    photos of some of the people. Of one person there is no error: it is taken to be as large as the gain.
    """
    change = [np.mean([scores[i] - baseline[i] for i in ids]) for ids in people.values() if ids[0] in scores]
    if len(change) < 2:
        return float(change[0]), float(abs(change[0]))
    return float(np.mean(change)), float(np.std(change, ddof=1) / math.sqrt(len(change)))


def survivors(gains, safe="none"):
    """Who goes on: "none", the safe arm, and the third of the others that has the best gain minus one
    standard error."""
    never = list(dict.fromkeys(("none", safe)))
    others = [n for n in gains if n not in never]
    others.sort(key=lambda n: (gains[n][1] - gains[n][0], -gains[n][0]))
    return [*never, *others[: math.ceil(len(others) / ETA)]]


def winner(gains, safe="none"):
    """The arm with the best gain minus one standard error, if that is above zero; else the safe one."""
    best = max((n for n in gains if n != safe), key=lambda n: gains[n][0] - gains[n][1], default=safe)
    return best if gains[best][0] > gains[best][1] else safe


def rows_of(stage, scores, gains, kept):
    """A row of the table for each arm: {"stage", "photos", "arm", "f1", "gain", "se", "kept"}."""
    rows = []
    for arm, (mean, error) in gains.items():
        f1 = list(scores[arm].values())
        row = {"stage": stage, "photos": len(f1), "arm": arm, "f1": sum(f1) / len(f1)}
        rows.append(row | {"gain": mean, "se": error, "kept": arm in kept})
    return rows


def show(rows):
    """One rung as lines: who stays, who is cut, and why."""
    rows = sorted(rows, key=lambda r: r["se"] - r["gain"])
    on = f"{rows[0]['stage']}: {rows[0]['photos']} held-out photos"
    lines = [f"{'arm':<14}{'F1':>7}{'gain':>9}{'- 1 se':>9}   {on}"]
    for r in rows:
        fate = "stays" if r["kept"] else "cut"
        lines.append(f"{r['arm']:<14}{r['f1']:7.3f}{r['gain']:+9.3f}{r['gain'] - r['se']:+9.3f}   {fate}")
    return "\n".join(lines)


def signals(logits, labels, seed, positions):
    """Of photos that the network has not learned from, (B,) each: mean and spread of the F1 of drawn masks,
    and `contradiction`, the share of the labelled pixels where the network gives another class a probability
    of `CONFIDENT` or more (after Northcutt et al., 1911.00068: only out-of-sample ones count)."""
    num_classes, shape = logits.shape[1], logits.shape[2:]
    f1 = []
    for k in range(MASKS):
        u = rng.uniform(seed, positions, shape.numel(), stream=70 + k).view(-1, *shape).to(logits.device)
        counts = metrics.confusion(sample(logits, u), labels, num_classes)
        f1.append(metrics.mean_f1(counts))
    f1, (sure, preds) = torch.stack(f1).nan_to_num(0.0), logits.softmax(1).max(1)
    known = labels != metrics.IGNORE
    against = (preds != labels) & known & (sure >= CONFIDENT)
    share = against.sum((1, 2)) / known.sum((1, 2)).clamp_min(1)
    return {"mean": f1.mean(0), "spread": f1.std(0), "contradiction": share}


def suspicious(contradiction):
    """Ids whose masks stand out. contradiction: {id: share}."""
    values = np.array(list(contradiction.values()))
    middle = np.median(values)
    spread = 1.4826 * np.median(abs(values - middle)) + 1e-6
    return [i for i, v in contradiction.items() if v > SUSPECT[1] and (v - middle) / spread > SUSPECT[0]]


def say(moves, photo, start, end, signal, values, why):
    """A row of moves.jsonl more."""
    step = len(moves)
    moves.append({"step": step, "id": photo, "from": start, "to": end, "signal": signal,
                  "value": round(values[signal], 4), "why": why})  # fmt: skip


def markdown(policy, arms, table, found, moves, made):
    """The report as a page: what was decided, from which figures. arms: {name: {"what", "gated", ...}};
    table: rows {"stage", "photos", "arm", "f1", "gain", "se", "kept"}; found: {photo: signals}; moves: rows
    {"id", "to", "why", ...}; made: names of pictures."""
    searched, plan, kind = policy["search"], policy["allocation"], policy["kind"]
    decided = f"`{plan['mode']}`: {ALLOCATIONS[plan['mode']]}. {len(plan['ft'])} photos are for fine-tuning"
    decided += f", {len(plan['reward'])} for reward tuning." if plan["mode"] in REWARDED else "."
    decided = decided if searched["allocated"] else "Not asked."
    suspects, dropped = len(policy["suspects"]), len(plan["quarantine"])
    out = f"; {dropped} are in quarantine: no script trains on them" if dropped else ""
    lines = [
        f"# {kind}, allocation {plan['mode']}",
        "",
        f"**Policy.** `{kind}`: {arms[kind]['what']}. Gains are of mean F1, on people whom the runs had",
        f"not learned from. `{searched['safe']}`, the best guess before any run, is never cut; another arm",
        "takes its place only where it gains more than one standard error over it. The best of",
        "many looks better than it is: where all arms are worth the same, one of the others still takes",
        "its place in four searches of ten (simulated). Only a test set says what was gained.",
        "",
        f"**Allocation.** {decided} {suspects} photos are suspect, for a human eye{out}.",
        "It takes as much to leave `ft`. Who is routed where was told by networks that had learned from",
        "other folds, the scored one among them: a slight optimism that `ft` does not have.",
        "",
        f"**Gate.** {policy['gate']['verdict']}",
        "",
        f"**Cost.** {searched['runs']} runs, {searched['images']:,} images forwarded in training.",
        "",
        *_operations(policy),
    ]
    for stage in dict.fromkeys(row["stage"] for row in table):
        rows = sorted((r for r in table if r["stage"] == stage), key=lambda r: r["se"] - r["gain"])
        last = sum(r["kept"] for r in rows) == 1
        lines += [f"## {stage.capitalize()}: on {rows[0]['photos']} held-out photos", ""]
        lines += [
            "| arm | gated | mean F1, over photos | gain, over people | minus 1 se | | what |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in rows:
            arm = arms.get(r["arm"], {"gated": "", "what": ALLOCATIONS.get(r["arm"], "")})
            gated = {True: "yes", False: "no"}.get(arm["gated"], "")
            figures = f"{r['f1']:.3f} | {r['gain']:+.3f} | {r['gain'] - r['se']:+.3f}"
            fate = ("taken" if last else "stays") if r["kept"] else f"cut: {_why(r, rows)}"
            lines.append(f"| {r['arm']} | {gated} | {figures} | {fate} | {arm['what']} |")
        lines.append("")
    lines += [
        "## Photos, as networks see them that have not learned from them",
        "",
        f"Drawn masks: mean and spread of the F1 of {MASKS} masks drawn from the network's probabilities.",
        f"Contradiction: the share of pixels where it gives another class a probability of {CONFIDENT} or",
        f"more. Suspect is what is above {SUSPECT[1]}, and {SUSPECT[0]} robust deviations above the others.",
        "",
        "| photo | F1 of drawn masks | spread | contradiction | |",
        "|---|---|---|---|---|",
    ]
    to = {m["id"]: f"{m['to']}: {m['why']}" for m in moves}
    for photo, f in sorted(found.items(), key=lambda kv: -kv[1]["contradiction"]):
        figures = f"{f['mean']:.3f} | {f['spread']:.3f} | {f['contradiction']:.3f}"
        lines.append(f"| {photo} | {figures} | {to.get(photo, '')} |")
    return "\n".join([*lines, "", *(f"![{name}]({name}.png)" for name in made), ""])


def _operations(policy):
    """What a policy does to a photo, as lines of a page."""
    if not policy["ops"]:
        return ["## What the policy does", "", "Nothing.", ""]
    least, most = policy["levels"]
    how = "as strong as the ends" if least == most else "by chance anywhere between the ends"
    lines = [
        "## What the policy does",
        "",
        f"A photo is mirrored with probability {policy['flip']:g}. Then it gets {policy['num_ops']} of",
        f"these, drawn by their shares, {how}; each is none with probability {policy['p_identity']:.2g}.",
        "",
        "| operation | from | to | share |",
        "|---|---|---|---|",
    ]
    if "schedule" in policy:
        lines[2] += " The ends are those of its strongest step."
    scale = max((s for _, s in policy.get("schedule", [])), default=policy["scale"])
    total = sum(op["weight"] for op in policy["ops"])
    for op in policy["ops"]:
        low, high = (scale * most / 30 * op[key] for key in ("m_neg", "m_pos"))
        lines.append(f"| {op['name']} | {0.0 - low:.3g} | {high:.3g} | {op['weight'] / total:.0%} |")
    return [*lines, "", "Units: `datasets/transforms.py`, at each operation.", ""]


def _why(row, rows):
    """Why an arm was cut, in words."""
    if row["gain"] == row["se"] == 0:
        return "what the others are measured by; one of them is better"
    if row["gain"] <= row["se"]:
        return "it does not gain more than one standard error"
    best = max(r["gain"] - r["se"] for r in rows)
    return f"{best - row['gain'] + row['se']:.3f} behind the best"
