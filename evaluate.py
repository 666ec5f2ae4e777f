"""Score a parser on a split: a table for people, JSON for programs.

Run:    python evaluate.py --init runs/finetune/best.pt --split test --json runs/finetune/test.json
Needs:  a checkpoint of a training script; --data if not the checkpoint's own
Writes: the JSON file, if one is named
Expect: one line of figures, a row for each class, and a row for each |yaw| where yaw is known

Masks are scored at the checkpoint's --size. |yaw| is rounded to the nearest 15 degrees. F1 and IoU
come from one confusion matrix over the split; intervals are bootstrapped over people.
"""

import json
import os
import pathlib
import shlex

import torch

from datasets import batches, splits
from datasets.faces import label_info
from datasets.images import to_float
from datasets.synthetic import scheme_of
from models import restore
from utils import checkpoint, cli, dist, files, metrics
from utils.errors import UserError


def get_parser():
    p = cli.parser(__doc__)
    g = p.add_argument_group("data", "where a flag is not given: what --init trained on")
    g.add_argument("--data", help="folder of faces, its layout recognised, or synthetic")
    g.add_argument(
        "--part-order", choices=cli.PART_ORDERS, help="which part of CelebAMask-HQ is painted last"
    )
    g.add_argument("--split", default="test", help="train, val, test ...; val where there is no test")
    g.add_argument("--ids", metavar="FILE", help=cli.IDS)
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", required=True, help="checkpoint to score")
    g = p.add_argument_group("runtime")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    cli.add_device_flags(g)
    g = p.add_argument_group("output")
    g.add_argument("--json", metavar="FILE", help="write the figures here too")
    return p


def yaw_slices(confusions, yaws):
    """{"0": {...}, "30": {...}}: figures of the images at each |yaw|, known ones only."""
    bins = [None if yaw is None else round(abs(yaw) / 15) * 15 for yaw in yaws]
    slices = {}
    for angle in sorted({b for b in bins if b is not None}):
        rows = confusions[torch.tensor([b == angle for b in bins])]
        pooled = rows.sum(0)
        slices[str(angle)] = {
            "mean_f1": round(metrics.mean_f1(pooled).item(), 6),
            "miou": round(metrics.miou(pooled).item(), 6),
            "n_images": len(rows),
        }
    return slices


def main(args):
    # ---- setup ----
    rank, world, device = dist.init(args.device)
    state = checkpoint.load(args.init)
    trained = state["args"]
    classes = state["data"]["classes"]
    args = cli.fill(args, {"amp": dist.default_amp(device)})
    if args.json:
        if not args.json.endswith(".json"):
            raise UserError(f"--json {args.json}: need a name that ends in .json; no other file is replaced")
        files.check_file(args.json)

    # ---- data ----
    path = args.data or trained["data"]
    scheme = scheme_of(classes) if path == "synthetic" else None
    as_trained = trained["part_order"] if splits.same_folder(path, trained["data"]) else "canonical"
    part_order = args.part_order or as_trained
    split = args.split
    ids = splits.ids_file(args.ids, args.data, trained) if split in ("train", "val") else None
    if args.ids and not ids:
        raise UserError(f"--ids {args.ids}: says who trains and who validates; --split train or val takes it")
    faces = splits.open_data(path, scheme, part_order, trained["val_fraction"], ids)
    if split == "test" and faces.splits.get("val") and not faces.splits.get("test"):
        split, ids = "val", splits.ids_file(None, args.data, trained)
        faces = splits.open_data(path, scheme, part_order, trained["val_fraction"], ids)
        faces.notes.append("no split test: these are figures of val, which best.pt was chosen by")
    if faces.classes != classes:
        raise UserError(
            f"{path} has the classes {' '.join(faces.classes)}; "
            f"{args.init} was trained on {' '.join(classes)}"
        )
    data = batches.load(faces, split, trained["size"], device=device)

    # ---- model ----
    evaluated = restore(state, device, args.init)

    # >>> shared: predict
    def predict(images, by=None):
        """(B, 3, H, W) uint8, or float in 0 to 1 -> logits (B, K, H, W) float32, of a network."""
        network = evaluated if by is None else by
        images = to_float(images.to(device)).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dist.AMP_DTYPES[args.amp], enabled=args.amp != "off"):
            return network(images)["semantic"].float()

    # <<< shared: predict

    # ---- finish ----
    counts = metrics.measure(predict, data, "semantic", len(classes), args.batch_size, rank, world)
    result = metrics.summary(counts, classes)
    if result["mean_f1"] is None:
        raise UserError(f"--split {split}: {faces.name} has no labels there to score against")
    result["slices"] = {"yaw": yaw_slices(counts["confusion"], data.yaws)}
    result["ci95"] = {
        "mean_f1": metrics.bootstrap(counts["confusion"], data.groups),
        "miou": metrics.bootstrap(counts["confusion"], data.groups, metrics.miou),
    }
    result |= {
        "init": args.init,
        "step": state["step"],
        "data": path,
        "split": split,
        "ids": ids,
        "size": trained["size"],
        **label_info(faces),
    }
    dist.finish()
    if rank:
        return
    print(
        f"{args.init} on {faces.name} {split}: {len(data)} images of {len(set(data.groups))} people",
        *faces.notes,
        sep="\n  ",
    )
    print(metrics.table(result))
    if result["slices"]["yaw"]:
        print(f"\n{'|yaw|':<16}{'F1':>6}{'mIoU':>8}{'images':>12}")
        for angle, row in result["slices"]["yaw"].items():
            print(f"{angle:<16}{row['mean_f1']:6.3f}{row['miou']:8.3f}{row['n_images']:>12,}")
    if interval := result["ci95"]["mean_f1"]:
        print(
            f"\nmean F1 {result['mean_f1']:.3f}, 95 % interval over people "
            f"{interval[0]:.3f} to {interval[1]:.3f}"
        )
    if args.json:
        files.write_whole(args.json, json.dumps(result, indent=2) + "\n")
    out = os.path.relpath(f"{pathlib.Path(args.init).resolve().parent}_predict")
    command = ["python", "predict.py", "--init", args.init, "PHOTO_OR_FOLDER", "--out", out]
    print("next:   ", shlex.join(command))


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
