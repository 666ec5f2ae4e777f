"""What the data engine decided, as a page for a reader who knows no code of it."""

from utils import plot
from utils.engine.decisions import ALLOCATIONS, CONFIDENT, ETA, MASKS, REWARDED, SUSPECT, line_of


def gains(table):
    """The gains of all rungs as one picture, (H, W, 3) uint8. table: rows of `decisions.rows_of`."""
    names = [f"{r['stage']}: {r['arm']}" + f" ({r['fate']})" * bool(r["fate"]) for r in table]
    values, errors = ([r[k] for r in table] for k in ("gain", "se"))
    return plot.bars(names, values, errors, "gain on held-out people, and one standard error")


def markdown(policy, arms, table, decided, pictures, asked, commands, units):
    """The report as a page: what was decided, from which figures.

    arms: {name: {"what", "gated", ...}}; table: rows of `decisions.rows_of`; decided: {"ft", "reward":
    photos, "people": {person: photos}, "found": {photo: signals}, "moves": `decisions.moves_of`}; pictures:
    their names; asked: what the gate was asked on, as a sentence; commands: to go on with; units: of each
    operation's magnitude.
    """
    searched = policy["search"]
    kind = policy["kind"]
    found = decided["found"]
    people = decided["people"]
    never = " and ".join(f"`{arm}`" for arm in dict.fromkeys(("none", searched["safe"])))
    photos = f"{len(found)} photos of {len(people)} people"
    lines = [
        f"# {kind}, allocation {searched['allocation'] if searched['allocated'] else 'not asked'}",
        "",
        f"Of {photos}. Gains are of mean F1, on people whom the networks had not learned from.",
        "",
        f"**Policy.** `{kind}`: {arms[kind]['what']}. `{searched['safe']}` has to be beaten: it is in",
        "every rung, and another arm takes its place only where it gains more than one standard error over",
        f"it. {_doubt(kind, searched['safe'])} Only a test set says what was gained.",
        "",
        f"**Gate.** {policy['gate']['verdict']} {asked}",
        f"{_gate(policy['gate']['verdict'])}{beyond(policy)}",
        "",
        *_allocation(policy, decided),
        f"**Cost.** {searched['runs']} runs, {searched['images']:,} images forwarded in training.",
        "",
        f"**Next.** {_next(commands)}",
        "",
        *(f"    {command}" for command in commands),
        "",
        *_operations(policy, units),
    ]
    for stage in dict.fromkeys(row["stage"] for row in table):
        rows = [r for r in table if r["stage"] == stage]
        last = any(r["fate"] == "taken" for r in rows)
        on = f"{rows[0]['photos']} held-out photos of {rows[0]['people']} people"
        rule = (
            "The best is taken if its gain minus one standard error is above zero."
            if last
            else (
                f"Each rung adds a fold of people to those before it. {never} and, of the other arms, one in "
                f"{ETA} (rounded up), the best by gain minus one standard error, go on."
            )
        )
        lines += [f"## {stage.capitalize()}", "", f"On {on}. {rule}", ""]
        lines += [
            "| arm | gated | mean F1, over photos | gain, over people | minus 1 se | | what |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in rows:
            arm = arms.get(r["arm"], {"gated": "", "what": ALLOCATIONS.get(r["arm"], "")})
            gated = {True: "yes", False: "no"}.get(arm["gated"], "")
            figures = f"{r['f1']:.3f} | {r['gain']:+.3f} | {r['gain'] - r['se']:+.3f}"
            fate = r["fate"] or _why(r, rows, last)
            lines.append(f"| {r['arm']} | {gated} | {figures} | {fate} | {arm['what']} |")
        lines.append("")
    lines += [
        "## Photos, as networks see them that have not learned from them",
        "",
        "Contradiction: the share of pixels where the network gives a class that is not the mask's a",
        f"probability of {CONFIDENT} or more. Suspect are photos above",
        f"{line_of(f['contradiction'] for f in found.values()):.3f} here:",
        f"{SUSPECT[1]} at the least, and {SUSPECT[0]} robust deviations above the median. For information,",
        f"and for the allocation: mean and spread of the F1 of {MASKS} masks drawn from its probabilities.",
        "",
        "| photo | contradiction | F1 of drawn masks | spread | |",
        "|---|---|---|---|---|",
    ]
    to = {m["id"]: f"{m['to']}: {m['why']}" for m in decided["moves"]}
    for photo, f in sorted(found.items(), key=lambda kv: -kv[1]["contradiction"]):
        figures = f"{f['contradiction']:.3f} | {f['mean']:.3f} | {f['spread']:.3f}"
        lines.append(f"| {photo} | {figures} | {to.get(photo, '')} |")
    captions = {
        "gains": "Gains and one standard error, rung by rung.",
        "faces": "Photos as they are, then as the policy changes them. What comes from outside a photo "
        "is its mirror image, which is not labelled.",
        "suspects": "The suspects, the first 16 in the order of the table: photo, mask, what the network "
        "says, and the pixels that it contradicts confidently (in the colour of the mask).",
    }
    return "\n".join([*lines, "", *(f"![{name}]({name}.png)\n\n{captions[name]}\n" for name in pictures)])


def _next(commands):
    return "Train:" if len(commands) == 1 else "Train; then, as the allocation did, a third more steps:"


def _doubt(kind, safe):
    if kind == safe:
        return "None did: it stays by default, and others may be as good or a little better."
    return (
        "The best of many looks better than it is: where eight arms are all worth the same, one of the "
        "others still takes its place in four searches of ten (simulated)."
    )


def _gate(verdict):
    if verdict.startswith("PASS"):
        return (
            "So full scale is as far as it accepts; smaller changes it would not see. Arms that follow it "
            "are called `gated` below; one of which it accepts no operation is left out."
        )
    if verdict.startswith("REJECT"):
        return "So the arms that would follow it are left out: `gated`, below, is `none` alone."
    return "So full scale is half as far as operations can go, and `gated`, below, is `none` alone."


def beyond(policy):
    """Of a policy that the gate could have limited and did not, a sentence; else nothing."""
    gate = policy["gate"]
    decided = policy["gate"]["verdict"].startswith(("PASS", "REJECT"))
    if gate["gated"] or not decided:
        return ""
    return f" It did not limit `{policy['kind']}`, whose photos may look unlike real ones."


def _allocation(policy, decided):
    mode = policy["search"]["allocation"]
    suspects = policy["suspects"]
    plan = f"`{mode}`: {ALLOCATIONS[mode]}. {len(decided['ft'])} photos are for fine-tuning"
    plan += f", {len(decided['reward'])} for reward tuning." if mode in REWARDED else "."
    lines = [
        f"**Allocation.** {plan} `ft` is kept unless another way gains more than one standard error over",
        "it. Suspects and undecided photos were found by networks that had trained on the fold now scored,",
        "which favours every way but `ft` a little. Reward tuning sees the policy without CutMix and",
        "erasing, whose images are no photos.",
    ]
    if not policy["search"]["allocated"]:
        lines = ["**Allocation.** Not asked: all photos are for fine-tuning."]
    num_people = sum(any(i in suspects for i in ids) for ids in decided["people"].values())
    away = {
        "cleaned": "in quarantine: they are in neither of the two ids files",
        "disjoint": "in neither half",
    }
    fate = "still fine-tuned on" + (", but not rewarded" if mode in REWARDED else "")
    fate = away.get(mode, fate)
    text = (
        f"{len(suspects)} photos of {num_people} people are suspect, and {fate}; look at them below. Several"
    )
    text += " of one person may well be an unusual face, not wrong masks."
    return [*lines, "", f"**Suspects.** {text if suspects else 'None.'}", ""]


def _operations(policy, units):
    """What a policy does to a photo, as lines of a page."""
    always = [
        f"First, {op['p']:.0%} of photos get {op['name']}, from {0.0 - op['m_neg']:g} to {op['m_pos']:g} "
        f"({units[op['name']]})."
        for op in policy.get("always", [])
    ]
    if not policy["ops"]:
        return ["## What the policy does", "", *(always or ["Nothing."]), ""]
    least, most = policy["levels"]
    how = "always as strong as here" if least == most else "anywhere between the ends"
    lines = [
        "## What the policy does",
        "",
        f"A photo is mirrored with probability {policy['flip']:g}. Then it gets {policy['num_ops']} of",
        f"these, drawn by their shares, {how}; a draw is skipped with probability",
        f"{policy['p_identity']:.2g}.",
        "",
        "| operation | strength | unit | share |",
        "|---|---|---|---|",
    ]
    if "schedule" in policy:
        lines[2] += " The ends are those of its strongest step."
    scale = max((s for _, s in policy.get("schedule", [])), default=policy["scale"])
    total = sum(op["weight"] for op in policy["ops"])
    for op in policy["ops"]:
        low, high = (scale * most / 30 * op[key] for key in ("m_neg", "m_pos"))
        between = " or " if least == most else " to "  # of operations that go one way alone, that way
        ends = [f"{end:.3g}" for end in (0.0 - low, high) if end or least != most]
        strength = "" if units[op["name"]] == "done or not" else between.join(ends)
        lines.append(f"| {op['name']} | {strength} | {units[op['name']]} | {op['weight'] / total:.1%} |")
    return [*lines, *(["", *always] if always else []), ""]


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
