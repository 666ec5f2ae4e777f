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

import functools
import itertools
import math
import pathlib

import numpy as np
import scipy  # its parts load when they are first used
import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets import policies, summary
from datasets.augmentation import augment
from datasets.operations import SWITCHES
from datasets.sides import open_side, refuse_copies, trained_on
from models import build_model, restore
from utils import checkpoint, cli, dist, lineage, rng
from utils.engine import runs
from utils.errors import UserError
from utils.files import sha256, write_whole
from utils.ks import features, report, test
from utils.log import RunLog, open_run
from utils.metrics import IGNORE_INDEX

EXIT = {"PASS": 0, "REJECT": 1, "UNDERPOWERED": 3, "BLIND": 3}
UNSEEN = 2 / 255  # a mean change of the pixels below this is none: an operation that spares these photos
BISECTIONS = 6  # steps to find a magnitude
GRID = 9  # points that are tried where D does not grow with the magnitude
MAX_SCALE = 2.0  # the policy as a whole may be stronger than its operations alone, since it mixes them
OTHER_SEED = 7_100_003  # added to the seed for synthetic faces of the other side
PCA_SEED = 7_200_003  # ... and for those that the PCA of --features encoder is fitted on
PCA_FACES = 256
BINARY = (*SWITCHES, "flip")  # operations that have no magnitude


def get_parser():
    p = cli.parser(__doc__)
    g = p.add_argument_group("data")
    g.add_argument("--real", metavar="FOLDER", required=True, help="a data set, or a folder of photos")
    g.add_argument("--real-split", nargs="+", metavar="SPLIT", help="of --real; all but test by default")
    g.add_argument("--real-yaw", type=float, nargs=2, metavar=("FROM", "TO"), help="|yaw| in degrees")
    what = g.add_mutually_exclusive_group(required=True)
    what.add_argument("--other", metavar="FOLDER", help="what to compare with it: another one, or synthetic")
    what.add_argument("--augment", metavar="POLICY", help="compare with --real as a policy changes it")
    what.add_argument("--ops", action="store_true", help="test every operation alone, then all of them")
    g.add_argument("--other-split", nargs="+", metavar="SPLIT", help="of --other; all but test by default")
    g.add_argument("--other-yaw", type=float, nargs=2, metavar=("FROM", "TO"), help="|yaw| in degrees")
    g.add_argument("--drop-copies", action="store_true", help="leave photos out that look like another one")
    size = "side that photos are stretched to, pixels; as --init was trained, else 128"
    g.add_argument("--size", type=cli.positive, help=size)
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", help="a parser; people it was trained on are left out")
    g.add_argument("--encoder", help="model whose features are compared, without --init; else unet")
    g.add_argument("--weights", default="none", help="none, imagenet, coco, or a file")
    g = p.add_argument_group("test")
    kinds = "numbers of an image that are compared (docs/ks.md); bbsd by default with --init, else encoder"
    g.add_argument("--features", nargs="+", choices=["bbsd", "encoder", "pixel", "mask"], help=kinds)
    g.add_argument("--n", type=cli.positive, default=32, help="people a side; more see smaller shifts")
    g.add_argument(
        "--splits", type=cli.positive, default=15, help="random divisions of the people in two sides"
    )
    g.add_argument("--permutations", type=cli.positive, default=499, help="of each split")
    g.add_argument("--alpha", type=float, default=0.05, help="level of the test")
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=cli.seed, default=0, help="of order, augmentation and all that is drawn")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    g.add_argument("--device", help="cpu or cuda; a GPU where there is one")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/ks", metavar="FOLDER", help="run folder")
    return p


# ---- what is done to photos. float (B, 3, H, W) in [0, 1] -> the same


