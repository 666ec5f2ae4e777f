"""A tiny CLIP of rendered faces: embeddings of phrases for mine_styles.py where nobody can download CLIP.

python recipes/tiny_clip.py train --out runs/tiny                20 minutes of two cores
python recipes/tiny_clip.py embed --clip runs/tiny "a face at night" --out night.pt
python recipes/tiny_clip.py embed --clip runs/tiny "the {class} of a face at night" \\
    --classes-of runs/source/last.pt --out night_classes.pt

Two encoders learn to give a photo and its caption the same embedding (Radford et al., 2021, 2103.00020): the
stages of `--model clip_unet`, and a transformer over the few words that captions have. Photos are rendered
faces, each in a domain of datasets/synthetic/domains.py, and crops of them, called by the class in their
middle. `train` writes tower.pt (for `--model clip_unet --weights`), text.pt, and zero_shot.json: figures of
faces that were not trained on, with both encoders as they are used, in eval mode.
"""

import itertools
import math
import pathlib
import random
import re
import sys

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from datasets.images import to_float
from datasets.synthetic import SCHEMES, attributes, faces
from datasets.synthetic.domains import DOMAINS, change
from models import build_model, targets
from utils import checkpoint, cli, dist, files, rng
from utils.errors import UserError
from utils.log import RunLog, open_run

SIZE = 96  # of photos, pixels
PATCH = 32  # of crops
CROPS = 0.12, 0.4  # their sides, as shares of the photo's
FIRST = 10**9  # position of the first face, and of what the first photo draws: nobody else has these
HELD_OUT = 1200  # faces behind those that train
RANKED = 120  # captions among which a photo's own is sought
LENGTH = 24  # words of a phrase, at most
EMBEDDING = 64
WARMUP = 0.05  # share of the steps
SCALE = math.log(100)  # the largest that the logarithm of 1 / temperature may be, as in CLIP
LOG_EVERY = 20

PARTS = SCHEMES["fasseg"].classes
STARTS = ["a face", "a photo of a face", "a picture of a face"]
PLACES = {
    "daylight": ["in daylight", "by day"],
    "night": ["at night", "in the dark"],
    "fog": ["in fog", "in mist"],
    "snow": ["in snow", "in falling snow"],
    "sketch": ["as a sketch", "drawn in pencil"],
    "red light": ["under red light", "in red light"],
}
# What a caption may say of a face (see `attributes`), and how often it does where that is so: what is rare
# would hardly be learnt otherwise
NOUNS = {
    "glasses": ("glasses", 0.7),
    "hat": ("a hat", 0.7),
    "beard": ("a beard", 0.6),
    "bald": ("a bald head", 0.8),
    "long hair": ("long hair", 0.4),
    "short hair": ("short hair", 0.4),
}
LOOKS = {"left": "looking left", "right": "looking right", "camera": "looking into the camera"}
ABSENT = ["glasses", "hat", "beard"]  # worth a word where they are not there
LACKS, LOOKING, NO_PLACE = 0.3, 0.4, 0.2  # shares of captions with "without", "looking", and without domain
SAID = [*STARTS, *itertools.chain(*PLACES.values()), *LOOKS.values(), *(noun for noun, _ in NOUNS.values())]
VOCABULARY = sorted({*" ".join(SAID).split(), *PARTS, "the", "with", "without", "wearing", "and"})
# Zero-shot questions: which of these phrases fits best? {attribute: phrase}; None: where no other holds
QUESTIONS = {
    "glasses": {"glasses": "a face with glasses", None: "a face without glasses"},
    "hat": {"hat": "a face with a hat", None: "a face without a hat"},
    "beard": {"beard": "a face with a beard", None: "a face without a beard"},
    "hair": {name: f"a face with {NOUNS[name][0]}" for name in ("long hair", "short hair", "bald")},
    "looks": {name: f"a face {phrase}" for name, phrase in LOOKS.items()},
}


