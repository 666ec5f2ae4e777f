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
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from datasets import splits
from datasets.augmentation import mirror
from datasets.cache import CachedFaces
from datasets.faces import limit
from datasets.pairs import write_folder
from utils import rng

KINDS = "other", "mirror", "shifted", "swapped", "rough"
SIZE = 192  # pixels; enough for whatever --size is used after


def rough(label):
    blocks = label[SIZE // 24 :: SIZE // 12, SIZE // 24 :: SIZE // 12]
    return blocks.repeat_interleave(SIZE // 12, 0).repeat_interleave(SIZE // 12, 1)


def wrong(kind, turn, row, data, faces, order):
    """The mask of a photo with a fault in it."""
    label = data[[row]]["semantic"][0]
    if kind == "other":
        strangers = [i for i in order if data.groups[i] != data.groups[row]]
        return data[[strangers[turn % len(strangers)]]]["semantic"][0]
    if kind == "mirror":
        return mirror(label[None], faces.flip_pairs)[0]
    if kind == "shifted":
        return label.roll(SIZE // 6, 1)
    if kind == "rough":
        return rough(label)
    inner = [k for k, name in enumerate(faces.classes) if name not in ("background", "skin")]
    there = [k for k in inner if (label == k).any()]
    a, b = (there[(turn // len(KINDS) + k) % len(there)] for k in (0, 1))
    return torch.where(label == a, b, torch.where(label == b, a, label)).to(label.dtype)


def plant(args):
    faces = splits.open_any(args.data)
    labelled = limit([s for s in faces.splits["train"] if s.label is not None], args.limit, args.seed)
    data = CachedFaces(faces, labelled, SIZE)
    order = rng.uniform(args.seed, torch.arange(len(data)), 1, stream=90)[:, 0].argsort().tolist()
    turns = {row: turn for turn, row in enumerate(order[: round(args.share * len(order))])}
    planted = {f"{row:03d}": KINDS[turn % len(KINDS)] for row, turn in turns.items()}

    def pairs():
        for row in range(len(data)):
            name = f"{row:03d}"
            photo = data[[row]]
            label = photo["semantic"][0]
            if name in planted:
                label = wrong(planted[name], turns[row], row, data, faces, order)
            yield name, photo["image"][0], label, data.groups[row]

    write_folder(args.out, faces, pairs())
    (pathlib.Path(args.out) / "planted.json").write_text(json.dumps(planted) + "\n")
    print(f"wrote:   {len(data)} faces, {len(planted)} with wrong masks")


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
            bad = [signal[i] for i in own]
            caught = sum(i in suspects for i in own)
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
