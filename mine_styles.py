"""Mine styles of features that bring labelled photos nearer to a phrase or to one photo of another domain.

Run:    python mine_styles.py --init runs/source/best.pt --targets night.pt --out runs/night
        python mine_styles.py --init runs/source/best.pt --photo one_dusk_photo.jpg --out runs/dusk
        python mine_styles.py --init runs/source/best.pt --mix batch --out runs/mixstyle    (MixStyle)
Needs:  a checkpoint of train_finetune.py, and for phrases one on a clip_ model and a file of
        recipes/embed_prompts.py or recipes/tiny_clip.py
Writes: bank.pt, args.json, metrics.jsonl, TensorBoard events, cosine.png and styles.png into --out
Expect: docs/styles.md   -> train_finetune.py --init runs/source/best.pt --styles runs/night/bank.pt
"""

import pathlib

import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets import batches, splits, summary
from datasets.faces import some
from datasets.images import read_square, to_float
from datasets.synthetic import scheme_of
from models import restore
from models.styles import (
    ANY,
    MIXES,
    BankStyles,
    digest,
    dominant,
    embed,
    features_after,
    load_bank,
    network_of,
    restyle,
    split,
    style,
)
from utils import checkpoint, cli, dist, draw, lineage, plot, rng
from utils.errors import UserError
from utils.log import RunLog, open_run

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4  # of PODA, at its rate of 1
SHOWN = 8  # photos in styles.png


def get_parser():
    p = cli.parser(__doc__)
    g = p.add_argument_group("target, one of them")
    phrases = "embedded phrases, which take turns: a file of recipes/embed_prompts.py or recipes/tiny_clip.py"
    g.add_argument("--targets", metavar="FILE", help=phrases)
    g.add_argument("--photo", nargs="+", metavar="FILE", help="photos of another domain, which take turns")
    g = p.add_argument_group("source")
    g.add_argument("--init", metavar="FILE", help="parser of the source domain")
    g.add_argument("--data", help="labelled faces to mine from; those that --init was trained on by default")
    g.add_argument("--images", type=cli.positive, default=100, help="photos to mine from, at most")
    g = p.add_argument_group("mining")
    stage = "stage after which styles are changed; by default the first that the head reads"
    g.add_argument("--stage", type=cli.positive, metavar="K", help=stage)
    g.add_argument("--steps", type=cli.positive, default=100, help="steps of SGD")
    rate = "rate of SGD for each image; PODA's is 1 on the mean of 16, which is 1/16 for each"
    g.add_argument("--lr", type=cli.above_zero, default=1 / 16, help=rate)
    per_class = "a style for each class of a photo, from the first patch that it dominates (FAMix)"
    g.add_argument("--per-class", action="store_true", help=per_class)
    text = "deviation of noise on the phrase, relative to its length, new at each step"
    g.add_argument("--text-noise", type=cli.at_least_zero, default=0.0, metavar="SIGMA", help=text)
    features = "deviation of a random factor of each channel, new at each step"
    g.add_argument("--feature-noise", type=cli.at_least_zero, default=0.0, metavar="SIGMA", help=features)
    g = p.add_argument_group("use of the bank in train_finetune.py")
    g.add_argument("--patches", type=int, choices=[1, 3], default=1, help="each image in so many, squared")
    mix = "share of an image's own style that is kept; batch: no bank, styles of the batch's other images"
    g.add_argument("--mix", choices=MIXES, default="none", help=mix)
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=cli.seed, default=0, help="of order, augmentation and all that is drawn")
    g.add_argument("--batch-size", type=cli.images, default=16, help="images per process")
    cli.add_device_flags(g)
    g = p.add_argument_group("output")
    g.add_argument("--out", default="runs/styles", metavar="FOLDER", help="run folder")
    resume = "go on with the run in --out, with its flags; begin it where there is none"
    g.add_argument("--resume", action="store_true", help=resume)
    return p


