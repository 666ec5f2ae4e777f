"""Fine-tune a face parser on labelled faces.

Run:    python train_finetune.py --data synthetic --out runs/finetune
        torchrun --nproc_per_node=4 train_finetune.py --data CelebAMask-HQ --model fpn_resnet50
Needs:  a folder of labelled faces in a layout of README.md, or nothing at all (synthetic faces)
Writes: best.pt (by validation mean F1), last.pt, args.json, metrics.jsonl, TensorBoard events,
        train_batch.png and val.png into --out
Expect: README.md, "Results", "The data engine"   -> train_reward.py --init runs/finetune/best.pt
"""

import argparse
import copy
import math
import time

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets import loading, transforms
from datasets.faces import IGNORE, meaning
from models import PREPROCESS, build_model, carry_over, freeze, keep_frozen_eval
from utils import checkpoint, dist, draw, metrics
from utils.errors import UserError, above_zero, positive, run
from utils.log import RunLog, open_run

WARMUP = 0.05  # share of the steps
WEIGHT_DECAY = 0.01
LOG_EVERY = 10  # steps between two looks at the loss, the loop's only waits for a GPU
INHERITED = dict(data="synthetic", classes="full", part_order="canonical", val_fraction=0.15,
                 size=None, model="unet", preprocess="none")  # fmt: skip
# what is not given: on synthetic faces, new and varied as they are, a recipe of four minutes
ON_SYNTHETIC = dict(size=96, steps=800, augment="flip", loss=["ce=1", "dice=1"])
ON_PHOTOS = dict(size=128, steps=1000, augment="cutmix", loss=["ce=1"])


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    g = p.add_argument_group("data (with --init, the checkpoint's where a flag is not given)")
    g.add_argument("--data", help="folder of faces, its layout recognised, or synthetic (default)")
    g.add_argument("--classes", choices=["full", "fasseg", "celebamask", "lapa"],
                   help="class list of --data synthetic (default full)")  # fmt: skip
    g.add_argument("--part-order", choices=["canonical", "farl"],
                   help="which part of CelebAMask-HQ is painted last (default canonical)")  # fmt: skip
    g.add_argument("--val-fraction", type=float,
                   help="share of the people held out where the data has no validation split; "
                        "0: nobody, and best.pt is last.pt (default 0.15)")  # fmt: skip
    g.add_argument("--size", type=positive, help="side that photos are stretched to, pixels "
                   "(default 128, or 96 for synthetic faces)")  # fmt: skip
    g.add_argument("--limit", type=positive, help="labelled training images, spread over people and yaw, "
                   "nested by --seed; validation comes on top (default all)")  # fmt: skip
    g.add_argument("--ids", metavar="FILE", help='{"train": [sample ids], "val": [sample ids]}: which photos '
                   "train and which validate, in place of --limit and --val-fraction")  # fmt: skip
    g.add_argument("--augment", help="none, flip (default on synthetic faces), randaugment, trivial, "
                   "cutmix (RandAugment and CutMix; default on photos), or a policy.json")  # fmt: skip
    g.add_argument("--control", type=above_zero, metavar="GAP", help="steer the policy's scale towards a "
                   "validation F1 this share below the training F1, say 0.2 (default off)")  # fmt: skip
    g.add_argument("--synthetic", type=float, default=0.0, metavar="SHARE",
                   help="share of every batch that is synthetic faces (default 0)")  # fmt: skip
    g = p.add_argument_group("model")
    g.add_argument("--model", help="unet (default), unet_gn, fpn_BACKBONE, deeplabv3_resnet50, "
                   "deeplabv3_resnet101, lraspp_mobilenet_v3_large")  # fmt: skip
    g.add_argument("--preprocess", choices=["none", *PREPROCESS],
                   help="what the model does to every photo before all else (default none)")  # fmt: skip
    g.add_argument("--weights", default="none", help="none (default), imagenet, coco, or a file")
    g.add_argument("--init", metavar="FILE", help="checkpoint to start from; classes match by name")
    g.add_argument("--freeze", default="none", metavar="WHAT",
                   help="none (default), backbone, or so many of its stages")  # fmt: skip
    g.add_argument("--backbone-lr-scale", type=float, default=1.0,
                   help="the backbone's learning rate as a multiple of --lr (default 1)")  # fmt: skip
    g = p.add_argument_group("optimisation")
    g.add_argument("--loss", nargs="+", metavar="NAME=WEIGHT",
                   help=f"weighted sum of {', '.join(LOSSES)} (default ce=1, or ce=1 dice=1 on "
                        "synthetic faces)")  # fmt: skip
    g.add_argument("--steps", type=positive,
                   help="optimiser steps (default 1000, or 800 on synthetic faces)")  # fmt: skip
    g.add_argument("--batch-size", type=positive, default=16, help="images per process (default 16)")
    g.add_argument("--lr", type=float, default=3e-3, help="peak rate of AdamW (default 3e-3)")
    g.add_argument("--ema", type=float, default=0.0, metavar="DECAY",
                   help="evaluate and keep an average of the weights, say 0.99 (default 0, off)")  # fmt: skip
    g.add_argument("--grad-clip", type=float, default=1.0, help="largest gradient norm (default 1)")
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=int, default=0, help="weights, order, augmentation (default 0)")
    g.add_argument("--amp", choices=["off", "bf16", "fp16"],
                   help="precision of the forward pass (default bf16 on a GPU, off on a CPU)")  # fmt: skip
    g.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    g.add_argument("--workers", type=int, default=0, help="processes that read batches (default 0)")
    g.add_argument("--compile", action="store_true", help="torch.compile the training pass")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/finetune", help="run folder (default runs/finetune)")
    g.add_argument("--resume", action="store_true", help="go on with the run in --out")
    g.add_argument("--eval-every", type=positive, default=100, metavar="STEPS",
                   help="steps between validations and checkpoints (default 100)")  # fmt: skip
    return p


