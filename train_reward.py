"""Reward-tune a face parser on labelled faces: raise the score of the masks it draws.

Run:    python train_reward.py --init runs/finetune/best.pt --out runs/reward
        python train_reward.py --init runs/finetune/best.pt --reward f1=1 boundary_f1=0.5 --ce-weight 1
Needs:  a checkpoint of train_finetune.py (or of this script), and labelled faces to score against
Writes: best.pt (by greedy validation reward), last.pt, args.json, metrics.jsonl, TensorBoard events
        and val.png into --out
Expect: README.md, "Results"                   -> evaluate.py --init runs/reward/best.pt

Pinto et al., "Tuning computer vision models with task rewards", 2023 (2302.08242), on masks: one
forward pass gives each pixel's class probabilities, masks are drawn from them and scored, and an
estimator says how much likelier each pixel's classes should become. Where labels are missing and a
score is all there is: train_scores.py.
"""

import argparse
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets import loading, transforms
from datasets.faces import IGNORE, meaning
from models import restore
from utils import checkpoint, dist, draw, metrics, rng
from utils.errors import UserError, above_zero, positive, run
from utils.log import RunLog, open_run
from utils.policy import agreement, credit, divergence, entropy, policy_loss, sample
from utils.rewards import REWARDS, Reward, build

WARMUP = 0.05  # share of the steps
COLLAPSE = 0.02  # a fall of the greedy validation reward below the start that ends the run
COLLAPSED = 3  # exit status then
LOG_EVERY = 10  # steps between two looks at the figures
INHERITED = dict.fromkeys(["data", "classes", "part_order", "val_fraction", "size"])  # from --init


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    g = p.add_argument_group("data (the checkpoint's where a flag is not given)")
    g.add_argument("--data", help="folder of faces, its layout recognised, or synthetic")
    g.add_argument("--classes", choices=["full", "fasseg", "celebamask", "lapa"],
                   help="class list of --data synthetic")  # fmt: skip
    g.add_argument("--part-order", choices=["canonical", "farl"],
                   help="which part of CelebAMask-HQ is painted last")  # fmt: skip
    g.add_argument("--val-fraction", type=float,
                   help="share of the people held out where the data has no validation split; 0: nobody, "
                        "and the training photos take their place")  # fmt: skip
    g.add_argument("--size", type=positive, help="side that photos are stretched to, pixels")
    g.add_argument("--limit", type=positive, help="labelled training images, spread over people and yaw, "
                   "nested by --seed; validation comes on top (default all)")  # fmt: skip
    g.add_argument("--ids", metavar="FILE", help='{"train": [sample ids], "val": [sample ids]}: which photos '
                   "train and which validate, in place of --limit and --val-fraction")  # fmt: skip
    g.add_argument("--augment", default="flip",
                   help="none, flip (default), randaugment, trivial, or a policy.json")  # fmt: skip
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", required="--resume" not in sys.argv,
                   help="checkpoint to start from")  # fmt: skip
    g = p.add_argument_group("reward")
    g.add_argument("--reward", nargs="+", default=["f1"], metavar="NAME=WEIGHT",
                   help=f"weighted sum of {', '.join(REWARDS)}, anatomy (default f1) and "
                        "FILE.py:FUNCTION, which takes preds, labels (B, H, W) and returns (B,)")  # fmt: skip
    g.add_argument("--reward-level", choices=["image", "batch"], default="image",
                   help="score each image by itself (default), or the counts of the whole batch")  # fmt: skip
    g.add_argument("--class-weight", nargs="+", default=[], metavar="CLASS=WEIGHT",
                   help="of a class in the reward's mean over classes (default 1 each)")  # fmt: skip
    g.add_argument("--tolerance", type=positive, default=1, help="of boundary_f1, pixels (default 1)")
    g.add_argument("--estimator", default="local", choices=list(ESTIMATORS),
                   help="reinforce: algorithm 2; rloo: leave-one-out; local (default): exact change of "
                        "each pixel; block: change of each block, for any FUNCTION")  # fmt: skip
    g.add_argument("--samples", type=positive, default=8, help="masks an image, of rloo (default 8)")
    g.add_argument("--temperature", type=above_zero, default=1.0,
                   help="of the policy: logits are divided by it (default 1)")  # fmt: skip
    g.add_argument("--entropy-floor", type=float, default=0.0, metavar="NATS",
                   help="entropy per pixel below which its lack is a loss (default 0, off)")  # fmt: skip
    g.add_argument("--kl", type=float, default=0.0, metavar="WEIGHT",
                   help="of the divergence from the starting model, nats per pixel (default 0)")  # fmt: skip
    g.add_argument("--ce-weight", type=float, default=0.0, metavar="WEIGHT",
                   help="of cross-entropy with the labels, nats per pixel (default 0)")  # fmt: skip
    g = p.add_argument_group("optimisation")
    g.add_argument("--steps", type=positive, default=200, help="optimiser steps (default 200)")
    g.add_argument("--batch-size", type=positive, default=16, help="images per process (default 16)")
    g.add_argument("--lr", type=float, default=1e-4, help="peak rate of AdamW (default 1e-4)")
    g.add_argument("--grad-clip", type=float, default=1.0, help="largest gradient norm (default 1)")
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=int, default=0, help="order, augmentation, samples (default 0)")
    g.add_argument("--amp", choices=["off", "bf16", "fp16"],
                   help="precision of the forward pass (default bf16 on a GPU, off on a CPU)")  # fmt: skip
    g.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    g.add_argument("--workers", type=int, default=0, help="processes that read batches (default 0)")
    g.add_argument("--compile", action="store_true", help="torch.compile the training pass")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/reward", help="run folder (default runs/reward)")
    g.add_argument("--resume", action="store_true", help="go on with the run in --out")
    g.add_argument("--eval-every", type=positive, default=50, metavar="STEPS",
                   help="steps between validations and checkpoints (default 50)")  # fmt: skip
    return p


