"""Score parsers or classifiers on a split: a table for people, JSON for programs.

Run:    python evaluate.py --init runs/finetune/best.pt --split test --json runs/finetune/test.json
Needs:  a checkpoint of a training script, or several, which vote; --data if not the checkpoint's own
Writes: the JSON file, if one is named; with --save-errors DIR, errors.png and errors.json
Expect: a line of figures and a row for each class; for parsers also for each |yaw|, where yaw is known

Images are scored at the checkpoint's --size. Of parsers, |yaw| is rounded to the nearest 15 degrees, F1 and
IoU come from one confusion matrix over the split, and intervals are bootstrapped over people. Several
checkpoints are for the same classes at one size; data and split are those of the first. Where a network tells
instances apart, and the data does, panoptic quality follows.
"""

import json
import os
import pathlib
import shlex

import torch

from datasets import batches, labelled, splits, summary
from datasets.faces import label_info
from datasets.images import to_float
from datasets.synthetic import scheme_of
from models import has_instances, restore
from utils import checkpoint, class_metrics, cli, dist, draw, files, lineage, metrics, panoptic
from utils.errors import UserError
from utils.operate import store

AS_THEY_ARE = "scored on photos as they are; --scenes N makes scenes of them"
NOT_COUNTED = "no panoptic quality: photos as they are do not say whose a pixel is; --scenes 1 does"
SHOWN = 100  # mistakes in errors.png
# Slices by how much of a scene its largest face covers: from so many % on
SHARES = {0: "<2%", 2: "2-5%", 5: "5-10%", 10: "10-20%", 20: ">20%"}
HEADS = ("center", "offset")  # of a network that tells instances apart
INSTEAD = "no split test: these are figures of val, which best.pt was chosen by"


def get_parser():
    p = cli.parser(__doc__)
    g = p.add_argument_group("data", "where a flag is not given: what --init trained on")
    g.add_argument(
        "--data",
        help="folder of faces or of images with classes, its layout recognised, or synthetic or shapes",
    )
    g.add_argument(
        "--part-order", choices=cli.PART_ORDERS, help="which part of CelebAMask-HQ is painted last"
    )
    g.add_argument("--split", default="test", help="train, val, test ...; val where there is no test")
    g.add_argument("--ids", metavar="FILE", help=cli.IDS)
    g.add_argument("--scenes", type=cli.faces, metavar="N", help=cli.SCENES)
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", nargs="+", required=True, help="checkpoints to score, as one")
    vote = "how several decide: by the mean of their probabilities (soft, the default) or by majority"
    g.add_argument("--vote", choices=["soft", "hard"], help=vote)
    g = p.add_argument_group("runtime")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    cli.add_device_flags(g)
    g = p.add_argument_group("output")
    g.add_argument("--json", metavar="FILE", help="write the figures here too")
    errors = "write the mistakes of a classifier here, as a picture and as JSON"
    g.add_argument("--save-errors", metavar="DIR", help=errors)
    return p


def vote(logits, how):
    """Logits (B, K, ...) of each network -> (B, K, ...), the logarithms of what they give together.

    how: soft, the mean of their probabilities, or hard, a vote of each for its likeliest class. That mean is
    then one vote more, divided among the classes: it decides where votes are equal, and there only.
    """
    if len(logits) == 1:
        return logits[0]
    probs = torch.stack([x.softmax(1) for x in logits])
    shares = probs.mean(0)
    if how == "hard":
        ballots = torch.stack([torch.zeros_like(p).scatter_(1, p.argmax(1, keepdim=True), 1) for p in probs])
        shares = (ballots.sum(0) + shares) / (len(logits) + 1)
    return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()


def open_faces(args, trained, classes):
    """(faces, split, plain facts about them) of what a parser is scored on."""
    path = args.data or trained["data"]
    scheme = scheme_of(classes) if path == "synthetic" else None
    own = splits.same_folder(path, trained["data"])
    part_order = args.part_order or (trained["part_order"] if own else "canonical")
    scenes = args.scenes
    if scenes is None:
        scenes = trained.get("scenes", 0) if own else 0
    split = args.split
    ids = splits.ids_file(args.ids, args.data, trained) if split in ("train", "val") else None
    if args.ids and not ids:
        raise UserError(f"--ids {args.ids}: says who trains and who validates; --split train or val takes it")
    faces = splits.open_data(path, scheme, part_order, trained["val_fraction"], ids, scenes)
    if without_test(faces, split):
        split, ids = "val", splits.ids_file(None, args.data, trained)
        faces = splits.open_data(path, scheme, part_order, trained["val_fraction"], ids, scenes)
        faces.notes.append(INSTEAD)
    if scenes and split == "train":
        raise UserError("--split train: scenes to train on have no end; score val, test, or --scenes 0")
    if trained.get("scenes") and not (scenes or faces.things):
        if has_instances(trained["model"]):
            faces.notes.append(NOT_COUNTED)
        elif args.scenes is None:
            faces.notes.append(AS_THEY_ARE)
    return faces, split, {"ids": ids, **label_info(faces)}