def shuffled(images, cells=8):
    """Squares of the photo in another order, one order for all."""
    side = images.shape[-1] // cells
    tiles = images[..., : side * cells, : side * cells].unfold(2, side, side).unfold(3, side, side)
    tiles = tiles.flatten(2, 3)[:, :, rng.order(0, 0, cells * cells)]
    return tiles.unflatten(2, (cells, cells)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def only(name, sign, m):
    """The policy that does one operation to every photo, at magnitude m in the direction of sign."""
    if name == "flip":
        return {**policies.FLIP, "flip": 1.0}
    op = {"name": name, "m_neg": m * (sign < 0), "m_pos": m * (sign > 0), "weight": 1.0}
    return {**policies.FLIP, "flip": 0.0, "num_ops": 1, "levels": [30, 30], "ops": [op]}


CONTROLS = {
    "invert": lambda images: 1 - images,
    "rotate 180": lambda images: images.flip(2, 3),
    "8 x 8 shuffle": shuffled,
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
            positions = torch.arange(first, first + len(batch))
            batch = augment({"image": batch}, change, seed, positions, {})["image"]
        else:
            batch = (change or (lambda same: same))(batch.float() / 255)
        done.append((F.avg_pool2d(batch, 2) * 255).round().to(torch.uint8))
    return torch.cat(done)


# ---- how far an operation may go


def largest_accepted(policy_at, bound, judge, change_of, alpha, binary=False):
    """The largest magnitude in (0, bound] that is accepted: {"m", "status", "p", "d", "full", "trail"}.

    policy_at(m) -> a policy; judge(policy) -> the gate's figures; change_of(policy) -> the mean change of a
    pixel in [0, 1]. trail: what was tried, [m, p, d_max]; full: each feature's D at full range. Where D does
    not grow with m, a grid finds the first rejection, below which the bisection begins again.
    """
    trail = []
    at_bound = judge(policy_at(bound))

    def accepts(m):
        figures = at_bound if m == bound else judge(policy_at(m))
        trail.append([m, figures["p"], figures["d_max"]])
        return figures["p"] > alpha

    def bisect(low, high):
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if accepts(middle) else (low, middle)
        return low

    if accepts(bound):  # unseen at full strength: it spares these photos, or the features are blind to it
        low = bound
        status = "PASS" if change_of(policy_at(bound)) < UNSEEN else "BLIND"
    else:
        low = 0.0 if binary else bisect(0.0, bound)
        magnitudes, _, distances = zip(*trail, strict=True)
        if not binary and not scipy.stats.spearmanr(magnitudes, distances).statistic >= 0.9:
            low = max([0.0, *itertools.takewhile(accepts, np.linspace(0, bound, GRID + 1)[1:].tolist())])
            low = bisect(low, low + bound / GRID)
        status = "PASS" if low else "REJECT"
    _, p, d = {row[0]: row for row in trail}.get(low, (0.0, 1.0, 0.0))
    return {"m": low, "status": status, "p": p, "d": d, "full": at_bound["d"], "trail": sorted(trail)}


def search(judge, change_of, alpha):
    """{operation: its largest accepted magnitudes}, of `policies.WIDE` and the flip; see above."""
    ops = {}
    flip = {"name": "flip", "m_neg": 0.0, "m_pos": 1.0}
    for op in tqdm([*policies.WIDE, flip], "operations", disable=None):
        name = op["name"]
        sides = {}
        for key, sign in (("neg", -1), ("pos", 1)):
            if op[f"m_{key}"]:
                policy_at = functools.partial(only, name, sign)
                bound = op[f"m_{key}"]
                binary = name in BINARY
                sides[key] = largest_accepted(policy_at, bound, judge, change_of, alpha, binary)
        verdicts = {side["status"] for side in sides.values()}
        status = next(s for s in ("BLIND", "PASS", "REJECT") if s in verdicts)
        largest = {f"m_{key}": sides[key]["m"] if key in sides else 0.0 for key in ("neg", "pos")}
        ops[name] = {**largest, "status": status, **sides}
    return ops


def composed(ops, scale):
    """The policy of all that passed, one operation an image, at `scale` times what was accepted of each."""
    kept = []
    for op in policies.WIDE:
        full_range = max(op["m_neg"], op["m_pos"])
        most = full_range / max(scale, 1)  # so that no scale leads beyond full range
        sides = [ops[op["name"]].get(key, {"status": None}) for key in ("neg", "pos")]
        minus, plus = (min(side["m"], most) if side["status"] == "PASS" else 0.0 for side in sides)
        if minus or plus:
            kept.append({"name": op["name"], "m_neg": minus, "m_pos": plus, "weight": 1.0})
    flip = 0.5 if ops["flip"]["status"] == "PASS" else 0.0
    return {
        "schema": 1,
        "kind": "ks-trivial",
        **policies.FLIP,
        "flip": flip,
        "num_ops": int(bool(kept)),
        "p_identity": 0.1,
        "scale": scale,
        "ops": kept,
    }


def contact(photos, ops):
    """What each accepted magnitude does to these photos (4, 3, 2 S, 2 S), and 1.5 times it beside it."""
    cells = [render(photos).repeat(2, 1, 1, 1)]
    titles = ["as they are;\nleft: accepted,\nright: 1.5 times"]
    for name, op in ops.items():
        for key, sign in (("neg", -1), ("pos", 1)):
            if m := op[f"m_{key}"]:
                cells.append(torch.cat([render(photos, only(name, sign, k * m)) for k in (1, 1.5)]))
                titles.append(f"{name} {sign * m:.2g}")
    return report.contact(torch.stack(cells).permute(0, 1, 3, 4, 2).numpy(), titles)


def main(args):
    # ---- setup ----
    runs.end_on_signals("a test keeps nothing; the same command begins it again")
    out = pathlib.Path(args.out)
    if (out / "ks_report.json").is_file():
        raise UserError(f"--out {out}: holds a report already; name another")
    if not 0 < args.alpha < 1:
        raise UserError(f"--alpha {args.alpha}: need a level between 0 and 1")
    for flag, yaw in (("--real-yaw", args.real_yaw), ("--other-yaw", args.other_yaw)):
        if yaw and not 0 <= yaw[0] <= yaw[1]:
            raise UserError(f"{flag} {yaw[0]:g} {yaw[1]:g}: need |yaw| FROM 0 or more TO as much or more")
    if not args.other and (args.other_split or args.other_yaw):
        raise UserError("--other-split and --other-yaw: need --other")
    policy = policies.load_policy(args.augment) if args.augment else None
    if policy and policy.get("schedule"):  # at its strongest
        policy = {**policy, "scale": max(scale for _, scale in policy["schedule"])}
    device = dist.init(args.device)[2]
    state = checkpoint.load(args.init) if args.init else None
    if state:
        weights = "beside --init, which has weights" if args.weights != "none" else None
        cli.refuse_without_effect(args, {"encoder": "beside --init, a model", "weights": weights})
    kinds = args.features or ["bbsd" if state else "encoder"]
    if "bbsd" in kinds and not state:
        raise UserError("--features bbsd: needs a parser; --init FILE, or --features encoder")
    size = args.size or (state["args"]["size"] if state else 128)
    classes = state["data"]["classes"] if state else None

    seen, notes = trained_on(args.init)
    open_run(out, resume=False)

    # ---- data ----
    n = args.n
    seed = args.seed
    real, more = open_side(args.real, args.real_split, args.real_yaw, n, size, seed, classes, seen)
    notes += more
    if "mask" in kinds and state and state["data"]["classes"] != real.classes:
        raise UserError(
            f"--features mask: {args.real} has the classes {' '.join(real.classes)}; {args.init} was trained "
            f"on {' '.join(state['data']['classes'])}"
        )
    other = None
    if args.other:
        seed = args.seed + OTHER_SEED
        classes = real.classes
        other, more = open_side(args.other, args.other_split, args.other_yaw, n, size, seed, classes, seen)
        notes += more
    try:
        real, other, more = refuse_copies(real, other, args.drop_copies)
    except UserError as error:
        raise UserError(f"{error} (--drop-copies)") from None
    notes += more
    comparable = other and real.classes == other.classes and (real.labels != IGNORE_INDEX).any()
    if "mask" in kinds and not comparable:
        raise UserError("--features mask: needs --other with masks of the same classes as --real has")
    everyone = real.join(other) if other else real
    people = test.by_person(real.people)
    other_people = test.by_person(other.people, len(real.ids)) if other else people
    n, m = test.sizes(people, other_people, args.n)
    if min(n, m) < 2:
        raise UserError(f"{n} people against {m}: a test needs two a side, and twenty to see much")
    splits = test.draw_splits(people, other_people, n, m, args.splits, args.seed)

    # ---- model ----
    names = state["data"]["classes"] if state else real.classes  # of the classes that a network tells apart
    torch.manual_seed(0)  # a random encoder is always the same one, whatever --seed
    net = (
        restore(state, device)
        if state
        else build_model(args.encoder or "unet", 2, args.weights).to(device).eval()
    )
    project = None
    extract = features.extractor(kinds, net, len(names), device, args.batch_size)
    if "encoder" in kinds:
        strangers = open_side("synthetic", None, None, PCA_FACES // 4, size, args.seed + PCA_SEED)[0]
        project = features.principal(extract(render(strangers.images), strangers.labels)["encoder"])

    def read(change=None, seed=args.seed):
        """Everyone's photos, changed -> {kind: (rows, d)}."""
        tables = extract(render(everyone.images, change, seed), everyone.labels)
        if project:
            mean, directions = project
            tables["encoder"] = (tables["encoder"] - mean) @ directions
        return tables

    unchanged = read()
    columns = features.choose_columns(unchanged, names)

    def table(tables):
        """The numbers that are tested, (rows, d)."""
        return np.stack([tables[kind][:, i] for kind, i, _ in columns], 1)

    # ---- test ----
    log = RunLog(out, vars(args))
    sides = {"real": real} | ({"other": other} if other else {})
    held = {side: summary.identify(photos, photos.classes) for side, photos in sides.items()}
    named = cli.files_of(args)
    paths = {"real": args.real, "other": args.other}
    origin = lineage.origin("ks_test.py", args.out, held, paths, named, {args.init: state})
    lineage.begin(out, origin, vars(args), named)
    alpha = args.alpha
    count = args.permutations
    pool = table(unchanged)
    all_people = test.by_person(everyone.people)
    null_splits = test.draw_splits(all_people, all_people, n, m, args.splits, args.seed)  # sides drawn alike

    def judge(change=None, splits=splits, seed=args.seed):
        """The gate's figures: one side changed, the other as it is."""
        return test.gate(table(read(change, seed)) if change else pool, pool, splits, seed, count, alpha)

    p_null = test.null_p(pool, people, min(n, len(people) // 2), args.seed, permutations=count)
    shift, shares = test.smallest_shift(pool, null_splits, args.seed, count, alpha)
    power = {name: judge(change, null_splits)["reject_share"] for name, change in CONTROLS.items()}
    figures = {
        "n": n,
        "n_other": m,
        "alpha": alpha,
        "splits": len(splits),
        "permutations": count,
        "seed": args.seed,
        "smallest_p": test.smallest_p(n, m, count),
        "type1_rate": float((p_null <= alpha).mean()),
        "shift_seen": None if math.isinf(shift) else round(shift, 2),
        "power": power,
        "ops": {},
    }
    ops = {}
    seed = args.seed
    if args.ops and report.verdict({**figures, "p": 1.0}, alpha)[0] != "UNDERPOWERED":
        plain = render(everyone.images).float() / 255

        def change_of(policy):
            """The mean change of a pixel."""
            return (render(everyone.images, policy, args.seed) / 255 - plain).abs().mean()

        ops = search(judge, change_of, alpha)
        policy_at = functools.partial(composed, ops)
        scale = largest_accepted(policy_at, MAX_SCALE, judge, lambda policy: 1.0, alpha)["m"]
        for attempt in range(4):  # a magnitude found at the edge is confirmed on other splits, or taken back
            policy = composed(ops, scale * 0.8**attempt)
            seed = args.seed + 1 + attempt
            splits = test.draw_splits(people, other_people, n, m, args.splits, seed)
            if (outcome := judge(policy, splits, seed))["p"] > alpha:
                break
    else:
        outcome = judge(policy)
    titles = [name for _, _, name in columns]
    d = dict(zip(titles, outcome.pop("d"), strict=True))
    figures |= {**outcome, "feature": titles[outcome["feature"]], "features": d, "ops": ops}
    figures["confidence"] = 1 - figures["p"]
    figures["status"], figures["verdict"] = report.verdict(figures, alpha)

    # ---- finish ----
    digests = {"real": real.digest(), "other": other and other.digest()}
    digests["init"] = args.init and sha256(args.init)
    one, two = splits[0]
    changed = read(policy, seed) if policy else unchanged
    shown = test.distances(changed["shown"][one], unchanged["shown"][two])
    shown = dict(zip(features.SHOWN, shown.tolist(), strict=True))
    sides = ["real", "other"] if other else ["augmented", "real"]
    figures = {"schema": 1, **figures, "sides": sides, "shown": shown, "sha256": digests, "notes": notes}
    pictures = report.pictures(figures, table(changed)[one], pool[two], titles, shares)
    if ops:
        pictures["faces"] = contact(everyone.images[one[:4]], ops)
    for name, picture in pictures.items():
        log.image(0, f"ks/{name}", picture, f"{name}.png")
    log.histogram(0, "ks/null", p_null)  # of real against real: even, if all is well
    log.scalars(0, **{f"ks/{k}": figures[k] for k in ("p", "d_max", "d_critical", "type1_rate")})
    log.close()
    write_whole(out / "ks_report.md", report.markdown(figures, pictures))
    passed = ops and figures["status"] == "PASS"
    if passed:
        runs.write_json(out, "policy.json", policy | {"lineage": lineage.as_json(origin)})
    runs.write_json(out, "ks_report.json", figures)  # last: with it, all is there
    print(*notes, f"{figures['status']}: {figures['verdict']}", sep="\n")
    print(f"wrote:   {out}/ks_report.md, ks_report.json, {', '.join(pictures)} as PNG")
    if passed:
        policy_file = out / "policy.json"
        flags = f"--data {args.real} --augment {policy_file} --out {out}_finetune"
        print(f"next:    python train_finetune.py {flags}")
    elif args.ops:
        print("no policy.json: only a PASS gives one")
    return EXIT[figures["status"]]


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