def get_parser():
    p = cli.parser(__doc__)
    commands = p.add_subparsers(required=True, metavar="train|embed")
    common = {"allow_abbrev": False, "formatter_class": cli.HelpFormatter}
    c = commands.add_parser("train", help="train both encoders", **common)
    c.set_defaults(do=train)
    c.add_argument("--out", default="runs/tiny", metavar="FOLDER", help="run folder")
    c.add_argument("--faces", type=cli.positive, default=8000, metavar="N", help="rendered to train on")
    c.add_argument("--steps", type=cli.positive, default=3000, help="optimiser steps")
    c.add_argument("--batch-size", type=cli.images, default=96, help="photos, each with one crop")
    c.add_argument("--lr", type=cli.above_zero, default=2e-3, help="peak rate")
    c.add_argument("--seed", type=cli.seed, default=0, help="of all that is drawn")
    cli.add_device_flags(c)
    c = commands.add_parser("embed", help="embed phrases as targets of mine_styles.py", **common)
    c.set_defaults(do=embed)
    c.add_argument("phrases", nargs="+", metavar="PHRASE", help="what the photos of a domain are")
    c.add_argument("--clip", required=True, metavar="FOLDER", help="what train wrote")
    c.add_argument("--out", required=True, metavar="FILE", help="file for the embeddings")
    g = c.add_mutually_exclusive_group()
    g.add_argument("--classes", nargs="+", metavar="CLASS", help='what "{class}" in a phrase stands for')
    g.add_argument("--classes-of", metavar="CHECKPOINT", help="the same: the classes of a parser")
    return p


# ---- phrases


def caption(chance, facts, domain, part=None):
    """One of the phrases that fit a photo. chance: a random.Random. facts: names of the attributes that hold.
    part: the class that a crop shows, whose caption says nothing of the face."""
    place = [] if chance.random() < NO_PLACE else [chance.choice(PLACES[domain])]
    if part:
        return " ".join([f"the {part} of a face", *place])
    words = [chance.choice(STARTS)]
    nouns = [noun for name, (noun, share) in NOUNS.items() if name in facts and chance.random() < share]
    if nouns:
        words += [chance.choice(["with", "wearing"]) if nouns[0] in ("glasses", "a hat") else "with"]
        words += [" and ".join(nouns)]
    absent = [NOUNS[name][0] for name in ABSENT if name not in facts]
    if absent and chance.random() < LACKS:
        words += ["without", chance.choice(absent)]
    looks = [phrase for name, phrase in LOOKS.items() if name in facts]
    if looks and chance.random() < LOOKING:
        words += looks
    return " ".join(words + place)


def tokens(phrases, vocabulary=VOCABULARY):
    """Phrases -> (N, longest) int64: places in the vocabulary, from 1; 0 behind the end. Case and punctuation
    do not count. Raises UserError where a word is not in the vocabulary."""
    number = {word: i + 1 for i, word in enumerate(vocabulary)}
    rows = [re.findall(r"\w+", phrase.lower()) for phrase in phrases]
    for phrase, row in zip(phrases, rows, strict=True):
        if unknown := [word for word in row if word not in number]:
            knows = " ".join(vocabulary)
            raise UserError(f'"{phrase}": this CLIP does not know {", ".join(unknown)}; it knows {knows}')
        if not 0 < len(row) <= LENGTH:
            raise UserError(f'"{phrase}": {len(row)} words; need 1 to {LENGTH}')
    longest = max(map(len, rows))
    return torch.tensor([[number[word] for word in row] + [0] * (longest - len(row)) for row in rows])


class TextTower(nn.Module):
    """Tokens (N, L) -> (N, EMBEDDING): a transformer, its mean over words, a linear layer."""

    def __init__(self, words, width=64, layers=2, heads=4):
        super().__init__()
        self.words = nn.Embedding(words + 1, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, **options)
        self.blocks = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.embedding = nn.Linear(width, EMBEDDING)

    def forward(self, tokens):
        there = tokens > 0
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        x = self.blocks(x, src_key_padding_mask=~there) * there[..., None]
        return self.embedding(x.sum(1) / there.sum(1, keepdim=True))


# ---- photos


def render(first, count, args, device):
    """A pool of faces: image (N, 3, SIZE, SIZE) and semantic, uint8, on the device, and the facts of each."""
    parts, facts = [], []
    for start in tqdm(range(0, count, 100), "rendering", disable=None):
        positions = torch.arange(first + start, first + min(start + 100, count), device=device)
        made = faces(args.seed, positions, SIZE, "fasseg")
        parts.append((made["image"], made["semantic"]))
        said = attributes(args.seed, positions)
        columns = torch.stack(list(said.values()), 1).tolist()
        facts += [{name for name, holds in zip(said, row, strict=True) if holds} for row in columns]
    return (*(torch.cat(part) for part in zip(*parts, strict=True)), facts)


