"""Augmentation policies as plain data: a baseline, a search result and a `policy.json` are the same thing.

A file needs `flip`, `ops` or `always`, and of each operation `name` and `m_pos`. What it leaves out is as in
`FLIP`, but `num_ops` 1 where there are operations; of an operation, `m_neg` 0, `weight` 1 and `p` 1.

{"flip": 0.5,            # probability of a horizontal flip, which swaps left and right classes
 "num_ops": 1,           # operations drawn for each sample, with replacement
 "p_identity": 0.07,     # probability that a drawn operation is none
 "levels": [0, 30],      # strength is level / 30 of the bound, level uniform between these two
 "scale": 1.0,           # times every bound
 "ops": [{"name": "rotate", "m_neg": 135.0, "m_pos": 135.0, "weight": 1.0}, ...],
 "schedule": [[0, 0.2], [200, 0.5]],  # if wanted: from this step on, this scale
 "always": [{"name": "crop", "m_neg": 0.0, "m_pos": 0.125, "p": 1.0}, ...]}  # if wanted: see below

What is in `always` is done before the drawn operations, each to every image with probability p, at a strength
uniform from 0 to its bound. `levels`, `scale` and `schedule` are of `ops` alone. `crop` goes anywhere within
its strength, which in `always` is its bound.
"""

import math
import os

from datasets.operations import OPERATIONS, RANGES, REGULARISERS, UNITS
from utils import lineage
from utils.errors import UserError
from utils.files import read_json


def _ops(**bounds):
    """One-sided where an operation has one direction; two-sided (m_neg = m_pos) elsewhere."""
    one = {"posterise", "solarise", "autocontrast", "equalise", "blur", "noise", *REGULARISERS}
    return [
        {"name": name, "m_neg": 0.0 if name in one else float(m), "m_pos": float(m), "weight": 1.0}
        for name, m in bounds.items()
    ]


FLIP = {"flip": 0.5, "num_ops": 0, "p_identity": 0.0, "levels": [0, 30], "scale": 1.0, "ops": []}
MOST_OPS = 20  # of an image; more would take more memory than sense
POLICIES = {
    "none": {**FLIP, "flip": 0.0},
    "flip": FLIP,
    # of CIFAR since He et al., 1512.03385: 4 pixels of 32 to each side
    "crop": {**FLIP, "always": [{"name": "crop", "m_neg": 0.0, "m_pos": 0.125, "p": 1.0}]},
    # Cubuk et al., RandAugment, 1909.13719: N = 2, M = 9; bounds as torchvision's table
    "randaugment": {
        **FLIP,
        "num_ops": 2,
        "p_identity": 1 / 14,
        "levels": [9, 9],
        "ops": _ops(
            shear_x=0.3,
            shear_y=0.3,
            translate_x=150 / 331,
            translate_y=150 / 331,
            rotate=30,
            brightness=0.9,
            saturation=0.9,
            contrast=0.9,
            sharpness=0.9,
            posterise=4,
            solarise=1,
            autocontrast=1,
            equalise=1,
        ),
    },
    # Mueller and Hutter, TrivialAugment, 2103.10158, table "wide"; 32 pixels taken at 128
    "trivial": {
        **FLIP,
        "num_ops": 1,
        "p_identity": 1 / 14,
        "ops": _ops(
            shear_x=0.99,
            shear_y=0.99,
            translate_x=0.25,
            translate_y=0.25,
            rotate=135,
            brightness=0.99,
            saturation=0.99,
            contrast=0.99,
            sharpness=0.99,
            posterise=6,
            solarise=1,
            autocontrast=1,
            equalise=1,
        ),
    },
}


def with_cutmix(policy):
    """A policy, and in half of the images a box of half a side from another one: a regulariser."""
    drawn = (1 - 0.5 ** (1 / policy["num_ops"])) / (1 - policy["p_identity"])
    weight = sum(op["weight"] for op in policy["ops"]) * drawn / (1 - drawn)
    bound = 0.5 * 30 / policy["levels"][1] / policy["scale"]
    box = {"name": "cutmix", "m_neg": 0.0, "m_pos": bound, "weight": weight}
    return {**policy, "ops": [*policy["ops"], box]}


POLICIES["cutmix"] = with_cutmix(POLICIES["randaugment"])

# Every operation but the regularisers, as far as it goes: where ks_test.py --ops begins to search
WIDE = _ops(
    shear_x=0.99,
    shear_y=0.99,
    translate_x=0.5,
    translate_y=0.5,
    rotate=135,
    zoom=1,
    stretch=1,
    brightness=0.99,
    saturation=0.99,
    contrast=0.99,
    sharpness=0.99,
    hue=0.5,
    gamma=2,
    blur=6,
    noise=0.3,
    posterise=7,
    solarise=1,
    autocontrast=1,
    equalise=1,
)


def load_policy(name, target="semantic"):
    """The policy called `name`, or read from a JSON file of the form above. target: what images are labelled
    with; "semantic" maps of ids cannot be mixed, so that MixUp is refused. Raises UserError."""
    if name in POLICIES:
        return POLICIES[name]
    if not os.path.exists(name):
        raise UserError(f"policy {name}: no such file, nor one of {', '.join(POLICIES)}")
    found = read_json(name)
    if fault := fault_of(found):
        raise UserError(f"policy {name}: {fault}")
    ops = [{"weight": 1.0, "m_neg": 0.0, **op} for op in found.get("ops", [])]
    policy = {**FLIP, "num_ops": int(bool(ops)), **found, "ops": ops}
    if "always" in found:
        policy["always"] = [{"p": 1.0, "m_neg": 0.0, **op} for op in found["always"]]
    if target == "semantic" and "mixup" in {op["name"] for op in operations_of(policy)}:
        raise UserError(f"policy {name}: mixup blends images, which masks cannot follow; cutmix can be done")
    return policy


