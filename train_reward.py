"""Reward-tune a face parser: raise the score of the masks it draws, by REINFORCE.

Run:    python train_reward.py --init runs/finetune/best.pt --out runs/reward
Needs:  a checkpoint of train_finetune.py (or of this script), and labelled faces to score against
Writes: best.pt (by greedy validation mean F1), last.pt, args.json, metrics.jsonl, TensorBoard events
        and val.png into --out
Expect: README.md, "Results"                   -> evaluate.py --init runs/reward/best.pt

Algorithm 2 of Pinto et al., "Tuning computer vision models with task rewards", 2023 (2302.08242), on
masks: one forward pass gives each pixel's class probabilities; two masks are drawn from them; the
reward of the first minus that of the second weighs the log-probability of the first.
"""

import argparse
import math
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
from utils.errors import UserError, positive, run
from utils.log import RunLog, open_run
from utils.rewards import REWARDS, reward

WARMUP = 0.05  # share of the steps
COLLAPSE = 0.02  # a fall of greedy validation F1 below the start that ends the run
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
                   help="share of the people held out where the data has no validation split")  # fmt: skip
    g.add_argument("--size", type=positive, help="side that photos are stretched to, pixels")
    g.add_argument("--limit", type=positive, help="labelled training images, spread over people and yaw, "
                   "nested by --seed; validation comes on top (default all)")  # fmt: skip
    g.add_argument("--augment", default="flip",
                   help="none, flip (default), randaugment, trivial, or a policy.json")  # fmt: skip
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", required=True, help="checkpoint to start from")
    g = p.add_argument_group("reward")
    g.add_argument("--reward", default="f1", choices=list(REWARDS),
                   help="score of one mask: mean F1 (default), mean IoU, pixel accuracy")  # fmt: skip
    g.add_argument("--kl", type=float, default=0.0, metavar="WEIGHT",
                   help="of the divergence from the starting model, nats per pixel (default 0)")  # fmt: skip
    g.add_argument("--ce-weight", type=float, default=0.0, metavar="WEIGHT",
                   help="of cross-entropy with the labels, nats per pixel (default 0)")  # fmt: skip
    g = p.add_argument_group("optimisation")
    g.add_argument("--steps", type=positive, default=200, help="optimiser steps (default 200)")
    g.add_argument("--batch-size", type=positive, default=16, help="images per process (default 16)")
    g.add_argument("--lr", type=float, default=1e-5, help="peak rate of AdamW (default 1e-5)")
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


# ---- the policy: one categorical a pixel. logits (B, K, H, W) float32; masks and labels (B, H, W)


def sample(logits, u):
    """One mask from the policy, (B, H, W) long, by inverting the distribution function.

    u: (B, H, W) uniform in [0, 1): the same numbers give the same mask.
    """
    cdf = logits.softmax(1).cumsum(1)[:, :-1]  # the last class takes what rounding leaves
    return (u[:, None] >= cdf).sum(1)


def log_prob(logits, mask, labels):
    """(B,): log-probability of each mask, summed over the pixels that count."""
    per_pixel = -F.cross_entropy(logits, mask, reduction="none")
    return (per_pixel * (labels != IGNORE)).sum((1, 2))


def reinforce(logits, mask, advantage, labels):
    """(B,) losses whose mean gradient is that of minus the expected reward (2302.08242, eq. 2 and
    algorithm 2). advantage: (B,), the reward of `mask` minus that of an independent sample."""
    return -advantage * log_prob(logits, mask, labels)


def divergence(logits, start, labels):
    """(sum, count): exact KL(policy || starting policy) over the pixels that count, in nats."""
    log_p, log_q = logits.log_softmax(1), start.log_softmax(1)
    per_pixel = (log_p.exp() * (log_p - log_q)).sum(1)
    valid = labels != IGNORE
    return (per_pixel * valid).sum(), valid.sum()


