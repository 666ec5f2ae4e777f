"""Copy labelled faces with some of the masks made wrong, and see whether the data engine finds them.

python recipes/wrong_labels.py plant FOLDER/V3 OUT --limit 48 --share 0.25     OUT/planted.json says which
python recipes/wrong_labels.py score OUT RUN [RUN ...]     what augment.py --data OUT made of them

Kinds of fault, in turn: `other`, the mask of another person; `mirror`, left for right; `shifted` by a
sixth of the side; `swapped`, two classes for one another; `rough`, in blocks of a twelfth of the side.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from datasets import loading, transforms
from datasets.cache import CachedFaces
from datasets.faces import limit
from utils import draw, rng

SIZE = 192  # pixels; enough for whatever --size is used after


def rough(label):
    blocks = label[SIZE // 24 :: SIZE // 12, SIZE // 24 :: SIZE // 12]
    return blocks.repeat_interleave(SIZE // 12, 0).repeat_interleave(SIZE // 12, 1)


def plant(args):
    faces = loading.open_any(args.data)
    labelled = limit([s for s in faces.splits["train"] if s.label is not None], args.limit, args.seed)
    data, out = CachedFaces(faces, labelled, SIZE), pathlib.Path(args.out)
    for kind in ("images", "labels"):
        (out / kind).mkdir(parents=True)
    order = rng.uniform(args.seed, torch.arange(len(labelled)), 1, stream=90)[:, 0].argsort().tolist()
    chosen, planted, groups = order[: round(args.share * len(order))], {}, {}
    inner = [k for k, name in enumerate(faces.classes) if name not in ("background", "skin")]
    for n, row in enumerate(range(len(labelled))):
        photo = data[[row]]
        image, label = photo["image"][0], photo["semantic"][0]
        if row in chosen:
            turn = chosen.index(row)
            kind = ("other", "mirror", "shifted", "swapped", "rough")[turn % 5]
            strangers = [i for i in order if data.groups[i] != data.groups[row]]
            there = [k for k in inner if (label == k).any()]
            a, b = (there[(turn // 5 + k) % len(there)] for k in (0, 1))
            swapped = torch.where(label == a, b, torch.where(label == b, a, label)).to(label.dtype)
            label = {
                "other": data[[strangers[turn % len(strangers)]]]["semantic"][0],
                "mirror": transforms.flip_labels(label[None], faces.flip_pairs)[0],
                "shifted": label.roll(SIZE // 6, 1),
                "swapped": swapped,
                "rough": rough(label),
            }[kind]
            planted[f"{n:03d}"] = kind
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(out / f"images/{n:03d}.png")
        draw.index_mask(label.numpy(), faces.colors).save(out / f"labels/{n:03d}.png")
        groups[f"{n:03d}"] = data.groups[row]
    pairs = [[faces.classes[a], faces.classes[b]] for a, b in faces.flip_pairs]
    what = {"classes": faces.classes, "flip_pairs": pairs, "groups": groups}
    (out / "classes.json").write_text(json.dumps(what) + "\n")
    (out / "planted.json").write_text(json.dumps(planted) + "\n")
    print(f"wrote:   {len(labelled)} faces, {len(planted)} with wrong masks")


def score(args):
    planted = json.loads((pathlib.Path(args.data) / "planted.json").read_text())
    for run in map(pathlib.Path, args.runs):
        photos = json.loads((run / "photos.json").read_text())
        ids = json.loads((run / "policy.json").read_text())["suspects"]
        signal = {pathlib.PurePath(i).name: f["contradiction"] for i, f in photos.items()}
        suspects = {pathlib.PurePath(i).name for i in ids}
        good = [v for i, v in signal.items() if i not in planted]
        right = len(suspects & planted.keys())
        print(f"{run}: {len(suspects)} of {len(signal)} suspects, {right} of {len(planted)} planted")
        for kind in [*dict.fromkeys(planted.values()), "all"]:
            own = [i for i, k in planted.items() if kind in (k, "all")]
            bad, caught = [signal[i] for i in own], sum(i in suspects for i in own)
            area = stats.mannwhitneyu(bad, good).statistic / len(bad) / len(good)
            means = f"contradiction {np.mean(bad):.3f}, good ones {np.mean(good):.3f}"
            print(f"  {kind:<9}{caught} of {len(own)} found, ROC area {area:.2f}, {means}")


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
commands = p.add_subparsers(required=True)
c = commands.add_parser("plant")
c.set_defaults(do=plant)
c.add_argument("data")
c.add_argument("out")
c.add_argument("--limit", type=int, default=48)
c.add_argument("--share", type=float, default=0.25)
c.add_argument("--seed", type=int, default=0)
c = commands.add_parser("score")
c.set_defaults(do=score)
c.add_argument("data")
c.add_argument("runs", nargs="+")
args = p.parse_args()
args.do(args)
