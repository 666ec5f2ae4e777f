"""Parse photos: an index mask and an overlay with a legend for each, at its own size; or classify them.

Run:    python predict.py --init runs/finetune/best.pt PHOTO_OR_FOLDER --out runs/predict
Needs:  a checkpoint of a training script; photos: for a parser of single faces with one face each, or boxes
        that frame one
Writes: NAME_mask.png (palette PNG of class ids) and NAME_overlay.png for each photo; with a network that
        tells faces apart NAME_faces.png (ids of the faces) and faces.json; with a classifier guesses.json;
        with --onnx the model
"""

import json
import os
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets import crops, splits, summary
from datasets.faces import some
from datasets.images import SUFFIXES, pictures, read_image, read_square, to_float, unread_pictures
from models import has_instances, restore
from models.export import OPSET, write_onnx
from utils import checkpoint, cli, dist, draw, files, lineage
from utils.errors import UserError
from utils.files import read_json
from utils.instances import called, segments
from utils.operate import store

RESULTS = ("_mask", "_overlay")  # what a photo's results are called, behind its own name
FACES = "_faces"  # beside these, where the network tells faces apart
BAND = 64  # rows of a photo whose logits are held at once
PIXELS = 16_000_000  # a batch of photos that has as many is not added to


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("photos", metavar="PHOTO_OR_FOLDER", nargs="*", help="photos, and folders of photos")
    g = p.add_argument_group("photos")
    g.add_argument("--recursive", action="store_true", help="take the subfolders of folders, too")
    boxes = g.add_mutually_exclusive_group()
    box = "where the face of the one photo is, as pixels of the upright photo"
    boxes.add_argument("--box", type=float, nargs=4, metavar=("X", "Y", "W", "H"), help=box)
    boxes.add_argument("--boxes", metavar="FILE", help='the same of many: JSON {"file name": [x, y, w, h]}')
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", required=True, help="checkpoint, or folder of operate.py")
    size = (
        "of a network for scenes, side of its input, pixels, where it is not that of training; in a larger "
        "one large faces fall apart, in a smaller one small ones are missed: better train at this --size"
    )
    g.add_argument("--size", type=cli.positive, help=size)
    score = "leave out faces with a lower score, where the network tells faces apart; it is not calibrated"
    g.add_argument("--min-score", type=cli.share, default=0.0, metavar="SHARE", help=score)
    g = p.add_argument_group("runtime")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    g.add_argument("--device", help="cpu or cuda; a GPU where there is one")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/predict", metavar="FOLDER", help="folder for the masks")
    g.add_argument("--overwrite", action="store_true", help="replace what is there already")
    g.add_argument("--onnx", metavar="FILE", help="write the model as ONNX, in place of parsing photos")
    return p


