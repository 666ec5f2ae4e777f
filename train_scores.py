r"""Reward-tune a face parser where masks are missing: on photos and a score for each mask it submits.

Run:    python train_scores.py --init runs/finetune/best.pt --unlabelled FOLDER --reward my.py:score \
            --score-budget 3200 --out runs/scores
        python train_scores.py --init runs/finetune/best.pt --unlabelled FOLDER --reward anatomy \
            --estimator rloo --steps 80
Needs:  a checkpoint of train_finetune.py, photos, and a function that judges masks (utils/rewards/scorer.py)
Writes: best.pt (by the score of held-out photos), last.pt, scores.jsonl (every answer, never asked for
        again), fields.pt (what they said), args.json, metrics.jsonl, TensorBoard events, val.png into --out
Expect: docs/scores.md   -> predict.py --init runs/scores/best.pt FOLDER; with labels, evaluate.py

The currency is the number of scores asked for. Masks are drawn and judged on the photo as it is. What the
scores say becomes weights of each pixel and class, which go through the augmentation with the photo.
"""

import functools
import math
import os
import shlex
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets import batches, splits, summary
from datasets.augmentation import augment
from datasets.images import to_float
from datasets.policies import at_step, chosen_by, load_policy
from models import restore
from utils import checkpoint, cli, dist, draw, lineage, rng
from utils.errors import UserError
from utils.files import file_of
from utils.log import RunLog
from utils.rewards.policy_gradient import credit_each, divergence, entropy, leave_one_out, sample
from utils.rewards.rewards import LABEL_FREE, describe
from utils.rewards.scorer import Scorer

WARMUP = 0.05  # share of the steps
COLLAPSE = 0.1  # a fall of the held-out score below the start that ends the run
LOG_EVERY = 10  # steps between two lines of metrics.jsonl
EVALUATIONS = 5  # of the held-out photos: the start, three on the way, the end
FOR_FIELD = {"temperature": 2.0, "steps": 400, "lr": 5e-4}  # defaults of --estimator field ...
FOR_OTHERS = {"temperature": 1.0, "samples": 8, "lr": 2e-4}  # ... and of the others


def get_parser():
    p = cli.parser(__doc__)
    g = p.add_argument_group("data")
    photos = "photos, or a data set, whose masks are left alone"
    g.add_argument("--unlabelled", metavar="FOLDER", help=photos)
    held_out = "of the people held out to validate; as --init was trained, where it is not given"
    g.add_argument("--val-fraction", type=cli.below_one, metavar="SHARE", help=held_out)
    limit = "photos to ask about, spread over people and yaw, nested by --seed; all where it is not given"
    g.add_argument("--limit", type=cli.positive, metavar="N", help=limit)
    policy = "of photos and weights together, as train_finetune.py"
    g.add_argument("--augment", default="trivial", metavar="POLICY", help=policy)
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", help="checkpoint to start from")
    defaults = f"for field {cli.as_flags(FOR_FIELD)}; for the others {cli.as_flags(FOR_OTHERS)}"
    g = p.add_argument_group("reward", f"where a flag is not given: {defaults}")
    rewards = f"weighted sum of FILE.py:FUNCTION (docs/scores.md) and {', '.join(LABEL_FREE)}"
    g.add_argument("--reward", nargs="+", metavar="NAME=WEIGHT", help=rewards)
    budget = "masks to submit in all, validation included; sets --samples and --steps"
    g.add_argument("--score-budget", type=cli.positive, metavar="N", help=budget)
    timeout = "that an answer may take; none is awaited for ever where it is given"
    g.add_argument("--score-timeout", type=cli.above_zero, metavar="SECONDS", help=timeout)
    same = "FILE.py was edited since its last answer, and judges as before"
    g.add_argument("--same-scorer", action="store_true", help=same)
    estimators = (
        "field: infer the truth from all scores of a photo; the others: follow the scores of each step"
    )
    g.add_argument("--estimator", choices=["field", *ESTIMATORS], default="field", help=estimators)
    g.add_argument(
        "--samples", type=cli.positive, help="masks per photo and step; of field, per photo in all"
    )
    deviation = "divide advantages by their deviation over a photo's masks (not field)"
    g.add_argument("--standardise", action="store_true", help=deviation)
    cell = "side of the cells drawn as one class, pixels; it halves on the way down to 1 (not field)"
    g.add_argument("--cell", type=cli.positive, default=1, help=cell)
    g.add_argument("--temperature", type=cli.above_zero, help="of the policy: logits are divided by it")
    kl = "of the divergence from the starting model, nats per pixel"
    g.add_argument("--kl", type=cli.at_least_zero, default=0.0, metavar="WEIGHT", help=kl)
    g = p.add_argument_group("optimisation")
    g.add_argument("--steps", type=cli.positive, help="optimiser steps")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    g.add_argument("--lr", type=cli.above_zero, help="peak rate of AdamW")
    g.add_argument("--grad-clip", type=cli.above_zero, default=1.0, help="largest gradient norm")
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=cli.seed, default=0, help="of order, augmentation and all that is drawn")
    cli.add_device_flags(g)
    cli.add_output_flags(p, out="runs/scores", eval_every=None)
    return p