def photos(pool, rows, positions, seed):
    """Faces of a pool, their domains in turn, and a crop of each -> images, crops, names of the domains, and
    of the classes in the middles of the crops. Pure in the seed and the positions."""
    images, labels = (maps[rows] for maps in pool[:2])
    for k, domain in enumerate(DOMAINS[: len(rows)]):
        turn = slice(k, None, len(DOMAINS))
        images[turn] = change(images[turn], domain, seed, positions[turn])
    u = rng.uniform(seed, positions, 2 + SIZE * SIZE, stream=60)
    wanted = (u[:, 0] * len(PARTS)).long()
    pixel = (u[:, 2:] + (labels.flatten(1) == wanted[:, None])).argmax(1)  # any, where the class is not there
    shown = labels.flatten(1).gather(1, pixel[:, None])[:, 0].tolist()
    share = CROPS[0] * (CROPS[1] / CROPS[0]) ** u[:, 1]
    limit = 1 - share
    centre = (torch.stack([pixel % SIZE, pixel // SIZE]) + 0.5) * (2 / SIZE) - 1
    x, y = torch.maximum(torch.minimum(centre, limit), -limit)
    zero = torch.zeros_like(x)
    theta = torch.stack([share, zero, x, zero, share, y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, (len(rows), 3, PATCH, PATCH), align_corners=False)
    crops = F.grid_sample(to_float(images), grid, padding_mode="border", align_corners=False)
    domains = [DOMAINS[i % len(DOMAINS)] for i in range(len(rows))]
    return to_float(images), crops, domains, [PARTS[i] for i in shown]


def captions(pool, rows, domains, shown, seed, step):
    """A phrase for each photo, then one for each crop."""
    chance = random.Random(f"{seed} {step}")
    facts = [pool[2][row] for row in rows.tolist()]
    whole = [caption(chance, *row) for row in zip(facts, domains, strict=True)]
    return whole + [caption(chance, (), *row) for row in zip(domains, shown, strict=True)]


def embed_photos(model, images):
    """(B, 3, S, S) float in 0 to 1 -> (B, EMBEDDING) unit rows, float32."""
    return F.normalize(model.embed(F.pixel_unshuffle(model.normalise(images), 2), 0), dim=1)


def embed_phrases(text, phrases, vocabulary=VOCABULARY):
    device = text.places.device
    return F.normalize(text(tokens(phrases, vocabulary).to(device)).float(), dim=1)


# ---- training


def rate_at(step, steps, peak):
    """Linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(WARMUP * steps))
    falling = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return peak * min((step + 1) / warmup, falling if step >= warmup else 1)


def contrast(a, b, same):
    """Symmetric InfoNCE of logits (B, B) of photos and captions. same: (B, B), which captions are equal: they
    share the target (Yang et al., 2022, 2204.03610)."""
    target = same / same.sum(1, keepdim=True)
    logits = a @ b.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def recall(given, truth):
    """Mean over the answers of the share of each that is found, two (N,); a truth of -1 does not count."""
    right = (given == truth).float()
    answers = [answer for answer in truth.unique() if answer >= 0]
    return sum(right[truth == answer].mean().item() for answer in answers) / len(answers)


@torch.no_grad()
def zero_shot(model, text, pool, args):
    """Figures of faces that were not trained on: `recall` of each question by name, and the mean rank of a
    photo's own caption among those of `RANKED` photos."""
    facts = pool[2]
    device = pool[0].device
    parts = torch.arange(len(facts), device=device).split(RANKED)
    seen = [photos(pool, rows, 2 * FIRST + rows, args.seed) for rows in parts]
    images = [embed_photos(model, batch[0]) for batch in seen]
    crops = torch.cat([embed_photos(model, batch[1]) for batch in seen])
    domain, shown = (
        torch.tensor([names.index(name) for batch in seen for name in batch[k]], device=device)
        for k, names in ((2, DOMAINS), (3, PARTS))
    )
    places = [PLACES[name][0] for name in DOMAINS]

    def best(embeddings, phrases):
        return (embeddings @ embed_phrases(text, phrases).T).argmax(1)

    found = {"domain": recall(best(torch.cat(images), [f"a face {place}" for place in places]), domain)}
    for name, phrases in QUESTIONS.items():
        truth = [[key in said or key is None for key in phrases] for said in facts]
        truth = torch.tensor([row.index(True) if any(row) else -1 for row in truth], device=device)
        found[name] = recall(best(torch.cat(images), list(phrases.values())), truth)
    found["class of a crop"] = recall(best(crops, [f"the {part} of a face" for part in PARTS]), shown)
    each = [best(crops, [f"the {part} of a face {place}" for place in places]) for part in PARTS]
    found["domain of a crop"] = recall(torch.stack(each).gather(0, shown[None])[0], domain)

    ranks = []
    for rows, own, batch in zip(parts, images, seen, strict=True):
        phrases = captions(pool, rows, *batch[2:], args.seed, -1)[: len(rows)]
        cosine = own @ embed_phrases(text, phrases).T
        ranks.append((cosine > cosine.diag()[:, None]).sum(1) + 1)
    return found, torch.cat(ranks).float().mean().item()


def train(args):
    if (pathlib.Path(args.out) / "tower.pt").exists():
        raise UserError(f"--out {args.out}: holds a tower.pt already; name another folder")
    _, world, device = dist.init(args.device)
    if world > 1:
        raise UserError("tiny_clip.py train is one process; start it with python")
    out = open_run(args.out, resume=False)
    amp = args.amp or dist.default_amp(device)
    torch.manual_seed(args.seed)
    pool = render(FIRST, args.faces, args, device)
    model = build_model("clip_unet", len(PARTS))
    model.embedding.requires_grad_(True)
    model.to(device, memory_format=torch.channels_last)
    text = TextTower(len(VOCABULARY)).to(device)
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), device=device))
    learnt = [*model.stages.parameters(), *model.embedding.parameters(), *text.parameters(), scale]
    optimizer = torch.optim.AdamW(learnt, lr=args.lr, weight_decay=0.01)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    flags = {name: value for name, value in vars(args).items() if name != "do"}
    log = RunLog(out, flags)

    bar = tqdm(range(args.steps), "training", disable=None)
    for step in bar:
        positions = FIRST + step * args.batch_size + torch.arange(args.batch_size, device=device)
        rows = (rng.uniform(args.seed, positions, 1, stream=61)[:, 0] * args.faces).long()
        images, crops, domains, shown = photos(pool, rows, positions, args.seed)
        words = tokens(captions(pool, rows, domains, shown, args.seed, step)).to(device)
        same = (words[:, None] == words[None]).all(2).float()
        with torch.autocast(device.type, dist.AMP_DTYPES[amp], enabled=amp != "off"):
            shot = torch.cat([embed_photos(model, images), embed_photos(model, crops)])
            said = F.normalize(text(words).float(), dim=1)
        loss = contrast(shot * scale.exp(), said, same)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args.steps, args.lr)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            scale.clamp_(0, SCALE)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == args.steps:
            if not loss.isfinite():
                raise UserError(f"no finite loss by step {step + 1}: lower --lr {args.lr}, or --amp off")
            values = {"train/loss": loss.detach(), "train/temperature": (-scale.detach()).exp()}
            log.scalars(step + 1, **values)
            bar.set_postfix(loss=f"{loss.item():.3f}")

    model.eval()  # as styles are mined
    text.eval()
    found, rank = zero_shot(model, text, render(FIRST + args.faces, HELD_OUT, args, device), args)
    log.scalars(args.steps, **{f"zero_shot/{name}": value for name, value in found.items()})
    log.json("zero_shot.json", {**found, f"mean rank of {RANKED}": rank})
    log.close()
    state = {k: v.cpu() for k, v in model.state_dict().items() if k.startswith(("stages.", "embedding."))}
    with files.whole(out / "text.pt") as file:
        torch.save(
            {"vocabulary": VOCABULARY, "text": {k: v.cpu() for k, v in text.state_dict().items()}}, file
        )
    with files.whole(out / "tower.pt") as file:
        torch.save(state, file)
    print(f"zero-shot on {HELD_OUT} other faces, mean over the answers:")
    for name, value in found.items():
        print(f"  {name:<18}{value:.3f}")
    print(f"mean rank of a photo's caption among {RANKED}: {rank:.1f}")
    print(f'next: python recipes/tiny_clip.py embed --clip {out} "a face at night" --out {out}/night.pt')


# ---- phrases for mine_styles.py


@torch.no_grad()
def embed(args):
    folder = pathlib.Path(args.clip)
    for name in ("tower.pt", "text.pt"):
        if not (folder / name).is_file():
            raise UserError(f"--clip {folder}: no {name} in it; recipes/tiny_clip.py train writes it")
    files.check_new(args.out)
    rows = targets.with_classes(args.phrases, args.classes, args.classes_of)
    model = build_model("clip_unet", len(PARTS), weights=str(folder / "tower.pt"))
    saved = checkpoint.read(folder / "text.pt")
    if not isinstance(saved, dict) or saved.keys() != {"vocabulary", "text"}:
        raise UserError(f"{folder}/text.pt: not what recipes/tiny_clip.py train writes")
    text = TextTower(len(saved["vocabulary"])).eval()
    text.load_state_dict(saved["text"])
    embeddings = embed_phrases(text, [row[2] for row in rows], saved["vocabulary"])
    targets.save(args.out, rows, embeddings, model.tower_tensors(), "tiny_clip")


def main(args):
    args.do(args)


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