# ---- losses: logits (B, K, H, W) float32 and labels (B, H, W) long -> (sum, count), so that the
# mean over all processes is that of one. Ignored pixels never count.


def ce(logits, labels):
    """Cross-entropy over pixels."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total, (labels != IGNORE).sum()


def ohem(logits, labels, keep=0.25):
    """Cross-entropy over each image's hardest quarter of pixels (Wu et al., 1605.06885, sec. 4)."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").flatten(1)
    hardest = losses.sort(1, descending=True).values
    kept = ((labels != IGNORE).flatten(1).sum(1, keepdim=True) * keep).ceil()
    mask = torch.arange(losses.shape[1], device=losses.device) < kept
    return (hardest * mask).sum(), mask.sum()


def overlap(logits, labels):
    """Soft intersection, predicted and labelled pixels of each image and class, (B, K) each."""
    valid = labels != IGNORE
    probs = logits.softmax(1)
    index, weight = labels.where(valid, 0).flatten(1), valid.flatten(1).to(probs)
    right = probs.gather(1, labels.where(valid, 0)[:, None]).flatten(1) * weight
    empty = torch.zeros_like(probs[:, :, 0, 0])
    predicted = (probs * valid[:, None]).sum((2, 3))
    return empty.scatter_add(1, index, right), predicted, empty.scatter_add(1, index, weight)


def present_mean(losses, labelled):
    """(B, K) losses -> (sum, count) over images of the mean over the classes that an image has."""
    present = labelled > 0
    per_image = (losses * present).sum(1) / present.sum(1).clamp_min(1)
    return per_image.sum(), present.any(1).sum()


def dice(logits, labels):
    """1 - soft Dice of each image (Milletari et al., 1606.04797, with plain sums)."""
    inter, probs, truth = overlap(logits, labels)
    return present_mean(1 - 2 * inter / (probs + truth).clamp_min(1e-6), truth)


def jaccard(logits, labels):
    """1 - soft Jaccard of each image (Rahman and Wang, ISVC 2016)."""
    inter, probs, truth = overlap(logits, labels)
    return present_mean(1 - inter / (probs + truth - inter).clamp_min(1e-6), truth)


