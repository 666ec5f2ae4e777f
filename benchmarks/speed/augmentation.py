"""Batched augmentation of images and masks against torchvision.transforms.v2, image by image.

Run:    python benchmarks/speed/augmentation.py
Writes: a Markdown table on stdout
Expect: docs/speed.md

A batch of 16 photos (uint8) and masks lies ready; what comes out is a batch of float images and masks. CPU
seconds, one thread. Ours: `augment` with RandAugment, a flip and two operations for each image. Of v2 the
RandAugment cannot move masks, so for each image: RandomHorizontalFlip, then two of these, drawn with
replacement, on tv_tensors: RandomAffine that shears x, shears y, translates x, translates y or rotates
(bilinear), ColorJitter of brightness, saturation or contrast, RandomAdjustSharpness, RandomPosterize,
RandomSolarize, RandomAutocontrast, RandomEqualize, or nothing: the operations of ours, as likely.
"""

import torch
import torch.nn.functional as F
from common import begin, call, in_turns, parser, ratios, spread, table
from torchvision import tv_tensors
from torchvision.transforms import v2

from datasets import synthetic
from datasets.augmentation import augment
from datasets.policies import load_policy
from utils import cli

BATCH = 16


def get_parser():
    p = parser(__doc__)
    p.add_argument("--sizes", type=cli.positive, nargs="+", default=[128, 256, 512], help="sides, pixels")
    p.add_argument("--batches", type=cli.positive, default=5, help="in one turn; their mean counts")
    return p


def theirs():
    affine = {"interpolation": v2.InterpolationMode.BILINEAR, "fill": {tv_tensors.Mask: 255, "others": 0}}
    operations = [
        v2.RandomAffine(0, shear=(-17, 17, 0, 0), **affine),
        v2.RandomAffine(0, shear=(0, 0, -17, 17), **affine),
        v2.RandomAffine(0, translate=(0.14, 0.0), **affine),
        v2.RandomAffine(0, translate=(0.0, 0.14), **affine),
        v2.RandomAffine(9, **affine),
        v2.ColorJitter(brightness=0.27),
        v2.ColorJitter(saturation=0.27),
        v2.ColorJitter(contrast=0.27),
        v2.RandomAdjustSharpness(1.27, p=1),
        v2.RandomPosterize(7, p=1),
        v2.RandomSolarize(178, p=1),
        v2.RandomAutocontrast(p=1),
        v2.RandomEqualize(p=1),
        v2.Identity(),
    ]
    choice = v2.RandomChoice(operations)
    return v2.Compose([v2.RandomHorizontalFlip(0.5), choice, choice])


def main(args):
    # ---- setup ----
    begin()
    torch.manual_seed(0)
    policy, transform, scheme = load_policy("randaugment"), theirs(), synthetic.SCHEMES["lapa"]
    pairs, rows = {"semantic": scheme.flip_pairs}, []
    for size in args.sizes:
        # ---- data ----
        made = synthetic.faces(0, torch.arange(BATCH), min(size, 256), "lapa")
        maps = {"image": made["image"], "semantic": made["semantic"][:, None]}
        batch = {key: F.interpolate(each.float(), (size, size)).byte() for key, each in maps.items()}
        batch["semantic"] = batch["semantic"][:, 0]

        def ours(batch=batch):
            for i in range(args.batches):
                augment(batch, policy, 0, torch.arange(BATCH) + BATCH * i, pairs)

        def one_by_one(batch=batch):
            for _ in range(args.batches):
                done = []
                for image, mask in zip(batch["image"], batch["semantic"], strict=True):
                    done.append(transform(tv_tensors.Image(image), tv_tensors.Mask(mask)))
                images, masks = zip(*done, strict=True)
                torch.stack(images).float() / 255, torch.stack(masks)

        # ---- finish ----
        ours()
        one_by_one()
        found = in_turns({"ours": lambda: call(ours).cpu, "v2": lambda: call(one_by_one).cpu}, args.repeats)
        each = {name: [1000 * t / args.batches / BATCH for t in times] for name, times in found.items()}
        rows.append([size, *map(spread, each.values()), spread(ratios(found["v2"], found["ours"]))])
    table(["side, pixels", "batched, CPU ms an image", "v2, image by image", "v2 / batched"], rows)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
