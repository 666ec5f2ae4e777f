r"""Reward-tune a face parser where masks are missing: on photos and a score for each mask it submits.

Run:    python train_scores.py --init runs/finetune/best.pt --unlabelled FOLDER --reward my.py:score \
            --score-budget 3200 --out runs/scores
        python train_scores.py --init runs/finetune/best.pt --unlabelled FOLDER --reward anatomy \
            --estimator rloo --steps 80
Needs:  a checkpoint of train_finetune.py, photos, and a function that judges masks (utils/scorer.py)
Writes: best.pt (by the score of held-out photos), last.pt, scores.jsonl (every answer, never asked for
        again), fields.pt (what they said), args.json, metrics.jsonl, TensorBoard events, val.png into --out
Expect: README.md, "Scores instead of masks"   -> evaluate.py --init runs/scores/best.pt --data LABELLED

The currency is the number of scores asked for. Masks are drawn and judged on the photo as it is. What the
scores say becomes weights of each pixel and class, which go through the augmentation with the photo.
"""

import argparse
import functools
import math
import sys
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets import loading, transforms
from models import restore
from utils import checkpoint, dist, draw, rng
from utils.errors import UserError, above_zero, positive, run
from utils.log import RunLog, open_run
from utils.policy import against_others, credit_each, divergence, entropy, sample
from utils.rewards import FREE
from utils.scorer import Scorer, judge

WARMUP = 0.05  # share of the steps
COLLAPSE, COLLAPSED = 0.1, 3  # a fall of the held-out score that ends the run; its exit status then
LOG_EVERY = 10  # steps between two looks at the figures
OF_FIELD = dict(temperature=2.0, steps=400, lr=5e-4)  # defaults of --estimator field ...
OF_STEPS = dict(temperature=1.0, samples=8, lr=2e-4)  # ... and of the others
EVALUATIONS = 5  # of the held-out photos: the start, three on the way, the end
NEW = "--resume" not in sys.argv  # a resumed run knows its flags


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    g = p.add_argument_group("data")
    g.add_argument("--unlabelled", metavar="FOLDER", required=NEW,
                   help="photos, or a data set, whose training photos are taken without masks")  # fmt: skip
    g.add_argument("--val-fraction", type=float, help="share of the people held out to judge the network "
                   "by, where there is no validation split (default: the checkpoint's)")  # fmt: skip
    g.add_argument("--limit", type=positive, help="photos to ask about, spread over people and yaw, nested "
                   "by --seed (default all)")  # fmt: skip
    g.add_argument("--augment", default="trivial", help="of photos and weights together: none, flip, "
                   "randaugment, trivial (default), or a policy.json")  # fmt: skip
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", required=NEW, help="checkpoint to start from")
    g = p.add_argument_group("reward")
    g.add_argument("--reward", nargs="+", required=NEW, metavar="NAME=WEIGHT", help="weighted sum of "
                   f"FILE.py:FUNCTION, see utils/scorer.py, and {', '.join(FREE)}")  # fmt: skip
    g.add_argument("--score-budget", type=positive, metavar="N",
                   help="masks to submit in all, validation included; sets the number of steps")  # fmt: skip
    g.add_argument("--estimator", default="field", choices=["field", *ESTIMATORS],
                   help="field (default): all scores of a photo together say where its truth is, and the "
                        "network learns that; the others push it by the scores of each step")  # fmt: skip
    g.add_argument("--samples", type=positive, help="masks an image and step (default 8; field: an image, "
                   "as the budget allows)")  # fmt: skip
    g.add_argument("--standardise", action="store_true",
                   help="divide advantages by their deviation over an image's masks (not field)")  # fmt: skip
    g.add_argument("--cell", type=positive, default=1, help="side of the cells whose pixels are drawn "
                   "together, pixels; it halves on the way down to 1 (default 1; not field)")  # fmt: skip
    g.add_argument("--temperature", type=above_zero, help="of the policy (default 2 for field, else 1)")
    g.add_argument("--kl", type=float, default=0.0, metavar="WEIGHT",
                   help="of the divergence from the starting model, nats per pixel (default 0)")  # fmt: skip
    g = p.add_argument_group("optimisation")
    g.add_argument("--steps", type=positive, help="optimiser steps (default: field 400, else by the budget)")
    g.add_argument("--batch-size", type=positive, default=16, help="images per process (default 16)")
    g.add_argument("--lr", type=float, help="peak rate of AdamW (default 5e-4 for field, else 2e-4)")
    g.add_argument("--grad-clip", type=float, default=1.0, help="largest gradient norm (default 1)")
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=int, default=0, help="order, augmentation, samples (default 0)")
    g.add_argument("--amp", choices=["off", "bf16", "fp16"],
                   help="precision of the forward pass (default bf16 on a GPU, off on a CPU)")  # fmt: skip
    g.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/scores", help="run folder (default runs/scores)")
    g.add_argument("--resume", action="store_true", help="go on with the run in --out")
    g.add_argument("--eval-every", type=positive, metavar="STEPS",
                   help="steps between validations and checkpoints (default: a quarter of them)")  # fmt: skip
    return p


