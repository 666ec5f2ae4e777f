"""Train a classifier of images: the class of each and, where they come from several domains, the domain.

Run:    python train_classify.py --data shapes --out runs/classify
        python train_classify.py --data FOLDER --model efficientnet_lite0 --weights imagenet --freeze backbone
        python train_classify.py --data PACS --model resnet18 --mixstyle 2 3 --leave-out sketch
Needs:  images in folders of classes, MNIST or CIFAR (docs/data.md), or nothing at all (rendered shapes)
Writes: best.pt (by validation accuracy), last.pt, args.json, metrics.jsonl, TensorBoard events,
        train_batch.png and val.png into --out
Expect: docs/classify.md   -> evaluate.py --init runs/classify/best.pt
"""

import math
import time

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from datasets import batches, labelled, splits, summary
from datasets.augmentation import augment
from datasets.faces import some
from datasets.images import to_float
from datasets.policies import POLICIES, at_step, chosen_by, load_policy, scaled
from models import freeze, keep_frozen_eval, load_weights
from models.classifier import build_classifier, carry_over, check_size
from utils import checkpoint, class_metrics, cli, dist, draw, lineage
from utils.errors import UserError
from utils.log import RunLog

WARMUP = 0.05  # share of the steps
WEIGHT_DECAY = 0.01
MOMENTUM = 0.9  # of --optimizer sgd
DROPS = 6  # of --schedule step: so many equal parts, the rate of each half of that before
LOG_EVERY = 10  # steps between two lines of metrics.jsonl, the loop's only waits for a GPU
# What the first stage of --progressive has, as a share of the last: EfficientNetV2-S, Tan and Le, 2021
# (2104.00298), table 6
FIRST_SIZE = 128 / 300
FIRST_MAGNITUDE = 5 / 15
FIRST_DROPOUT = 0.1 / 0.3
# Flags that are not given come from --init, else from INHERITED, else from the recipe for this kind of data.
INHERITED = {
    "data": None,
    "val_fraction": 0.15,
    "leave_out": None,
    "size": None,
    "model": None,
    "head": None,
}
ON_SHAPES = {
    "model": "cnn",
    "head": "mlp",
    "size": 28,
    "steps": 1200,
    "augment": "crop",
    "dropout": 0.2,
    "lr": 3e-3,
}
ON_MNIST = {**ON_SHAPES, "augment": "none", "dropout": 0.5, "lr": 1e-3}
ON_IMAGES = {
    "model": "efficientnet_lite0",
    "head": "linear",
    "size": 128,
    "steps": 1000,
    "augment": "crop",
    "dropout": 0.2,
    "lr": 3e-3,
}


