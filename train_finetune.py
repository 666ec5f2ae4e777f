"""Fine-tune a face parser on labelled faces.

Run:    python train_finetune.py --data synthetic --out runs/finetune
        python train_finetune.py --data FOLDER --scenes 4 --model panoptic_unet    (docs/scenes.md)
        python train_finetune.py --init runs/source/best.pt --styles runs/night/bank.pt --freeze backbone
        torchrun --nproc_per_node=4 train_finetune.py --data CelebAMask-HQ --model fpn_resnet50
Needs:  a folder of labelled faces in a layout of docs/data.md, or nothing at all (synthetic faces)
Writes: best.pt (by validation mean F1), last.pt, args.json, metrics.jsonl, TensorBoard events,
        train_batch.png, val.png and, of panoptic_ models, val_faces.png into --out
Expect: docs/finetune.md   -> train_reward.py --init runs/finetune/best.pt
"""

import copy
import math
import time

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from datasets import batches, splits, summary
from datasets.augmentation import augment
from datasets.faces import label_info
from datasets.images import to_float
from datasets.policies import POLICIES, at_step, chosen_by, load_policy
from models import (
    build_model,
    carry_over,
    freeze,
    has_instances,
    keep_frozen_eval,
    load_weights,
    without_instances,
)
from models.normalise import PREPROCESS
from models.styles import attach, load_bank
from utils import checkpoint, cli, dist, draw, instances, lineage, metrics, panoptic
from utils.errors import UserError
from utils.log import RunLog
from utils.losses import LOSSES
from utils.muon import Muon

WARMUP = 0.05  # share of the steps
WEIGHT_DECAY = 0.01
LOG_EVERY = 10  # steps between two lines of metrics.jsonl, for which the loop waits for a GPU
# Flags that are not given come from --init, else from INHERITED, else from the recipe for this kind of data:
# synthetic faces are new and varied as they are, and need four minutes.
INHERITED = {
    "data": "synthetic",
    "classes": "full",
    "part_order": "canonical",
    "scenes": 0,
    "val_fraction": 0.15,
    "size": None,
    "model": "unet",
    "preprocess": "none",
    "allow_empty": [],
}
ON_SYNTHETIC = {"size": 96, "steps": 800, "augment": "flip", "loss": ["ce=1", "dice=1"]}
ON_PHOTOS = {"size": 128, "steps": 1000, "augment": "cutmix", "loss": ["ce=1"]}
ON_SCENES = {"size": 160, "loss": ["ce=1", "dice=1"]}  # in place of theirs: parts are small
INSTANCES = ["center=10", "offset=0.01"]  # beside these, for panoptic_ models; why not 200: docs/scenes.md