# ---- estimators. logits (B, K, H, W), labels (B, H, W), reward(preds, labels) -> (B,), u (B, S, H, W)
# uniform. Each returns `weights` (B, K, H, W), whose sum with the log-probabilities has, on average,
# the gradient of the expected reward of each image; and the rewards (B, n) of the masks drawn.


def reinforce(logits, labels, reward, u):
    """The reward of one mask minus that of another (Pinto et al., 2302.08242, eq. 2, algorithm 2)."""
    drawn, other = sample(logits, u[:, 0]), sample(logits, u[:, 1])
    rewards = torch.stack([reward(drawn, labels), reward(other, labels)], 1)
    return credit((rewards[:, 0] - rewards[:, 1])[:, None, None], drawn, logits.shape[1]), rewards


def rloo(logits, labels, reward, u):
    """Leave-one-out: each of S masks against the mean of the others (Kool et al., ICLR workshop 2019;
    Ahmadian et al., 2402.14740)."""
    masks = [sample(logits, u[:, k]) for k in range(u.shape[1])]
    rewards = torch.stack([reward(mask, labels) for mask in masks], 1)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (u.shape[1] - 1)  # the mean over S in it
    pairs = zip(masks, advantages.T, strict=True)
    return sum(credit(a[:, None, None], mask, logits.shape[1]) for mask, a in pairs), rewards


def local(logits, labels, reward, u):
    """For each pixel, how the reward would change with that pixel alone changed: the local expectation
    gradient (Titsias and Lazaro-Gredilla, NeurIPS 2015, 1503.01494; for products of categoricals, the
    IndeCateR of De Smet et al., NeurIPS 2023, 2311.12569). Needs a `Reward`, whose reach is known."""
    drawn = sample(logits, u[:, 0])
    value = reward(drawn, labels)[:, None]
    if reward.radius == 0:  # to every other class
        return logits.softmax(1) * reward.changes(drawn, labels), value
    other = sample(logits, u[:, 1])  # to the class of a second mask
    change = reward.flips(drawn, other, labels)
    k = logits.shape[1]
    return (credit(change, other, k) - credit(change, drawn, k)) / 2, value


def block(logits, labels, reward, u, side=32):
    """Blocks of a second mask are put into the first, one at a time, and each is credited with the
    change that it makes: COMA's counterfactual (1705.08926) for blocks, and for any callable."""
    drawn, other = sample(logits, u[:, 0]), sample(logits, u[:, 1])
    start = reward(drawn, labels)
    change = torch.zeros(labels.shape).to(start)
    for y in range(0, labels.shape[1], side):
        for x in range(0, labels.shape[2], side):
            cell = (slice(None), slice(y, y + side), slice(x, x + side))
            changed = drawn.clone()
            changed[cell] = other[cell]
            change[cell] = (reward(changed, labels) - start)[:, None, None]
    weights = credit(change, other, logits.shape[1]) - credit(change, drawn, logits.shape[1])
    return weights / 2, start[:, None]