def get_parser():
    p = cli.parser(__doc__)
    g = p.add_argument_group(
        "data", "where a flag is not given: as --init was trained; else 0.15, and --size as below"
    )
    g.add_argument("--data", help="folder of images, its layout recognised, or shapes")
    domain = "domain that nobody trains on: it is the test split"
    g.add_argument("--leave-out", metavar="DOMAIN", help=domain)
    share = "of each class held out, where the data has no validation split; 0: nobody"
    g.add_argument("--val-fraction", type=cli.below_one, metavar="SHARE", help=share)
    g.add_argument("--size", type=cli.positive, help="side that images are stretched to, pixels")
    limit = "training images, as many of each class, nested by --seed; all where it is not given"
    g.add_argument("--limit", type=cli.positive, metavar="N", help=limit)
    drawn = "train on as many images as there are, drawn with replacement by --seed: one of several that vote"
    g.add_argument("--bootstrap", action="store_true", help=drawn)
    g.add_argument("--augment", metavar="POLICY", help=f"{', '.join(POLICIES)}, or a policy.json")
    g = p.add_argument_group("model", "--model and --head, where not given: as --init has them, or as below")
    g.add_argument("--model", help="efficientnet_lite0, cnn, cnn_plain, or a classifier of torchvision")
    g.add_argument("--weights", default="none", help="none, imagenet, or a file")
    start = "checkpoint to start from; classes and domains of the same names go on"
    g.add_argument("--init", metavar="FILE", help=start)
    heads = "of each head: one linear layer, or two with ReLU and dropout between them"
    g.add_argument("--head", choices=["linear", "mlp"], help=heads)
    drop = "share of each head's last features that are left out in training"
    g.add_argument("--dropout", type=cli.below_one, metavar="P", help=drop)
    depth = "probability that the last block is left out, growing linearly from the first"
    g.add_argument("--stochastic-depth", type=cli.below_one, default=0.0, metavar="P", help=depth)
    mix = "stages after which the styles of images are mixed"
    g.add_argument("--mixstyle", type=cli.positive, nargs="+", default=[], metavar="STAGE", help=mix)
    follow = "of images of mixed styles: mixed as the styles are, or as they were (default follow)"
    g.add_argument("--domain-labels", choices=["follow", "hard"], help=follow)
    stages = "none, backbone, or how many of its first stages stay as they are"
    g.add_argument("--freeze", default="none", metavar="WHAT", help=stages)
    scale = "the backbone's rate, times --lr"
    g.add_argument("--backbone-lr-scale", type=cli.at_least_zero, default=1.0, help=scale)
    recipes = {"shapes": ON_SHAPES, "MNIST": ON_MNIST, "other images": ON_IMAGES}
    defaults = "; ".join(f"on {kind} {cli.as_flags(values)}" for kind, values in recipes.items())
    g = p.add_argument_group("optimisation", f"where a flag is not given: {defaults}")
    weights = "weights of class and domain; where it is not given: both 1, with --leave-out class alone"
    g.add_argument("--loss", nargs="+", metavar="NAME=WEIGHT", help=weights)
    smooth = "share of each label that is spread over all classes"
    g.add_argument("--label-smoothing", type=cli.below_one, default=0.0, metavar="SHARE", help=smooth)
    grow = "equally long stages, in which --size, --dropout and --augment (what it draws) grow; 1: they stay"
    g.add_argument("--progressive", type=cli.positive, default=1, metavar="STAGES", help=grow)
    g.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw", help="sgd: with momentum")
    rate = f"of the rate: warm-up and half a cosine, halved after each of {DROPS} equal parts, or as it is"
    g.add_argument("--schedule", choices=["cosine", "step", "constant"], default="cosine", help=rate)
    g.add_argument("--steps", type=cli.positive, help="optimiser steps")
    g.add_argument("--batch-size", type=cli.images, default=64, help="images per process")
    g.add_argument("--lr", type=cli.above_zero, help="peak rate")
    g.add_argument("--grad-clip", type=cli.above_zero, default=1.0, help="largest gradient norm")
    cli.add_runtime_flags(p)
    cli.add_output_flags(p, out="runs/classify", eval_every=100)
    return p