# ---- estimators. logits (B, K, H, W) of photos as they are; draw_mask(k) -> (B, H, W), mask k of
# each; score(masks) -> (B, C), C = 1 or K. Each returns weights (B, K, H, W), and the scores (B, n, C).


def rloo(logits, draw_mask, score, samples, standardise, num_learned=None):
    """Leave-one-out (Kool et al., ICLR workshop 2019): each mask against the others. With two of them, only
    pixels where they differ hear anything: the pair-wise spatial difference of 2505.17905."""
    masks = [draw_mask(k) for k in range(samples)]
    scores = torch.stack([score(mask) for mask in masks], 1)
    return credit_each(
        leave_one_out(scores, standardise)[:, :num_learned], masks[:num_learned], logits.shape[1]
    ), scores


reinforce = functools.partial(
    rloo, num_learned=1
)  # algorithm 2 of 2302.08242: the others are a baseline only


def block(logits, draw_mask, score, samples, standardise, side=32):
    """The S - 1 blocks where two masks differ most are put from the second into the first, one at a time;
    each is credited with the change that it makes (COMA's counterfactual, 1705.08926, for blocks)."""
    first, second = draw_mask(0), draw_mask(1)
    height, width = (-(-n // side) for n in first.shape[1:])
    cells = torch.arange(height * width, device=first.device).view(height, width)
    cells = cells.repeat_interleave(side, 0).repeat_interleave(side, 1)[: first.shape[1], : first.shape[2]]
    differ = F.avg_pool2d((first != second).float(), side, ceil_mode=True, divisor_override=1).flatten(1)
    scores = [score(first)]
    weights = torch.zeros_like(logits)
    for cell in differ.argsort(1, descending=True)[:, : samples - 1].T:
        inside = cells == cell.view(-1, 1, 1)
        scores.append(score(torch.where(inside, second, first)))
        change = (scores[-1] - scores[0]).nan_to_num(0.0)
        pair = credit_each(torch.stack([change, -change], 1), [second, first], logits.shape[1])
        weights += pair * inside[:, None]
    scores = torch.stack(scores, 1)
    spread = scores.std(1).nanmean(1)[:, None, None, None].float() + 1e-8 if standardise else 1.0
    return weights / spread, scores


def blur(maps, width):
    """(..., H, W): Gaussian of `width` pixels, nothing beyond the border."""
    steps = (torch.arange(n, device=maps.device).float() / width for n in maps.shape[-2:])
    down, across = (torch.exp(-0.5 * (x[:, None] - x) ** 2) / (width * math.sqrt(2 * math.pi)) for x in steps)
    return down @ maps @ across


def posterior(probs, masks, scores, width=4.0):
    """Where the scores say the truth is, for one photo: the class probabilities that the masks were drawn
    by (K, H, W), plus what the scores (n, C) of the masks (n, H, W) change about them; not normalised.

    For masks near one another a score is almost linear: score = b + <w, one-hot mask>. How far the truth
    is from `probs` gets a Gaussian process for a prior: smooth over `width` pixels, with the variance
    p (1 - p) of a class that is there or not; and a pixel counts by the inverse of its class's size, as in
    every score that is a mean over classes. The posterior mean is that of Bayesian linear regression in
    its dual form (Rasmussen and Williams, 2006, eq. 2.11 and 2.12); amplitude and noise are those of the
    largest marginal likelihood (eq. 5.8).
    """
    n = len(masks)
    half = width / 2 / 2**0.5  # at half the resolution; two half blurs make the kernel
    p = F.avg_pool2d(probs[None], 2)[0]
    deviation = (p * (1 - p)).clamp_min(1e-6).sqrt()
    hot = torch.stack([F.avg_pool2d((masks == c).float(), 2) for c in range(len(p))], 1)
    hot = (hot - hot.mean(0)) * deviation / p.sum((1, 2), keepdim=True).clamp_min(4)
    features = blur(hot, half)
    change = torch.zeros_like(p)
    r = (scores - scores.mean(0)).float()
    eye = torch.eye(n, device=r.device)
    silent = torch.ones(len(p), dtype=torch.bool, device=r.device)
    for c in range(r.shape[1]):  # one number for all classes, or one for each
        own = slice(None) if r.shape[1] == 1 else slice(c, c + 1)
        x = features[:, own].flatten(1)
        gram = x @ x.T
        fits = []
        scale = gram.diagonal().mean()
        if r[:, c].isnan().any() or r[:, c].abs().max() < 1e-9 or not scale > 0:
            continue
        silent[own], gram = False, gram / scale
        for noise in (0.01, 0.03, 0.1, 0.3, 1.0):
            factor = torch.linalg.cholesky(gram + noise * eye)
            alpha = torch.cholesky_solve(r[:, c, None], factor)[:, 0]
            variance = (r[:, c] @ alpha / n).clamp_min(1e-12)
            fits.append((-0.5 * n * variance.log() - factor.diagonal().log().sum(), alpha / variance.sqrt()))
        alpha = max(fits, key=lambda fit: fit[0])[1]
        g = blur((alpha @ x).view_as(p[own]), half) / scale.sqrt()
        change[own] = deviation[own] * g * 2 * math.sqrt(2 * math.pi) * half
    if silent.any():  # what the judged classes gain or lose is the others' loss or gain
        change[silent] = -change.sum(0) * p[silent] / p[silent].sum(0).clamp_min(1e-12)
    return probs + F.interpolate(change[None], probs.shape[1:], mode="bilinear")[0]


ESTIMATORS = {"reinforce": reinforce, "rloo": rloo, "block": block}


# >>> shared: schedule
def lr_at(step, steps, peak):
    """Linear warm-up, then half a cosine to zero. Pure in `step`, so there is no scheduler state."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# <<< shared: schedule


# ---- what masks are drawn, and what they score


def within_budget(args, left, num_photos, num_val):
    """(samples, steps) for so many scores that are left, photos to ask about and photos that validate."""
    if not args.score_budget and not (args.steps and args.samples):
        raise UserError("--score-budget: say how many scores there are, or give --steps and --samples")
    if args.eval_every and not args.steps:
        raise UserError("--eval-every: give --steps as well")
    evaluations = 1 - (-args.steps // args.eval_every) if args.eval_every else EVALUATIONS
    left = max(0, left - evaluations * num_val)
    samples = args.samples or int(left // num_photos)
    steps = args.steps or int(left // (args.batch_size * samples))
    num_photos = num_photos if args.estimator == "field" else steps * args.batch_size
    if samples < 2 or steps < 1 or left < num_photos * samples:
        raise UserError(
            f"--score-budget {args.score_budget}: too small for {evaluations} validations of {num_val} "
            f"photos and masks of {num_photos} others (--limit)"
        )
    return samples, steps


def mask_drawer(logits, positions, seed, side=1):
    """draw_mask(k) -> mask k (B, H, W) of each photo, from the policy's logits (B, K, H, W)."""

    def draw_mask(k):
        u = rng.cells(seed, positions.to(logits.device), logits.shape[2:], side, stream=100 + k)
        return sample(logits, u)

    return draw_mask


@torch.no_grad()
def explore(predict, data, scorer, args, stop):
    """(N, K, H, W) half: `posterior` of each photo, from masks that `predict` draws; None if stopped."""
    found = []
    for row in tqdm(range(len(data)), "asking", disable=None):
        logits = predict(data[[row]]["image"]) / args.temperature
        draw_mask = mask_drawer(logits, torch.tensor([row]), args.seed)
        masks = torch.cat([draw_mask(k) for k in range(args.samples)])
        scores = scorer(masks, [data.paths[row]] * len(masks))
        found.append(posterior(logits.softmax(1)[0], masks, scores).half().cpu())
        if stop.signal:
            return None
    return torch.stack(found)


@torch.no_grad()
def evaluate(predict, data, scorer, batch_size):
    """Mean score of the most likely masks of held-out photos; None without any."""
    values = []
    if data is None:
        return None
    for i in range(0, len(data), batch_size):
        rows = list(range(i, min(i + batch_size, len(data))))
        masks = predict(data[rows]["image"]).argmax(1)
        values.append(scorer(masks, [data.paths[row] for row in rows]).nanmean(1))
    return torch.cat(values).mean().item()


def main(args):
    # ---- setup ----
    needs = ["init", "unlabelled", "reward"]
    free = (*cli.RESUMABLE, "score_budget", "score_timeout", "same_scorer")  # --resume may raise the budget
    out, args, last = cli.start_run(args, get_parser(), "train_scores.py", needs, free)
    init = checkpoint.load(args.init)
    rank, world, device = dist.init(args.device)
    if world > 1:
        raise UserError("train_scores.py is one process: it spends scores, not time; start it with python")
    use_field = args.estimator == "field"
    if use_field and (args.standardise or args.cell > 1):
        raise UserError("--estimator field has no --standardise and no --cell: leave them out, or try rloo")
    args = cli.inherit(args, init, val_fraction=None)
    args = cli.fill(args, FOR_FIELD if use_field else FOR_OTHERS)
    args = cli.fill(args, {"device": device.type, "amp": dist.default_amp(device)})
    for key in ("model", "size", "data", "classes", "part_order"):  # its checkpoints say what they hold
        setattr(args, key, init["args"][key])
    args.preprocess = init["args"].get("preprocess", "none")
    policy = load_policy(args.augment)
    label_info = init["data"]
    idle = None if any(map(file_of, args.reward)) else f"on --reward {' '.join(args.reward)}"
    cli.refuse_without_effect(args, {"score_timeout": idle, "same_scorer": idle})
    inputs = cli.input_files(args, last, but=["reward"])  # `Scorer` keeps the code with the answers
    stop = dist.Stop()

    # ---- data ----
    faces = splits.open_photos(args.unlabelled, label_info["classes"], val_fraction=args.val_fraction)
    train = batches.load(faces, "unlabelled", args.size, args.seed, args.limit)
    val = batches.load(faces, "val", args.size) if args.val_fraction else None
    num_val = len(val) if val else 0
    found = summary.inspect({"train": train, "val": val}, label_info["classes"])
    summary.refuse_changed(found, last, out / "data.json")
    flip_pairs = {"weights": label_info["flip_pairs"]}
    answers = out / "scores.jsonl"
    budget = args.score_budget
    scorer = Scorer(args.reward, label_info["classes"], answers, budget, args.score_timeout, stop)
    if not args.same_scorer:
        scorer.refuse_other_code()
    args.same_scorer = False  # it was said of this edit, not of the next
    if not last:  # a resumed run has samples and steps already
        left = scorer.left() + min(scorer.asked, num_val)  # a start cut short asked some of these
        args.samples, args.steps = within_budget(args, left, len(train), num_val)
    args.eval_every = args.eval_every or -(-args.steps // (EVALUATIONS - 1))
    first = last["step"] if last else 0
    order = batches.Order(len(train), args.batch_size, args.seed, first, args.steps)

    # ---- model ----
    # in eval mode, which stays: frozen BatchNorm
    start = restore(init, device, args.init).requires_grad_(False)
    model = evaluated = restore(last or init, device, out / "last.pt" if last else args.init)

    # ---- optimizer ----
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")

    # ---- resume ----
    if last:
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
    named = cli.files_of(args, inputs)
    starts = {args.init: init} | chosen_by(args.augment, policy)
    origin = lineage.origin(
        "train_scores.py", args.out, found, dict.fromkeys(found, args.unlabelled), named, starts, last
    )
    log = RunLog(out, vars(args), first if last else None)
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

    def save(step):
        state = {
            "script": "train_scores.py",
            "args": vars(args),
            "step": step,
            "best": best,
            "before": before,
            "data": {**label_info, **summary.kept(found)},
            "inputs": inputs,
            "lineage": origin,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        checkpoint.save_run(out, state, best["step"] == step or not val, evaluated)

    before = last["before"] if last else evaluate(predict, val, scorer, args.batch_size)
    best = last["best"] if last else {"step": 0, "score": before}
    counts = f"{len(train)} photos to ask about, {num_val} to judge by"
    print(f"{faces.name} ({args.unlabelled}): {counts}")
    notes = [*faces.notes, *checkpoint.unfinished([args.init], [init])]
    print(summary.table(found), *notes, sep="\n  ")
    masks = f"{args.estimator}, {args.samples} masks a photo{'' if use_field else ' and step'}"
    print(f"{cli.describe(args, first, world, device)}; {masks}")
    print(f"judged by {describe(args.reward, label_info['classes'])}")
    if not last:
        save(0)  # the start is the best so far: a run that only loses ground ends with it

    # ---- train ----
    bar = tqdm(total=args.steps, initial=first, desc="scores", disable=None)
    since = time.time()
    done = first
    signal = 0
    collapsed = False
    logged = first  # steps up to the last line of metrics.jsonl
    scores = torch.full((1, 2, 1), torch.nan)  # of a step that asks for none
    if use_field:
        fields_path = out / "fields.pt"  # kept, since another machine might draw other masks
        if last and fields_path.is_file():
            fields = checkpoint.load(fields_path, holds="fields")["fields"]
        elif (fields := explore(functools.partial(predict, by=start), train, scorer, args, stop)) is None:
            signal = stop.signal
        else:
            checkpoint.save(fields_path, fields=fields)
    steps = [] if signal else range(first, args.steps)
    for step, rows in zip(steps, order, strict=False):
        # >>> shared: cadence
        done = step + 1
        eval_now = done % args.eval_every == 0 or done == args.steps
        log_now = done % LOG_EVERY == 0 or eval_now or (world == 1 and stop.signal)
        # <<< shared: cadence
        photos = train[rows]["image"].to(device)
        positions = batches.positions(step, args.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr)
        with torch.no_grad():
            logits = predict(photos)
            if use_field:  # the scores and the network, as it is by now, agree on a mask
                target = (fields[rows].to(device).float() + logits.softmax(1)).argmax(1)
                weights = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
            else:
                side = max(1, args.cell >> int(step / args.steps * (1 + math.log2(args.cell))))
                tempered = logits / args.temperature
                estimate = ESTIMATORS[args.estimator]
                draw_mask = mask_drawer(tempered, positions, args.seed, side)
                score = functools.partial(scorer, photos=[train.paths[row] for row in rows])
                weights, scores = estimate(tempered, draw_mask, score, args.samples, args.standardise)
            batch = {"image": photos, "weights": weights}
            batch = augment(batch, at_step(policy, step), args.seed, positions, flip_pairs)
        logits = predict(batch["image"])
        weights = batch["weights"]
        log_p = (logits if use_field else logits / args.temperature).log_softmax(1)
        loss = mean_policy_loss = -(weights * log_p).sum(1).mean()
        every_pixel = torch.zeros_like(logits[:, 0], dtype=torch.long)  # none is ignored
        if args.kl or log_now:
            with torch.set_grad_enabled(bool(args.kl)):
                kl = torch.div(*divergence(logits, predict(batch["image"], start), every_pixel))
            loss = loss + args.kl * kl if args.kl else loss
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
            mean_loss = loss.item()
            cli.check_finite(mean_loss, grad_norm, done, args)
            figures = {
                "reward/mean": scores.nanmean(),
                "reward/std": scores.nanmean(2).var(1).mean().sqrt(),
                "frac_reward_zero_std": 1 - weights.flatten(1).any(1).float().mean(),
                "scores/asked": scorer.asked,
                "kl": kl.detach(),
                "entropy": torch.div(*entropy(logits.detach(), every_pixel)),
                "policy_loss": mean_policy_loss.detach(),
                "train/loss": mean_loss,
                "train/grad_norm": grad_norm,
                "train/lr": optimizer.param_groups[0]["lr"],
                "time/images_per_sec": (done - logged) * args.batch_size / (time.time() - since),
            }
            log.scalars(done, **figures)
            logged = done
            bar.set_postfix_str(f"loss {mean_loss:.3f}, {scorer.asked} scores asked")
            since = time.time()
        if eval_now:
            result = evaluate(predict, val, scorer, args.batch_size)
            if val:
                log.scalars(done, **{"val/reward": result})
                if result > best["score"]:
                    best = {"step": done, "score": result}
                collapsed = result < before - COLLAPSE
                star = " *" if best["step"] == done else ""
                tqdm.write(
                    f"step {done}: {scorer.asked} scores asked, val score {result:.4f} "
                    f"({result - before:+.4f}){star}"
                )
                picture = draw.progress(
                    predict, (start, model), val, label_info["colors"], label_info["classes"]
                )
                log.image(done, "val/grid", picture, "val.png")
            since = time.time()
        if eval_now or signal:
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
        print(
            f"collapsed: val score {before:.4f} -> {result:.4f} by step {done}; stopped. best.pt is step "
            f"{best['step']}. Try a lower --lr than {args.lr}, or --kl above 0"
        )
        return cli.COLLAPSED
    if val and best["step"] == 0:
        print(f"nothing gained: best.pt is the start; try more scores, or another --lr than {args.lr}")
    best_line = f"step {best['step']}, val score {before:.4f} -> {best['score']:.4f}" if val else "last.pt"
    print(f"{scorer.asked} scores asked for; best.pt: {best_line}")
    folders = sorted({os.path.dirname(path) for path in train.paths})
    command = ["python", "predict.py", "--init", str(out / "best.pt"), *folders, "--out", f"{out}_predict"]
    print(f"next:    {shlex.join(command)}")
    print(f"labels:  python evaluate.py --init {out / 'best.pt'} --data LABELLED_FOLDER --split test")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
