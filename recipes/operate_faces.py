"""What operate_faces.sh needs of FASSEG: photos that come in, and a candidate that must be refused.

    python recipes/operate_faces.py photos FOLDER OUT             FOLDER has V2 and V3 in it
    python recipes/operate_faces.py shuffle CHECKPOINT PHOTOS OUT

photos: folders of your own below OUT. V2's 64 people, without test photos that are copies of training
photos: 20 to train on, 12 who guard, both the reference, and 32 who come in: by day, and darkened, in two
batches. Then V3's seven training people in every pose, in two batches. audit_dark and audit_poses: photos of
these batches with masks. shuffle: photos, each with what the checkpoint says of the next one as its mask.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from datasets.cache import contents  # noqa: E402
from datasets.faces import limit, rank  # noqa: E402
from datasets.images import read_photo, read_square, to_float  # noqa: E402
from datasets.pairs import write_folder, write_samples  # noqa: E402
from datasets.splits import open_any  # noqa: E402
from models import restore  # noqa: E402
from utils import checkpoint  # noqa: E402
from utils.operate.store import file_of  # noqa: E402

BRIGHTNESS = 0.55
GUARD, AUDIT_DARK, AUDIT_POSES = 12, 8, 14  # photos


def dark(samples, faces):
    """Samples as `write_folder` takes them, darkened."""
    for s in samples:
        photo = np.asarray(read_photo(s.image)[0], np.float32) * BRIGHTNESS
        image = torch.tensor(photo.round().astype(np.uint8)).permute(2, 0, 1)
        yield s.id.replace("/", "__"), image, torch.tensor(faces.read_label(s)), s.group


def write_photos(folder, out):
    source, out = pathlib.Path(folder), pathlib.Path(out)
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


def write_shuffled(file, photos, out):
    state = checkpoint.load(file_of(file))
    net = restore(state, "cpu")
    faces = open_any(photos)
    samples = faces.splits["unlabelled"]
    faces.colors = state["data"]["colors"]

    def pairs():
        for s, other in zip(samples, samples[1:] + samples[:1], strict=True):
            images = torch.stack([read_square(each.image, state["args"]["size"]) for each in (s, other)])
            with torch.no_grad():
                ids = net(to_float(images))["semantic"].argmax(1).byte()
            yield pathlib.Path(s.image).stem, images[0], ids[1], s.group

    write_folder(out, faces, pairs())


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    for name, words in {"photos": ("folder", "out"), "shuffle": ("checkpoint", "photos", "out")}.items():
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word)
    args = p.parse_args()
    if args.command == "photos":
        write_photos(args.folder, args.out)
    else:
        write_shuffled(args.checkpoint, args.photos, args.out)
