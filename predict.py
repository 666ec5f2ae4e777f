"""Parse photos: an index mask and an overlay with a legend for each, at the photo's own size.

Run:    python predict.py --init runs/finetune/best.pt PHOTO_OR_FOLDER --out runs/predict
Needs:  a checkpoint of a training script; photos with one face each
Writes: NAME_mask.png (palette PNG of class ids) and NAME_overlay.png for each photo
"""

import os
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from datasets.images import pictures, read_image, to_float
from models import restore
from utils import checkpoint, cli, dist, draw
from utils.errors import UserError


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("photos", metavar="PHOTO_OR_FOLDER", help="one photo, or a folder of photos")
    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="FILE", required=True, help="checkpoint to predict with")
    g = p.add_argument_group("runtime")
    g.add_argument("--device", help="cpu or cuda; a GPU where there is one")
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/predict", metavar="FOLDER", help="folder for the masks")
    g.add_argument("--overwrite", action="store_true", help="replace masks that are there already")
    return p


def main(args):
    # ---- setup ----
    _, _, device = dist.init(args.device)
    state = checkpoint.load(args.init)
    classes = state["data"]["classes"]
    colors = state["data"]["colors"]
    size = state["args"]["size"]
    out = pathlib.Path(args.out)

    # ---- data ----
    if not os.path.exists(args.photos):
        raise UserError(f"{args.photos}: no such photo or folder")
    single = {pathlib.Path(args.photos).stem: args.photos}
    photos = pictures(args.photos) if os.path.isdir(args.photos) else single
    if not photos:
        raise UserError(f"{args.photos}: holds no picture (jpg, png, bmp, webp, tif)")
    there = [name for name in photos if (out / f"{name}_mask.png").exists()]
    if there and not args.overwrite:
        raise UserError(f"{out}: holds {there[0]}_mask.png already; --overwrite replaces it")

    # ---- model ----
    model = restore(state, device)

    # ---- finish ----
    out.mkdir(parents=True, exist_ok=True)
    faults = []
    for name, path in tqdm(photos.items(), "parsing", disable=None):
        try:
            photo = read_image(path)
        except UserError as error:
            faults.append(str(error))
            continue
        pixels = np.asarray(photo.resize((size, size), Image.BILINEAR)).transpose(2, 0, 1)
        with torch.no_grad():
            images = to_float(torch.tensor(pixels, device=device)[None])
            logits = model(images.to(memory_format=torch.channels_last))["semantic"]
            logits = F.interpolate(logits, size=(photo.height, photo.width), mode="bilinear")
        ids = logits[0].argmax(0).byte().cpu().numpy()
        draw.index_mask(ids, colors).save(out / f"{name}_mask.png")
        draw.write(out / f"{name}_overlay.png", draw.overlay(np.asarray(photo), ids, colors, classes))
    print(
        f"{len(photos) - len(faults)} photos parsed with {args.init}: {out}/*_overlay.png, "
        f"{out}/*_mask.png (ids 0 to {len(classes) - 1}: {' '.join(classes)})"
    )

    if faults:
        raise UserError(f"{len(faults)} of {len(photos)} photos left out: {'; '.join(faults[:5])}")


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
