"""Train a student on labelled photos and on what a teacher says of others that nobody labelled.

Run:    python train_student.py --teacher runs/mine/last.pt --unlabelled PHOTOS --out runs/student
        python train_student.py --teacher a/last.pt b/last.pt --unlabelled PHOTOS --out runs/of_two
        python train_student.py --teacher a/last.pt --unlabelled PHOTOS --students unet --out runs/small
Needs:  one checkpoint or several of any script here, of the same classes and size; the labelled photos that
        they were trained on, or others; photos. For classifiers of images the same
Writes: best.pt (by validation mean F1, of a classifier by accuracy), last.pt, args.json, metrics.jsonl,
        TensorBoard events, train_batch.png, pseudo.png and val.png into --out
Expect: docs/student.md   -> evaluate.py, predict.py or train_scores.py --init runs/student/last.pt

Who labels the photos, and how, is what methods differ in: a teacher that stays as it is (pseudo-labels,
distillation, Noisy Student) or one that follows the student (--ema: Mean Teacher, FixMatch), with classes or
with probabilities.
"""

import copy
import math
import time

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from datasets import batches, labelled, splits, summary
from datasets.augmentation import augment, mirror
from datasets.faces import label_info
from datasets.images import to_float
from datasets.policies import POLICIES, at_step, chosen_by, load_policy
from datasets.synthetic import scheme_of
from models import build_like, freeze, keep_frozen_eval, load_weights, restore
from models.classifier import check_size, without_domains
from utils import checkpoint, class_metrics, cli, dist, draw, lineage, metrics, rng
from utils.errors import UserError
from utils.log import RunLog
from utils.losses import LOSSES
from utils.muon import Muon
from utils.teaching import (
    described,
    distillation,
    hard_labels,
    measure_statistics,
    norms_of,
    pseudo_scalars,
    soften,
    survey,
    targets_of,
    vanished,
    yaw_bins,
)

WARMUP = 0.05  # share of the steps of a round
RAMP = 0.1  # share of the steps of a round in which the weight of a following teacher's labels grows to 1
WEIGHT_DECAY = 0.01
LOG_EVERY = 10  # steps between two lines of metrics.jsonl
FIGURES = {  # of validation, in words; best.pt is chosen by the first
    "semantic": {"mean_f1": "mean F1", "miou": "mIoU"},
    "class": {"accuracy": "accuracy", "macro_f1": "macro F1"},
}
TEACHING = {
    "unlabelled_share": 0.5,
    "unlabelled_weight": 1.0,
    "order": "mixed",
    "target": "hard",
    "threshold": 0.9,
    "keep": 0.5,
    "temperature": 1.0,
}
# a student that goes on from its teacher, and one that begins anew
WARM = {"ema": 0.99, "bn": "frozen", "steps": 400, "lr": 5e-4}
FRESH = {"ema": 0.0, "bn": "batch", "steps": 1000, "lr": 3e-3}


