r"""Is this data still drawn like that data? A two-sample Kolmogorov-Smirnov test of two sets, or of a policy.

Run:    python ks_test.py --real FOLDER --other FOLDER|synthetic --out runs/ks       two sets of photos
        python ks_test.py --real FOLDER --augment trivial|policy.json --out runs/ks  a policy
        python ks_test.py --real FOLDER --ops --out runs/ks                          each operation's range
Needs:  photos of people, no label; with --init a parser that has not seen them
Writes: ks_report.json, ks_report.md, pictures, TensorBoard events; with --ops policy.json   -> --augment
Expect: one sentence, and exit status 0 PASS, 1 REJECT, 3 UNDERPOWERED or BLIND (cannot tell), 2 a mistake

Accepted is what is not told apart at --alpha: confidence against "drawn alike" below 1 - alpha. That
proves nothing, so the report says what would have been seen. Each split takes other people for each side,
one photo of each; before any verdict, real photos are tested against real ones, and against ruined ones.
"""

import argparse
import functools
import hashlib
import itertools
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from tqdm import tqdm

from datasets import transforms
from datasets.sides import open_side, refuse_copies, trained_on
from models import build_model, restore
from utils import checkpoint, dist, draw, features, ks, ks_report, rng
from utils.errors import UserError, positive, run
from utils.log import RunLog, open_run

EXIT = {"PASS": 0, "REJECT": 1, "UNDERPOWERED": 3, "BLIND": 3}
WEAK = 2.0  # standard deviations: if only larger shifts would be seen, the test cannot pass anything
CALM = 0.09  # share of real-against-real tests that may reject at .05: 5 % and 2.58 standard errors of 200
UNSEEN = 2 / 255  # a mean change of the pixels below this is none: an operation that spares these photos
BISECTIONS, GRID = 6, 9  # steps to find a magnitude; points where D does not grow with it
MOST = 2.0  # the policy as a whole may be stronger than its operations alone, since it mixes them
SECOND, THIRD = 7_100_003, 7_200_003  # added to the seed: synthetic faces of the other side, and of the PCA
THIRD_PART = 256  # synthetic faces that the PCA of --features encoder is fitted on
BINARY = ("autocontrast", "equalise", "flip")  # operations that have no magnitude


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    g = p.add_argument_group("data")
    g.add_argument("--real", metavar="FOLDER", required=True, help="a data set, or a folder of photos")
    g.add_argument("--real-split", nargs="+", metavar="SPLIT", help="of them (default: all but test)")
    g.add_argument("--real-yaw", type=float, nargs=2, metavar=("FROM", "TO"), help="|yaw| in degrees")
    what = g.add_mutually_exclusive_group(required=True)
    what.add_argument("--other", metavar="FOLDER", help="what to compare with it: another one, or synthetic")
    what.add_argument("--augment", help="none, flip, randaugment, trivial, cutmix, or a policy.json")
    what.add_argument("--ops", action="store_true", help="test every operation alone, then all of them")
    g.add_argument("--other-split", nargs="+", metavar="SPLIT", help="of --other (likewise)")
    g.add_argument("--other-yaw", type=float, nargs=2, metavar=("FROM", "TO"), help="|yaw| in degrees")
    g.add_argument("--drop-copies", action="store_true", help="leave photos out that show twice")
    g.add_argument("--size", type=positive, help="side of the images, pixels (default: of --init, else 128)")
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", help="a parser; people it was trained on are left out")
    g.add_argument("--encoder", default="unet", help="a model, where there is no --init (default unet)")
    g.add_argument("--weights", default="none", help="its weights: none (default), imagenet, coco or a file")
    g = p.add_argument_group("test")
    g.add_argument("--features", nargs="+", choices=["bbsd", "encoder", "pixel", "mask"],
                   help="what an image is to the test (default: bbsd with --init, else encoder)")  # fmt: skip
    g.add_argument("--n", type=positive, default=32,
                   help="people a side, at most (default 32): more of them see smaller shifts")  # fmt: skip
    g.add_argument("--splits", type=positive, default=15, help="into two sides (default 15)")
    g.add_argument("--permutations", type=positive, default=499, help="of each split (default 499)")
    g.add_argument("--alpha", type=float, default=0.05, help="level of the test (default .05)")
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=int, default=0, help="splits, permutations, augmentation (default 0)")
    g.add_argument("--batch-size", type=positive, default=16, help="images per process (default 16)")
    g.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/ks", help="run folder (default runs/ks)")
    return p


