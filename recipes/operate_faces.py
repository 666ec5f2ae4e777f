"""FASSEG as a stream of photos that arrive, for operate_faces.sh: folders of your own below a new one.

    python recipes/operate_faces.py FOLDER OUT        FOLDER has V2 and V3 in it

V2's 64 people, without the test photos that are copies of training photos: 20 to train on, 12 who guard, both
the reference, and 32 who arrive: by day, and darkened, in two batches. Then V3's seven training people in
every pose, in two batches. audit_dark and audit_poses are photos of these batches with masks.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from datasets.cache import contents  # noqa: E402
from datasets.faces import limit, rank  # noqa: E402
from datasets.images import read_photo  # noqa: E402
from datasets.pairs import write_folder, write_samples  # noqa: E402
from datasets.splits import open_any  # noqa: E402

BRIGHTNESS = 0.55
GUARD, AUDIT_DARK, AUDIT_POSES = 12, 8, 14  # photos


def dark(samples, faces):
    """Samples as `write_folder` takes them, darkened."""
    for s in samples:
        photo = np.asarray(read_photo(s.image)[0], np.float32) * BRIGHTNESS
        image = torch.tensor(photo.round().astype(np.uint8)).permute(2, 0, 1)
        yield s.id.replace("/", "__"), image, torch.tensor(faces.read_label(s)), s.group


def main(args):
    source, out = pathlib.Path(args.folder), pathlib.Path(args.out)
    out.mkdir(parents=True)
    v2, v3 = open_any(source / "V2"), open_any(source / "V3")
    train, test = v2.splits["train"], v2.splits["test"]
    digests = contents([s.image for s in train + test])
    copied = {digests[s.image] for s in train}
    others = sorted((s for s in test if digests[s.image] not in copied), key=lambda s: rank(0, s.id))
    guard, arrived = others[:GUARD], others[GUARD:]
    write_samples(out / "train", train, v2, masks=True)
    write_samples(out / "guard", guard, v2, masks=True)
    write_samples(out / "reference", train + guard, v2)
    write_samples(out / "day", arrived, v2)
    write_folder(out / "dark", v2, dark(arrived, v2))
    night = open_any(out / "dark")
    darkened = night.splits["train"]
    write_samples(out / "dark_a", darkened[::2], night)
    write_samples(out / "dark_b", darkened[1::2], night)
    write_samples(out / "audit_dark", limit(darkened, AUDIT_DARK, 0), night, masks=True)
    poses = v3.splits["train"]
    write_samples(out / "poses_a", [s for s in poses if abs(s.yaw) <= 30], v3)
    write_samples(out / "poses_b", [s for s in poses if abs(s.yaw) > 30], v3)
    write_samples(out / "audit_poses", limit(poses, AUDIT_POSES, 0), v3, masks=True)
    for folder in sorted(path for path in out.iterdir()):
        found = open_any(folder)
        photos = [s for samples in found.splits.values() for s in samples]
        print(f"{folder}: {len(photos)} photos of {len({s.group for s in photos})} people")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("out")
    main(p.parse_args())