def lovasz(logits, labels):
    """Lovasz-softmax of each image (Berman et al., 1705.08790, eq. 9 and algorithm 1)."""
    valid = (labels != IGNORE)[:, None]
    truth = F.one_hot(labels.where(valid[:, 0], 0), logits.shape[1]).movedim(-1, 1) * valid
    errors = (truth - logits.softmax(1)).abs() * valid  # ignored pixels: no error, sorted last
    errors, rank = errors.flatten(2).sort(2, descending=True)
    truth = truth.flatten(2).gather(2, rank).float()
    labelled = truth.sum(2, keepdim=True)
    inter, union = labelled - truth.cumsum(2), labelled + (1 - truth).cumsum(2)
    step = 1 - inter / union
    gradient = torch.cat([step[..., :1], step[..., 1:] - step[..., :-1]], 2)
    return present_mean((errors * gradient).sum(2), labelled[..., 0])


LOSSES = {"ce": ce, "dice": dice, "jaccard": jaccard, "lovasz": lovasz, "ohem": ohem}


def parse_losses(words):
    """["ce=1", "dice=0.5"] -> {"ce": 1.0, "dice": 0.5}."""
    pairs = [word.partition("=") for word in words]
    try:
        return {{n: n for n in LOSSES}[name]: float(weight or 1) for name, _, weight in pairs}
    except (KeyError, ValueError):
        raise UserError(
            f"--loss {' '.join(words)}: write NAME=WEIGHT, with names from {', '.join(LOSSES)}"
        ) from None