# ---- what is done to photos. float (B, 3, H, W) in [0, 1] -> the same


def _shuffled(images, cells=8):
    """Squares of the photo in another order, one order for all."""
    side = images.shape[-1] // cells
    tiles = images[..., : side * cells, : side * cells].unfold(2, side, side).unfold(3, side, side)
    tiles = tiles.flatten(2, 3)[:, :, rng.order(0, 0, cells * cells)]
    return tiles.unflatten(2, (cells, cells)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def only(name, sign, m):
    """The policy that does one operation to every photo, at magnitude m in the direction of sign."""
    if name == "flip":
        return {**transforms.FLIP, "flip": 1.0}
    op = {"name": name, "m_neg": m * (sign < 0), "m_pos": m * (sign > 0), "weight": 1.0}
    return {**transforms.FLIP, "flip": 0.0, "num_ops": 1, "levels": [30, 30], "ops": [op]}


CONTROLS = {
    "invert": lambda images: 1 - images,
    "rotate 180": lambda images: images.flip(2, 3),
    "8 x 8 shuffle": _shuffled,
    "solarise .3": only("solarise", 1, 0.7),
    "noise .3": only("noise", 1, 0.3),
    "blur 8 of 128 px": only("blur", 1, 6.25),
    "translate 1/2": only("translate_x", 1, 0.5),
}


def render(images, change=None, seed=0):
    """(N, 3, 2 S, 2 S) uint8 -> (N, 3, S, S) uint8, changed by a policy (a dict), a function or nothing."""
    done = []
    for first in range(0, len(images), 32):
        batch = images[first : first + 32]
        if isinstance(change, dict):
            rows, blank = torch.arange(first, first + len(batch)), torch.zeros_like(batch[:, 0])
            batch = transforms.augment(batch, blank, change, seed, rows, [])[0]
        else:
            batch = (change or (lambda same: same))(batch.float() / 255)
        done.append((F.avg_pool2d(batch, 2) * 255).round().to(torch.uint8))
    return torch.cat(done)


# ---- verdicts


def verdict(figures, alpha):
    """(status, the sentence for people) of the figures of a report."""
    f, n = figures, "{n} people against {n_other}".format(**figures)
    shift, blind = f["shift_seen"], [name for name, share in f["power"].items() if share < ks.SEEN]
    if f["type1_rate"] > CALM:
        return "BLIND", ("No verdict: real photos against real ones are rejected in "
                         f"{f['type1_rate']:.0%} of the tests: it is off.")  # fmt: skip
    if f["smallest_p"] > ks.level_of(alpha, f["splits"]):
        return "UNDERPOWERED", (f"No verdict: {n} can never give a p below {f['smallest_p']:.3f}, whatever "
                                "they look like; more people are needed.")  # fmt: skip
    if f["p"] <= alpha:
        chance = f"; chance seldom gives {f['d_critical']:.2f}" if f["d_max"] > f["d_critical"] else ""
        return "REJECT", (f"Told apart at {alpha:g} with {n}: most by `{f['feature']}`, with distributions "
                          f"{f['d_max']:.2f} apart{chance}.")  # fmt: skip
    if shift is None or shift > WEAK:
        size = "of 3" if shift is None else f"just below {shift:.2f}"
        return "UNDERPOWERED", (f"No verdict: with {n}, a shift {size} standard deviations in one feature is "
                                "missed more than once in five; more people are needed.")  # fmt: skip
    if blind:
        return "BLIND", f"No verdict: these features do not see {', '.join(blind)}; try others (--features)."
    return "PASS", (f"Not distinguishable at {alpha:g} with {n}; a shift of {shift:.2f} standard deviations "
                    "in any one feature would have been seen four times in five.")  # fmt: skip


def largest_accepted(policy_at, bound, judge, change_of, alpha, binary=False):
    """The largest magnitude in (0, bound] that is accepted: {"m", "status", "p", "d", "full", "trail"}.

    policy_at(m) -> a policy; judge(policy) -> the gate's figures; change_of(policy) -> the mean change of a
    pixel in [0, 1]. trail: what was tried, [m, p, d_max]; full: each feature's D at full range. Where D does
    not grow with m, a grid finds the first rejection, below which the bisection begins again.
    """
    trail, full = [], []

    def accepts(m):
        figures = judge(policy_at(m))
        trail.append([m, figures["p"], figures["d_max"]])
        full.extend(figures["d"] if not full else [])
        return figures["p"] > alpha

    def bisect(low, high):
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if accepts(middle) else (low, middle)
        return low

    if accepts(bound):  # unseen at full strength: it spares these photos, or the features are blind to it
        low, status = bound, "PASS" if change_of(policy_at(bound)) < UNSEEN else "BLIND"
    else:
        low = 0.0 if binary else bisect(0.0, bound)
        if not binary and not spearmanr(*np.array(trail)[:, ::2].T).statistic >= 0.9:
            low = max([0.0, *itertools.takewhile(accepts, np.linspace(0, bound, GRID + 1)[1:].tolist())])
            low = bisect(low, low + bound / GRID)
        status = "PASS" if low else "REJECT"
    _, p, d = next((row for row in trail if row[0] == low), (0.0, 1.0, 0.0))
    return {"m": low, "status": status, "p": p, "d": d, "full": full, "trail": sorted(trail)}


def search(judge, change_of, alpha):
    """{operation: its largest accepted magnitudes}, of `transforms.WIDE` and the flip; see above."""
    ops, flip = {}, {"name": "flip", "m_neg": 0.0, "m_pos": 1.0}
    for op in tqdm([*transforms.WIDE, flip], "operations", disable=None):
        name, found = op["name"], {}
        for key, sign in (("neg", -1), ("pos", 1)):
            if op[f"m_{key}"]:
                at = functools.partial(only, name, sign)
                found[key] = largest_accepted(at, op[f"m_{key}"], judge, change_of, alpha, name in BINARY)
        verdicts = {f["status"] for f in found.values()}
        status = next(s for s in ("BLIND", "PASS", "REJECT") if s in verdicts)
        largest = {f"m_{key}": found[key]["m"] if key in found else 0.0 for key in ("neg", "pos")}
        ops[name] = {**largest, "status": status, **found}
    return ops


def composed(ops, scale):
    """The policy of all that passed, one operation an image, at `scale` times what was accepted of each."""
    kept = []
    for op in transforms.WIDE:
        found, bound = ops[op["name"]], max(op["m_neg"], op["m_pos"])
        most = bound / max(scale, 1)  # so that no scale leads beyond full range
        signs = [found.get(key, {"status": None}) for key in ("neg", "pos")]
        minus, plus = (min(s["m"], most) if s["status"] == "PASS" else 0.0 for s in signs)
        if minus or plus:
            kept.append({"name": op["name"], "m_neg": minus, "m_pos": plus, "weight": 1.0})
    flip = 0.5 if ops["flip"]["status"] == "PASS" else 0.0
    return {"schema": 1, "kind": "ks-trivial", **transforms.FLIP, "flip": flip, "num_ops": int(bool(kept)),
            "p_identity": 0.1, "scale": scale, "ops": kept}  # fmt: skip


# ---- what is read off photos


def choose_columns(found, classes):
    """[(kind, column, name)] of the numbers that are tested, of the tables (rows, d) of each kind."""
    names = {"pixel": features.PIXEL.split(", "), "mask": [f"mask {c}" for c in classes]}
    columns = [
        (kind, i, names[kind][i] if kind in names else f"direction {i + 1}")
        for kind in sorted(found.keys() - {"shown", "bbsd"})
        for i in range(found[kind].shape[1])
    ]
    if "bbsd" in found:  # its places give way to others
        chosen = features.bbsd_columns(found["bbsd"].mean(0), classes, features.MOST - len(columns))
        columns = [("bbsd", *column) for column in chosen] + columns
    if len(columns) > features.MOST:
        raise UserError(f"--features: {len(columns)} numbers an image; at most {features.MOST}, choose fewer")
    return columns


def contact(photos, ops):
    """What each accepted magnitude does to these photos (4, 3, 2 S, 2 S), and 1.5 times it beside it."""
    cells, titles = [render(photos).repeat(2, 1, 1, 1)], ["as they are;\nleft: accepted,\nright: 1.5 times"]
    for name, op in ops.items():
        for key, sign in (("neg", -1), ("pos", 1)):
            if m := op[f"m_{key}"]:
                cells.append(torch.cat([render(photos, only(name, sign, k * m)) for k in (1, 1.5)]))
                titles.append(f"{name} {sign * m:.2g}")
    return ks_report.contact(torch.stack(cells).permute(0, 1, 3, 4, 2).numpy(), titles)


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def main(args):
    # ---- setup ----
    out = pathlib.Path(args.out)
    if (out / "ks_report.json").is_file():
        raise UserError(f"--out {out}: holds a report already; name another")
    if not 0 < args.alpha < 1:
        raise UserError(f"--alpha {args.alpha}: need a level between 0 and 1")
    if not args.other and (args.other_split or args.other_yaw):
        raise UserError("--other-split and --other-yaw: of which --other?")
    policy = transforms.load_policy(args.augment) if args.augment else None
    if policy and policy.get("schedule"):  # at its strongest
        policy = {**policy, "scale": max(scale for _, scale in policy["schedule"])}
    device = dist.init(args.device)[2]
    state = checkpoint.load(args.init) if args.init else None
    kinds = args.features or ["bbsd" if state else "encoder"]
    if "bbsd" in kinds and not state:
        raise UserError("--features bbsd: needs a parser; --init FILE, or --features encoder")
    size = args.size or (state["args"]["size"] if state else 128)
    classes = state["data"]["classes"] if state else None

    seen = trained_on(args.init)
    open_run(out, resume=False)

    # ---- data ----
    which = args.real, args.real_split, args.real_yaw
    real, notes = open_side(*which, args.n, size, args.seed, classes, seen)
    other = None
    if args.other:
        which = args.other, args.other_split, args.other_yaw
        other, more = open_side(*which, args.n, size, args.seed + SECOND, real.classes, seen)
        notes += more
    real, other, more = refuse_copies(real, other, args.drop_copies)
    notes += more
    if "mask" in kinds and not (other and real.classes == other.classes and (real.labels < 255).any()):
        raise UserError("--features mask: needs --other with masks of the same classes as --real has")
    everyone = real.join(other) if other else real
    people = ks.by_person(real.people)
    facing = ks.by_person(other.people, len(real.ids)) if other else people
    n, m = ks.sizes(people, facing, args.n)
    if min(n, m) < 2:
        raise UserError(f"{n} people against {m}: a test needs two a side, and twenty to see much")
    splits = ks.draw_splits(people, facing, n, m, args.splits, args.seed)

    # ---- model ----
    names = state["data"]["classes"] if state else real.classes
    torch.manual_seed(0)  # a random encoder is always the same one, whatever --seed
    net = restore(state, device) if state else build_model(args.encoder, 2, args.weights).to(device).eval()
    project, normalise = None, transforms.normalise
    extract = features.extractor(kinds, net, normalise, len(names), device, args.batch_size)
    if "encoder" in kinds:
        third = open_side("synthetic", None, None, THIRD_PART // 4, size, args.seed + THIRD)[0]
        project = features.principal(extract(render(third.images), third.labels)["encoder"])

    def read(change=None, seed=args.seed):
        """Everyone's photos, changed -> {kind: (rows, d)}."""
        found = extract(render(everyone.images, change, seed), everyone.labels)
        if project:
            found["encoder"] = (found["encoder"] - project[0]) @ project[1]
        return found

    found = read()
    columns = choose_columns(found, names)

    def table(found):
        return np.stack([found[kind][:, i] for kind, i, _ in columns], 1)

    # ---- test ----
    log = RunLog(out, vars(args))
    alpha, count, pool = args.alpha, args.permutations, table(found)
    whole = ks.by_person(everyone.people)
    alike = ks.draw_splits(whole, whole, n, m, args.splits, args.seed)  # sides that differ in nothing

    def judge(change=None, splits=splits, seed=args.seed):
        """The gate's figures: one side changed, the other as it is."""
        return ks.gate(table(read(change, seed)) if change else pool, pool, splits, seed, count, alpha)

    p_null = ks.null_p(pool, people, min(n, len(people) // 2), args.seed, permutations=count)
    shift, shares = ks.smallest_shift(pool, alike, args.seed, count, alpha)
    power = {name: judge(change, alike)["reject_share"] for name, change in CONTROLS.items()}
    figures = {
        "n": n, "n_other": m, "alpha": alpha, "splits": len(splits), "permutations": count, "seed": args.seed,
        "smallest_p": ks.smallest_p(n, m, count), "type1_rate": float((p_null <= alpha).mean()),
        "shift_seen": None if math.isinf(shift) else round(shift, 2), "power": power, "ops": {},
    }  # fmt: skip
    ops, chosen, seed = {}, splits, args.seed
    if args.ops and verdict({**figures, "p": 1.0}, alpha)[0] != "UNDERPOWERED":
        plain = render(everyone.images).float() / 255
        ops = search(judge, lambda p: (render(everyone.images, p, seed) / 255 - plain).abs().mean(), alpha)
        scale = largest_accepted(functools.partial(composed, ops), MOST, judge, lambda p: 1.0, alpha)["m"]
        for attempt in range(4):  # a magnitude found at the edge is confirmed on other splits, or taken back
            policy = composed(ops, scale * 0.8**attempt)
            seed = args.seed + 1 + attempt
            chosen = ks.draw_splits(people, facing, n, m, args.splits, seed)
            if (outcome := judge(policy, chosen, seed))["p"] > alpha:
                break
    else:
        outcome = judge(policy)
    titles = [name for _, _, name in columns]
    d = dict(zip(titles, outcome.pop("d"), strict=True))
    figures |= {**outcome, "feature": titles[outcome["feature"]], "features": d, "ops": ops}
    figures["confidence"] = 1 - figures["p"]
    figures["status"], figures["verdict"] = verdict(figures, alpha)

    # ---- finish ----
    shas = {"real": real.digest(), "other": other and other.digest(), "init": args.init and sha256(args.init)}
    changed, (one, two) = read(policy, seed) if policy else found, chosen[0]
    shown = ks.distances(changed["shown"][one], found["shown"][two])
    shown = dict(zip(features.SHOWN.split(", "), shown.tolist(), strict=True))
    sides = ["real", "other"] if other else ["augmented", "real"]
    report = {"schema": 1, **figures, "sides": sides, "shown": shown, "sha256": shas, "notes": notes}
    made = ks_report.pictures(report, table(changed)[one], pool[two], titles, p_null, shares)
    if ops:
        made["faces"] = contact(everyone.images[chosen[0][0][:4]], ops)
    for name, picture in made.items():
        draw.write(out / f"{name}.png", picture)
        log.image(0, f"ks/{name}", picture)
    log.scalars(0, **{f"ks/{k}": report[k] for k in ("p", "d_max", "d_critical", "type1_rate")})
    log.close()
    (out / "ks_report.md").write_text(ks_report.markdown(report, made))
    passed = ops and report["status"] == "PASS"
    if passed:
        (out / "policy.json").write_text(json.dumps(policy, indent=1) + "\n")
    (out / "ks_report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(*notes, f"{report['status']}: {report['verdict']}", sep="\n")
    print(f"wrote:   {out}/ks_report.md, ks_report.json, {', '.join(made)} as PNG")
    if passed:
        print(f"next:    python train_finetune.py --data {args.real} --augment {out}/policy.json")
    return EXIT[report["status"]]


if __name__ == "__main__":
    run(main, get_parser().parse_args())