def mine(features, targets, positions, embedding_of, relu, args):
    """Prompt-driven instance normalisation: styles with which features come nearer to targets.

    Fahes et al., "PODA", 2023 (2212.03241), algorithm 1. features: (N, C, h, w). targets: (N, D). positions:
    (N,) int64, which noise is drawn from. embedding_of: features -> (N, D). relu: whether features are never
    below zero. Each image by itself, whatever else is in the batch: the loss is a sum, not a mean. Returns
    mean and std, (N, C) each, and the cosine similarity before the first step and after each,
    (steps + 1, N).
    """
    mean, std = (values.clone().requires_grad_() for values in style(features))
    decay = WEIGHT_DECAY / args.lr  # so that a step takes as much of a style at any rate
    optimizer = torch.optim.SGD([mean, std], args.lr, momentum=MOMENTUM, weight_decay=decay)

    def similarity(step, feature_noise, text_noise):
        restyled = restyle(features, mean, std)
        restyled = restyled.relu() if relu else restyled
        wanted = targets
        if feature_noise:
            noise = rng.normal(args.seed, positions, features.shape[1], stream=2 * step)
            restyled = restyled * (1 + feature_noise * noise[..., None, None])
        if text_noise:
            noise = rng.normal(args.seed, positions, targets.shape[1], stream=2 * step + 1)
            wanted = targets + text_noise * targets.norm(dim=1, keepdim=True) * F.normalize(noise)
        return F.cosine_similarity(embedding_of(restyled), wanted)

    history = []
    for step in range(args.steps):
        cosine = similarity(step, args.feature_noise, args.text_noise)
        with torch.no_grad():  # without noise, to be looked at
            noisy = args.feature_noise or args.text_noise
            history.append(similarity(step, 0, 0) if noisy else cosine.detach())
        optimizer.zero_grad()
        (1 - cosine).sum().backward()
        optimizer.step()
        with torch.no_grad():
            std.clamp_(min=0)
    with torch.no_grad():
        history.append(similarity(args.steps, 0, 0))
    return mean.detach().flatten(1), std.detach().flatten(1), torch.stack(history)


def first_patches(labels, p):
    """(B, H, W) ids -> (N, 4) int64, rows of image, row, column, class: of each image the first patch of each
    class that most pixels of one have. Unlabelled ones are left out."""
    found = []
    for image, classes in enumerate(dominant(labels, p).flatten(1).tolist()):
        for each in sorted(set(classes) - {ANY}):
            found.append((image, *divmod(classes.index(each), p), each))
    return torch.tensor(found, dtype=torch.int64).view(-1, 4)


def check_patches(features, args, embedding_of):
    """A UserError where patches of a map are too small for what follows in the network."""
    part = split(features, args.patches if args.per_class else 1)[:, :, 0, 0]
    try:
        embedding_of(part)
    except RuntimeError as error:
        if "too small" not in str(error):
            raise
        side = "x".join(map(str, part.shape[2:]))
        raise UserError(
            f"--patches {args.patches}: {side} features are too few for the rest of this network; train "
            "--init with a larger --size, or mine without --per-class"
        ) from None