# ---- estimators. logits (B, K, H, W) of photos as they are; deal(k) -> (B, H, W), mask k of each;
# ask(masks) -> (B, C) scores, C = 1 or K. Each returns weights (B, K, H, W), and the scores (B, n, C).


def rloo(logits, deal, ask, samples, standardise, learn=None):
    """Leave-one-out (Kool et al., ICLR workshop 2019): each mask against the others. With two of them, only
    pixels where they differ hear anything: the pair-wise spatial difference of 2505.17905."""
    masks = [deal(k) for k in range(samples)]
    scores = torch.stack([ask(mask) for mask in masks], 1)
    return credit_each(against_others(scores, standardise)[:, :learn], masks[:learn], logits.shape[1]), scores


reinforce = functools.partial(rloo, learn=1)  # algorithm 2 of 2302.08242: the others are a baseline only


def block(logits, deal, ask, samples, standardise, side=32):
    """The S - 1 blocks where two masks differ most are put from the second into the first, one at a time;
    each is credited with the change that it makes (COMA's counterfactual, 1705.08926, for blocks)."""
    first, second = deal(0), deal(1)
    height, width = (-(-n // side) for n in first.shape[1:])
    cells = torch.arange(height * width, device=first.device).view(height, width)
    cells = cells.repeat_interleave(side, 0).repeat_interleave(side, 1)[: first.shape[1], : first.shape[2]]
    differ = F.avg_pool2d((first != second).float(), side, ceil_mode=True, divisor_override=1).flatten(1)
    scores, weights = [ask(first)], torch.zeros_like(logits)
    for cell in differ.argsort(1, descending=True)[:, : samples - 1].T:
        inside = cells == cell.view(-1, 1, 1)
        scores.append(ask(torch.where(inside, second, first)))
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


def believe(probs, masks, scores, width=4.0):
    """Where the scores say the truth is, for one photo: the class probabilities that the masks were drawn
    by (K, H, W), plus what the scores (n, C) of the masks (n, H, W) change about them; not normalised.

    For masks near one another a score is almost linear: score = b + <w, one-hot mask>. How far the truth
    is from `probs` gets a Gaussian process for a prior: smooth over `width` pixels, with the variance
    p (1 - p) of a class that is there or not; and a pixel counts by the inverse of its class's size, as in
    every score that is a mean over classes. The posterior mean is that of Bayesian linear regression in
    its dual form (Rasmussen and Williams, 2006, eq. 2.11 and 2.12); amplitude and noise are those of the
    largest marginal likelihood (eq. 5.8).
    """
    n, half = len(masks), width / 2 / 2**0.5  # at half the resolution; two half blurs make the kernel
    p = F.avg_pool2d(probs[None], 2)[0]
    deviation = (p * (1 - p)).clamp_min(1e-6).sqrt()
    hot = torch.stack([F.avg_pool2d((masks == c).float(), 2) for c in range(len(p))], 1)
    hot = (hot - hot.mean(0)) * deviation / p.sum((1, 2), keepdim=True).clamp_min(4)
    features, change = blur(hot, half), torch.zeros_like(p)
    r = (scores - scores.mean(0)).float()
    eye, silent = torch.eye(n, device=r.device), torch.ones(len(p), dtype=torch.bool, device=r.device)
    for c in range(r.shape[1]):  # one number for all classes, or one for each
        own = slice(None) if r.shape[1] == 1 else slice(c, c + 1)
        x = features[:, own].flatten(1)
        gram, fits = x @ x.T, []
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


def lr_at(step, steps, peak):
    """Linear warm-up, then half a cosine to zero. Pure in `step`, so there is no scheduler state."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def main(args):
    # ---- setup ----
    out = open_run(args.out, args.resume)
    last = checkpoint.load(out / "last.pt", "train_scores.py") if args.resume else None
    if last:
        free = ("resume", "out", "device", "score_budget")  # more may be asked than was thought
        args = checkpoint.resume_flags(get_parser(), last["args"], free=free)
    init = checkpoint.load(args.init)
    _, world, device = dist.init(args.device)
    if world > 1:
        raise UserError("train_scores.py is one process: it spends scores, not time; start it with python")
    args = checkpoint.inherit(args, init, val_fraction=None)
    args = checkpoint.inherit(args, None, **(OF_FIELD if args.estimator == "field" else OF_STEPS),
                              device=device.type, amp="bf16" if device.type == "cuda" else "off")  # fmt: skip
    for key in ("model", "preprocess", "size", "data", "classes", "part_order"):  # of its checkpoints
        setattr(args, key, init["args"].get(key, "none"))
    amp_dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    policy, means = transforms.load_policy(args.augment), init["data"]
    stop = dist.Stop()
    if not last and args.estimator == "field" and (args.standardise or args.cell > 1):
        raise UserError("--estimator field has no --standardise and no --cell: leave them out, or try rloo")

    # ---- data ----
    faces = loading.open_photos(args.unlabelled, means["classes"], val_fraction=args.val_fraction)
    train = loading.load(faces, "train", args.size, args.seed, args.limit)
    val = loading.load(faces, "val", args.size) if args.val_fraction else None
    n_val = len(val) if val else 0
    asking = judge(args.reward, means["classes"]), " ".join(args.reward)
    scorer = Scorer(*asking, out / "scores.jsonl", args.score_budget)
    fields, asks = args.estimator == "field", len(train)  # photos to ask about in all
    if not last:  # a resumed run has these already
        if not args.score_budget and not (args.steps and args.samples):
            raise UserError("--score-budget: say how many scores there are, or give --steps and --samples")
        if args.eval_every and not args.steps:
            raise UserError("--eval-every: give --steps as well")
        evaluations = 1 - (-args.steps // args.eval_every) if args.eval_every else EVALUATIONS
        spare = scorer.left() - evaluations * n_val
        args.samples = args.samples or int(max(0, spare) // asks)
        args.steps = args.steps or int(max(0, spare) // (args.batch_size * args.samples))
        asks = asks if fields else args.steps * args.batch_size
        if args.samples < 2 or args.steps < 1 or spare < asks * args.samples:
            raise UserError(f"--score-budget {args.score_budget}: too small for {evaluations} validations of "
                            f"{n_val} photos and masks of {asks} others (--limit)")  # fmt: skip
    args.eval_every = args.eval_every or -(-args.steps // (EVALUATIONS - 1))
    first = last["step"] if last else 0
    if first >= args.steps:
        raise UserError(f"--resume: {out} has done all of its {args.steps} steps")
    order = loading.Order(len(train), args.batch_size, args.seed, first, args.steps)

    # ---- model ----
    start = restore(init, device).requires_grad_(False)  # in eval mode, which stays: frozen BatchNorm
    model = restore(last or init, device)

    # ---- optimizer ----
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")

    # ---- resume ----
    if last:
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
    log = RunLog(out, vars(args), first)

    def forward(images, net=model):
        images = transforms.normalise(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, amp_dtype, enabled=args.amp != "off"):
            return net(images)["semantic"].float()

    def dealer(logits, where, side=1):
        """deal(k) -> mask k of each photo, from the tempered policy."""
        shape, where = logits.shape[2:], where.to(device)
        u = lambda k: rng.cells(args.seed, where, shape, side, stream=100 + k)  # noqa: E731
        return lambda k: sample(logits / args.temperature, u(k))

    @torch.no_grad()
    def explore():
        """(N, K, H, W) half: `believe` of each photo, from masks of the starting model; None if stopped. It
        is kept in a file, since another machine might draw other masks."""
        found = []
        for row in tqdm(range(len(train)), "asking", disable=None):
            logits = forward(train[[row]]["image"], start)
            deal = dealer(logits, torch.tensor([row]))
            masks = torch.cat([deal(k) for k in range(args.samples)])
            scores = scorer(masks, [train.paths[row]] * len(masks))
            probs = (logits / args.temperature).softmax(1)
            found.append(believe(probs[0], masks, scores).half().cpu())
            if stop.signal:
                return None
        checkpoint.save(out / "fields.pt", fields=(found := torch.stack(found)))
        return found

    @torch.no_grad()
    def evaluate():
        """Mean score of the most likely masks of the held-out photos; None without any."""
        values = []
        for i in range(0, n_val, args.batch_size):
            rows = list(range(i, min(i + args.batch_size, n_val)))
            masks = forward(val[rows]["image"]).argmax(1)
            values.append(scorer(masks, [val.paths[row] for row in rows]).nanmean(1))
        return torch.cat(values).mean().item() if values else None

    def save(step):
        state = dict(script="train_scores.py", args=vars(args), step=step, best=best, before=before,
                     data=means, model=model.state_dict(), optimizer=optimizer.state_dict(),
                     scaler=scaler.state_dict())  # fmt: skip
        if best["step"] == step or not val:  # before last.pt, which vouches for it
            kept = {k: v for k, v in state.items() if k not in ("optimizer", "scaler")}
            checkpoint.save(out / "best.pt", **kept)
        checkpoint.save(out / "last.pt", **state)

    before = last["before"] if last else evaluate()
    best = last["best"] if last else {"step": 0, "score": before}
    print(f"{faces.name} ({args.unlabelled}): {len(train)} photos to ask about, {n_val} to judge by",
          *faces.notes, sep="\n  ")  # fmt: skip
    print(f"{args.model} from {args.init} on {device}, {args.amp} precision; steps {first} to {args.steps} "
          f"of {args.batch_size} photos at {args.size} x {args.size}; {args.estimator}, {args.samples} masks "
          f"a photo{'' if fields else ' and step'}, judged by {' + '.join(args.reward)}")  # fmt: skip
    if not last:
        save(0)  # the start is the best so far: a run that only loses ground ends with it

    # ---- train ----
    bar = tqdm(total=args.steps, initial=first, desc="scores", disable=None)
    since, done, asked, collapsed = time.time(), first, 0, False
    scores = torch.full((1, 2, 1), torch.nan)  # of a step that asks
    if fields:
        there = last and (out / "fields.pt").is_file()
        fields = checkpoint.load(out / "fields.pt")["fields"] if there else explore()
        asked = stop.signal if fields is None else 0
    for step, rows in zip(range(first, first if asked else args.steps), order, strict=False):
        photos, where = train[rows]["image"], loading.positions(step, args.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr)
        with torch.no_grad():
            logits = forward(photos)
            if args.estimator == "field":  # the scores and the network, as it is by now, agree on a mask
                target = (fields[rows].to(device).float() + logits.softmax(1)).argmax(1)
                weights = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
            else:
                side = max(1, args.cell >> int(step / args.steps * (1 + math.log2(args.cell))))
                ask = functools.partial(scorer, photos=[train.paths[row] for row in rows])
                given = dealer(logits, where, side), ask, args.samples, args.standardise
                weights, scores = ESTIMATORS[args.estimator](logits / args.temperature, *given)
            rest = transforms.at_step(policy, step), args.seed, where, means["flip_pairs"]
            images, weights = transforms.augment(photos.to(device), weights, *rest)
        logits = forward(images)
        log_p = (logits if args.estimator == "field" else logits / args.temperature).log_softmax(1)
        loss = of_policy = -(weights * log_p).sum(1).mean()
        done, every = step + 1, torch.zeros_like(logits[:, 0], dtype=torch.long)  # pixel counts
        evaluates = done % args.eval_every == 0 or done == args.steps
        looks = done % LOG_EVERY == 0 or evaluates or stop.signal
        if args.kl or looks:
            with torch.set_grad_enabled(bool(args.kl)):
                kl = torch.div(*divergence(logits, forward(images, start), every))
            loss = loss + args.kl * kl
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # so that the norm is in real units
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        bar.update()

        asked = stop.asked(device) if looks else 0
        if looks:
            if not math.isfinite(loss.item()) or (args.amp != "fp16" and not grad_norm.isfinite()):
                raise UserError(f"the loss is not finite at step {step}; nothing was saved since the last "
                                f"checkpoint; lower --lr {args.lr} or use --amp off")  # fmt: skip
            log.scalars(step, **{
                "reward/mean": scores.nanmean(),
                "reward/std": scores.nanmean(2).var(1).mean().sqrt(),
                "frac_reward_zero_std": 1 - weights.flatten(1).any(1).float().mean(),
                "scores/asked": scorer.asked, "kl": kl.detach(),
                "entropy": torch.div(*entropy(logits.detach(), every)),
                "policy_loss": of_policy.detach(), "loss": loss.detach(), "grad_norm": grad_norm,
                "lr": optimizer.param_groups[0]["lr"],
                "time/images_per_sec": LOG_EVERY * args.batch_size / (time.time() - since),
            })  # fmt: skip
            bar.set_postfix_str(f"loss {loss.item():.3f}, {scorer.asked} scores asked")
            since = time.time()
        if evaluates:
            result = evaluate()
            if val:
                log.scalars(step, **{"val/reward": result})
                if result > best["score"]:
                    best = {"step": done, "score": result}
                collapsed = result < before - COLLAPSE
                tqdm.write(f"step {done}: {scorer.asked} scores asked, val score {result:.4f} "
                           f"({result - before:+.4f}){' *' if best['step'] == done else ''}")  # fmt: skip
                with torch.no_grad():
                    picture = draw.progress(forward, (start, model), val, means["colors"], means["classes"])
                draw.write(out / "val.png", picture)
                log.image(step, "val/grid", picture)
            since = time.time()
        if evaluates or asked:
            save(done)
        if asked or collapsed:
            break

    # ---- finish ----
    bar.close()
    log.close()
    if asked:
        print(f"stopped by signal {asked} after step {done}; --out {out} --resume goes on")
        return 128 + asked
    if collapsed:
        print(f"collapsed: val score {before:.4f} -> {result:.4f} by step {done}; stopped. best.pt is step "
              f"{best['step']}. Try a lower --lr than {args.lr}, or --kl above 0")  # fmt: skip
        return COLLAPSED
    kept = f"step {best['step']}, val score {before:.4f} -> {best['score']:.4f}" if val else "last.pt"
    print(f"{scorer.asked} scores asked for; best.pt: {kept}\n"
          f"next:    python evaluate.py --init {out / 'best.pt'} --data LABELLED --split test")  # fmt: skip


if __name__ == "__main__":
    run(main, get_parser().parse_args())
