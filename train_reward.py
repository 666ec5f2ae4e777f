"""Reward-tune a face parser on labelled faces: raise the score of the masks it draws.

Run:    python train_reward.py --init runs/finetune/best.pt --out runs/reward
        python train_reward.py --init runs/finetune/best.pt --reward f1=1 boundary_f1=0.5 --ce-weight 1
Needs:  a checkpoint of train_finetune.py (or of this script), and labelled faces to score against
Writes: best.pt (by greedy validation reward), last.pt, args.json, metrics.jsonl, TensorBoard events
        and val.png into --out
Expect: docs/reward.md                         -> evaluate.py --init runs/reward/best.pt

Pinto et al., "Tuning computer vision models with task rewards", 2023 (2302.08242), on masks: one
forward pass gives each pixel's class probabilities, masks are drawn from them and scored, and an
estimator says how much likelier each pixel's classes should become. Where labels are missing and a
score is all there is: train_scores.py.
"""

import math
import time

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from datasets import batches, splits, summary
from datasets.augmentation import augment
from datasets.faces import label_info
from datasets.images import to_float
from datasets.policies import at_step, chosen_by, load_policy, without_regularisers
from models import restore
from utils import checkpoint, cli, dist, draw, lineage, losses, metrics, rng
from utils.errors import UserError
from utils.log import RunLog
from utils.rewards.policy_gradient import credit, divergence, entropy, gradient_cosine, policy_loss, sample
from utils.rewards.rewards import REWARDS, Reward, build, describe

WARMUP = 0.05  # share of the steps
COLLAPSE = 0.02  # a fall of the greedy validation reward below the start that ends the run
LOG_EVERY = 10  # steps between two lines of metrics.jsonl
DEFAULTS = {"samples": 8, "tolerance": 1}
INHERITED = dict.fromkeys(["data", "classes", "part_order", "val_fraction", "size"])  # from --init
INHERITED["allow_empty"] = []


def get_parser():
    p = cli.parser(__doc__)
    g = cli.add_data_flags(p, "as --init was trained; without held-out people, training photos are watched")
    policy = "as train_finetune.py, but CutMix and erasing are left out"
    g.add_argument("--augment", default="flip", metavar="POLICY", help=policy)
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", help="checkpoint to start from")
    g = p.add_argument_group("reward")
    rewards = f"weighted sum of {', '.join(REWARDS)}, anatomy, FILE.py:FUNCTION (docs/reward.md)"
    g.add_argument("--reward", nargs="+", default=["f1"], metavar="NAME=WEIGHT", help=rewards)
    level = "score each image by itself, or the counts of the whole batch"
    g.add_argument("--reward-level", choices=["image", "batch"], default="image", help=level)
    weight = "of a class in the reward's mean over classes; 1 where it is not given"
    g.add_argument("--class-weight", nargs="+", default=[], metavar="CLASS=WEIGHT", help=weight)
    g.add_argument("--tolerance", type=cli.positive, help="of boundary_f1, pixels; 1 where it is not given")
    credit_by = (
        "reinforce: Algorithm 2; rloo: leave-one-out; local: exact change of each pixel; block: of each block"
    )
    g.add_argument("--estimator", choices=list(ESTIMATORS), default="local", help=credit_by)
    g.add_argument("--samples", type=cli.positive, help="masks an image, of rloo; 8 where it is not given")
    divisor = "of the policy: logits are divided by it"
    g.add_argument("--temperature", type=cli.above_zero, default=1.0, help=divisor)
    floor = "entropy per pixel; what lacks to it is added to the loss; 0: off"
    g.add_argument("--entropy-floor", type=cli.at_least_zero, default=0.0, metavar="NATS", help=floor)
    kl = "of the divergence from the starting model, nats per pixel"
    g.add_argument("--kl", type=cli.at_least_zero, default=0.0, metavar="WEIGHT", help=kl)
    ce = "of cross-entropy with the labels, nats per pixel"
    g.add_argument("--ce-weight", type=cli.at_least_zero, default=0.0, metavar="WEIGHT", help=ce)
    g = p.add_argument_group("optimisation")
    g.add_argument("--steps", type=cli.positive, default=200, help="optimiser steps")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    g.add_argument("--lr", type=cli.above_zero, default=1e-4, help="peak rate of AdamW")
    g.add_argument("--grad-clip", type=cli.above_zero, default=1.0, help="largest gradient norm")
    cli.add_runtime_flags(p)
    cli.add_output_flags(p, out="runs/reward", eval_every=50)
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
    change = reward.changes_to(drawn, other, labels)
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