def read_targets(path, model, classes, per_class):
    """(P phrases, their embeddings: (P, K, D) for the K classes, or (P, 1, D)) of a file of embedded
    phrases."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"--targets {path}: no such file; recipes/embed_prompts.py writes it")
    found = checkpoint.read(pathlib.Path(path))
    kinds = {"phrases": list, "classes": list, "embeddings": torch.Tensor, "tower": str}
    whole = isinstance(found, dict) and all(isinstance(found.get(k), kind) for k, kind in kinds.items())
    if whole:
        rows = found["embeddings"]
        whole = rows.ndim == 2 and len(rows) == len(found["phrases"]) == len(found["classes"]) > 0
    if not whole or not rows.isfinite().all():
        raise UserError(
            f"--targets {path}: no embedded phrases; embed_prompts.py and tiny_clip.py in recipes/ write them"
        )
    if not getattr(model, "embedding", None):
        raise UserError(
            f"--targets {path}: phrases need a parser on the encoder of a CLIP, clip_resnet50 or clip_unet; "
            "--photo does with any"
        )
    if digest(model.tower_tensors()) != found["tower"] or model.normalise.preprocess != "none":
        raise UserError(
            f"--targets {path}: embedded by another CLIP than the encoder of --init; embed them by that one, "
            "or train --init with --weights of this one, --freeze backbone and without --preprocess"
        )
    rows = {}
    for phrase, name, row in zip(found["phrases"], found["classes"], found["embeddings"], strict=True):
        if (name is not None) == per_class:
            rows.setdefault(phrase, {})[name] = row
    if not rows:
        lacks = "holds no phrase with {class}, which --per-class needs"
        only = "holds phrases with {class} alone, which need --per-class"
        raise UserError(f"--targets {path}: {lacks if per_class else only}")
    names = classes if per_class else [None]
    for phrase, known in rows.items():
        if missing := [name for name in names if name not in known]:
            raise UserError(
                f"--targets {path}: {phrase!r} is not embedded for {', '.join(missing)}; embed it with "
                "--classes-of the checkpoint"
            )
    return list(rows), torch.stack([torch.stack([rows[p][name] for name in names]) for p in rows])


def embed_photos(paths, model, stage, size, device):
    """(P, 1, D): embeddings of photos, stretched to size x size."""
    rows = []
    for path in paths:
        image = to_float(read_square(path, size).to(device)[None])
        with torch.no_grad():
            rows.append(embed(model, features_after(model, image, stage), stage))
    return torch.stack(rows)


def picture_of_similarity(history, target):
    """(H, W, 3) uint8: cosine similarity to the target over the steps. history: (steps + 1, N). target: what
    it is called."""
    steps = range(len(history))
    curves = [("mean", steps, history.mean(1).tolist(), "line")]
    for percent in (90, 10):
        values = history.quantile(percent / 100, dim=1).tolist()
        curves.append((f"{percent}th percentile of the photos", steps, values, "line"))
    return plot.chart(curves, f"Similarity of features to: {target}", "step", "cosine similarity")


def next_command(args):
    frozen = f"--styles {args.out}/bank.pt --freeze backbone"
    steps = f"--steps 300 --lr 1e-3 --out {args.out}_adapted"
    return f"next:    python train_finetune.py --init {args.init} {frozen} {steps}"


@torch.no_grad()
def picture_of_styles(model, bank, batch, about, device):
    """(H, W, 3) uint8: photos, their masks, what the parser says, and what it says where features have styles
    of the bank."""
    images, labels = to_float(batch["image"].to(device)), batch["semantic"]
    styles = BankStyles(bank).to(device)
    styles.labels = labels
    plain = model(images)["semantic"].argmax(1)
    torch.manual_seed(0)
    handle = model.stages[bank["stage"] - 1].register_forward_hook(styles.hook)
    restyled = model(images)["semantic"].argmax(1)
    handle.remove()
    colors = about["colors"]
    panels = {"photo": draw.photos_of(batch["image"]), "mask": draw.colorise(labels, colors)}
    panels |= {"parser": draw.colorise(plain, colors), "with a style": draw.colorise(restyled, colors)}
    return draw.grid(panels, colors, about["classes"])


def main(args):
    # ---- setup ----
    _, world, device = dist.init(args.device)
    if world > 1:
        raise UserError("styles are mined by one process: python, not torchrun")
    out = open_run(args.out, args.resume)
    if (out / "bank.pt").is_file():
        if not args.resume:
            raise UserError(f"--out {out}: holds a bank.pt already; name another folder")
        cli.resume_flags(get_parser(), load_bank(out / "bank.pt")["flags"])
        print(f"--resume: {out}/bank.pt is whole")
        return
    last = None
    if args.resume and (out / "last.pt").is_file():
        last = checkpoint.load(out / "last.pt", holds="mined")
        args = cli.resume_flags(get_parser(), last["args"])
        cli.refuse_replaced(args, last, out)
    if not args.init:
        raise UserError("--init is needed to begin a run (see --help); --resume goes on with one")
    by_batch = args.mix == "batch"
    if bool(args.targets) + bool(args.photo) + by_batch != 1:
        raise UserError("give one of --targets FILE, --photo FILE and --mix batch")
    mined_for = ("data", "per_class", "text_noise", "feature_noise")
    idle = dict.fromkeys(mined_for, "beside --mix batch, which mines nothing" if by_batch else None)
    idle |= {"per_class": "on photos, whose embedding is of no class"} if args.photo else {}
    cli.refuse_without_effect(args, idle)
    if by_batch and args.patches > 1:
        raise UserError("--patches 3 --mix batch: MixStyle mixes whole images")
    if args.per_class and args.patches == 1:
        raise UserError("--per-class: needs --patches 3; most of a whole photo is always of the same class")
    init = checkpoint.load(args.init, target=("semantic", "panoptic"))
    trained = init["args"]
    classes = init["data"]["classes"]
    args = cli.fill(args, {"device": device.type, "amp": dist.default_amp(device)})
    model = restore(init, device, args.init).requires_grad_(False)
    stage = args.stage or model.style_stage
    if stage > len(model.stages):
        raise UserError(f"--stage {stage}: this model has {len(model.stages)}")
    about = {"classes": classes, "patches": args.patches, "mix": args.mix, "flags": vars(args)}
    about |= network_of(model, stage)
    if by_batch:
        none = {"mean": torch.empty(0, 0), "std": torch.empty(0, 0), "class": torch.empty(0).long()}
        RunLog(out, vars(args)).close()
        named = cli.files_of(args)
        origin = lineage.origin("mine_styles.py", args.out, {}, {}, named, {args.init: init})
        lineage.begin(out, origin, vars(args), named)
        checkpoint.save(out / "bank.pt", **none, phrase=[], relu=False, lineage=origin, **about)
        print(f"wrote:   {out}/bank.pt: styles of the batch's other images, so that nothing is mined")
        print(next_command(args))
        return
    inputs = cli.input_files(args, last)
    stop = dist.Stop()

    # ---- data ----
    path = args.data or trained["data"]
    own = splits.same_folder(path, trained["data"])
    scheme = scheme_of(classes) if path == "synthetic" else None
    part_order = trained["part_order"] if own else "canonical"
    ids = splits.ids_file(None, args.data, trained)
    faces = splits.open_data(path, scheme, part_order, trained["val_fraction"], ids)
    if faces.classes != classes:
        raise UserError(
            f"{path} has the classes {' '.join(faces.classes)}; "
            f"{args.init} was trained on {' '.join(classes)}"
        )
    limit = trained.get("limit") if own else None
    data = batches.load(faces, "train", trained["size"], trained["seed"] if own else args.seed, limit)
    rows = rng.order(args.seed, 0, len(data))[: args.images].tolist()

    # ---- target ----
    def embedding_of(features):
        """(N, C, h, w), of photos or patches -> (N, D) float32."""
        with torch.autocast(device.type, dist.AMP_DTYPES[args.amp], enabled=args.amp != "off"):
            return embed(model, features, stage).float()

    if args.targets:
        names, targets = read_targets(args.targets, model, classes, args.per_class)
    else:
        names = args.photo
        targets = embed_photos(args.photo, model, stage, trained["size"], device)
    targets = targets.to(device)

    # ---- mine ----
    features = features_after(model, to_float(data[rows[:1]]["image"].to(device)), stage)
    relu = bool((features >= 0).all())
    check_patches(features, args, embedding_of)
    mined = last["mined"] if last else None
    done = last["images"] if last else 0
    held = {"train": summary.identify(data, classes, rows)}
    if args.photo:
        held["photo"] = summary.identify_photos({name: name for name in args.photo})
    named = cli.files_of(args, inputs)
    paths = {"train": path, "photo": " ".join(args.photo or [])}
    origin = lineage.origin("mine_styles.py", args.out, held, paths, named, {args.init: init}, last)
    log = RunLog(out, vars(args), done if last else None)
    lineage.begin(out, origin, vars(args), named)
    print(f"{faces.name} ({path}): {len(rows)} photos, after stage {stage} of {trained['model']}")
    towards = some([str(name) for name in names], 3)
    print(f"towards {towards}")
    bar = tqdm(total=len(rows), initial=done, desc="mine", disable=None)
    while done < len(rows) and not stop.signal:
        batch = data[rows[done : done + args.batch_size]]
        count = len(batch["image"])
        features = features_after(model, to_float(batch["image"].to(device)), stage)
        numbers = torch.arange(done, done + count)  # of the photos, in this run
        positions = numbers * args.patches**2
        kinds = torch.full_like(numbers, ANY)
        if args.per_class:
            image, row, column, kinds = first_patches(batch["semantic"], args.patches).T
            features = split(features, args.patches)[image, :, row, column]
            numbers = numbers[image]
            positions = positions[image] + row * args.patches + column
        turns = numbers % len(names)
        wanted = targets[turns, kinds if args.per_class else 0]
        mean, std, history = mine(features, wanted, positions.to(device), embedding_of, relu, args)
        before = torch.cat(style(features), 1).flatten(1)
        moved = (torch.cat([mean, std], 1) - before).norm(dim=1) / before.norm(dim=1)
        found = {"mean": mean, "std": std, "history": history.T, "moved": moved}
        found |= {"class": kinds, "turn": turns}
        found = {key: value.cpu() for key, value in found.items()}
        mined = {key: torch.cat([mined[key], found[key]]) if mined else found[key] for key in found}
        if not mean.isfinite().all() or not std.isfinite().all():
            raise UserError(f"styles of photo {done + 1} on are not finite: lower --lr {args.lr:g}")
        done += count
        figures = {"mine/cosine_before": history[0].mean(), "mine/cosine_after": history[-1].mean()}
        log.scalars(done, **figures, **{"mine/moved": moved.mean()})
        bar.update(count)
        state = {"script": "mine_styles.py", "args": vars(args), "inputs": inputs, "lineage": origin}
        checkpoint.save(out / "last.pt", **state, images=done, mined=mined)
    bar.close()
    if done < len(rows):
        log.close(False, stop.signal)
        return cli.stopped(stop.signal, done, out)

    # ---- finish ----
    if not len(mined["mean"]):
        raise UserError(f"{path}: no patch of these photos is labelled")
    bank = {key: mined[key] for key in ("mean", "std", "class")}
    bank["phrase"] = [names[turn] for turn in mined["turn"].tolist()]
    bank |= {"relu": relu, "lineage": origin, **about}
    history = mined["history"].T
    log.image(done, "mine/cosine", picture_of_similarity(history, towards), "cosine.png")
    batch = data[rows[:SHOWN]]
    log.image(done, "mine/styles", picture_of_styles(model, bank, batch, init["data"], device), "styles.png")
    log.close()
    checkpoint.save(out / "bank.pt", **bank)
    moved = mined["moved"].mean().item()
    print(
        f"cosine similarity to the target: {history[0].mean():.3f} before, {history[-1].mean():.3f} after "
        f"{args.steps} steps; {len(bank['mean'])} styles of {len(rows)} photos, which moved by {moved:.0%}"
    )
    if not 0.1 < moved < 2:
        print(f"too {'little' if moved < 1 else 'much'}, perhaps: try another --lr than {args.lr:g}")
    if args.per_class:
        counts = [int((bank["class"] == k).sum()) for k in range(len(classes))]
        print("styles of " + ", ".join(f"{name} {n}" for name, n in zip(classes, counts, strict=True)))
    print(f"wrote:   {out}/bank.pt; see {out}/cosine.png and {out}/styles.png")
    print(next_command(args))


# >>> shared: start
if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
# <<< shared: start
