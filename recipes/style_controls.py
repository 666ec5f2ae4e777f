"""Banks of styles that nobody mined: what mined ones have to be better than.

python recipes/style_controls.py random OWN --like BANK --out FILE
python recipes/style_controls.py photo OWN --init CHECKPOINT --photo PHOTO --out FILE

OWN: a bank of the source images' own styles, as `mine_styles.py --steps 0` writes it; the new bank is for the
same network, stage and mixing. OWN itself is a third control.

random: each style of OWN, the mean and the deviation of each channel times exp(s z), z from N(0, 1); one s for
all, such that the new styles are on average as far from those of OWN as the styles of BANK, which was mined from
the same images. How far: the Euclidean distance of means and deviations of all channels.
photo: the style of each photo itself, after that stage: AdaIN, Huang and Belongie, 2017 (1703.06868).
"""

import pathlib
import sys

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from datasets.images import read_image, to_float
from models import restore
from models.styles import style
from utils import checkpoint, cli, files
from utils.errors import UserError


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("kind", choices=["random", "photo"])
    p.add_argument("own", metavar="OWN", help="bank of the source images' own styles")
    p.add_argument("--like", metavar="BANK", help="random: as far from OWN as this bank of the same images")
    p.add_argument("--init", metavar="CHECKPOINT", help="photo: the network that OWN is for")
    p.add_argument("--photo", metavar="FILE", nargs="+", default=[], help="photo: of the target domain")
    p.add_argument("--seed", type=cli.seed, default=0)
    p.add_argument("--out", metavar="FILE", required=True, help="the new bank")
    return p


def read_bank(path):
    try:
        bank = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; mine_styles.py writes a bank.pt") from None
    if not isinstance(bank, dict) or not {"mean", "std", "stage", "digest"} <= bank.keys():
        raise UserError(f"{path}: no bank of styles; mine_styles.py writes a bank.pt")
    return bank


def distances(bank, own):
    """(M,): of each style of two banks (mean, std), each (M, C)."""
    return torch.cat([a - b for a, b in zip(bank, own, strict=True)], 1).norm(dim=1)


def random_styles(own, like, seed):
    """(mean, std), each (M, C): `own` changed at random, on average as much as `like` is."""
    draw = torch.Generator().manual_seed(seed)
    z = [torch.randn(values.shape, generator=draw) for values in own]
    wanted = distances(like, own).mean()

    def at(s):
        return [values * (s * normal).exp() for values, normal in zip(own, z, strict=True)]

    low, high = 0.0, 8.0  # every channel moves further as s grows
    for _ in range(50):
        s = (low + high) / 2
        low, high = (s, high) if distances(at(s), own).mean() < wanted else (low, s)
    print(f"s = {s:.3f}: on average {wanted:.3f} from the images' own styles, as the bank that was mined")
    return at(s)


def photo_styles(bank, init, photos):
    """(mean, std), each (M, C), of M photos after the bank's stage of a network, at its --size."""
    state = checkpoint.load(init)
    if state["args"]["model"] != bank["model"]:
        raise UserError(f"--init {init}: holds a {state['args']['model']}, the bank is for a {bank['model']}")
    model = restore(state, "cpu", init)
    side = [state["args"]["size"]] * 2
    images = [np.asarray(read_image(path).resize(side, Image.BILINEAR)) for path in photos]
    features = []
    block = model.stages[bank["stage"] - 1]
    block.register_forward_hook(lambda block, inputs, output: features.append(output))
    with torch.no_grad():
        model(to_float(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)))
    return [values.flatten(1) for values in style(features[0])]


def main(args):
    kind, photos = args.kind, args.photo
    if not (args.like if kind == "random" else args.init and photos):
        raise UserError(f"{kind}: needs {'--like' if kind == 'random' else '--init and --photo'}")
    bank = read_bank(args.own)
    if kind == "random":
        like = read_bank(args.like)
        alike = all(bank[key] == like[key] for key in ("stage", "digest"))
        if not alike or bank["mean"].shape != like["mean"].shape:
            raise UserError(f"--like {args.like}: not of the images, network and stage of {args.own}")
        own, mined = ((found["mean"], found["std"]) for found in (bank, like))
        mean, std = random_styles(own, mined, args.seed)
        bank["phrase"] = ["at random"] * len(mean)
    else:
        mean, std = photo_styles(bank, args.init, photos)
        bank["phrase"] = photos
        bank["class"] = torch.full((len(mean),), 255)
    bank |= {"mean": mean, "std": std, "flags": vars(args)}
    files.check_file(args.out)
    with files.whole(args.out) as file:
        torch.save(bank, file)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
