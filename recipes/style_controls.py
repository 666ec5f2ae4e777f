"""Banks of styles that nobody mined: what mined ones have to be better than.

python recipes/style_controls.py random OWN --like BANK --out FILE
python recipes/style_controls.py photo OWN --init CHECKPOINT --photo PHOTO --out FILE

OWN: a bank of the source images' own styles, as `mine_styles.py --steps 1 --lr 1e-12` writes it; the new
bank is for the same network, stage and mixing. OWN itself is a third control.

random: each style of OWN, the mean and the deviation of each channel times exp(s z), z from N(0, 1); one s
for all, such that the new styles are on average as far from those of OWN as the styles of BANK are, which was
mined from the same images. How far: the Euclidean distance of means and deviations of all channels.
photo: the style of each photo itself, after that stage: AdaIN, Huang and Belongie, 2017 (1703.06868).
"""

import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from datasets.images import read_square, to_float
from models import restore
from models.styles import ANY, features_after, load_bank, network_of, style
from utils import checkpoint, cli, files
from utils.errors import UserError


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("kind", choices=["random", "photo"])
    p.add_argument("own", metavar="OWN", help="bank of the source images' own styles")
    p.add_argument("--like", metavar="BANK", help="random: mined from the same images")
    p.add_argument("--init", metavar="CHECKPOINT", help="photo: the network that OWN is for")
    p.add_argument("--photo", metavar="FILE", nargs="+", default=[], help="photo: of the target domain")
    p.add_argument("--seed", type=cli.seed, default=0, help="random: of z")
    p.add_argument("--out", metavar="FILE", required=True, help="the new bank")
    return p


def mined_from(bank):
    """What says which images' styles a bank holds, and after which part of which network."""
    flags = ("init", "data", "images", "seed", "per_class")
    return [bank["mean"].shape, bank["stage"], bank["digest"], *(bank["flags"].get(flag) for flag in flags)]


def distance(styles, own):
    """Of two lists of styles [mean, std], each (M, C): row by row, on average."""
    return torch.cat([a - b for a, b in zip(styles, own, strict=True)], 1).norm(dim=1).mean()


def random_styles(own, like, seed):
    """[mean, std], each (M, C): `own` changed at random, on average as much as `like` is."""
    draw = torch.Generator().manual_seed(seed)
    z = [torch.randn(values.shape, generator=draw) for values in own]
    wanted = distance(like, own)

    def changed(s):
        return [values * (s * drawn).exp() for values, drawn in zip(own, z, strict=True)]

    low, high = 0.0, 8.0  # the greater s, the further away is every channel
    for _ in range(50):
        s = (low + high) / 2
        low, high = (s, high) if distance(changed(s), own) < wanted else (low, s)
    print(f"s = {s:.3f}: on average {wanted:.3f} from the images' own styles, as those mined are")
    return changed(s)


def photo_styles(bank, init, photos):
    """[mean, std], each (M, C), of M photos where the styles of a bank belong."""
    state = checkpoint.load(init)
    model = restore(state, "cpu", init)
    fits = network_of(model, bank["stage"]) if bank["stage"] <= len(model.stages) else {"stage": None}
    if any(bank[key] != value for key, value in fits.items()):
        raise UserError(f"--init {init}: not the network that the bank of own styles is for")
    images = torch.stack([read_square(path, state["args"]["size"]) for path in photos])
    features = features_after(model, to_float(images), bank["stage"])
    return [values.flatten(1) for values in style(features)]


def main(args):
    files.check_new(args.out)
    bank = load_bank(args.own)
    if bank["flags"].get("lr", 0) > 1e-6:
        raise UserError(
            f"{args.own}: holds styles that were mined; mine_styles.py --steps 1 --lr 1e-12 keeps own ones"
        )
    own = [bank["mean"], bank["std"]]
    if args.kind == "random":
        if not args.like:
            raise UserError("random: --like BANK says how far from the images' own styles")
        like = load_bank(args.like)
        if mined_from(like) != mined_from(bank):
            raise UserError(
                f"--like {args.like}: not of the images, network and stage of {args.own}; mine both with the "
                "same --init, --data, --images, --seed, --stage and --per-class"
            )
        mean, std = random_styles(own, [like["mean"], like["std"]], args.seed)
        phrases = ["at random"] * len(mean)
    else:
        if not args.init or not args.photo:
            raise UserError("photo: --init CHECKPOINT and --photo FILE say of what")
        mean, std = photo_styles(bank, args.init, args.photo)
        phrases = args.photo
    new = {"mean": mean, "std": std, "class": torch.full((len(mean),), ANY), "phrase": phrases}
    checkpoint.save(args.out, **bank | new | {"flags": vars(args)})


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