def find(path, out, recursive):
    """([(file name relative to `path`, path)], notes) of the pictures in a folder, but for those in a folder
    `out` below it; or of the one photo `path`."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such photo or folder")
    if not os.path.isdir(path):
        return [(os.path.basename(path), path)], []
    photos, notes = [], []
    for folder, below, _ in os.walk(path, onerror=refuse):
        inner = [name for name in sorted(below) if not name.startswith(".")]
        inner = [name for name in inner if not splits.same_folder(os.path.join(folder, name), out)]
        links = [name for name in inner if os.path.islink(os.path.join(folder, name))]
        if inner and not recursive:
            notes.append(f"{path}: subfolders are looked into with --recursive only: {some(inner, 5)}")
        elif links:
            notes.append(f"{folder}: links to folders are not followed: {some(links, 5)}")
        below[:] = inner if recursive else []
        if unread := unread_pictures(folder):
            notes.append(f"{folder}: {some(unread, 5)}")
        photos += [(os.path.relpath(photo, path), photo) for photo in pictures(folder).values()]
    return photos, notes


def refuse(error):
    raise error


def is_result(path, stems):
    """Whether a picture is a result of an earlier run, and no photo.

    path: of the picture. stems: paths without suffix of all pictures found. NAME_mask.png and
    NAME_overlay.png are results where NAME is found, or where both are; NAME_faces.png where both are.
    """
    stem, suffix = os.path.splitext(path)
    of = [stem.removesuffix(end) for end in (*RESULTS, FACES) if suffix == ".png" and stem.endswith(end)]
    if not of:
        return False
    alone = of[0] in stems and not stem.endswith(FACES)
    return alone or all(of[0] + end in stems for end in RESULTS)


def find_all(paths, out, recursive):
    """({file name: path}, notes) of `find` for several paths, without what are results of an earlier run. No
    two may have results of one name."""
    found, notes = [], []
    for path in paths:
        more, said = find(path, out, recursive)
        found += more
        notes += said
    stems = {os.path.splitext(path)[0] for _, path in found}
    results = [path for _, path in found if is_result(path, stems)]
    if results:
        notes.append(f"masks and overlays of photos beside them are not parsed: {some(results, 5)}")
    photos, of = {}, {}
    for name, path in found:
        stem = os.path.splitext(name)[0]
        if is_result(path, stems):
            continue
        if stem in of:
            raise UserError(f"{of[stem]} and {path} would both become {stem}_mask.png; rename one")
        photos[name] = of[stem] = path
    if not photos:
        hint = f"; {'; '.join(notes)}" if notes else ""
        raise UserError(f"{' '.join(paths)}: holds no picture ({', '.join(SUFFIXES)}){hint}")
    return photos, notes


def boxes_of(args, photos):
    """{file name: box} of the photos that have one."""
    if args.box and len(photos) > 1:
        raise UserError(f"--box: for one photo; there are {len(photos)}, and --boxes FILE is for many")
    if args.box:
        return {name: crops.checked(args.box, "--box") for name in photos}
    boxes = crops.read_boxes(args.boxes) if args.boxes else {}
    if unknown := sorted(boxes.keys() - photos.keys()):
        names = f"{some(unknown, 5)}; names here are like {some(photos, 2)}"
        raise UserError(f"--boxes {args.boxes}: boxes of no photo here: {names}")
    return boxes


def read_faces(out):
    """{file name: faces} of faces.json in a folder, where earlier runs wrote one."""
    path = out / "faces.json"
    faces = read_json(path) if path.exists() else {}
    if not isinstance(faces, dict) or not all(isinstance(rows, list) for rows in faces.values()):
        raise UserError(f"{path}: is no list of faces that predict.py wrote; move it, or name another --out")
    return faces


def class_map(logits, height, width):
    """(K, h, w) float logits -> (height, width) uint8 on the CPU: argmax of their bilinear interpolation, as
    `F.interpolate` does it, without ever holding more than `BAND` of its rows."""
    ids = torch.empty(height, width, dtype=torch.uint8)
    centres = torch.arange(height, device=logits.device) + 0.5
    rows = (centres * (logits.shape[1] / height) - 0.5).clamp(min=0)  # where each one is in `logits`
    above = rows.long()
    below = (above + 1).clamp(max=logits.shape[1] - 1)
    for first in range(0, height, BAND):
        band = slice(first, first + BAND)
        start, end = above[band][0], below[band][-1] + 1
        wide = F.interpolate(logits[None, :, start:end], size=(int(end - start), width), mode="bilinear")[0]
        share = (rows - above)[band, None]
        mixed = torch.lerp(wide[:, above[band] - start], wide[:, below[band] - start], share)
        ids[band] = mixed.max(0).indices  # the first of the highest, like argmax, and faster
    return ids.numpy()


def begin_lineage(args, state, photos, outputs):
    """Say in --out which photos are parsed with which checkpoint, and later what became of them."""
    named = cli.files_of(args)
    held = {"photos": summary.identify_photos(photos)}
    paths = {"photos": " ".join(args.photos)}
    origin = lineage.origin("predict.py", args.out, held, paths, named, {args.init: state})
    lineage.begin(args.out, origin, vars(args), named, outputs)


@torch.no_grad()
def classify(args, state, device):
    """Write guesses.json: {file name: {"class": {name: probability, the likeliest first}, "domain": ...}}."""
    idle = ("box", "boxes", "size", "min_score", "onnx")
    cli.refuse_without_effect(args, dict.fromkeys(idle, "with a classifier of images"))
    if not args.photos:
        raise UserError("name photos or folders to classify")
    out = pathlib.Path(args.out)
    photos, notes = find_all(args.photos, out, args.recursive)
    files.check_folder(out)
    files.lock(out)
    if (out / "guesses.json").exists() and not args.overwrite:
        raise UserError(f"{out}: holds guesses.json already; --overwrite replaces it")
    names = {"class": state["data"]["classes"], "domain": state["data"]["domains"]}
    size = state["args"]["size"]
    model = restore(state, device, args.init)
    begin_lineage(args, state, photos, [out / "guesses.json"])
    guesses, faults = {}, []
    for name, path in tqdm(photos.items(), "classifying", disable=None):
        try:
            pixels = read_square(path, size).to(device)
        except UserError as error:
            faults.append(str(error))
            continue
        guesses[name] = {}
        for key, logits in model(to_float(pixels[None])).items():
            probs, order = logits[0].float().softmax(0).sort(descending=True)
            ranked = zip(order.tolist(), probs.tolist(), strict=True)
            guesses[name][key] = {names[key][i]: round(p, 6) for i, p in ranked}
    files.write_whole(out / "guesses.json", json.dumps(guesses, indent=1) + "\n")
    said = [f"{len(guesses)} photos classified with {args.init}: {out}/guesses.json", *notes]
    print("\n  ".join(said))
    if faults:
        raise UserError(f"{len(faults)} of {len(photos)} photos left out: {some(faults)}")


def main(args):
    # ---- setup ----
    _, _, device = dist.init(args.device)
    args.init = store.file_of(args.init)  # the champion of a folder of operate.py
    state = checkpoint.load(args.init, target=None)
    if checkpoint.target_of(state) == "class":
        classify(args, state, device)
        return
    classes = state["data"]["classes"]
    colors = state["data"]["colors"]
    of_scenes = checkpoint.target_of(state) == "panoptic"
    trained = state["args"]["size"]
    size = args.size or trained
    apart = has_instances(state["args"]["model"])  # whether faces are told apart
    idle = {
        "size": None if of_scenes else "but on a network for scenes",
        "min_score": None if apart else "but on a network that tells faces apart",
    }
    cli.refuse_without_effect(args, idle)
    things = state["data"].get("things", {})
    counted = f"{called(things)}s"
    resized = []
    if size != trained:
        harm = ("larger", "fall apart") if size > trained else ("smaller", "are missed")
        resized.append(
            f"--size {size}, trained at {trained}: {counted} {harm[0]} in pixels than in training {harm[1]}; "
            f"better train at --size {size}"
        )
    square = [1.0] * 3 if state["data"].get("name") == "synthetic" else None
    aspects = state["data"].get("aspects", square)  # width / height of the photos trained on, where known
    if bool(args.photos) == bool(args.onnx):
        raise UserError("name photos or folders to parse, or a FILE for --onnx, and not both")
    if args.onnx:
        no_photo = "beside --onnx, which parses no photo"
        cli.refuse_without_effect(args, dict.fromkeys(("box", "boxes", "min_score", "recursive"), no_photo))
        if splits.same_folder(args.onnx, args.init):
            raise UserError(f"--onnx {args.onnx}: is the checkpoint; name another file")
        if os.path.exists(args.onnx) and not args.overwrite:
            raise UserError(f"--onnx {args.onnx}: is there already; --overwrite replaces it")
        files.check_file(args.onnx)
        outputs = write_onnx(args.onnx, restore(state, "cpu", args.init), size, classes)
        shape = f"float32 (N, 3, {size}, {size}) in 0 to 1"
        wrote = f"wrote:   {args.onnx} (opset {OPSET}; input images, {shape}; output {', '.join(outputs)})"
        print(wrote, *resized, sep="\n  ")
        return

    # ---- data ----
    out = pathlib.Path(args.out)
    photos, notes = find_all(args.photos, out, args.recursive)
    boxes = boxes_of(args, photos)
    files.check_folder(out)
    files.lock(out)
    ends = (*RESULTS, FACES) if apart else RESULTS
    targets = {name: [out / f"{os.path.splitext(name)[0]}{end}.png" for end in ends] for name in photos}
    written = [path for paths in targets.values() for path in paths]
    there = [path for path in written if path.exists()]
    if there and not args.overwrite:
        raise UserError(f"{out}: holds {there[0].relative_to(out)} already; --overwrite replaces it")
    again = photos.keys() & read_faces(out).keys() if apart else ()
    if again and not args.overwrite:
        names = some(sorted(again), 5)
        raise UserError(f"{out}: faces.json lists faces of {names} already; --overwrite replaces them")
    inputs = {os.path.realpath(path) for path in photos.values()}
    if lost := [path for path in there if os.path.realpath(path) in inputs]:
        raise UserError(f"{lost[0]}: is a photo to parse, and a result would replace it; name another --out")
    for folder in sorted({mask.parent for mask, *_ in targets.values()}):
        files.check_folder(folder)

    # ---- model ----
    model = restore(state, device, args.init)
    begin_lineage(args, state, photos, [*written, *([out / "faces.json"] if apart else [])])

    # ---- finish ----
    def read(name):
        """(name, photo, its `Frame`)."""
        photo = read_image(photos[name])
        box = boxes.get(name)
        far = not box and aspects and crops.is_far(photo.width, photo.height, aspects)
        aspect = (aspects[1] if aspects else 1.0) if box or far else None
        frame = crops.frame(photo.width, photo.height, size, box, aspect)
        left, top, right, bottom = frame.place
        if far and not of_scenes:
            padded.append(name)
        elif far and size > 1.5 * min(right - left, bottom - top):
            small.append(f"{name} at {right - left} x {bottom - top} pixels")
        return name, photo, frame

    @torch.no_grad()
    def parse(batch):
        """Write the results of [(name, photo, frame)]."""
        pixels = np.stack([crops.network_input(photo, frame, size) for _, photo, frame in batch])
        images = to_float(torch.tensor(pixels, device=device)).to(memory_format=torch.channels_last)
        outputs = {key: maps.float() for key, maps in model(images).items()}
        for i, (name, photo, frame) in enumerate(batch):
            logits = outputs["semantic"][i]
            left, top, right, bottom = frame.part
            ids = np.zeros((photo.height, photo.width), np.uint8)
            place = logits[:, frame.place[1] : frame.place[3], frame.place[0] : frame.place[2]]
            ids[top:bottom, left:right] = class_map(place, bottom - top, right - left)
            mask, overlay, *more = targets[name]
            faces = None
            if apart:
                heads = outputs["center"][i], outputs["offset"][i]
                seen, listed = segments(logits.softmax(0), *heads, things)
                listed = [face for face in listed if face["score"] >= args.min_score]
                seen[seen > len(listed)] = 0  # ids are in the order of scores
                faces, found[name] = crops.faces_of(seen.byte().cpu().numpy(), listed, ids, things, frame)
                draw.write(more[0], draw.index_mask(faces, draw.face_colors(254, colors)))
            draw.write(mask, draw.index_mask(ids, colors))
            draw.write(overlay, draw.overlay(np.asarray(photo), ids, colors, classes, instances=faces))

    faults, padded, small, batch, found = [], [], [], [], {}
    for name in tqdm(photos, "parsing", disable=None):
        try:
            batch.append(read(name))
        except UserError as error:
            faults.append(str(error) if photos[name] in str(error) else f"{photos[name]}: {error}")
        if len(batch) == args.batch_size or sum(p.width * p.height for _, p, _ in batch) >= PIXELS:
            parse(batch)
            batch.clear()
    if batch:
        parse(batch)
    if apart:
        files.write_whole(out / "faces.json", json.dumps(read_faces(out) | found, indent=1) + "\n")
        notes.append(f"{sum(map(len, found.values()))} {counted}: {out}/faces.json, {out}/*{FACES}.png")
    if padded:
        notes.append(
            f"padded, not stretched, since training photos have width / height {aspects[0]:g} to "
            f"{aspects[2]:g}: {some(padded, 5)}; --box frames a face"
        )
    if small:
        notes.append(
            "much wider or higher than training photos, and so seen smaller: "
            f"{some(small, 5)}; --size N or a crop sees more"
        )
    said = [
        f"{len(photos) - len(faults)} photos parsed with {args.init}: {out}/*_overlay.png, "
        f"{out}/*_mask.png (ids 0 to {len(classes) - 1}: {' '.join(classes)})",
        *resized,
        *notes,
    ]
    print("\n  ".join(said))

    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise UserError(f"{len(faults)} of {len(photos)} photos left out: {'; '.join(faults[:10])}{more}")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