def masks_needed(args, reward):
    """How many masks are drawn from an image; a UserError where estimator and reward do not go together."""
    needs_sums = args.estimator == "local" or args.reward_level == "batch"
    if needs_sums and not isinstance(reward, Reward):
        raise UserError(
            f"--reward {' '.join(args.reward)}: --estimator local and --reward-level batch need some of "
            f"{', '.join(REWARDS)}; --estimator block takes any"
        )
    if args.estimator != "rloo":
        return 1 if args.estimator == "local" and reward.radius == 0 else 2
    if args.samples < 2:
        raise UserError(f"--samples {args.samples}: rloo compares each mask with the others; give 2 or more")
    return args.samples


def reward_figures(values, weights):
    """What is logged of the rewards (B, n) of drawn masks and of the estimator's weights (B, K, H, W)."""
    others = values[:, 1:].mean(1)  # NaN for one sample
    advantages = values[:, 0] - others
    return {
        "reward/mean": values.mean(),
        "reward/std": values.var(1).mean().sqrt() if values.shape[1] > 1 else math.nan,
        "reward/baseline": others.mean(),
        "advantage/mean": advantages.mean(),
        "advantage/std": advantages.std(correction=0),
        "frac_reward_zero_std": 1 - weights.flatten(1).any(1).double().mean(),
    }


