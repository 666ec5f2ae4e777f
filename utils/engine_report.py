"""What the data engine decided, as a page for a reader who knows no code of it."""

from utils.engine import ALLOCATIONS, CONFIDENT, ETA, MASKS, REWARDED, SUSPECT, line_of

UNITS = {  # of each operation's magnitude, in datasets/transforms.py
    **dict.fromkeys(("shear_x", "shear_y"), "tangent"),
    **dict.fromkeys(("translate_x", "translate_y", "cutmix", "erase"), "share of a side"),
    **dict.fromkeys(("zoom", "stretch", "gamma"), "octaves"),
    **dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), "share of itself"),
    **dict.fromkeys(("autocontrast", "equalise"), "done, whatever the number"),
    "rotate": "degrees",
    "hue": "turns of the circle",
    "blur": "standard deviation, per cent of a side",
    "noise": "standard deviation, share of white",
    "posterise": "bits dropped",
    "solarise": "inverted from white down to 1 minus this",
}


def markdown(policy, arms, table, found, people, moves, made, gate_on):
    """The report as a page: what was decided, from which figures. arms: {name: {"what", "gated", ...}};
    table: rows {"stage", "photos", "people", "arm", "f1", "gain", "se", "kept"}; found: {photo: signals};
    people: {person: photos}; moves: rows {"id", "to", "why", ...}; made: names of pictures; gate_on: name of
    the folder that the gate was asked on."""
    searched, kind = policy["search"], policy["kind"]
    never = " and ".join(f"`{arm}`" for arm in dict.fromkeys(("none", searched["safe"])))
    photos = f"{len(found)} photos of {len(people)} people"
    lines = [
        f"# {kind}, allocation {policy['allocation']['mode'] if searched['allocated'] else 'not asked'}",
        "",
        f"Of {photos}. Gains are of mean F1, on people whom the networks had not learned from.",
        "",
        f"**Policy.** `{kind}`: {arms[kind]['what']}. `{searched['safe']}` has to be beaten: it is in",
        "every rung, and another arm takes its place only where it gains more than one standard error over",
        f"it. {_doubt(kind, searched['safe'])} Only a test set says what was gained.",
        "",
        f"**Gate.** {policy['gate']['verdict']}{f' (Asked on {gate_on}.)' if gate_on else ''}",
        f"{_gate(policy['gate']['verdict'])} That is what `gated` means below.{beyond(policy)}",
        "",
        *_allocation(policy, people),
        f"**Cost.** {searched['runs']} runs, {searched['images']:,} images forwarded in training.",
        "",
        *_operations(policy),
    ]
    for stage in dict.fromkeys(row["stage"] for row in table):
        rows = [r for r in table if r["stage"] == stage]
        last = sum(r["kept"] for r in rows) == 1
        on = f"{rows[0]['photos']} held-out photos of {rows[0]['people']} people"
        rule = "The best is taken if its gain minus one standard error is above zero." if last else (
            f"Rungs add up. {never} and, of the other arms, one in {ETA} (rounded up), the best by gain "
            "minus one standard error, go on."
        )  # fmt: skip
        lines += [f"## {stage.capitalize()}", "", f"On {on}. {rule}", ""]
        lines += [
            "| arm | gated | mean F1, over photos | gain, over people | minus 1 se | | what |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in rows:
            arm = arms.get(r["arm"], {"gated": "", "what": ALLOCATIONS.get(r["arm"], "")})
            gated = {True: "yes", False: "no"}.get(arm["gated"], "")
            figures = f"{r['f1']:.3f} | {r['gain']:+.3f} | {r['gain'] - r['se']:+.3f}"
            fate = ("taken" if last else "stays") if r["kept"] else _why(r, rows, last)
            lines.append(f"| {r['arm']} | {gated} | {figures} | {fate} | {arm['what']} |")
        lines.append("")
    lines += [
        "## Photos, as networks see them that have not learned from them",
        "",
        f"Contradiction: the share of pixels where the network gives another class than the mask {CONFIDENT}",
        f"or more. Suspect are photos above {line_of(f['contradiction'] for f in found.values()):.3f} here:",
        f"{SUSPECT[1]} at the least, and {SUSPECT[0]} robust deviations above the median. For information,",
        f"and for the allocation: mean and spread of the F1 of {MASKS} masks drawn from its probabilities.",
        "",
        "| photo | contradiction | F1 of drawn masks | spread | |",
        "|---|---|---|---|---|",
    ]
    to = {m["id"]: f"{m['to']}: {m['why']}" for m in moves}
    for photo, f in sorted(found.items(), key=lambda kv: -kv[1]["contradiction"]):
        figures = f"{f['contradiction']:.3f} | {f['mean']:.3f} | {f['spread']:.3f}"
        lines.append(f"| {photo} | {figures} | {to.get(photo, '')} |")
    captions = {
        "gains": "Gains and one standard error, rung by rung.",
        "faces": "Photos as they are, then as the policy changes them. What comes from outside a photo "
        "is its mirror image, which is not labelled.",
        "suspects": "The suspects, in the order of the table: photo, mask, what the network says, where they "
        "differ (in the colour of the mask).",
    }
    return "\n".join([*lines, "", *(f"![{name}]({name}.png)\n\n{captions[name]}\n" for name in made)])


def _doubt(kind, safe):
    if kind == safe:
        return "None did: it stays by default, and others may be as good or a little better."
    return (
        "The best of many looks better than it is: where all arms are worth the same, one of the others "
        "still takes its place in four searches of ten (simulated)."
    )


def _gate(verdict):
    if verdict.startswith("PASS"):
        return "So the operations of gated arms go as far as it accepts; smaller changes it would not see."
    if verdict.startswith("REJECT"):
        return "So gated arms have no operations."
    return "So no arm but `none` is gated: where others would follow it, operations go half as far as they can."


def beyond(policy):
    """Of a policy that the gate could have limited and did not, a sentence; else nothing."""
    gate, told = policy["gate"], policy["gate"]["verdict"].startswith(("PASS", "REJECT"))
    if gate["gated"] or not told:
        return ""
    return f" It did not limit `{policy['kind']}`, whose photos may look unlike real ones."


def _allocation(policy, people):
    plan, suspects = policy["allocation"], policy["suspects"]
    decided = f"`{plan['mode']}`: {ALLOCATIONS[plan['mode']]}. {len(plan['ft'])} photos are for fine-tuning"
    decided += f", {len(plan['reward'])} for reward tuning." if plan["mode"] in REWARDED else "."
    lines = [
        f"**Allocation.** {decided} `ft` is kept unless another way gains more than one standard error over",
        "it. Who is routed where was told by networks that had learned from other folds, the scored one",
        "among them: a slight optimism that `ft` does not have.",
    ]
    if not policy["search"]["allocated"]:
        lines = ["**Allocation.** Not asked: all photos are for fine-tuning."]
    whose = sum(any(i in suspects for i in ids) for ids in people.values())
    fate = "in quarantine: no script trains on them" if plan["quarantine"] else "still trained on"
    told = f"{len(suspects)} photos of {whose} people are suspect, and {fate}; look at them below. Several of"
    told += " one person may well be an unusual face, not wrong masks."
    return [*lines, "", f"**Suspects.** {told if suspects else 'None.'}", ""]


def _operations(policy):
    """What a policy does to a photo, as lines of a page."""
    if not policy["ops"]:
        return ["## What the policy does", "", "Nothing.", ""]
    least, most = policy["levels"]
    how = "always at one of the two ends" if least == most else "by chance anywhere between the ends"
    lines = [
        "## What the policy does",
        "",
        f"A photo is mirrored with probability {policy['flip']:g}. Then it gets {policy['num_ops']} of",
        f"these, drawn by their shares, {how}; each is none with probability {policy['p_identity']:.2g}.",
        "",
        "| operation | from | to | unit | share |",
        "|---|---|---|---|---|",
    ]
    if "schedule" in policy:
        lines[2] += " The ends are those of its strongest step."
    scale = max((s for _, s in policy.get("schedule", [])), default=policy["scale"])
    total = sum(op["weight"] for op in policy["ops"])
    for op in policy["ops"]:
        low, high = (scale * most / 30 * op[key] for key in ("m_neg", "m_pos"))
        share = f"{op['weight'] / total:.1%}"
        lines.append(f"| {op['name']} | {0.0 - low:.3g} | {high:.3g} | {UNITS[op['name']]} | {share} |")
    return [*lines, ""]


def _why(row, rows, last):
    """Why an arm was cut, or not taken, in words."""
    if row["gain"] == row["se"] == 0:
        return "not taken: another is better by more than one standard error"
    if last and row["gain"] <= row["se"]:
        return "not taken: it does not gain more than one standard error"
    best = max(r["gain"] - r["se"] for r in rows)
    return (
        f"{'not taken' if last else 'cut'}: {best - row['gain'] + row['se']:.3f} behind the best, less 1 se"
    )