def get_parser():
    p = cli.parser(__doc__)
    g = p.add_argument_group(
        "data", "--data, --val-fraction, --ids and --allow-empty: else as --teacher was trained"
    )
    g.add_argument("--data", help="folder of faces, or of images with classes, or synthetic or shapes")
    share = "of the people held out, where the data has no validation split; 0: nobody"
    g.add_argument("--val-fraction", type=cli.below_one, metavar="SHARE", help=share)
    cli.add_who_trains(g)
    share = "share of every batch that is synthetic faces"
    g.add_argument("--synthetic", type=cli.share, default=0.0, metavar="SHARE", help=share)
    policy = (
        f"of what the student sees: {', '.join(POLICIES)}, or a policy.json; where it is not given, cutmix, "
        "on synthetic flip, of a classifier as its teacher's"
    )
    g.add_argument("--augment", metavar="POLICY", help=policy)
    g = p.add_argument_group("model")
    g.add_argument("--teacher", nargs="+", metavar="FILE", help="checkpoints; of several the mean counts")
    fresh = "models to begin anew with, one for each round; without, the teacher's network goes on"
    g.add_argument("--students", nargs="+", default=[], metavar="MODEL", help=fresh)
    g.add_argument("--weights", default="none", help="none, imagenet, coco, or a file")
    stages = "none, backbone, or how many of its first stages stay as they are"
    g.add_argument("--freeze", default="none", metavar="WHAT", help=stages)
    scale = "the backbone's rate, times --lr"
    g.add_argument("--backbone-lr-scale", type=cli.at_least_zero, default=1.0, help=scale)
    statistics = (
        "BatchNorm: as the teacher's, of the batch, or of the batch and then measured on --unlabelled"
    )
    g.add_argument("--bn", choices=["frozen", "batch", "unlabelled"], help=statistics)
    g = p.add_argument_group(
        "teaching", f"where a flag is not given: {cli.as_flags(TEACHING)}; --ema as below"
    )
    photos = "photos, or a data set, whose labels are left alone; or synthetic or shapes"
    g.add_argument("--unlabelled", metavar="FOLDER", help=photos)
    share = "share of every batch that is of --unlabelled"
    g.add_argument("--unlabelled-share", type=cli.below_one, metavar="SHARE", help=share)
    weight = "of the loss on --unlabelled, against 1"
    g.add_argument("--unlabelled-weight", type=cli.above_zero, metavar="WEIGHT", help=weight)
    order = "of --unlabelled: mixed, or opened in six parts: frontal first, sure first, or random ones"
    g.add_argument("--order", choices=["mixed", "yaw", "confidence", "random"], help=order)
    target = "classes where the teacher is sure, or its probabilities everywhere"
    g.add_argument("--target", choices=["hard", "soft"], help=target)
    sure = "probability from which a pixel, or an image, is sure (hard)"
    g.add_argument("--threshold", type=cli.share, metavar="P", help=sure)
    keep = "share of each class, by |yaw|, that is sure in any case (hard)"
    g.add_argument("--keep", type=cli.share, metavar="SHARE", help=keep)
    average = "the teacher is an average of the student, which is kept, too; 0: it stays as it is"
    g.add_argument("--ema", type=cli.below_one, metavar="DECAY", help=average)
    distill = "share of the loss on labelled photos that is distance from the teacher"
    g.add_argument("--distill", type=cli.share, default=0.0, metavar="SHARE", help=distill)
    heat = "divides logits where probabilities are compared; 2 with --distill"
    g.add_argument("--temperature", type=cli.above_zero, help=heat)
    rounds = "parts of --steps; the student of one is the teacher of the next"
    g.add_argument("--rounds", type=cli.positive, default=1, help=rounds)
    defaults = f"{cli.as_flags(WARM)}; with --students {cli.as_flags(FRESH)}"
    g = p.add_argument_group("optimisation", f"where a flag is not given: {defaults}")
    g.add_argument("--steps", type=cli.positive, help="optimiser steps")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    muon = "muon: needs about half of the steps (docs/record.md)"
    g.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw", help=muon)
    g.add_argument("--lr", type=cli.above_zero, help="peak rate")
    g.add_argument("--grad-clip", type=cli.above_zero, default=1.0, help="largest gradient norm")
    cli.add_runtime_flags(p)
    cli.add_output_flags(p, out="runs/student", eval_every=100)
    return p