def get_parser():
    p = cli.parser(__doc__)
    g = cli.add_data_flags(
        p, "as --init was trained; else synthetic, full, canonical, 0.15, and --size as below"
    )
    g.add_argument("--scenes", type=cli.faces, metavar="N", help=cli.SCENES)
    g.add_argument("--augment", metavar="POLICY", help=f"{', '.join(POLICIES)}, or a policy.json")
    share = "share of every batch that is synthetic faces"
    g.add_argument("--synthetic", type=cli.share, default=0.0, metavar="SHARE", help=share)
    g = p.add_argument_group("model", "where a flag is not given: as --init was trained; else unet, none")
    names = (
        "unet, unet_gn, unet_BACKBONE, fpn_BACKBONE, deeplabv3_resnet50 or 101, lraspp_mobilenet_v3_large, "
        "clip_resnet50, clip_unet; "
        "panoptic_unet, panoptic_BACKBONE, which also tell whose each pixel is"
    )
    g.add_argument("--model", help=names)
    g.add_argument(
        "--preprocess", choices=PREPROCESS, help="what the model does to every photo before all else"
    )
    g.add_argument("--weights", default="none", help="none, imagenet, coco, or a file")
    g.add_argument("--init", metavar="FILE", help="checkpoint to start from; classes match by name")
    stages = "none, backbone, or how many of its first stages stay as they are"
    g.add_argument("--freeze", default="none", metavar="WHAT", help=stages)
    styles = "bank of mine_styles.py: features get its styles in training"
    g.add_argument("--styles", metavar="BANK", help=styles)
    scale = "the backbone's rate, times --lr"
    g.add_argument("--backbone-lr-scale", type=cli.at_least_zero, default=1.0, help=scale)
    defaults = (
        f"on photos {cli.as_flags(ON_PHOTOS)}; on synthetic faces {cli.as_flags(ON_SYNTHETIC)}; "
        f"on scenes {cli.as_flags(ON_SCENES)}; of panoptic_ models --loss also {' '.join(INSTANCES)}"
    )
    g = p.add_argument_group("optimisation", f"where a flag is not given: {defaults}")
    losses = f"weighted sum of {', '.join(LOSSES)}; of panoptic_ models {', '.join(instances.LOSSES)}, too"
    g.add_argument("--loss", nargs="+", metavar="NAME=WEIGHT", help=losses)
    g.add_argument("--steps", type=cli.positive, help="optimiser steps")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    muon = "muon: needs about half of the steps (docs/record.md)"
    g.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw", help=muon)
    g.add_argument("--lr", type=cli.above_zero, default=3e-3, help="peak rate")
    average = "validate and keep an average of the weights, say 0.99; 0: off"
    g.add_argument("--ema", type=cli.below_one, default=0.0, metavar="DECAY", help=average)
    g.add_argument("--grad-clip", type=cli.above_zero, default=1.0, help="largest gradient norm")
    cli.add_runtime_flags(p)
    cli.add_output_flags(p, out="runs/finetune", eval_every=100)
    return p


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
    out, args, last = cli.start_run(args, get_parser(), "train_finetune.py", needs=["data or init"])
    given = args
    init = checkpoint.load(args.init, target=("semantic", "panoptic")) if args.init and not last else None
    rank, world, device = dist.init(args.device)
    ids = splits.ids_file(args.ids, args.data, init and init["args"], args.limit)
    args = cli.inherit(args, init, **INHERITED)
    args.ids = ids
    recipe = ON_SYNTHETIC if args.data == "synthetic" else ON_PHOTOS
    tells_instances = has_instances(args.model)
    recipe = recipe | (ON_SCENES if args.scenes else {})
    losses = recipe["loss"] + (INSTANCES if tells_instances else [])
    args = cli.fill(args, recipe | {"loss": losses})
    args = cli.fill(args, {"device": device.type, "amp": dist.default_amp(device)})
    known = LOSSES | (instances.LOSSES if tells_instances else {})
    weights = cli.named_weights(args.loss, "--loss", known, negative=False)
    if tells_instances and not (weights.keys() & LOSSES.keys() and weights.keys() >= instances.LOSSES.keys()):
        raise UserError(
            f"--model {args.model}: each head needs a loss: {' '.join(['ce=1', *INSTANCES])}, say"
        )
    policy = load_policy(args.augment)
    bank = load_bank(args.styles) if args.styles else None
    if bank and bank["mix"] == "batch" and args.batch_size == 1:
        raise UserError(f"--batch-size 1: {args.styles} takes the styles of the batch's other images")
    inputs = cli.input_files(args, last)
    torch.manual_seed(args.seed)
    stop = dist.Stop()

    # ---- data ----
    faces = splits.open_data(
        args.data, args.classes, args.part_order, args.val_fraction, args.ids, args.scenes
    )
    if not last:
        cli.refuse_idle_data_flags(given, args, faces)
        loaded_twice = init and args.weights != "none"
        scaled_in_vain = args.freeze == "backbone" and args.backbone_lr_scale != 1
        reasons = {
            "weights": "beside --init, which has weights" if loaded_twice else None,
            "backbone_lr_scale": "on a backbone that is frozen" if scaled_in_vain else None,
        }
        cli.refuse_without_effect(given, reasons)
    render_on = "cpu" if args.workers else device  # where synthetic faces are made
    train = batches.load(faces, "train", args.size, args.seed, args.limit, render_on, tells_instances)
    validates = "val" in faces.splits if args.ids else args.val_fraction
    val = None
    if validates:
        val = batches.load(faces, "val", args.size, device=device, instances=tells_instances)
    found = summary.inspect({"train": train, "val": val}, faces.classes)
    rendered = args.synthetic or args.data == "synthetic"  # these have what may be on no photo
    summary.refuse_empty(found, faces.classes if rendered else args.allow_empty)
    summary.refuse_changed(found, last, out / "data.json")
    num_classes = len(faces.classes)
    flip_pairs = {"semantic": faces.flip_pairs}
    first = last["step"] if last else 0
    order = batches.Order(
        len(train), args.batch_size, args.seed, first, args.steps, rank, world, args.synthetic
    )
    source = batches.mix(train, args.synthetic, faces.classes, args.size, args.seed, render_on)
    loader = batches.loader(source, order, args.workers, device)

    # ---- model ----
    model = build_model(args.model, num_classes, "none" if last else args.weights, args.preprocess)
    fresh = []
    if init:
        if init["args"]["model"] not in (args.model, without_instances(args.model)):
            raise UserError(f"--model {args.model}: {args.init} holds a {init['args']['model']}; train that")
        fresh = carry_over(model, args.model, init["model"], init["data"]["classes"], faces.classes)
    model.to(device, memory_format=torch.channels_last)
    if device.type == "cuda" and world > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    frozen = freeze(model, args.freeze)  # after the conversion, which replaces modules
    average = copy.deepcopy(model).requires_grad_(False) if args.ema else None

    # ---- optimizer ----
    backbone = {id(p) for p in model.backbone.parameters()}
    groups = []
    for inside, scale in ((False, 1.0), (True, args.backbone_lr_scale)):
        params = [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == inside]
        groups += [{"params": params, "scale": scale}] if params else []
    kind = Muon if args.optimizer == "muon" else torch.optim.AdamW
    optimizer = kind(groups, lr=args.lr, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")

    # ---- resume ----
    best = {"step": 0, "mean_f1": -1.0}
    if last:
        load_weights(model, last["model"], out / "last.pt")
        if average:
            average.load_state_dict(last["ema"])
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"])
        best = last["best"]
    styles = attach(model, bank, args.styles, faces.classes) if bank else None  # `average` needs none
    evaluated = average if args.ema else model
    net = DistributedDataParallel(model) if world > 1 else model  # `model` stays the raw module
    net = torch.compile(net) if args.compile else net
    named = cli.files_of(args, inputs)
    starts = {args.init: init, args.styles: bank} | chosen_by(args.augment, policy)
    origin = lineage.origin(
        "train_finetune.py", args.out, found, dict.fromkeys(found, args.data), named, starts, last
    )
    log = RunLog(out, vars(args), first if last else None, rank == 0)
    log.json("data.json", found)
    lineage.begin(out, origin, vars(args), named)
    if rank == 0:
        mixed = f" + {args.synthetic:.0%} synthetic" if args.synthetic else ""
        scenes = f", scenes of up to {args.scenes} faces of these photos" if args.scenes else ""
        print(f"{faces.name} ({args.data}): {len(train)} train{mixed}, {len(val) if val else 0} val{scenes}")
        if args.scenes and not tells_instances:
            print(f"{args.model} learns the parts of faces; panoptic_unet also learns whose they are")
        print(summary.table(found), *faces.notes, sep="\n  ")
        print(cli.describe(args, first, world, device))
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
        if frozen and not init and not last and args.weights == "none":
            print(f"--freeze {args.freeze}: frozen as it is drawn at random, without --weights or --init")
        if fresh:
            print(f"--init {args.init}: begun anew, not in its class list: {', '.join(fresh)}")

    def predict(images, by=None):
        """(B, 3, H, W) uint8, or float in 0 to 1 -> {key: (B, C, H, W) float32} of a network: `semantic`, the
        logits of the classes, and of a panoptic_ model `center` and `offset`."""
        network = evaluated if by is None else by
        images = to_float(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dist.AMP_DTYPES[args.amp], enabled=args.amp != "off"):
            return {key: output.float() for key, output in network(images).items()}

    def classes_of(images):
        return predict(images)["semantic"]

    def save(step):
        state = {
            "script": "train_finetune.py",
            "args": vars(args),
            "step": step,
            "best": best,
            "data": {
                "path": args.data,
                "target": "panoptic" if args.scenes or tells_instances else "semantic",
                **label_info(faces),
                **summary.kept(found),
            },
            "inputs": inputs,
            "lineage": origin,
            "model": model.state_dict(),
            "ema": average.state_dict() if average else None,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        checkpoint.save_run(out, state, best["step"] == step or not val, evaluated)

    # ---- train ----
    bar = tqdm(total=args.steps, initial=first, desc="fine-tune", disable=rank > 0 or None)
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
        net.train()
        keep_frozen_eval(frozen)
        torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # dropout, where a model has it
        began = time.time()
        batch = next(iterator)
        waited += time.time() - began
        # >>> shared: batch
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        positions = batches.positions(step, args.batch_size, rank, world)
        batch = augment(batch, at_step(policy, step), args.seed, positions, flip_pairs)
        images, labels = batch["image"], batch["semantic"].long()
        # <<< shared: batch
        if step == 0 and rank == 0:
            picture = draw.pairs(images, labels, faces.colors, faces.classes)
            log.image(done, "train/batch", picture, "train_batch.png")
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, args.steps, args.lr) * group["scale"]
        if styles:
            styles.labels = labels
        outputs = predict(images, net)
        targets = instances.targets(batch["instance"]) if tells_instances else {}
        terms = {}
        for name, weight in weights.items():
            if name in LOSSES:
                total, count = LOSSES[name](outputs["semantic"], labels)
            else:
                total, count = instances.LOSSES[name](outputs[name], targets)
            # DDP averages gradients over processes: undo that, and divide by the count of all
            terms[name] = weight * world * total / dist.total(count).clamp_min(1)
        loss = sum(terms.values())
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
        losses.append(torch.stack([loss, *terms.values()]).detach())
        # >>> shared: average
        if average:
            decay = min(1 - 1 / done, args.ema)  # at first the mean of all weights so far
            averages = average.state_dict()
            for key, value in model.state_dict().items():
                kept = averages[key]
                kept.lerp_(value, 1 - decay) if kept.is_floating_point() else kept.copy_(value)
        # <<< shared: average
        if log_now:
            mean_loss, *mean_terms = (dist.total(torch.stack(losses).mean(0)) / world).tolist()
            cli.check_finite(mean_loss, grad_norm, done, args)
            spent = max(time.time() - since, 1e-9)
            figures = {
                "train/loss": mean_loss,
                "train/lr": optimizer.param_groups[0]["lr"],
                "train/grad_norm": grad_norm,
                "time/images_per_sec": len(losses) * world * args.batch_size / spent,
                "time/data_wait": waited / spent,
            }
            figures |= {f"train/loss/{name}": mean for name, mean in zip(terms, mean_terms, strict=True)}
            log.scalars(done, **figures)
            bar.set_postfix_str(f"loss {mean_loss:.3f} {figures['time/images_per_sec']:.0f} images/s")
            waited = 0.0
            since = time.time()
            losses = []
        if eval_now and val:
            evaluated.eval()
            counts = metrics.measure(classes_of, val, "semantic", num_classes, args.batch_size, rank, world)
            result = metrics.summary(counts, faces.classes)
            scored = metrics.scalars("val", result)
            if tells_instances:
                told = panoptic.measure(
                    predict, val, faces.classes, faces.things, args.batch_size, rank, world
                )
                scored |= panoptic.scalars("val", told)
            log.scalars(done, **scored)
            if result["mean_f1"] is None:
                raise UserError(
                    f"val: at --size {args.size} no class but {faces.classes[0]} is left to score"
                )
            if result["mean_f1"] > best["mean_f1"]:
                best = {"step": done, "mean_f1": result["mean_f1"]}
            if rank == 0:
                star = " *" if best["step"] == done else ""
                quality = f", PQ {told['pq'] or 0:.4f}" if tells_instances else ""
                tqdm.write(
                    f"step {done}: loss {mean_loss:.3f}, val mean F1 {result['mean_f1']:.4f}, "
                    f"mIoU {result['miou']:.4f}{quality}{star}"
                )
                picture = draw.validation(classes_of, val, "semantic", faces.colors, faces.classes)
                log.image(done, "val/grid", picture, "val.png")
                if tells_instances:
                    picture = draw.scenes(predict, val, faces.things, faces.colors, faces.classes)
                    log.image(done, "val/faces", picture, "val_faces.png")
            since = time.time()
        if eval_now and not val and rank == 0:
            tqdm.write(f"step {done}: loss {mean_loss:.3f}, nobody is held out to validate")
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
        print(metrics.table(result))
        if tells_instances:
            print(panoptic.table(told), f"see {out}/val_faces.png", sep="\n")
        print(f"best.pt: step {best['step']}, val mean F1 {best['mean_f1']:.4f}; see {out}/val.png")
    else:
        print(f"best.pt: step {done}, the last one, since nobody is held out")
    limit = f" --limit {args.limit} --seed {args.seed}" if args.limit else ""
    if args.scenes or tells_instances or bank:
        print(f"next:    python evaluate.py --init {out}/best.pt")
    else:
        print(f"next:    python train_reward.py --init {out}/best.pt{limit} --out {out}_reward")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