ESTIMATORS = {"reinforce": reinforce, "rloo": rloo, "local": local, "block": block}


def lr_at(step, steps, peak):
    """Linear warm-up, then half a cosine to zero. Pure in `step`, so there is no scheduler state."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def main(args):
    # ---- setup ----
    out = open_run(args.out, args.resume)
    last = checkpoint.load(out / "last.pt", "train_reward.py") if args.resume else None
    if last:
        args = checkpoint.resume_flags(get_parser(), last["args"])
    init = checkpoint.load(args.init)
    rank, world, device = dist.init(args.device)
    args.ids = loading.which_ids(args.ids, args.data, init["args"], args.limit)
    args = checkpoint.inherit(args, init, **INHERITED)
    args = checkpoint.inherit(args, None, device=device.type,
                              amp="bf16" if device.type == "cuda" else "off")  # fmt: skip
    for key in ("model", "preprocess"):  # so that this run's checkpoints say what they hold
        setattr(args, key, init["args"].get(key, "none"))
    amp_dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    policy = transforms.real_like(transforms.load_policy(args.augment))
    stop = dist.Stop()

    # ---- data ----
    faces = loading.open_data(args.data, args.classes, args.part_order, args.val_fraction, args.ids)
    if faces.classes != init["data"]["classes"]:
        raise UserError(f"{args.data} has the classes {' '.join(faces.classes)}; {args.init} was "
                        f"trained on {' '.join(init['data']['classes'])}")  # fmt: skip
    made_on = "cpu" if args.workers else device  # where synthetic faces are rendered
    train = loading.load(faces, "train", args.size, args.seed, args.limit, made_on,
                         policy.get("allocation"), "reward")  # fmt: skip
    nobody = not (args.val_fraction or args.ids) and args.data != "synthetic"  # held out
    val = train if nobody else loading.load(faces, "val", args.size, device=device)
    num_classes, means = len(faces.classes), meaning(faces)
    reward, parts = build(args.reward, faces.classes, args.class_weight, args.tolerance)
    needs_sums = args.estimator == "local" or args.reward_level == "batch"
    if needs_sums and not isinstance(reward, Reward):
        raise UserError(f"--reward {' '.join(args.reward)}: --estimator local and --reward-level batch "
                        f"need some of {', '.join(REWARDS)}; --estimator block takes any")  # fmt: skip
    masks_of = {"rloo": args.samples, "local": 1 if getattr(reward, "radius", 0) == 0 else 2}
    samples = masks_of.get(args.estimator, 2)  # masks drawn from an image
    if args.estimator == "rloo" and samples < 2:
        raise UserError(f"--samples {samples}: rloo compares each mask with the others; give 2 or more")
    first = last["step"] if last else 0
    if first >= args.steps:
        raise UserError(f"--resume: {out} has done all of its {args.steps} steps")
    order = loading.Order(len(train), args.batch_size, args.seed, first, args.steps, rank, world)
    loader = DataLoader(train, sampler=order, batch_size=None, num_workers=args.workers,
                        pin_memory=args.workers > 0 and device.type == "cuda",
                        worker_init_fn=dist.ignore_signals)  # fmt: skip

    # ---- model ----
    # `restore` gives eval mode, and it stays: frozen BatchNorm and no dropout, so that masks are
    # drawn from the very distribution whose log-probability is weighed
    start = restore(init, device).requires_grad_(False)
    model = restore(last or init, device)

    # ---- optimizer ----
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")

    # ---- resume ----
    if last:
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
    net = DistributedDataParallel(model) if world > 1 else model  # `model` stays the raw module
    net = torch.compile(net) if args.compile else net
    log = RunLog(out, vars(args), first, rank == 0)

    def forward(images, net=model):
        images = transforms.normalise(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, amp_dtype, enabled=args.amp != "off"):
            return net(images)["semantic"].float()

    def draw_mask(images):
        """(B, K, H, W): a mask from the policy, one-hot; the same one for an image at each step."""
        logits, key = forward(images) / args.temperature, images.to(device).flatten(1).long().sum(1)
        u = rng.uniform(args.seed, key, logits[0, 0].numel(), stream=11).view_as(logits[:, 0])
        return F.one_hot(sample(logits, u), num_classes).movedim(-1, 1).float()

    def evaluate():
        over, batch_level = (num_classes, args.batch_size, rank, world), args.reward_level == "batch"
        counts = metrics.measure(forward, val, *over, reward.sums if batch_level else reward)
        drawn = metrics.measure(draw_mask, val, *over)
        value = reward.score(counts["reward"].sum(0)) if batch_level else counts["reward"].mean()
        result = metrics.summary(counts, faces.classes) | {"reward": float(value)}
        return result | {"sampled_f1": metrics.summary(drawn, faces.classes)["mean_f1"]}

    def save(step):
        state = dict(script="train_reward.py", args=vars(args), step=step, best=best, before=before,
                     data={"path": args.data, **means}, model=model.state_dict(),
                     optimizer=optimizer.state_dict(), scaler=scaler.state_dict())  # fmt: skip
        if best["step"] == step:  # before last.pt, which vouches for it
            kept = {k: v for k, v in state.items() if k not in ("optimizer", "scaler")}
            checkpoint.save(out / "best.pt", **kept)
        checkpoint.save(out / "last.pt", **state)

    result = before = last["before"] if last else evaluate()
    best = last["best"] if last else {"step": 0, "reward": before["reward"]}
    if rank == 0:
        print(f"{faces.name} ({args.data}): {len(train)} train, {len(val)} val", *faces.notes, sep="\n  ")
        print(f"{args.model} from {args.init} on {device}, {args.amp} precision; steps {first} to "
              f"{args.steps} of {world} x {args.batch_size} images at {args.size} x {args.size}; "
              f"{args.estimator} on {' + '.join(args.reward)}")  # fmt: skip
        print(f"start: greedy val reward {before['reward']:.4f}, mean F1 {before['mean_f1']:.4f}")
        if not last:
            save(0)  # the start is the best so far: a run that only loses ground ends with it

    # ---- train ----
    bar = tqdm(total=args.steps, initial=first, desc="reward", disable=rank > 0 or None)
    batches, since, done, asked, collapsed = iter(loader), time.time(), first, 0, False
    for step in range(first, args.steps):
        batch = next(batches)
        images = batch["image"].to(device, non_blocking=True)
        labels = batch["semantic"].to(device, non_blocking=True)
        where = loading.positions(step, args.batch_size, rank, world)
        drawn = transforms.at_step(policy, step), args.seed, where, faces.flip_pairs
        images, labels = transforms.augment(images, labels, *drawn)
        labels = labels.long()
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr)
        logits = forward(images, net)  # (B, K, H, W)
        tempered, scored, scale = logits / args.temperature, reward, 1.0
        with torch.no_grad():
            u = rng.uniform(args.seed, where.to(device), samples * labels[0].numel(), stream=9)
            u = u.view(len(labels), samples, *labels.shape[1:])
            if args.reward_level == "batch":  # one image changes, those of all processes stand beside it
                sums = reward.sums(sample(tempered, u[:, 0]), labels)
                scored = reward.beside(dist.total(sums.sum(0)) - sums)
                scale = world * len(labels)  # the loss is a mean over images; here it is to be their sum
            weights, values = ESTIMATORS[args.estimator](tempered, labels, scored, u)
        losses = scale * policy_loss(tempered, weights, labels)  # (B,)
        loss = of_policy = losses.mean()
        done = step + 1
        evaluates = done % args.eval_every == 0 or done == args.steps
        looks = done % LOG_EVERY == 0 or evaluates or (world == 1 and stop.signal)
        # DDP averages gradients over processes: undo that, and divide by the count of all
        if args.kl or looks:
            with torch.set_grad_enabled(bool(args.kl)):
                total, count = divergence(logits, forward(images, start), labels)
            kl = world * total / dist.total(count).clamp_min(1)
            loss = loss + args.kl * kl
        if args.ce_weight or looks:
            total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
            ce = world * total / dist.total((labels != IGNORE).sum()).clamp_min(1)
            loss = loss + args.ce_weight * ce if args.ce_weight else loss
        if args.entropy_floor or looks:
            total, count = entropy(tempered, labels)
            nats = world * total / dist.total(count).clamp_min(1)
            loss = loss + F.relu(args.entropy_floor - nats) if args.entropy_floor else loss
        snr = agreement(losses, list(model.parameters())) if looks and not args.compile else math.nan
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # so that the norm is in real units
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        bar.update()

        asked = stop.asked(device) if looks else 0
        if looks:
            with torch.no_grad():
                mask, likely = sample(tempered, u[:, 0]), logits.argmax(1)
                if args.reward_level == "batch":  # beside the most likely masks, not beside drawn ones
                    greedy = reward.score(dist.total(reward.sums(likely, labels).sum(0)))
                else:
                    greedy = reward(likely, labels)
                others = values[:, 1:].mean(1)  # NaN for one sample
                spread = values.var(1).mean().sqrt() if values.shape[1] > 1 else math.nan
                f1 = metrics.f1_per_class(metrics.confusion(mask, labels, num_classes)).nanmean(0)
                figures = {
                    "reward/mean": values.mean(), "reward/std": spread,
                    "reward/greedy": greedy.mean(), "reward/baseline": others.mean(),
                    "advantage/mean": (values[:, 0] - others).mean(),
                    "advantage/std": (values[:, 0] - others).std(correction=0),
                    "frac_reward_zero_std": 1 - weights.flatten(1).any(1).double().mean(),
                    "grad_snr": snr, "kl": kl, "entropy": nats, "ce_loss": ce,
                    "policy_loss": of_policy, "loss": loss,
                    **{f"rewards/{n}/mean": part(mask, labels).mean() for n, part in parts.items()},
                    **{f"reward/per_class/{n}": x for n, x in zip(faces.classes, f1, strict=True)},
                }  # fmt: skip
                each = torch.stack([torch.as_tensor(v, device=device).double() for v in figures.values()])
                known = dist.total((~each.isnan()).double())  # processes that have something to say
                average = (dist.total(each.masked_fill(each.isnan(), 0)) / known).tolist()
                figures = dict(zip(figures, average, strict=True))
            if not dist.total(loss.detach()).isfinite() or (args.amp != "fp16" and not grad_norm.isfinite()):
                raise UserError(f"the loss is not finite at step {step}; nothing was saved since the last "
                                f"checkpoint; lower --lr {args.lr} or use --amp off")  # fmt: skip
            rate = LOG_EVERY * world * args.batch_size / (time.time() - since)
            log.scalars(step, **figures, **{"grad_norm": grad_norm, "lr": optimizer.param_groups[0]["lr"],
                                            "time/images_per_sec": rate})  # fmt: skip
            bar.set_postfix_str(f"reward {figures['reward/mean']:.4f} greedy {figures['reward/greedy']:.4f} "
                                f"entropy {figures['entropy']:.3f}")  # fmt: skip
            since = time.time()
        if evaluates:
            result = evaluate()
            log.scalars(step, **metrics.scalars("val", result))
            if result["reward"] > best["reward"]:
                best = {"step": done, "reward": result["reward"]}
            collapsed = result["reward"] < before["reward"] - COLLAPSE
            if rank == 0:
                tqdm.write(f"step {done}: greedy val reward {result['reward']:.4f} "
                           f"({result['reward'] - before['reward']:+.4f}), mean F1 {result['mean_f1']:.4f}"
                           f"{' *' if best['step'] == done else ''}")  # fmt: skip
                with torch.no_grad():
                    picture = draw.validation(forward, val, faces.colors, faces.classes)
                draw.write(out / "val.png", picture)
                log.image(step, "val/grid", picture)
            since = time.time()
        if (evaluates or asked) and rank == 0:
            save(done)
        if asked or collapsed:
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
        print(f"{'validation':<16}{'before':>8}{'after':>8}")
        for key in ("reward", "mean_f1", "sampled_f1", "miou", "pixel_accuracy", "boundary_f1", "ece"):
            print(f"{key:<16}{before[key]:8.4f}{result[key]:8.4f}")
        if collapsed:
            print(f"collapsed: the greedy val reward fell from {before['reward']:.4f} to "
                  f"{result['reward']:.4f} by step {done}; stopped. best.pt is step {best['step']}. "
                  f"Try a lower --lr than {args.lr}, or --ce-weight or --kl above 0")  # fmt: skip
            return COLLAPSED
        print(f"best.pt: step {best['step']}, greedy reward {best['reward']:.4f}\n"
              f"next:    python evaluate.py --init {out / 'best.pt'} --split test")  # fmt: skip


if __name__ == "__main__":
    run(main, get_parser().parse_args())
