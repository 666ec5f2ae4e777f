"""What the data engine decides by: gains on held-out people, and out-of-fold predictions of each photo."""

import math

import numpy as np
import torch

from utils import metrics, rng
from utils.errors import UserError
from utils.rewards.policy_gradient import sample

FOLDS = 3  # of the people, or as many as there are
ETA = 3  # a rung keeps a third of the arms
CONFIDENT = 0.9  # probability from which a prediction that contradicts its label counts against the label
SUSPECT = 3.5, 0.05  # robust deviations above the others (Iglewicz and Hoaglin, 1993), and at least so much
ALLOCATIONS = {
    "ft": "more steps of fine-tuning on all photos",
    "cleaned": "as many without the suspects, which go into quarantine",
    "shared": "reward tuning on all photos but the suspects",
    "routed": "reward tuning on the half whose drawn masks disagree most, the suspects aside",
    "disjoint": "fine-tuning on one half, reward tuning on the other, the suspects in neither",
}
REWARDED = "shared", "routed", "disjoint"
MASKS = 8  # drawn of each photo, out of fold, to see what is undecided


def scaled(ops, scale, flip=0.5):
    """A policy of one operation an image, uniform up to `scale` times its bounds."""
    return {
        "schema": 1,
        "flip": flip,
        "num_ops": 1,
        "p_identity": 0.1,
        "levels": [0, 30],
        "scale": scale,
        "ops": [{**op, "weight": 1.0} for op in ops],
    }


def folds_of(samples, count=None):
    """([(train ids, held-out ids)], {person: ids}): whole people, dealt out so that folds hold about as many
    photos. count: of the folds, 2 to the number of people; `FOLDS` at most where it is None."""
    people = {}
    for s in samples:
        people.setdefault(s.group, []).append(s.id)
    count = min(FOLDS, len(people)) if count is None else count
    if not 2 <= count <= len(people):
        raise UserError(f"{count} folds of {len(people)} people: need 2 at least, and a person for each")
    held = [[] for _ in range(count)]
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


def rows_of(stage, scores, gains, people, kept):
    """A row of the table for each arm, the best first: {"stage", "photos", "people", "arm", "f1", "gain",
    "se", "fate"}; fate is "stays" or, of one alone, "taken", and "" where the arm is out."""
    rows = []
    for arm, (mean, error) in sorted(gains.items(), key=lambda kv: kv[1][1] - kv[1][0]):
        f1 = list(scores[arm].values())
        num_people = sum(ids[0] in scores[arm] for ids in people.values())
        row = {"stage": stage, "photos": len(f1), "people": num_people, "arm": arm, "f1": sum(f1) / len(f1)}
        fate = ("taken" if len(kept) == 1 else "stays") if arm in kept else ""
        rows.append(row | {"gain": mean, "se": error, "fate": fate})
    return rows


def show(rows):
    """One rung as lines: who stays, who is cut, and why."""
    on = f"{rows[0]['stage']}: {rows[0]['photos']} held-out photos"
    out = "not taken" if any(r["fate"] == "taken" for r in rows) else "cut"
    lines = [f"{'arm':<14}{'F1':>7}{'gain':>9}{'- 1 se':>9}   {on}"]
    for r in rows:
        figures = f"{r['f1']:7.3f}{r['gain']:+9.3f}{r['gain'] - r['se']:+9.3f}"
        lines.append(f"{r['arm']:<14}{figures}   {r['fate'] or out}")
    return "\n".join(lines)


def contradicted(logits, labels):
    """Where the network gives a class that is not the label's a probability of `CONFIDENT` or more. logits
    (B, K, H, W), labels (B, H, W) -> (B, H, W) bool."""
    sure, preds = logits.softmax(1).max(1)
    return (preds != labels) & (labels != metrics.IGNORE_INDEX) & (sure >= CONFIDENT)


def signals(logits, labels, seed, positions):
    """Of photos that the network has not learned from, (B,) each: mean and spread of the F1 of drawn masks,
    and `contradiction`, the share of the labelled pixels that it contradicts confidently (after Northcutt et
    al., 1911.00068: only out-of-sample predictions count)."""
    num_classes = logits.shape[1]
    shape = logits.shape[2:]
    f1 = []
    for k in range(MASKS):
        u = rng.uniform(seed, positions, shape.numel(), stream=70 + k).view(-1, *shape).to(logits.device)
        counts = metrics.confusion(sample(logits, u), labels, num_classes)
        f1.append(metrics.mean_f1(counts))
    f1, known = torch.stack(f1).nan_to_num(0.0), labels != metrics.IGNORE_INDEX
    share = contradicted(logits, labels).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)
    return {"mean": f1.mean(0), "spread": f1.std(0), "contradiction": share}


def line_of(contradictions):
    """From where on a contradiction is suspicious, among so many others."""
    values = np.array(list(contradictions))
    middle = np.median(values)
    return max(SUSPECT[1], middle + SUSPECT[0] * (1.4826 * np.median(abs(values - middle)) + 1e-6))


def suspicious(contradiction):
    """Ids whose masks stand out. contradiction: {id: share}."""
    line = line_of(contradiction.values())
    return [i for i, v in contradiction.items() if v > line]


def main_confusion(label, pred, pixels, classes):
    """What mask and prediction, (H, W) uint8, differ on most, in words; pixels: (H, W) bool, some of them."""
    pair = (label.long() * len(classes) + pred.long())[pixels].mode().values.item()
    return f"{classes[pair // len(classes)]} in the mask, {classes[pair % len(classes)]} to the network"


def shares_of(photos, suspects, found, folds):
    """{way of `ALLOCATIONS`: (who fine-tunes, who is in the steps after that)}, lists of ids; ways that leave
    a fold without photos are out. photos: ids; found: {id: `signals`}; folds: of `folds_of`."""
    kept = [i for i in photos if i not in suspects]  # no reward on doubtful masks
    routed = sorted(kept, key=lambda i: -found[i]["spread"])[: (len(kept) + 1) // 2]
    shares = {
        "ft": (photos, photos),
        "cleaned": (kept, kept),
        "shared": (photos, kept),
        "routed": (photos, routed),
        "disjoint": (kept[::2], kept[1::2]),
    }
    if not suspects:
        del shares["cleaned"]

    def everywhere(ids):
        return all(set(ids) & set(train) for train, _ in folds)

    return {way: pair for way, pair in shares.items() if everywhere(pair[0]) and everywhere(pair[1])}


def moves_of(photos, found, reasons, mode, rewarded):
    """What happened to each photo that is no plain training photo any more, as rows of moves.jsonl.

    reasons: {suspect: its `main_confusion`}; mode: the way of `ALLOCATIONS` that was taken; rewarded: ids.
    """
    moves = []
    for photo in photos:
        if photo in reasons:
            to = "quarantine" if mode == "cleaned" else "suspect"
            signal = "contradiction"
            share = found[photo]["contradiction"]
            why = f"{share:.0%} contradicted by a network that has not seen it; mostly {reasons[photo]}"
        elif mode in ("routed", "disjoint") and photo in rewarded:
            to = "reward"
            signal = "spread" if mode == "routed" else None  # halves are every other photo
            why = f"{mode} won: {ALLOCATIONS[mode]}"
        else:
            continue
        value = found[photo].get(signal)
        row = {"step": len(moves), "id": photo, "from": "labelled", "to": to, "signal": signal}
        moves.append(row | {"value": value and round(value, 4), "why": why})
    return moves
