"""The loops that scripts are measured against, each as a process that does nothing else.

Run:    python benchmarks/speed/bare.py tensors --model unet --size 128 --steps 100
        python benchmarks/speed/bare.py torchvision --data FOLDER --size 128 --steps 100
        python benchmarks/speed/bare.py photos --init best.pt --data FOLDER --count 64 --out masks
Needs:  of photos a folder that benchmarks/speed/common.py made, and a checkpoint

tensors      forward, cross-entropy, backward and AdamW on one batch that lies ready, as in train_finetune.py;
             with --classifier on labels of images, as in train_classify.py
torchvision  the loop of torchvision's references/segmentation/train.py, written anew after what it does:
             each photo is opened with PIL, resized to 0.5 to 2 times its base size, mirrored, cropped, made
             a tensor and normalised in a DataLoader (--workers 0); LR-ASPP, SGD with momentum, a rate that
             falls after each step, loss.item() and the rate in meters at each step, a line every ten
photos       a loop over photos as people write it: open, resize, network, argmax; the mask at the size of the
             photo is saved to --out, or counted against the labels where there is no --out
"""

import collections
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from common import begin
from PIL import Image

from models import build_model, restore
from models.classifier import build_classifier
from utils import checkpoint, cli

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRINT = 10  # steps between two lines


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("loop", choices=["tensors", "torchvision", "photos"])
    p.add_argument("--model", default="unet")
    p.add_argument("--classifier", action="store_true", help="the model is one of train_classify.py")
    p.add_argument("--init", metavar="FILE", help="checkpoint, of photos")
    p.add_argument("--data", metavar="FOLDER")
    p.add_argument("--out", metavar="FOLDER")
    p.add_argument("--classes", type=cli.positive, default=11)
    p.add_argument("--size", type=cli.positive, default=128)
    p.add_argument("--batch-size", type=cli.positive, default=16)
    p.add_argument("--steps", type=cli.positive, default=10)
    p.add_argument("--count", type=cli.positive, default=16, help="photos")
    return p


def tensors(args):
    if args.classifier:
        model = build_classifier(args.model, {"class": args.classes})
        key, labels = "class", torch.randint(args.classes, (args.batch_size,))
    else:
        model = build_model(args.model, args.classes)
        key, labels = "semantic", torch.randint(args.classes, (args.batch_size, args.size, args.size))
    model.to(memory_format=torch.channels_last).train()
    images = torch.rand(args.batch_size, 3, args.size, args.size).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    for _ in range(args.steps):
        loss = F.cross_entropy(model(images)[key], labels, ignore_index=255)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


# ---- torchvision's reference


class Photos(torch.utils.data.Dataset):
    def __init__(self, folder, transform):
        self.images = sorted(pathlib.Path(folder, "images").iterdir())
        self.labels = sorted(pathlib.Path(folder, "labels").iterdir())
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.open(self.images[i]).convert("RGB"), Image.open(self.labels[i]))


def preset(size):
    """The reference's transforms of training: base size 520 for a crop of 480."""
    from torchvision.transforms import functional as TF

    base = round(size * 520 / 480)

    def transform(image, target):
        side = int(torch.randint(base // 2, base * 2 + 1, ()))
        image = TF.resize(image, side, antialias=True)
        target = TF.resize(target, side, TF.InterpolationMode.NEAREST)
        if torch.rand(()) < 0.5:
            image, target = TF.hflip(image), TF.hflip(target)
        lacks = [max(0, size - n) for n in image.size]
        if any(lacks):
            image = TF.pad(image, (0, 0, *lacks), fill=0)
            target = TF.pad(target, (0, 0, *lacks), fill=255)
        left, top = (int(torch.randint(n - size + 1, ())) for n in image.size)
        image, target = TF.crop(image, top, left, size, size), TF.crop(target, top, left, size, size)
        image = TF.convert_image_dtype(TF.pil_to_tensor(image), torch.float)
        return TF.normalize(image, MEAN, STD), torch.as_tensor(np.array(target), dtype=torch.int64)

    return transform


def torchvision_reference(args):
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    data = Photos(args.data, preset(args.size))
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=args.classes).train()
    loader = torch.utils.data.DataLoader(
        data, args.batch_size, sampler=torch.utils.data.RandomSampler(data), drop_last=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / args.steps) ** 0.9)
    meters = collections.defaultdict(lambda: collections.deque(maxlen=20))
    step = 0
    while step < args.steps:
        for image, target in loader:
            loss = F.cross_entropy(model(image)["out"], target, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            meters["loss"].append(loss.item())
            meters["lr"].append(optimizer.param_groups[0]["lr"])
            if step % PRINT == 0:
                print(step, {name: float(np.median(values)) for name, values in meters.items()})
            step += 1
            if step == args.steps:
                return


# ---- photos


@torch.no_grad()
def photos(args):
    state = checkpoint.load(args.init)
    model, size, k = restore(state, "cpu"), state["args"]["size"], len(state["data"]["classes"])
    out = pathlib.Path(args.out) if args.out else None
    if out:
        out.mkdir(parents=True, exist_ok=True)
    counts = np.zeros(k * k, np.int64)
    for path in sorted(pathlib.Path(args.data, "images").iterdir())[: args.count]:
        photo = Image.open(path).convert("RGB")
        small = np.asarray(photo.resize((size, size), Image.BILINEAR))
        image = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255
        preds = model(image)["semantic"].argmax(1)[0].byte()
        if out:
            mask = Image.fromarray(preds.numpy()).resize(photo.size, Image.NEAREST)
            mask.save(out / f"{path.stem}.png")
        else:
            label = Image.open(path.parents[1] / "labels" / f"{path.stem}.png")
            label = np.asarray(label.resize((size, size), Image.NEAREST)).astype(np.int64)
            known = label != 255
            counts += np.bincount(label[known] * k + preds.numpy()[known], minlength=k * k)
    matrix = counts.reshape(k, k)
    print("F1", 2 * matrix.diagonal() / np.maximum(1, matrix.sum(0) + matrix.sum(1)))


def main(args):
    # ---- train ----
    begin()
    loops = {"tensors": tensors, "torchvision": torchvision_reference, "photos": photos}
    loops[args.loop](args)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
