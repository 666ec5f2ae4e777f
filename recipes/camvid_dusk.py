"""CamVid from day to dusk: lists and links that make two data sets of the one, without a copy of any picture.

python recipes/camvid_dusk.py FOLDER OUT     FOLDER: CamVid as SegNet packs it, with train.txt and test.txt

    OUT/day       trains on every photo of both lists that was taken by day, and tests on dusk
    OUT/labels    tests on the same photos, and trains on the dusk photos of train.txt, too: the upper bound

Dusk is sequence 0001TP, of which train.txt and test.txt each have a part; the test photos are those of
test.txt. OUT/photo.txt names the dusk photo to mine styles towards: the middle one of train.txt.
"""

import os
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from datasets import camvid
from utils import cli, files
from utils.errors import UserError

DUSK = "0001TP"


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("folder", metavar="FOLDER")
    p.add_argument("out", metavar="OUT")
    return p


def write(out, root, splits):
    """CamVid in the folder `out`: links to the folders of `root`, and a list of the samples of each split."""
    out.mkdir()
    for split in splits:
        for name in (split, f"{split}annot"):
            (out / name).symlink_to(root / name, target_is_directory=True)
    for split, samples in splits.items():
        pairs = [[os.path.relpath(path, root) for path in (s.image, s.label)] for s in samples]
        files.write_whole(out / f"{split}.txt", "".join(f"{photo} {mask}\n" for photo, mask in pairs))


def main(args):
    root, out = pathlib.Path(args.folder).resolve(), pathlib.Path(args.out)
    faces = camvid.recognise(str(root))
    if not faces:
        raise UserError(f"{args.folder}: no {camvid.LOOKS_FOR} in it")
    if os.path.lexists(out):
        raise UserError(f"{out}: is there already; move it, or name another folder")
    groups = {"day": [], "dusk train": [], "dusk test": []}
    for split in ("train", "test"):
        for sample in faces.splits.get(split, []):
            groups[f"dusk {split}" if sample.group == DUSK else "day"].append(sample)
    if empty := [name for name, samples in groups.items() if not samples]:
        raise UserError(
            f"{args.folder}: its lists name no photo of {', '.join(empty)}; dusk is sequence {DUSK}"
        )
    day, dusk, test = groups.values()
    photo = dusk[len(dusk) // 2].image
    part = out.with_name(f"{out.name}.part")  # so that OUT is whole, or not there
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part / "day", root, {"train": day, "test": test})
    write(part / "labels", root, {"train": day + dusk, "test": test})
    files.write_whole(part / "photo.txt", f"{photo}\n")
    part.rename(out)
    counts = f"{len(day)} photos by day, {len(dusk)} at dusk to train on, {len(test)} to test"
    print(f"{out}: {counts}; to mine towards: {photo}")


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