def open_images(args, trained, classes):
    """(images, split, plain facts about them) of what a classifier is scored on."""
    path = args.data or trained["data"]
    left_out = labelled.known_domain(path, trained.get("leave_out"))
    images = labelled.open_images(path, trained["val_fraction"], left_out)
    split = args.split
    if without_test(images, split):
        split = "val"
        images.notes.append(INSTEAD)
    return images, split, {"leave_out": left_out, **labelled.label_info(images)}


def without_test(found, split):
    """Whether a split is asked for that is not there, and val is."""
    return split == "test" and found.splits.get("val") and not found.splits.get("test")


def sliced(confusions, bins, names=None):
    """{name: figures} of the images in each bin, in order. confusions: (N, K, K). bins: N numbers, None for
    an image in none. names: of the bins, where a number is not its own."""
    slices = {}
    for each in sorted({b for b in bins if b is not None}):
        rows = confusions[torch.tensor([b == each for b in bins])]
        pooled = rows.sum(0)
        slices[names[each] if names else str(each)] = {
            "mean_f1": round(metrics.mean_f1(pooled).item(), 6),
            "miou": round(metrics.miou(pooled).item(), 6),
            "n_images": len(rows),
        }
    return slices


def slice_table(heading, slices):
    """Lines of text about `sliced`; none where it is empty."""
    lines = [f"\n{heading:<16}{'F1':>6}{'mIoU':>8}{'images':>12}"] if slices else []
    for name, row in slices.items():
        lines.append(f"{name:<16}{row['mean_f1']:6.3f}{row['miou']:8.3f}{row['n_images']:>12,}")
    return lines


def score_parser(predict, data, faces, split, *how):
    """(figures, lines of text). predict: images -> {"semantic": logits}; how: see `metrics.measure`."""
    num_classes = len(faces.classes)
    counts = metrics.measure(lambda images: predict(images)["semantic"], data, "semantic", num_classes, *how)
    result = metrics.summary(counts, faces.classes)
    if result["mean_f1"] is None:
        raise UserError(f"--split {split}: {faces.name} has no labels there to score against")
    confusions = counts["confusion"]
    yaw_bins = [None if yaw is None else round(abs(yaw) / 15) * 15 for yaw in data.yaws]
    shares = data.shares if faces.scenes else []
    share_bins = [max(limit for limit in SHARES if limit <= 100 * share) for share in shares]
    slices = {"yaw": sliced(confusions, yaw_bins), "share": sliced(confusions, share_bins, SHARES)}
    result["slices"] = slices
    result["ci95"] = {
        "mean_f1": metrics.bootstrap(confusions, data.groups),
        "miou": metrics.bootstrap(confusions, data.groups, metrics.miou),
    }
    lines = [metrics.table(result)]
    lines += slice_table("|yaw|", slices["yaw"]) + slice_table("largest face", slices["share"])
    if found := result["ci95"]["mean_f1"]:
        between = f"95 % interval over people {found[0]:.3f} to {found[1]:.3f}"
        lines.append(f"\nmean F1 {result['mean_f1']:.3f}, {between}")
    return result, lines


def score_classifier(measured, names):
    """(figures, lines of text) of what `class_metrics.measure` found. names: {"class": [names], ...}"""
    found = {key: class_metrics.summary(measured[key], names[key]) for key in measured}
    lines = []
    for key, result in found.items():
        low, high = result["ci95"]["accuracy"]
        between = f"95 % interval over images {low:.3f} to {high:.3f}"
        lines += [f"\n{key}:"] if len(found) > 1 else []
        lines += [class_metrics.table(result), f"\naccuracy {result['accuracy']:.3f}, {between}"]
    return found.pop("class") | found, lines


def save_errors(folder, data, measured, classes):
    """Write every mistake, the surest first, to errors.json and `SHOWN` to errors.png; a line of text."""
    confidence, preds = measured["probs"].max(1)
    labels = measured["labels"]
    order = confidence.argsort(descending=True, stable=True)
    wrong = order[(preds != labels)[order]].tolist()
    rows = [
        {
            "id": data.ids[i],
            "truth": classes[labels[i]],
            "guess": classes[preds[i]],
            "probability": round(confidence[i].item(), 6),
        }
        for i in wrong
    ]
    files.write_whole(folder / "errors.json", json.dumps(rows, indent=1) + "\n")
    if not rows:
        return f"errors:  none: {folder / 'errors.json'}"
    captions = [draw.verdict(row["truth"], row["guess"], row["probability"]) for row in rows[:SHOWN]]
    heading = f"the surest {len(captions)} of {len(rows)} mistakes: what it was taken for, and what it is"
    images = data[wrong[:SHOWN]]["image"]
    draw.write(folder / "errors.png", draw.captioned(images, captions, heading))
    return f"errors:  {len(rows)} of {len(data)}: {folder / 'errors.png'}, {folder / 'errors.json'}"


