"""Rendered faces in six domains, a labelled folder each, and one with all of them.

python recipes/domain_faces.py --out DIR      DIR/daylight, DIR/night, ..., DIR/red_light, DIR/all

Every domain shows the same people in the same poses, so that a domain alone makes a difference; those of test
are others than those of train. In DIR/all the faces of train take their domains in turn, and test holds every
face in every domain, which its name begins with.
"""

import pathlib
import sys

import torch
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from datasets.pairs import write_folder
from datasets.synthetic import SCHEMES, faces
from datasets.synthetic.domains import DOMAINS, change
from utils import cli
from utils.errors import UserError


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("--out", required=True, metavar="DIR", help="where the folders go")
    p.add_argument("--size", type=cli.positive, default=96, help="side of the photos, pixels")
    p.add_argument("--train", type=cli.positive, default=800, metavar="N", help="faces to train on")
    p.add_argument("--test", type=cli.positive, default=200, metavar="N", help="faces to test on")
    p.add_argument("--classes", choices=cli.CLASS_LISTS, default="fasseg", help="class list of the masks")
    p.add_argument("--seed", type=cli.seed, default=0, help="of the faces and of what domains draw")
    return p


def rows_of(folder, args):
    """[(split, position of the face, domain)] of a folder: a domain, or all."""
    train = [("train", i) for i in range(args.train)]
    test = [("test", args.train + i) for i in range(args.test)]
    if folder != "all":
        return [(*row, folder) for row in train + test]
    turns = [(*row, DOMAINS[row[1] % len(DOMAINS)]) for row in train]
    return turns + [(*row, domain) for domain in DOMAINS for row in test]


def pairs(folder, made, args):
    """The faces of a folder, as `write_folder` takes them. made: all faces in daylight."""
    for split, place, domain in tqdm(rows_of(folder, args), f"writing {folder}", disable=None):
        photo = change(made["image"][[place]], domain, args.seed, torch.tensor([place]))[0]
        prefix = f"{name_of(domain)}_" if folder == "all" else ""
        yield f"{split}/{prefix}{place:06d}", photo, made["semantic"][place], str(place)


def name_of(domain):
    return domain.replace(" ", "_")


def main(args):
    out = pathlib.Path(args.out)
    folders = {name: out / name_of(name) for name in (*DOMAINS, "all")}
    if there := [str(path) for path in folders.values() if path.exists()]:
        raise UserError(f"{there[0]}: is there already; name another --out")
    batches = torch.arange(args.train + args.test).split(100)
    batches = [
        faces(args.seed, positions, args.size, args.classes)
        for positions in tqdm(batches, "rendering", disable=None)
    ]
    made = {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "semantic")}
    for name, path in folders.items():
        write_folder(path, SCHEMES[args.classes], pairs(name, made, args))
    print(f"{out}: {args.train} faces to train on and {args.test} to test on, in {', '.join(folders)}")


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