NOTES = {"schema", "kind", "seed", "suspects", "gate", "search"}  # of ks_test.py and augment.py, for people


def chosen_by(path, policy):
    """{path: policy} of one that says what chose it, see `utils.lineage`; {} of one that is written by hand,
    or older, or published."""
    return {path: policy} if "lineage" in policy else {}


def fault_of(found):
    """What is wrong with a policy as a file has it, in words; None if it can be applied."""
    is_policy = isinstance(found, dict) and {"flip", "ops", "always"} & found.keys()
    if not is_policy or not isinstance(ops := found.get("ops", []), list):
        return 'not a policy, which has at least {"ops": [...]} or {"flip": 0.5}; docs/finetune.md shows one'
    if "allocation" in found:
        return "holds an allocation, which is read no more; a file of ids says who trains"
    if "lineage" in found and (fault := lineage.fault_of(found["lineage"])):
        return fault
    if unknown := found.keys() - FLIP.keys() - {"always", "schedule", "lineage"} - NOTES:
        return f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(FLIP)}, always, schedule"
    always = found.get("always", [])
    if not isinstance(always, list) or len(always) > MOST_OPS:
        return f"always: need a list of at most {MOST_OPS} operations"
    for key in {"flip", "p_identity"} & found.keys():
        if not probability(found[key]):
            return f"{key} {found[key]}: need a probability from 0 to 1"
    if not number(found.get("scale", 1)):
        return f"scale {found['scale']}: need a number, 0 or more"
    if not (type(found.get("num_ops", 1)) is int and 0 <= found.get("num_ops", 1) <= MOST_OPS):
        return f"num_ops {found['num_ops']}: need a whole number from 0 to {MOST_OPS}"
    levels = found.get("levels", FLIP["levels"])
    if not (isinstance(levels, list) and len(levels) == 2 and all(type(level) is int for level in levels)):
        return f"levels {levels}: need two whole numbers"
    if not 0 <= levels[0] <= levels[1] <= 30:
        return f"levels {levels}: need 0 <= first <= second <= 30"
    for op, own in [*((op, "weight") for op in ops), *((op, "p") for op in always)]:
        if not isinstance(op, dict) or op.get("name") not in OPERATIONS or "m_pos" not in op:
            return f"operation {op}: unknown, or without m_pos; known: {', '.join(OPERATIONS)}"
        if unknown := op.keys() - {"name", "m_neg", "m_pos", own}:
            return f"operation {op['name']}, unknown: {', '.join(sorted(unknown))}"
        for key in ("m_neg", "m_pos", "weight"):
            if not number(op.get(key, 0)):
                return f"operation {op['name']}, {key} {op[key]}: need a number, 0 or more"
        if not probability(op.get("p", 1)):
            return f"operation {op['name']}, p {op['p']}: need a probability from 0 to 1"
    if ops and not any(op.get("weight", 1) for op in ops):
        return "every operation has weight 0"
    if found.get("num_ops", 1) == 0 and ops:
        return f"num_ops 0: none of the {len(ops)} operations in ops would be done; leave them out"
    if found.get("schedule") is not None and (fault := fault_of_schedule(found["schedule"])):
        return fault
    scale = max((scale for _, scale in found.get("schedule") or []), default=found.get("scale", 1))
    return fault_of_strength(ops, levels[1] / 30, scale) or fault_of_strength(always, 1, 1)


def fault_of_strength(ops, level, scale):
    """The same of how far operations go: bound x level x scale, the largest one of a schedule."""
    for op in ops:
        for key, most in zip(("m_neg", "m_pos"), RANGES[op["name"]], strict=True):
            strength = op.get(key, 0) * level * scale
            if strength > most * 1.0001:  # a product of roundings
                unit = UNITS[op["name"]]
                times = "" if level * scale == 1 else f" (times level / 30 and scale: {strength:g})"
                return f"operation {op['name']}, {key} {op[key]:g}{times}: need at most {most} ({unit})"
    return None


def fault_of_schedule(schedule):
    """The same of its schedule."""
    pairs = isinstance(schedule, list) and all(isinstance(e, list) and len(e) == 2 for e in schedule)
    steps = [step for step, _ in schedule] if pairs else []
    if not (steps and steps[0] == 0 and all(type(step) is int and number(scale) for step, scale in schedule)):
        return "schedule: need [[step, scale], ...], whole steps from 0 on, scales of 0 or more"
    if steps != sorted(set(steps)):
        return f"schedule: the steps {steps} do not rise"
    return None


def number(value):
    """Whether it is a finite number, 0 or more."""
    return type(value) in (int, float) and 0 <= value < math.inf


def probability(value):
    """Whether it is a number from 0 to 1."""
    return number(value) and value <= 1


def operations_of(policy):
    """Those drawn, then those of `always`."""
    return [*policy["ops"], *policy.get("always", [])]


def without_regularisers(policy):
    """What regularisers make is no photo, so no reward should be earned on it."""
    lists = {key: policy[key] for key in ("ops", "always") if key in policy}
    return policy | {k: [op for op in ops if op["name"] not in REGULARISERS] for k, ops in lists.items()}


def at_step(policy, step):
    """The policy with the scale that holds at `step`: of the last entry of its schedule at or below it."""
    held = [scale for first, scale in policy.get("schedule") or [] if first <= step]
    return {**policy, "scale": held[-1]} if held else policy


def scaled(policy, share):
    """The policy, as `at_step` gives it, with its drawn operations at `share` of their strength."""
    return {**policy, "scale": share * policy["scale"]}