# >>> shared: schedule
def lr_at(step, steps, peak):
    """Linear warm-up, then half a cosine to zero. Pure in `step`, so there is no scheduler state."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# <<< shared: schedule


@torch.no_grad()
def teach(predict, teachers, images, pairs, both=True):
    """(B, 3, H, W) -> (B, K, H, W), or (B, K): the mean of the teachers' probabilities for photos as they are
    and, with `both`, for their mirror images, turned back. pairs: class ids that a mirror swaps."""
    probs = 0.0
    for teacher in teachers:
        said = predict(images, teacher).softmax(1)
        if both:
            mirrored = predict(images.flip(-1), teacher).softmax(1)
            said = (said + mirror(mirrored, pairs)) / 2
        probs = probs + said / len(teachers)
    return probs


def ranking(order, data, label, batch_size, seed):
    """All rows of the unlabelled photos, in the order in which --order opens them."""
    rows = list(range(len(data)))
    if order == "random":
        return rng.order(seed, 0, len(data)).tolist()
    if order == "yaw":
        if None in data.yaws:
            unknown = data.yaws.count(None)
            raise UserError(f"--order yaw: of {unknown} photos nobody knows the yaw; --order confidence")
        return sorted(rows, key=lambda row: abs(data.yaws[row]))
    means = []
    for i in range(0, len(rows), batch_size):
        confidence = label(data[rows[i : i + batch_size]]["image"]).max(1).values  # (B, H, W), or (B,)
        means += confidence.reshape(len(confidence), -1).mean(1).tolist()
    return sorted(rows, key=lambda row: -means[row])


def mean_over_all(total, count, world):
    """A sum and a count of this process -> what it adds to the mean over all processes. DDP averages
    gradients over processes: that is undone."""
    return world * total / dist.total(count).clamp_min(1)


def refuse_contradictions(given, args, num_unlabelled):
    """Flags that exclude one another, or that nothing would come of."""
    share = f"--unlabelled-share {args.unlabelled_share:g} of {args.batch_size} images"
    if args.unlabelled and not 0 < num_unlabelled < args.batch_size:
        raise UserError(f"{share}: needs at least one of --unlabelled and one labelled")
    if args.synthetic * args.batch_size >= args.batch_size - num_unlabelled > 0:
        raise UserError(f"{share}, and --synthetic {args.synthetic:g}: leave none for labelled photos")
    if extra := args.steps % args.rounds:
        raise UserError(
            f"--steps {args.steps}: no multiple of --rounds {args.rounds}, which are equally long: try "
            f"{args.steps - extra + args.rounds}"
        )
    if args.ema and (args.students or len(args.teacher) > 1):
        raise UserError(
            f"--ema {args.ema:g}: a teacher that follows begins as its student's equal: give one --teacher, "
            "and no --students"
        )
    if len(args.students) > args.rounds:
        raise UserError(f"--students {' '.join(args.students)}: more than --rounds {args.rounds}, one each")
    if args.bn == "frozen" and args.students:
        raise UserError("--bn frozen: a student that begins anew has no statistics yet; --bn batch")
    if args.bn == "unlabelled" and (not args.unlabelled or args.freeze != "none"):
        raise UserError("--bn unlabelled: needs --unlabelled, and no --freeze, whose statistics would stay")
    if (args.students or len(args.teacher) > 1) and not (args.unlabelled or args.distill):
        raise UserError("--teacher: nothing would be asked of it: give --unlabelled, --distill or both")
    alone = None if args.unlabelled else "without --unlabelled"
    reasons = dict.fromkeys(("unlabelled_share", "unlabelled_weight", "order", "target"), alone)
    soft = args.target == "soft"
    reasons |= dict.fromkeys(("threshold", "keep"), "on --target soft" if soft else alone)
    reasons["temperature"] = None if args.distill or soft else "without --distill or --target soft"
    reasons["weights"] = None if args.students or given.weights == "none" else "without --students"
    if args.freeze == "backbone" and args.backbone_lr_scale != 1:
        reasons["backbone_lr_scale"] = "on a backbone that is frozen"
    cli.refuse_without_effect(given, reasons)


def main(args):
    # ---- setup ----
    out, args, last = cli.start_run(args, get_parser(), "train_student.py", needs=["teacher"])
    given = args
    states = [checkpoint.load(file, target=("semantic", "class")) for file in args.teacher]
    init = states[0]
    checkpoint.refuse_unlike("--teacher", args.teacher, states, preprocess=True)
    task = checkpoint.target_of(init)
    classifies = task == "class"
    if classifies:  # of whose heads it is `class` that teaches and is taught
        states = [without_domains(state) for state in states]
        init = states[0]
    rank, world, device = dist.init(args.device)
    ids = splits.ids_file(args.ids, args.data, init["args"], args.limit)
    args = cli.inherit(args, init, data=None, val_fraction=None, allow_empty=[])
    args.ids = ids
    if len(args.teacher) > 1 or not args.unlabelled:
        args = cli.fill(args, {"ema": 0.0})
    args = cli.fill(args, FRESH if args.students else WARM)
    args = cli.fill(args, {"device": device.type, "amp": dist.default_amp(device)})
    if not args.unlabelled:
        args = cli.fill(args, {"unlabelled_share": 0.0})
    if args.distill:
        args = cli.fill(args, {"temperature": 2.0})
    if classifies:
        args = cli.inherit(args, init, augment=None)
    args = cli.fill(args, {**TEACHING, "augment": "flip" if args.data == "synthetic" else "cutmix"})
    for name in args.students:  # one that cannot be, now rather than when its round begins
        student = build_like(init, name)
        try:
            check_size(student, init["args"]["size"])
        except UserError as error:
            raise UserError(f"--students {name}: {error}") from None
    flags = ("head", "dropout") if classifies else ("classes", "part_order")
    for flag in ("model", "size", *flags):  # its checkpoints say what they hold
        setattr(args, flag, init["args"][flag])
    if classifies and not last:
        args.leave_out = labelled.known_domain(args.data, init["args"].get("leave_out"))
    args.preprocess = init["args"].get("preprocess", "none")
    num_unlabelled = round(args.unlabelled_share * args.batch_size)
    num_labelled = args.batch_size - num_unlabelled
    if not last:
        refuse_contradictions(given, args, num_unlabelled)
    per_round = args.steps // args.rounds
    policy = load_policy(args.augment, task)
    inputs = cli.input_files(args, last)
    torch.manual_seed(args.seed)
    stop = dist.Stop()

    # ---- data ----
    classes = init["data"]["classes"]
    if args.data == "synthetic":
        args.classes = scheme_of(classes)
    if classifies:
        load, open_unlabelled = labelled.load, labelled.open_unlabelled
        faces = labelled.open_images(args.data, args.val_fraction, args.leave_out)
    else:
        load, open_unlabelled = batches.load, splits.open_unlabelled
        faces = splits.open_data(args.data, args.classes, args.part_order, args.val_fraction, args.ids)
    if list(faces.classes) != classes:
        lists = f"the teacher's are {' '.join(classes)}, those of --data {' '.join(faces.classes)}"
        raise UserError(f"--data {args.data}: other classes: {lists}")
    if not last and classifies:
        idle = dict.fromkeys(("synthetic", "ids", "allow_empty"), "on images with classes")
        idle["val_fraction"] = None if faces.holds_out else f"on {args.data}, which has a validation split"
        cli.refuse_without_effect(given, idle)
    elif not last:
        cli.refuse_idle_data_flags(given, args, faces)
    render_on = "cpu" if args.workers else device  # where synthetic faces are made
    train = load(faces, "train", args.size, args.seed, args.limit, render_on)
    holds = "val" in faces.splits
    validates = holds if args.ids else args.val_fraction and (holds or not classifies)
    val = load(faces, "val", args.size, device=device) if validates else None
    unlabelled = None
    if args.unlabelled:
        opened = open_unlabelled(args.unlabelled, classes, args.val_fraction, faces, args.data)
        unlabelled = load(opened, "unlabelled", args.size, device=render_on)
    found = summary.inspect({"train": train, "val": val, "unlabelled": unlabelled}, classes)
    rendered = args.synthetic or args.data == "synthetic"  # these have what may be on no photo
    facts = {split: facts for split, facts in found.items() if split != "unlabelled"}
    if classifies:
        labelled.refuse_empty(facts)
    else:
        summary.refuse_empty(facts, classes if rendered else args.allow_empty)
    summary.refuse_changed(found, last, out / "data.json")
    meaning = {**labelled.label_info(faces), "domains": []} if classifies else label_info(faces)
    num_classes = len(classes)
    counted = "images" if classifies else "pixels"
    pairs = [] if classifies else faces.flip_pairs
    both = not classifies or policy["flip"] > 0  # a mirrored 2 is no 2
    flip_pairs = {"semantic": pairs, "probs": pairs}
    threshold, keep = (0.0, 0.0) if args.target == "soft" else (args.threshold, args.keep)
    first = last["step"] if last else 0
    share = args.synthetic * args.batch_size / num_labelled
    order = batches.Order(len(train), num_labelled, args.seed, first, args.steps, rank, world, share)
    source = batches.mix(train, args.synthetic, classes, args.size, args.seed, render_on)
    loader = batches.loader(source, order, args.workers, device)

    # ---- model ----
    teachers = [restore(state, device, file) for state, file in zip(states, args.teacher, strict=True)]

    def predict(images, by=None):
        """(B, 3, H, W) uint8, or float in 0 to 1 -> logits (B, K, H, W), or (B, K), float32, of a network."""
        network = evaluated if by is None else by
        images = to_float(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dist.AMP_DTYPES[args.amp], enabled=args.amp != "off"):
            return network(images)[task].float()

    def label(images):
        return teach(predict, teachers, images, pairs, both)

    if unlabelled:
        steps = range(first, args.steps)
        other = args.seed + 1  # so that photos that are labelled, too, come at another time
        photo_order = batches.Order(len(unlabelled), num_unlabelled, other, first, args.steps, rank, world)
        if args.order != "mixed":
            ranked = ranking(args.order, unlabelled, label, args.batch_size, args.seed)
            photo_order = batches.Gradual(ranked, num_unlabelled, args.seed, steps, per_round, rank, world)
        photo_loader = batches.loader(unlabelled, photo_order, args.workers, device)

    def survey_photos(step):
        """What the teacher says by now: thresholds and the shares of classes at first, as a checkpoint keeps
        them; and in words, which class is lost, or None."""
        found = survey(label, unlabelled, num_classes, args.batch_size, threshold, keep)
        log.scalars(step, **pseudo_scalars(found, classes))
        if rank == 0:
            tqdm.write(f"what the teacher says: {described(found, classes, counted)}")
        first_shares = surveyed.get("shares", found["shares"])
        lost = vanished(found["shares"], first_shares, found["photos"], pairs, classes, counted)
        if dist.total(torch.tensor(float(lost is not None), device=device)):  # all processes stop, or none
            lost = lost or "a class, as another process sees it"
        return {"thresholds": found["thresholds"], "shares": first_shares}, lost

    def begin(round_):
        """The student of a round, of which `args` then says the name: itself, its average or None, what of it
        stays as it is, its optimiser, and the module that is called."""
        torch.manual_seed(args.seed + round_)
        if args.students:
            args.model = args.students[min(round_, len(args.students) - 1)]
            model = build_like(init, args.model, args.weights)
        else:
            model = copy.deepcopy(teachers[0]).requires_grad_(True)
            if getattr(model, "embedding", None):  # of a CLIP, which no loss reads
                model.embedding.requires_grad_(False)
        model.to(device, memory_format=torch.channels_last)
        if device.type == "cuda" and world > 1:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        still = freeze(model, args.freeze)  # after the conversion, which replaces modules
        if args.bn == "frozen":
            still = still + norms_of(model)
        average = copy.deepcopy(model).requires_grad_(False).eval() if args.ema else None
        backbone = {id(p) for p in model.backbone.parameters()}
        groups = []
        for inside, scale in ((False, 1.0), (True, args.backbone_lr_scale)):
            params = [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == inside]
            groups += [{"params": params, "scale": scale}] if params else []
        kind = Muon if args.optimizer == "muon" else torch.optim.AdamW
        optimizer = kind(groups, lr=args.lr, weight_decay=WEIGHT_DECAY)
        net = DistributedDataParallel(model) if world > 1 else model  # `model` stays the raw module
        net = torch.compile(net) if args.compile else net
        return model, average, still, optimizer, net

    # ---- resume ----
    begun = max(0, first - 1) // per_round  # the round that the checkpoint is of
    taught_by = last["teacher"] if last else None  # a checkpoint of an earlier round's student
    if taught_by:
        teachers = [restore(taught_by, device, out / "last.pt")]
    model, average, still, optimizer, net = begin(begun)
    if given.bn and not last and not norms_of(model):
        raise UserError(
            f"--bn {given.bn}: has no effect on {args.model}, which has no BatchNorm; leave it out"
        )
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    scores = class_metrics if classifies else metrics
    figure, *_ = FIGURES[task]
    best = {"step": 0, figure: -1.0}
    surveyed = {}  # what the teacher says of photos, see `survey_photos`
    if last:
        load_weights(model, last["model"], out / "last.pt")
        if average:
            average.load_state_dict(last["ema"])
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
        best = last["best"]
        surveyed = last["surveyed"]
    evaluated = average if args.ema else model
    if args.ema:
        teachers = [average]
    named = cli.files_of(args, inputs)
    paths = {"train": args.data, "val": args.data, "unlabelled": args.unlabelled}
    starts = dict(zip(args.teacher, states, strict=True)) | chosen_by(args.augment, policy)
    origin = lineage.origin("train_student.py", args.out, found, paths, named, starts, last)
    log = RunLog(out, vars(args), first if last else None, rank == 0)
    log.json("data.json", found)
    lineage.begin(out, origin, vars(args), named)
    had = init["args"].get("limit")
    if had and not args.limit and len(train) > had:
        faces.notes.append(f"--limit: the teacher had {had} labelled photos, the student has {len(train)}")
    if rank == 0:
        others = f"; {len(unlabelled)} unlabelled ({args.unlabelled})" if unlabelled else ""
        print(f"{faces.name} ({args.data}): {len(train)} labelled, {len(val) if val else 0} val{others}")
        notes = [f"{args.unlabelled}: {note}" for note in opened.notes] if unlabelled else []
        notes += checkpoint.trained_apart(args.teacher, states) + checkpoint.unfinished(args.teacher, states)
        print((labelled if classifies else summary).table(found), *faces.notes, *notes, sep="\n  ")
        print(cli.describe(args, first, world, device))
        follows = ", which follows the student" if args.ema else ""
        print(f"BatchNorm {args.bn}; teacher {' '.join(args.teacher)}{follows}")

    def save(step):
        state = {
            "script": "train_student.py",
            "args": vars(args),
            "step": step,
            "best": best,
            "data": {"path": args.data, **meaning, **summary.kept(found)},
            "inputs": inputs,
            "lineage": origin,
            "model": model.state_dict(),
            "ema": average.state_dict() if average else None,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "teacher": taught_by,
            "surveyed": surveyed,
            "collapsed": collapsed,
        }
        checkpoint.save_run(out, state, best["step"] == step or not val, evaluated)

    # ---- train ----
    bar = tqdm(total=args.steps, initial=first, desc="student", disable=rank > 0 or None)
    iterator = iter(loader)
    photo_iterator = iter(photo_loader) if unlabelled else None
    waited = 0.0
    since = time.time()
    losses = []
    collapsed = None
    for step in range(first, args.steps):
        round_, at = divmod(step, per_round)
        if at == 0 and step:  # the student becomes the teacher
            state = {"args": dict(vars(args)), "data": meaning}
            taught_by = {**state, "model": copy.deepcopy(evaluated.state_dict())}
            teachers = [restore(taught_by, device)]
            model, average, still, optimizer, net = begin(round_)
            evaluated = average if args.ema else model
            teachers = [average] if args.ema else teachers
            best = {"step": 0, figure: -1.0}  # of this round: another network, perhaps
            if rank == 0:
                tqdm.write(f"round {round_ + 1} of {args.rounds}: {args.model}, taught by the last student")
        if at == 0 and unlabelled:
            # logged with this step, so that resuming drops it with it
            surveyed, collapsed = survey_photos(step + 1)
        # >>> shared: cadence
        done = step + 1
        eval_now = done % args.eval_every == 0 or done == args.steps
        log_now = done % LOG_EVERY == 0 or eval_now or (world == 1 and stop.signal)
        # <<< shared: cadence
        net.train()
        keep_frozen_eval(still)
        torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # dropout, where a model has it
        began = time.time()
        batch = next(iterator)
        photos = next(photo_iterator) if unlabelled else None
        waited += time.time() - began
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        if classifies:  # shares of classes (B, K), which follow what is done to the pixels
            batch[task] = F.one_hot(batch[task], num_classes).float()
        positions = batches.positions(step, args.batch_size, rank, world)
        strong = at_step(policy, step)
        batch = augment(batch, strong, args.seed, positions[:num_labelled], flip_pairs)
        images = batch["image"]
        labels, inside, _ = targets_of(batch[task])
        if unlabelled:  # augmented apart: CutMix takes from photos of the same half
            weak = photos["image"].to(device)
            probs = label(weak)  # (B, K, H, W), or (B, K)
            bins = yaw_bins(unlabelled, photos)
            pseudo = hard_labels(probs, surveyed["thresholds"][bins].to(device))
            taught = {"image": weak, task: pseudo}
            if args.target == "soft":
                taught["probs"] = soften(probs, args.temperature)
            taught = augment(taught, strong, args.seed, positions[num_labelled:], flip_pairs)
            images = torch.cat([images, taught["image"]])
        if step == 0 and rank == 0:
            if classifies:
                words = [draw.shares_in_words(row, classes) for row in labels]
                picture = draw.captioned(images[:num_labelled], words, "the first batch: what is labelled", 8)
            else:
                picture = draw.pairs(batch["image"], labels, faces.colors, faces.classes)
            log.image(done, "train/batch", picture, "train_batch.png")
        for group in optimizer.param_groups:
            group["lr"] = lr_at(at, per_round, args.lr) * group["scale"]
        logits, photo_logits = predict(images, net).tensor_split([num_labelled])  # (B, K, H, W), (B, K)
        total, count = LOSSES["ce"](logits, labels)
        parts = {"labelled": mean_over_all(total, count, world)}
        loss = parts["labelled"]
        if args.distill:
            with torch.no_grad():  # the teacher sees what the student sees
                given_probs = [predict(batch["image"], teacher).softmax(1) for teacher in teachers]
            target = soften(sum(given_probs) / len(teachers), args.temperature)
            distance = distillation(logits, target, args.temperature)[inside]
            parts["kd"] = mean_over_all(distance.sum(), count, world)
            loss = (1 - args.distill) * loss + args.distill * parts["kd"]
        if unlabelled:
            hard, inside, sure = targets_of(taught[task])  # all inside divides the loss, sure or not
            if args.target == "soft":
                weights = taught["probs"]
                target = weights / weights.sum(1, keepdim=True).clamp_min(1e-6)  # they fade out at borders
                total = distillation(photo_logits, target, args.temperature)[inside].sum()
            else:
                total, _ = LOSSES["ce"](photo_logits, hard)
            parts["unlabelled"] = mean_over_all(total, inside.sum(), world)
            ramp = min(1, (at + 1) / (RAMP * per_round)) if args.ema else 1
            weight = args.unlabelled_weight
            loss = (loss + ramp * weight * parts["unlabelled"]) / (1 + weight)
        # >>> shared: optimiser step
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # so that the norm is in real units
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        bar.update()
        signal = stop.asked(device) if log_now else 0
        # <<< shared: optimiser step
        losses.append(loss.detach())
        # >>> shared: average
        if average:
            decay = min(1 - 1 / done, args.ema)  # at first the mean of all weights so far
            averages = average.state_dict()
            for key, value in model.state_dict().items():
                kept = averages[key]
                kept.lerp_(value, 1 - decay) if kept.is_floating_point() else kept.copy_(value)
        # <<< shared: average
        if args.bn == "unlabelled" and (eval_now or done % per_round == 0):
            measure_statistics(predict, evaluated, unlabelled, args.batch_size)
        if log_now:
            mean_loss = dist.total(torch.stack(losses).mean()).item() / world
            cli.check_finite(mean_loss, grad_norm, done, args)
            spent = max(time.time() - since, 1e-9)
            figures = {
                "train/loss": mean_loss,
                "train/lr": optimizer.param_groups[0]["lr"],
                "train/grad_norm": grad_norm,
                "round": round_,
                "time/images_per_sec": len(losses) * world * args.batch_size / spent,
                "time/data_wait": waited / spent,
            }
            seen = {f"loss/{key}": value.detach() for key, value in parts.items()}
            if unlabelled:
                agree = photo_logits.argmax(1) == (hard.argmax(1) if classifies else hard)
                seen["pseudo/agreement"] = agree[sure].float().mean()
                if None not in unlabelled.yaws:
                    seen["order/yaw"] = 15 * bins.float().mean()
            log.scalars(done, **figures, **dist.mean(seen, device))
            bar.set_postfix_str(f"loss {mean_loss:.3f} {figures['time/images_per_sec']:.0f} images/s")
            waited = 0.0
            since = time.time()
            losses = []
        if eval_now and unlabelled:
            if done == args.steps:
                teachers = [evaluated.eval()]  # as at the end of each round before, the student is looked at
            if args.ema or done == args.steps:
                surveyed, collapsed = survey_photos(done)
            if rank == 0:
                if classifies:
                    shares = taught["probs" if args.target == "soft" else task]
                    picture = draw.taught_shares(weak, probs, taught["image"], shares, classes)
                else:
                    picture = draw.taught(weak, probs.argmax(1), pseudo, taught, faces.colors, classes)
                log.image(done, "pseudo/grid", picture, "pseudo.png")
        if eval_now and val:
            evaluated.eval()
            how = args.batch_size, rank, world
            if classifies:
                named = lambda images: {task: predict(images)}
                measured = class_metrics.measure(named, val, [task], *how)[task]
            else:
                measured = metrics.measure(predict, val, task, num_classes, *how)
            result = scores.summary(measured, classes)
            log.scalars(done, **scores.scalars("val", result))
            if result[figure] is None:
                raise UserError(f"val: at --size {args.size} no class but {classes[0]} is left to score")
            if result[figure] > best[figure]:
                best = {"step": done, figure: result[figure]}
            if rank == 0:
                star = " *" if best["step"] == done else ""
                shown = ", ".join(f"{words} {result[name]:.4f}" for name, words in FIGURES[task].items())
                tqdm.write(f"step {done}: loss {mean_loss:.3f}, val {shown}{star}")
                if classifies:
                    picture = draw.guesses(measured, val, classes)
                else:
                    picture = draw.validation(predict, val, task, faces.colors, classes)
                log.image(done, "val/grid", picture, "val.png")
        if eval_now and not val and rank == 0:
            tqdm.write(f"step {done}: loss {mean_loss:.3f}, nobody is held out to validate")
        if eval_now:
            since = time.time()
        if (eval_now or signal or collapsed) and rank == 0:
            save(done)
        if signal or collapsed:
            break

    # ---- finish ----
    # >>> shared: finish
    bar.close()
    log.close(done == args.steps, signal)
    dist.finish()
    if signal and done < args.steps:
        return cli.stopped(signal, done, out) if rank == 0 else 128 + signal
    if rank > 0:
        return
    # <<< shared: finish
    if collapsed:
        keep = "" if args.target == "soft" else ", a larger --keep"
        print(f"collapsed: {collapsed} by step {done}. Try a lower --lr than {args.lr}, more --steps{keep}")
        return cli.COLLAPSED
    if val:
        print(scores.table(result))
        print(
            f"best.pt: step {best['step']}, val {FIGURES[task][figure]} {best[figure]:.4f}: of labelled data"
        )
    print(f"last.pt: step {done}, the last one")
    print(f"next:    python evaluate.py --init {out}/last.pt")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