def main(args):
    # ---- setup ----
    rank, world, device = dist.init(args.device)
    given = args.init[0]
    args.init = [store.file_of(file) for file in args.init]  # the champion of a folder of operate.py
    states = [checkpoint.load(file, target=None) for file in args.init]
    checkpoint.refuse_unlike("--init", args.init, states)
    state = states[0]
    trained = state["args"]
    classes = state["data"]["classes"]
    parses = checkpoint.target_of(state) != "class"
    idle = dict.fromkeys(("part_order", "ids", "scenes"), "on images")
    idle = {"save_errors": "on face parsers"} if parses else idle
    idle["vote"] = None if states[1:] else "with one checkpoint"
    cli.refuse_without_effect(args, idle)
    args = cli.fill(args, {"amp": dist.default_amp(device), "vote": "soft" if states[1:] else None})
    if args.json:
        if not args.json.endswith(".json"):
            raise UserError(f"--json {args.json}: need a name that ends in .json; no other file is replaced")
        files.check_file(args.json)
    if args.save_errors:
        folder = pathlib.Path(args.save_errors)
        if there := [name for name in ("errors.json", "errors.png") if (folder / name).exists()]:
            raise UserError(
                f"--save-errors {folder}: holds {there[0]} already; move it, or name another folder"
            )
        files.check_folder(folder)

    # ---- data ----
    path = args.data or trained["data"]
    found, split, facts = (open_faces if parses else open_images)(args, trained, classes)
    if found.classes != classes:
        raise UserError(
            f"{path} has the classes {' '.join(found.classes)}; "
            f"{args.init[0]} was trained on {' '.join(classes)}"
        )
    names = {"semantic" if parses else "class": classes}
    if domains := state["data"].get("domains"):
        alike = all(other["data"]["domains"] == domains for other in states)
        if alike and found.domains == domains and not (split == "test" and facts["leave_out"]):
            names["domain"] = domains
        else:
            found.notes.append("domains are not scored: those here are not what was trained on")
    tells_apart = [has_instances(each["args"]["model"]) for each in states]
    without = [file for file, apart in zip(args.init, tells_apart, strict=True) if not apart]
    heads = HEADS if parses and found.things and not without else ()
    if any(tells_apart) and found.things and without:
        found.notes.append(f"no panoptic quality: no instances are told apart by {', '.join(without)}")
    if parses:
        data = batches.load(found, split, trained["size"], device=device, instances=bool(heads))
    else:
        data = labelled.load(found, split, trained["size"])
    if args.json:
        named = cli.files_of(args)
        held = {split: summary.identify(data, classes)}
        starts = dict(zip(args.init, states, strict=True))
        origin = lineage.origin("evaluate.py", args.json, held, {split: path}, named, starts)
        record = lineage.record(origin, vars(args), named)

    # ---- model ----
    networks = [restore(state, device, file) for state, file in zip(states, args.init, strict=True)]

    def predict(images):
        """(B, 3, H, W) uint8 -> {key: logits (B, K, ...) float32}: of the network, or what several decide;
        "center" and "offset" are their means."""
        images = to_float(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dist.AMP_DTYPES[args.amp], enabled=args.amp != "off"):
            outputs = [network(images) for network in networks]
        votes = {key: vote([output[key].float() for output in outputs], args.vote) for key in names}
        means = {key: torch.stack([output[key].float() for output in outputs]).mean(0) for key in heads}
        return votes | means

    # ---- finish ----
    how = args.batch_size, rank, world
    if parses:
        result, lines = score_parser(predict, data, found, split, *how)
        if heads:
            result["panoptic"] = panoptic.measure(predict, data, classes, found.things, *how)
            lines += ["", panoptic.table(result["panoptic"])]
    else:
        measured = class_metrics.measure(predict, data, list(names), *how)
        result, lines = score_classifier(measured, names)
    single = not states[1:]
    result |= {
        "init": args.init[0] if single else args.init,
        "step": state["step"] if single else [each["step"] for each in states],
        "unfinished": checkpoint.unfinished(args.init, states),
        "vote": args.vote,
        "data": path,
        "split": split,
        "size": trained["size"],
        **facts,
    }
    dist.finish()
    if rank:
        return
    if args.json:  # before a word is said, which `head` may cut short
        result["lineage"] = lineage.ended(record, 0)
        files.write_whole(args.json, json.dumps(result, indent=2) + "\n")
    people = f" of {len(set(data.groups))} people" if parses and not found.scenes else ""
    what = f"scenes of up to {found.scenes} faces" if parses and found.scenes else f"images{people}"
    print(
        f"{' '.join(args.init)} on {found.name} {split}: {len(data)} {what}",
        *checkpoint.trained_apart(args.init, states),
        *result["unfinished"],
        *found.notes,
        sep="\n  ",
    )
    print(*lines, sep="\n")
    if args.save_errors:
        print(save_errors(folder, data, measured["class"], classes))
    if parses and single:
        folder = pathlib.Path(given).resolve()
        out = os.path.relpath(f"{folder if folder.is_dir() else folder.parent}_predict")
        command = ["python", "predict.py", "--init", given, "PHOTO_OR_FOLDER", "--out", out]
        print("next:   ", shlex.join(command))


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