def entropy(logits, labels):
    """Scalar: mean over the pixels that count, in nats; log K where the policy knows nothing."""
    log_p, valid = logits.log_softmax(1), labels != IGNORE
    return -((log_p.exp() * log_p).sum(1) * valid).sum() / valid.sum().clamp_min(1)


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
    args = checkpoint.inherit(args, init, **INHERITED)
    args = checkpoint.inherit(args, None, device=device.type,
                              amp="bf16" if device.type == "cuda" else "off")  # fmt: skip
    args.model = init["args"]["model"]  # so that this run's checkpoints say what they hold
    amp_dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    policy = transforms.load_policy(args.augment)
    stop = dist.Stop()

    # ---- data ----
    faces = loading.open_data(args.data, args.classes, args.part_order, args.val_fraction)
    if faces.classes != init["data"]["classes"]:
        raise UserError(f"{args.data} has the classes {' '.join(faces.classes)}; {args.init} was "
                        f"trained on {' '.join(init['data']['classes'])}")  # fmt: skip
    made_on = "cpu" if args.workers else device  # where synthetic faces are rendered
    train = loading.load(faces, "train", args.size, args.seed, args.limit, made_on)
    val = loading.load(faces, "val", args.size, device=device)
    num_classes, means = len(faces.classes), meaning(faces)
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
        logits, key = forward(images), images.to(device).flatten(1).long().sum(1)
        u = rng.uniform(args.seed, key, logits[0, 0].numel(), stream=11).view_as(logits[:, 0])
        return F.one_hot(sample(logits, u), num_classes).movedim(-1, 1).float()

    def evaluate():
        counts = metrics.measure(forward, val, num_classes, args.batch_size, rank, world)
        drawn = metrics.measure(draw_mask, val, num_classes, args.batch_size, rank, world)
        result = metrics.summary(counts, faces.classes)
        return result | {"sampled_f1": metrics.summary(drawn, faces.classes)["mean_f1"]}

    def save(step):
        state = dict(script="train_reward.py", args=vars(args), step=step, best=best, before=before,
                     data={"path": args.data, **means}, model=model.state_dict(),
                     optimizer=optimizer.state_dict(), scaler=scaler.state_dict())  # fmt: skip
        if best["step"] == step:  # before last.pt, which vouches for it
            kept = {k: v for k, v in state.items() if k not in ("optimizer", "scaler")}
            checkpoint.save(out / "best.pt", **kept)
        checkpoint.save(out / "last.pt", **state)

    before = last["before"] if last else evaluate()
    best = last["best"] if last else {"step": 0, "mean_f1": before["mean_f1"]}
    result = before
    if rank == 0:
        print(
            f"{faces.name} ({args.data}): {len(train)} train, {len(val)} val",
            *faces.notes,
            sep="\n  ",
        )
        print(f"{args.model} from {args.init} on {device}, {args.amp} precision; steps {first} to "
              f"{args.steps} of {world} x {args.batch_size} images at {args.size} x {args.size}; "
              f"reward {args.reward}")  # fmt: skip
        print(f"start: greedy val mean F1 {before['mean_f1']:.4f}")
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
        drawn_from = policy, args.seed, where, faces.flip_pairs
        images, labels = transforms.augment(images, labels, *drawn_from)
        labels = labels.long()
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr)
        logits = forward(images, net)  # (B, K, H, W)
        with torch.no_grad():
            u = rng.uniform(args.seed, where.to(device), 2 * labels[0].numel(), stream=9)
            u = u.view(len(labels), 2, *labels.shape[1:])
            drawn, other = sample(logits, u[:, 0]), sample(logits, u[:, 1])
            r_drawn = reward(args.reward, drawn, labels, num_classes).float()
            r_other = reward(args.reward, other, labels, num_classes).float()
        loss = reinforce(logits, drawn, r_drawn - r_other, labels).mean()
        done = step + 1
        evaluates = done % args.eval_every == 0 or done == args.steps
        looks = done % LOG_EVERY == 0 or evaluates or (world == 1 and stop.signal)
        # DDP averages gradients over processes: undo that, and divide by the count of all
        if args.kl or looks:
            with torch.set_grad_enabled(bool(args.kl)):
                total, count = divergence(logits, forward(images, start), labels)
                kl = world * total / dist.total(count).clamp_min(1)
            loss = loss + args.kl * kl if args.kl else loss
        if args.ce_weight or looks:
            with torch.set_grad_enabled(bool(args.ce_weight)):
                total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
                ce = world * total / dist.total((labels != IGNORE).sum()).clamp_min(1)
            loss = loss + args.ce_weight * ce if args.ce_weight else loss
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
                greedy = reward(args.reward, logits.argmax(1), labels, num_classes)
                values = dist.total(torch.stack([
                    r_drawn.mean(), (r_drawn - r_other).square().mean() / 2, greedy.mean(),
                    greedy.std(), entropy(logits, labels), kl, ce, loss.detach()
                ]).double()).tolist()  # fmt: skip
            sampled, variance, mean, std, nats, kl_now, ce_now, total = (v / world for v in values)
            if not math.isfinite(total) or (args.amp != "fp16" and not grad_norm.isfinite()):
                raise UserError(f"the loss is not finite at step {step}; nothing was saved since the last "
                                f"checkpoint; lower --lr {args.lr} or use --amp off")  # fmt: skip
            log.scalars(step, **{
                "reward/mean": sampled, "reward/std": variance**0.5, "reward/greedy": mean,
                "reward/greedy_std": std, "entropy": nats, "kl": kl_now,
                "ce_loss": ce_now, "loss": total, "grad_norm": grad_norm,
                "lr": optimizer.param_groups[0]["lr"],
                "time/images_per_sec": LOG_EVERY * world * args.batch_size / (time.time() - since),
            })  # fmt: skip
            bar.set_postfix_str(f"reward {sampled:.4f} greedy {mean:.4f} entropy {nats:.3f}")
            since = time.time()
        if evaluates:
            result = evaluate()
            log.scalars(step, **metrics.scalars("val", result))
            if result["mean_f1"] > best["mean_f1"]:
                best = {"step": done, "mean_f1": result["mean_f1"]}
            collapsed = result["mean_f1"] < before["mean_f1"] - COLLAPSE
            if rank == 0:
                tqdm.write(f"step {done}: greedy val mean F1 {result['mean_f1']:.4f} "
                           f"({result['mean_f1'] - before['mean_f1']:+.4f})"
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
        for key in ("mean_f1", "sampled_f1", "miou", "pixel_accuracy", "boundary_f1", "ece"):
            print(f"{key:<16}{before[key]:8.4f}{result[key]:8.4f}")
        if collapsed:
            print(f"collapsed: greedy val mean F1 fell from {before['mean_f1']:.4f} to "
                  f"{result['mean_f1']:.4f} by step {done}; stopped. best.pt is step {best['step']}. "
                  f"Try a lower --lr than {args.lr}, or --ce-weight or --kl above 0")  # fmt: skip
            return COLLAPSED
        print(f"best.pt: step {best['step']}, greedy mean F1 {best['mean_f1']:.4f}\n"
              f"next:    python evaluate.py --init {out / 'best.pt'} --split test")  # fmt: skip


if __name__ == "__main__":
    run(main, get_parser().parse_args())