# >>> shared: schedule
def lr_at(step, steps, peak):
    """Linear warm-up, then half a cosine to zero. Pure in `step`, so there is no scheduler state."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# <<< shared: schedule


def main(args):
    # ---- setup ----
    out, args, last = cli.start_run(args, get_parser(), "train_reward.py", needs=["init"])
    given = args
    init = checkpoint.load(args.init)
    rank, world, device = dist.init(args.device)
    ids = splits.ids_file(args.ids, args.data, init["args"], args.limit)
    args = cli.inherit(args, init, **INHERITED)
    args.ids = ids
    args = cli.fill(args, {"device": device.type, "amp": dist.default_amp(device)} | DEFAULTS)
    if not last:
        names = [word.partition("=")[0] for word in args.reward]
        reasons = {
            "samples": None if args.estimator == "rloo" else f"with --estimator {args.estimator}",
            "tolerance": None if "boundary_f1" in names else f"on --reward {' '.join(args.reward)}",
        }
        cli.refuse_without_effect(given, reasons)
    inputs = cli.input_files(args, last)
    args.model, args.preprocess = init["args"]["model"], init["args"].get("preprocess", "none")
    policy = without_regularisers(load_policy(args.augment))
    stop = dist.Stop()

    # ---- data ----
    faces = splits.open_data(args.data, args.classes, args.part_order, args.val_fraction, args.ids)
    if faces.classes != init["data"]["classes"]:
        raise UserError(
            f"{args.data} has the classes {' '.join(faces.classes)}; {args.init} was trained on "
            f"{' '.join(init['data']['classes'])}"
        )
    if not last:
        cli.refuse_idle_data_flags(given, args, faces)
    render_on = "cpu" if args.workers else device  # where synthetic faces are made
    train = batches.load(faces, "train", args.size, args.seed, args.limit, render_on)
    validates = args.data == "synthetic" or ("val" in faces.splits if args.ids else args.val_fraction)
    val = batches.load(faces, "val", args.size, device=device) if validates else train
    found = summary.inspect({"train": train, "val": val if validates else None}, faces.classes)
    summary.refuse_empty(found, faces.classes if args.data == "synthetic" else args.allow_empty)
    summary.refuse_changed(found, last, out / "data.json")
    num_classes = len(faces.classes)
    flip_pairs = {"semantic": faces.flip_pairs}
    reward, parts = build(args.reward, faces.classes, args.class_weight, args.tolerance)
    samples = masks_needed(args, reward)
    first = last["step"] if last else 0
    order = batches.Order(len(train), args.batch_size, args.seed, first, args.steps, rank, world)
    loader = batches.loader(train, order, args.workers, device)

    # ---- model ----
    # `restore` gives eval mode, and it stays: frozen BatchNorm and no dropout, so that masks are
    # drawn from the very distribution whose log-probability is weighed
    start = restore(init, device, args.init).requires_grad_(False)
    model = evaluated = restore(last or init, device, out / "last.pt" if last else args.init)

    # ---- optimizer ----
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")

    # ---- resume ----
    if last:
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
    net = DistributedDataParallel(model) if world > 1 else model  # `model` stays the raw module
    net = torch.compile(net) if args.compile else net
    named = cli.files_of(args, inputs)
    starts = {args.init: init} | chosen_by(args.augment, policy)
    origin = lineage.origin(
        "train_reward.py", args.out, found, dict.fromkeys(found, args.data), named, starts, last
    )
    log = RunLog(out, vars(args), first if last else None, rank == 0)
    log.json("data.json", found)
    lineage.begin(out, origin, vars(args), named)

    # >>> shared: predict
    def predict(images, by=None):
        """(B, 3, H, W) uint8, or float in 0 to 1 -> logits (B, K, H, W) float32, of a network."""
        network = evaluated if by is None else by
        images = to_float(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dist.AMP_DTYPES[args.amp], enabled=args.amp != "off"):
            return network(images)["semantic"].float()

    # <<< shared: predict

    def sampled(images):
        """A mask from the policy as one-hot "logits" (B, K, H, W); the same one for an image at each step."""
        logits = predict(images) / args.temperature
        key = images.to(device).flatten(1).long().sum(1)
        u = rng.uniform(args.seed, key, logits[0, 0].numel(), stream=11).view_as(logits[:, 0])
        return F.one_hot(sample(logits, u), num_classes).movedim(-1, 1).float()

    def evaluate():
        """`metrics.summary` of the most likely masks, with their reward, and the F1 of drawn ones."""
        whole = args.reward_level == "batch"
        size = args.batch_size
        scored = reward.sums if whole else reward
        counts = metrics.measure(predict, val, "semantic", num_classes, size, rank, world, scored)
        drawn = metrics.measure(sampled, val, "semantic", num_classes, size, rank, world)
        value = reward.score(counts["reward"].sum(0)) if whole else counts["reward"].mean()
        result = metrics.summary(counts, faces.classes) | {"reward": float(value)}
        return result | {"sampled_f1": metrics.summary(drawn, faces.classes)["mean_f1"]}

    def pixel_mean(total, count):
        """Over the pixels of all processes. DDP averages gradients over processes, which is undone here."""
        return world * total / dist.total(count).clamp_min(1)

    def save(step):
        state = {
            "script": "train_reward.py",
            "args": vars(args),
            "step": step,
            "best": best,
            "before": before,
            "data": {"path": args.data, **label_info(faces), **summary.kept(found)},
            "inputs": inputs,
            "lineage": origin,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        checkpoint.save_run(out, state, best["step"] == step, evaluated)

    result = before = last["before"] if last else evaluate()
    best = last["best"] if last else {"step": 0, "reward": before["reward"]}
    if rank == 0:
        print(f"{faces.name} ({args.data}): {len(train)} train, {len(val)} val")
        notes = [*faces.notes, *checkpoint.unfinished([args.init], [init])]
        print(summary.table(found), *notes, sep="\n  ")
        rewards = describe(args.reward, faces.classes)
        print(f"{cli.describe(args, first, world, device)}; {args.estimator} on {rewards}")
        if not validates:
            print("nobody is held out: the training photos are watched")
        print(f"start: greedy val reward {before['reward']:.4f}, mean F1 {before['mean_f1']:.4f}")
        if not last:
            save(0)  # the start is the best so far: a run that only loses ground ends with it

    # ---- train ----
    bar = tqdm(total=args.steps, initial=first, desc="reward", disable=rank > 0 or None)
    iterator = iter(loader)
    since = time.time()
    signal = 0
    collapsed = False
    logged = first  # steps up to the last line of metrics.jsonl
    for step in range(first, args.steps):
        # >>> shared: cadence
        done = step + 1
        eval_now = done % args.eval_every == 0 or done == args.steps
        log_now = done % LOG_EVERY == 0 or eval_now or (world == 1 and stop.signal)
        # <<< shared: cadence
        batch = next(iterator)
        # >>> shared: batch
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        positions = batches.positions(step, args.batch_size, rank, world)
        batch = augment(batch, at_step(policy, step), args.seed, positions, flip_pairs)
        images, labels = batch["image"], batch["semantic"].long()
        # <<< shared: batch
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr)
        logits = predict(images, net)  # (B, K, H, W)
        tempered = logits / args.temperature
        scored = reward
        scale = 1.0
        with torch.no_grad():
            u = rng.uniform(args.seed, positions.to(device), samples * labels[0].numel(), stream=9)
            u = u.view(len(labels), samples, *labels.shape[1:])
            if args.reward_level == "batch":  # one image changes, those of all processes are counted with it
                sums = reward.sums(sample(tempered, u[:, 0]), labels)
                scored = reward.with_counts(dist.total(sums.sum(0)) - sums)
                scale = world * len(labels)  # the loss is a mean over images; here it is to be their sum
            weights, values = ESTIMATORS[args.estimator](tempered, labels, scored, u)
        image_losses = scale * policy_loss(tempered, weights, labels)  # (B,)
        loss = mean_policy_loss = image_losses.mean()
        if args.kl or log_now:
            with torch.set_grad_enabled(bool(args.kl)):
                kl = pixel_mean(*divergence(logits, predict(images, start), labels))
            loss = loss + args.kl * kl if args.kl else loss
        if args.ce_weight or log_now:
            ce = pixel_mean(*losses.ce(logits, labels))
            loss = loss + args.ce_weight * ce if args.ce_weight else loss
        if args.entropy_floor or log_now:
            mean_entropy = pixel_mean(*entropy(tempered, labels))
            loss = loss + F.relu(args.entropy_floor - mean_entropy) if args.entropy_floor else loss
        cosine = (
            gradient_cosine(image_losses, [p for p in model.parameters() if p.requires_grad])
            if log_now and not args.compile
            else math.nan
        )
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
        if log_now:
            mean_loss = dist.total(loss.detach()).item() / world
            cli.check_finite(mean_loss, grad_norm, done, args)
            with torch.no_grad():
                mask = sample(tempered, u[:, 0])
                likely = logits.argmax(1)
                if args.reward_level == "batch":  # of all most likely masks, with no drawn one among them
                    greedy = reward.score(dist.total(reward.sums(likely, labels).sum(0)))
                else:
                    greedy = reward(likely, labels)
                f1 = metrics.f1_per_class(metrics.confusion(mask, labels, num_classes)).nanmean(0)
                figures = {
                    "kl": kl,
                    "entropy": mean_entropy,
                    "ce_loss": ce,
                    "policy_loss": mean_policy_loss,
                    "train/loss": loss,
                }
                figures |= reward_figures(values, weights) | {
                    "reward/greedy": greedy.mean(),
                    "grad_snr": cosine,
                }
                figures |= {f"rewards/{n}/mean": part(mask, labels).mean() for n, part in parts.items()}
                figures |= {f"reward/per_class/{n}": x for n, x in zip(faces.classes, f1, strict=True)}
            figures = dist.mean(figures, device)
            figures["train/lr"], figures["train/grad_norm"] = optimizer.param_groups[0]["lr"], grad_norm
            rate = (done - logged) * world * args.batch_size / (time.time() - since)
            log.scalars(done, **figures, **{"time/images_per_sec": rate})
            logged = done
            bar.set_postfix_str(f"reward {figures['reward/mean']:.4f} greedy {figures['reward/greedy']:.4f}")
            since = time.time()
        if eval_now:
            result = evaluate()
            log.scalars(done, **metrics.scalars("val", result))
            if result["reward"] > best["reward"]:
                best = {"step": done, "reward": result["reward"]}
            collapsed = result["reward"] < before["reward"] - COLLAPSE
            if rank == 0:
                star = " *" if best["step"] == done else ""
                tqdm.write(
                    f"step {done}: greedy val reward {result['reward']:.4f} "
                    f"({result['reward'] - before['reward']:+.4f}), mean F1 {result['mean_f1']:.4f}{star}"
                )
                picture = draw.validation(predict, val, "semantic", faces.colors, faces.classes)
                log.image(done, "val/grid", picture, "val.png")
            since = time.time()
        if (eval_now or signal) and rank == 0:
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
    keys = ("reward", "mean_f1", "sampled_f1", "miou", "pixel_accuracy", "boundary_f1", "ece")
    print(metrics.before_and_after(before, result, keys))
    if collapsed:
        print(
            f"collapsed: the greedy val reward fell from {before['reward']:.4f} to {result['reward']:.4f} by "
            f"step {done}; stopped. best.pt is step {best['step']}. Try a lower --lr than {args.lr}, or "
            "--ce-weight or --kl above 0"
        )
        return cli.COLLAPSED
    if best["step"] == 0:
        print(f"nothing gained: best.pt is the start; try another --lr than {args.lr}, or more --steps")
    print(f"best.pt: step {best['step']}, greedy reward {best['reward']:.4f}")
    split = "test" if args.data == "synthetic" or "test" in faces.splits else "val"
    print(f"next:    python evaluate.py --init {out / 'best.pt'} --split {split}")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