def lr_at(step, steps, peak):
    """Linear warm-up, then half a cosine to zero. Pure in `step`, so there is no scheduler state."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def steer(scale, gap, target, step, most):
    """One step towards more augmentation where the gap is above its target, towards less where it is below:
    the control of StyleGAN2-ADA (Karras et al., 2006.06676, sec. 3.1), but clamped at both ends."""
    return min(max(scale + step * ((gap > target) - (gap < target)), 0.0), most)


def main(args):
    # ---- setup ----
    out = open_run(args.out, args.resume)
    last = checkpoint.load(out / "last.pt", "train_finetune.py") if args.resume else None
    if last:
        args = checkpoint.resume_flags(get_parser(), last["args"])
    init = checkpoint.load(args.init) if args.init and not last else None
    rank, world, device = dist.init(args.device)
    args.ids = loading.which_ids(args.ids, args.data, init and init["args"], args.limit)
    args = checkpoint.inherit(args, init, **INHERITED)
    args = checkpoint.inherit(args, None, **(ON_SYNTHETIC if args.data == "synthetic" else ON_PHOTOS),
                              device=device.type, amp="bf16" if device.type == "cuda" else "off")  # fmt: skip
    amp_dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    weights, policy = parse_losses(args.loss), transforms.load_policy(args.augment)
    torch.manual_seed(args.seed)
    stop = dist.Stop()

    # ---- data ----
    faces = loading.open_data(args.data, args.classes, args.part_order, args.val_fraction, args.ids)
    made_on = "cpu" if args.workers else device  # where synthetic faces are rendered
    train = loading.load(faces, "train", args.size, args.seed, args.limit, made_on,
                         policy.get("allocation"), "ft")  # fmt: skip
    validates = "val" in faces.splits if args.ids else args.val_fraction
    val = loading.load(faces, "val", args.size, device=device) if validates else None
    num_classes, means = len(faces.classes), meaning(faces)
    first = last["step"] if last else 0
    if first >= args.steps:
        raise UserError(f"--resume: {out} has done all of its {args.steps} steps")
    order = loading.Order(len(train), args.batch_size, args.seed, first, args.steps, rank, world,
                          args.synthetic)  # fmt: skip
    source = loading.mix(train, args.synthetic, faces.classes, args.size, args.seed, made_on)
    loader = DataLoader(source, sampler=order, batch_size=None, num_workers=args.workers,
                        pin_memory=args.workers > 0 and device.type == "cuda",
                        worker_init_fn=dist.ignore_signals)  # fmt: skip
    scale_max = policy.get("scale_max", policy["scale"])
    if args.control:
        if not (val and policy["ops"] and scale_max) or policy.get("schedule"):
            raise UserError(f"--control {args.control}: needs validation, and of --augment {args.augment} "
                            "operations, a scale_max above 0, and no schedule")  # fmt: skip
        policy = {**policy, "schedule": last["schedule"] if last else [[0, policy["scale"]]]}
        clean = loading.Evenly(train, len(val))  # training images, not to be augmented

    # ---- model ----
    model = build_model(args.model, num_classes, "none" if last else args.weights, args.preprocess)
    fresh = []
    if init:
        if init["args"]["model"] != args.model:
            raise UserError(f"--model {args.model}: {args.init} holds a {init['args']['model']}")
        fresh = carry_over(model, args.model, init["model"], init["data"]["classes"], faces.classes)
    model.to(device, memory_format=torch.channels_last)
    if device.type == "cuda" and world > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    frozen = freeze(model, args.freeze)  # after the conversion, which replaces modules
    average = copy.deepcopy(model).requires_grad_(False) if args.ema else None

    # ---- optimizer ----
    backbone = {id(p) for p in model.backbone.parameters()}
    groups = [{"params": [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == b],
               "scale": args.backbone_lr_scale if b else 1.0} for b in (False, True)]  # fmt: skip
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")

    # ---- resume ----
    best = {"step": 0, "mean_f1": -1.0}
    if last:
        model.load_state_dict(last["model"])
        if average:
            average.load_state_dict(last["ema"])
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
        best = last["best"]
    net = DistributedDataParallel(model) if world > 1 else model  # `model` stays the raw module
    net = torch.compile(net) if args.compile else net
    log = RunLog(out, vars(args), first, rank == 0)
    if rank == 0:
        made = "" if not args.synthetic else f" + {args.synthetic:.0%} synthetic"
        print(f"{faces.name} ({args.data}): {len(train)} train{made}, {len(val) if val else 0} val, "
              f"{num_classes} classes: {' '.join(faces.classes)}", *faces.notes, sep="\n  ")  # fmt: skip
        print(f"{args.model}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on "
              f"{device}, {args.amp} precision; steps {first} to {args.steps} of {world} x "
              f"{args.batch_size} images at {args.size} x {args.size}")  # fmt: skip
        if fresh:
            print(f"--init {args.init}: begun anew, not in its class list: {', '.join(fresh)}")

    def predict(images, net=average or model):
        images = transforms.normalise(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, amp_dtype, enabled=args.amp != "off"):
            return net(images)["semantic"].float()

    def save(step):
        state = dict(script="train_finetune.py", args=vars(args), step=step, best=best,
                     schedule=policy.get("schedule") or [[0, policy["scale"]]],  # of the policy's scale
                     data={"path": args.data, **means},
                     model=model.state_dict(), ema=average.state_dict() if average else None,
                     optimizer=optimizer.state_dict(), scaler=scaler.state_dict())  # fmt: skip
        if best["step"] == step or not val:  # before last.pt, which vouches for it
            kept = {k: v for k, v in state.items() if k not in ("optimizer", "scaler", "ema")}
            checkpoint.save(out / "best.pt", **kept | {"model": (average or model).state_dict()})
        checkpoint.save(out / "last.pt", **state)

    # ---- train ----
    bar = tqdm(total=args.steps, initial=first, desc="fine-tune", disable=rank > 0 or None)
    batches, waited, since, losses = iter(loader), 0.0, time.time(), []
    for step in range(first, args.steps):
        net.train()
        keep_frozen_eval(frozen)
        torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # dropout, where a model has it
        began = time.time()
        batch = next(batches)
        waited += time.time() - began
        images = batch["image"].to(device, non_blocking=True)
        labels = batch["semantic"].to(device, non_blocking=True)
        where = loading.positions(step, args.batch_size, rank, world)
        drawn = transforms.at_step(policy, step), args.seed, where, faces.flip_pairs
        images, labels = transforms.augment(images, labels, *drawn)
        if step == 0 and rank == 0:
            seen = (images * 255).byte().cpu(), labels.cpu()
            picture = draw.pairs(*seen, faces.colors, faces.classes)
            draw.write(out / "train_batch.png", picture)
            log.image(step, "train/batch", picture)
        images = transforms.normalise(images).to(memory_format=torch.channels_last)
        labels = labels.long()
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr) * group["scale"]
        with torch.autocast(device.type, amp_dtype, enabled=args.amp != "off"):
            logits = net(images)["semantic"]  # (B, K, H, W)
        loss = 0.0
        for name, weight in weights.items():
            total, count = LOSSES[name](logits.float(), labels)
            # DDP averages gradients over processes: undo that, and divide by the count of all
            loss = loss + weight * world * total / dist.total(count).clamp_min(1)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # so that the norm is in real units
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        if average:
            averages = average.state_dict()
            for key, value in model.state_dict().items():
                kept = averages[key]
                kept.lerp_(value, 1 - args.ema) if kept.is_floating_point() else kept.copy_(value)
        losses.append(loss.detach())
        bar.update()

        done = step + 1
        evaluates = done % args.eval_every == 0 or done == args.steps
        looks = done % LOG_EVERY == 0 or evaluates or (world == 1 and stop.signal)
        asked = stop.asked(device) if looks else 0
        if looks:
            mean_loss = dist.total(torch.stack(losses).mean()).item() / world
            spent, lr = max(time.time() - since, 1e-9), optimizer.param_groups[0]["lr"]
            rate, wait = len(losses) * world * args.batch_size / spent, waited / spent
            if not math.isfinite(mean_loss) or (args.amp != "fp16" and not grad_norm.isfinite()):
                raise UserError(f"no finite loss in steps {done - len(losses)} to {step}; "
                                f"nothing was saved since; lower --lr {args.lr}, or --amp off")  # fmt: skip
            log.scalars(step, **{"train/loss": mean_loss, "train/lr": lr, "train/grad_norm": grad_norm,
                                 "time/images_per_sec": rate, "time/data_wait": wait})  # fmt: skip
            bar.set_postfix_str(f"loss {mean_loss:.3f} lr {lr:.1e} {rate:.0f} images/s wait {wait:.0%}")
            waited, since, losses = 0.0, time.time(), []
        if evaluates and val:
            (average or model).eval()
            counts = metrics.measure(predict, val, num_classes, args.batch_size, rank, world)
            result = metrics.summary(counts, faces.classes)
            log.scalars(step, **metrics.scalars("val", result))
            if result["mean_f1"] > best["mean_f1"]:
                best = {"step": done, "mean_f1": result["mean_f1"]}
            if args.control:
                counts = metrics.measure(predict, clean, num_classes, args.batch_size, rank, world)
                f1 = metrics.mean_f1(counts["confusion"].sum(0)).item()
                gap, strength = 1 - result["mean_f1"] / f1 if f1 else 0.0, policy["schedule"][-1][1]
                log.scalars(step, **{"augment/gap": gap, "augment/strength": strength})
                change = scale_max * 3 * args.eval_every / args.steps  # from end to end in a third of the run
                if done < args.steps:
                    policy["schedule"] += [[done, steer(strength, gap, args.control, change, scale_max)]]
            if rank == 0:
                tqdm.write(f"step {done}: loss {mean_loss:.3f}, val mean F1 {result['mean_f1']:.4f}, "
                           f"mIoU {result['miou']:.4f}{' *' if best['step'] == done else ''}")  # fmt: skip
                with torch.no_grad():
                    picture = draw.validation(predict, val, faces.colors, faces.classes)
                draw.write(out / "val.png", picture)
                log.image(step, "val/grid", picture)
            since = time.time()
        if (evaluates or asked) and rank == 0:
            save(done)
        if asked:
            break

    # ---- finish ----
    bar.close()
    log.close()
    dist.finish()
    if asked and rank == 0:
        print(f"stopped by signal {asked} after step {done}; --out {out} --resume goes on")
    if asked:
        return 128 + asked
    if rank == 0:
        if val:
            print(metrics.table(result))
            print(f"best.pt: step {best['step']}, val mean F1 {best['mean_f1']:.4f}; see {out}/val.png")
        print(f"next:    python train_reward.py --init {out}/best.pt --out runs/reward")


if __name__ == "__main__":
    run(main, get_parser().parse_args())