# >>> shared: schedule
def lr_at(step, steps, peak):
    """Linear warm-up, then half a cosine to zero. Pure in `step`, so there is no scheduler state."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# <<< shared: schedule


def rate_at(schedule, step, steps, peak):
    """The rate at a step: of `lr_at`, or halved after each of `DROPS` equal parts, or constant."""
    if schedule == "step":
        return peak * 0.5 ** (step * DROPS // steps)
    return lr_at(step, steps, peak) if schedule == "cosine" else peak


def progress_at(step, steps, stages):
    """Which of equally long stages a step is in: 0 the first, 1 the last, equally spaced (Tan and Le, 2021,
    algorithm 1)."""
    return (step * stages // steps) / (stages - 1) if stages > 1 else 1.0


def grown(first, progress):
    """A share that grows linearly from `first` to 1."""
    return first + (1 - first) * progress


class Bootstrap:
    """As many images of `data` as it has, drawn with replacement (Breiman, "Bagging predictors", 1996)."""

    def __init__(self, data, seed):
        generator = torch.Generator().manual_seed(seed)
        self.data = data
        self.rows = torch.randint(len(data), (len(data),), generator=generator).tolist()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.data[[self.rows[i] for i in index]]


def refuse_contradictions(given, args, dataset, weights, init):
    """Flags that nothing would come of, or something wrong."""
    if init and splits.same_folder(args.data, init["args"]["data"]):
        before = init["args"]
        if args.leave_out not in (None, before["leave_out"]):
            raise UserError(f"--leave-out {args.leave_out}: {args.init} was trained on that domain")
        if dataset.holds_out and args.val_fraction > before["val_fraction"]:
            raise UserError(
                f"--val-fraction {args.val_fraction:g}: {args.init} was trained on images of these, with "
                f"--val-fraction {before['val_fraction']:g}; give that, or 0"
            )
    if "class" not in weights:
        raise UserError(f"--loss {' '.join(args.loss)}: class needs a weight above zero")
    if "domain" in weights and not dataset.domains:
        raise UserError(f"--loss {' '.join(args.loss)}: {args.data} has no domains")
    if args.progressive > args.steps:
        raise UserError(f"--progressive {args.progressive}: needs as many --steps; there are {args.steps}")
    reasons = {
        "weights": "beside --init, which has weights" if args.init and args.weights != "none" else None,
        "val_fraction": None if dataset.holds_out else f"on {args.data}, which has a validation split",
        "domain_labels": None if args.mixstyle else "without --mixstyle",
        "mixstyle": "on one image" if args.batch_size == 1 else None,
    }
    if "domain" not in weights:
        reasons["domain_labels"] = "without domain in --loss, where it is not with --leave-out"
    if args.freeze == "backbone":
        reasons["backbone_lr_scale"] = "on a backbone that is frozen" if args.backbone_lr_scale != 1 else None
        reasons["stochastic_depth"] = "on a backbone that is frozen"
    cli.refuse_without_effect(given, reasons)


def main(args):
    # ---- setup ----
    out, args, last = cli.start_run(args, get_parser(), "train_classify.py", needs=["data or init"])
    given = args
    init = checkpoint.load(args.init, target="class") if args.init and not last else None
    rank, world, device = dist.init(args.device)
    args = cli.inherit(args, init, **INHERITED)
    if init and given.leave_out is None:
        args.leave_out = labelled.known_domain(args.data, args.leave_out)
    dataset = labelled.open_images(args.data, args.val_fraction, args.leave_out)
    args = cli.fill(args, {"shapes": ON_SHAPES, "mnist": ON_MNIST}.get(dataset.name, ON_IMAGES))
    learns_domain = dataset.domains and not args.leave_out
    args = cli.fill(args, {"loss": ["class=1", "domain=1"] if learns_domain else ["class=1"]})
    args = cli.fill(args, {"domain_labels": "follow", "device": device.type, "amp": dist.default_amp(device)})
    weights = cli.named_weights(args.loss, "--loss", ["class", "domain"], negative=False)
    weights = {key: weight for key, weight in weights.items() if weight}
    if not last:
        refuse_contradictions(given, args, dataset, weights, init)
    policy = load_policy(args.augment, target="class")
    inputs = cli.input_files(args, last)
    torch.manual_seed(args.seed)
    stop = dist.Stop()

    # ---- data ----
    train = labelled.load(dataset, "train", args.size, args.seed, args.limit)
    validates = args.val_fraction and "val" in dataset.splits
    val = labelled.load(dataset, "val", args.size) if validates else None
    found = summary.inspect({"train": train, "val": val}, dataset.classes)
    labelled.refuse_empty(found)
    summary.refuse_changed(found, last, out / "data.json")
    names = {"class": dataset.classes, "domain": dataset.domains}
    names = {key: names[key] for key in weights}
    first = last["step"] if last else 0
    source = Bootstrap(train, args.seed) if args.bootstrap else train
    if args.bootstrap and len(train.targets["class"][source.rows].unique()) < len(dataset.classes):
        raise UserError(f"--bootstrap: of some class no image was drawn with --seed {args.seed}; try another")
    order = batches.Order(len(source), args.batch_size, args.seed, first, args.steps, rank, world)
    loader = batches.loader(source, order, args.workers, device)

    # ---- model ----
    model = build_classifier(
        args.model,
        {key: len(names[key]) for key in names},
        "none" if last else args.weights,
        args.head,
        args.dropout,
        args.stochastic_depth,
        args.mixstyle,
    )
    fresh = []
    if init:
        had = init["args"]
        if (had["model"], had["head"]) != (args.model, args.head):
            holds = f"{args.init} holds {had['model']} with the head {had['head']}; leave both out"
            raise UserError(f"--model {args.model} --head {args.head}: {holds}")
        state, fresh = carry_over(model, init, names)
        load_weights(model, state, args.init)
    smallest = round(args.size * grown(FIRST_SIZE, progress_at(0, args.steps, args.progressive)))
    try:
        check_size(model, smallest)
    except UserError as error:
        raise UserError(f"--size {args.size} --progressive {args.progressive}: {error}") from None
    model.to(device, memory_format=torch.channels_last)
    if device.type == "cuda" and world > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    frozen = freeze(model, args.freeze)  # after the conversion, which replaces modules

    # ---- optimizer ----
    backbone = {id(p) for p in model.backbone.parameters()}
    groups = []
    for inside, scale in ((False, 1.0), (True, args.backbone_lr_scale)):
        params = [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == inside]
        groups += [{"params": params, "scale": scale}] if params else []
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, args.lr, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")

    # ---- resume ----
    best = {"step": 0, "accuracy": -1.0}
    if last:
        load_weights(model, last["model"], out / "last.pt")
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
        best = last["best"]
    net = DistributedDataParallel(model) if world > 1 else model  # `model` stays the raw module
    net = torch.compile(net) if args.compile else net
    named = cli.files_of(args, inputs)
    starts = {args.init: init} | chosen_by(args.augment, policy)
    origin = lineage.origin(
        "train_classify.py", args.out, found, dict.fromkeys(found, args.data), named, starts, last
    )
    log = RunLog(out, vars(args), first if last else None, rank == 0)
    log.json("data.json", found)
    lineage.begin(out, origin, vars(args), named)
    if rank == 0:
        print(f"{dataset.name} ({args.data}): {len(train)} train, {len(val) if val else 0} val")
        print(labelled.table(found), *dataset.notes, sep="\n  ")
        print(cli.describe(args, first, world, device))
        learn = sum(p.numel() for group in groups for p in group["params"])
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters, of which {learn:,} train")
        if args.bootstrap:
            print(f"--bootstrap: {len(set(source.rows))} different images of {len(train)}")
        if args.progressive > 1:
            still = "" if policy["ops"] else "; --augment draws nothing that could grow stronger"
            print(f"--progressive {args.progressive}: from {smallest} x {smallest} on{still}")
        if frozen and not init and not last and args.weights == "none":
            print(f"--freeze {args.freeze}: frozen as it is drawn at random, without --weights or --init")
        if fresh:
            print(f"--init {args.init}: begun anew, of other names: {some(fresh)}")

    def predict(images, by=None):
        """(B, 3, H, W) uint8, or float in 0 to 1 -> {key: logits (B, K) float32}, of a network."""
        network = model if by is None else by
        images = to_float(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dist.AMP_DTYPES[args.amp], enabled=args.amp != "off"):
            return {key: logits.float() for key, logits in network(images).items()}

    def save(step):
        state = {
            "script": "train_classify.py",
            "args": vars(args),
            "step": step,
            "best": best,
            "data": {
                "path": args.data,
                **labelled.label_info(dataset),
                "domains": names.get("domain", []),  # those that a head tells apart
                **summary.kept(found),
            },
            "inputs": inputs,
            "lineage": origin,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        checkpoint.save_run(out, state, best["step"] == step or not val, model)

    # ---- train ----
    bar = tqdm(total=args.steps, initial=first, desc="classify", disable=rank > 0 or None)
    iterator = iter(loader)
    waited = 0.0
    since = time.time()
    losses = []
    for step in range(first, args.steps):
        # >>> shared: cadence
        done = step + 1
        eval_now = done % args.eval_every == 0 or done == args.steps
        log_now = done % LOG_EVERY == 0 or eval_now or (world == 1 and stop.signal)
        # <<< shared: cadence
        progress = progress_at(step, args.steps, args.progressive)
        net.train()
        keep_frozen_eval(frozen)
        model.set_dropout(args.dropout * grown(FIRST_DROPOUT, progress))
        torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # dropout, depth, styles
        began = time.time()
        batch = next(iterator)
        waited += time.time() - began
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        for key in names:  # shares of classes (B, K), which follow what is done to the pixels
            batch[key] = F.one_hot(batch[key], len(names[key])).float()
        positions = batches.positions(step, args.batch_size, rank, world)
        strength = scaled(at_step(policy, step), grown(FIRST_MAGNITUDE, progress))
        batch = augment(batch, strength, args.seed, positions, {})
        size = round(args.size * grown(FIRST_SIZE, progress))
        images = batch["image"]
        if size < args.size:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        if step == 0 and rank == 0:
            captions = [draw.shares_in_words(row, names["class"]) for row in batch["class"]]
            picture = draw.captioned(images, captions, "the first batch, and what it is taught", 8)
            log.image(done, "train/batch", picture, "train_batch.png")
        for group in optimizer.param_groups:
            group["lr"] = rate_at(args.schedule, step, args.steps, args.lr) * group["scale"]
        logits = predict(images, net)  # {key: (B, K)}
        if args.domain_labels == "follow" and "domain" in names:
            batch["domain"] = model.follow(batch["domain"])
        parts = {  # every process has as many images: the mean of their means is that of one
            key: F.cross_entropy(logits[key], batch[key], label_smoothing=args.label_smoothing)
            for key in names
        }
        loss = sum(weight * parts[key] for key, weight in weights.items())
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
        if log_now:
            mean_loss = dist.total(torch.stack(losses).mean()).item() / world
            cli.check_finite(mean_loss, grad_norm, done, args)
            spent = max(time.time() - since, 1e-9)
            figures = {
                "train/loss": mean_loss,
                "train/lr": optimizer.param_groups[0]["lr"],
                "train/grad_norm": grad_norm,
                "train/size": size,
                "time/images_per_sec": len(losses) * world * args.batch_size / spent,
                "time/data_wait": waited / spent,
            }
            seen = {f"loss/{key}": value.detach() for key, value in parts.items()}
            log.scalars(done, **figures, **dist.mean(seen, device))
            bar.set_postfix_str(f"loss {mean_loss:.3f} {figures['time/images_per_sec']:.0f} images/s")
            waited = 0.0
            since = time.time()
            losses = []
        if eval_now and val:
            model.eval()
            measured = class_metrics.measure(predict, val, names, args.batch_size, rank, world)
            results = {key: class_metrics.summary(measured[key], names[key]) for key in names}
            for key, result in results.items():
                log.scalars(done, **class_metrics.scalars("val" if key == "class" else f"val/{key}", result))
            accuracy = results["class"]["accuracy"]
            if accuracy > best["accuracy"]:
                best = {"step": done, "accuracy": accuracy}
            if rank == 0:
                star = " *" if best["step"] == done else ""
                shown = [f"{key} accuracy {result['accuracy']:.4f}" for key, result in results.items()]
                tqdm.write(f"step {done}: loss {mean_loss:.3f}, val {', '.join(shown)}{star}")
                picture = draw.guesses(measured["class"], val, names["class"])
                log.image(done, "val/grid", picture, "val.png")
            since = time.time()
        if eval_now and not val and rank == 0:
            tqdm.write(f"step {done}: loss {mean_loss:.3f}, nothing is held out to validate")
        if (eval_now or signal) and rank == 0:
            save(done)
        if signal:
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
    if val:
        for key, result in results.items():
            print(f"{key} at step {done}:", class_metrics.table(result), sep="\n")
        print(
            f"best.pt: step {best['step']}, val accuracy {best['accuracy']:.4f}; {out}/val.png: step {done}"
        )
    else:
        print(f"best.pt: step {done}, the last one, since nothing is held out")
    if {"val", "test"} & dataset.splits.keys():
        print(f"next:    python evaluate.py --init {out}/best.pt")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
