"""Embed phrases with CLIP, as targets for mine_styles.py.

Run:    python recipes/embed_prompts.py "driving at night" --out night.pt
        python recipes/embed_prompts.py "the {class} of a face at night" --classes-of FILE.pt --out night.pt
        python recipes/embed_prompts.py --pretrained RN50.pt --tower tower.pt
Needs:  pip install open_clip_torch, and a network for the first time, or --pretrained FILE
Writes: --out: the embeddings; of "{class}" in a phrase one for each class
        --tower: the image encoder, for --model clip_resnet50 --weights tower.pt

Each phrase is put into the 80 templates of Radford et al., 2021 (2103.00020), sec. 3.1.4: the mean of the raw
embeddings, normalised.
"""

import difflib
import io
import logging
import os
import pathlib
import sys
import warnings

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from models.styles import digest
from models.weights import is_torchscript
from utils import checkpoint, cli
from utils.errors import UserError
from utils.files import check_file, write_whole


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("phrases", metavar="PHRASE", nargs="*", help="what the images of a domain are")
    p.add_argument("--clip", default="RN50", metavar="NAME", help="a CLIP of open_clip's")
    pretrained = "its weights: a name of open_clip's, or a file of OpenAI's or open_clip's"
    p.add_argument("--pretrained", default="openai", metavar="NAME_OR_FILE", help=pretrained)
    g = p.add_mutually_exclusive_group()
    g.add_argument("--classes", nargs="+", metavar="CLASS", help='what "{class}" in a phrase stands for')
    g.add_argument("--classes-of", metavar="CHECKPOINT", help="the same: the classes of a parser")
    p.add_argument("--out", metavar="FILE", help="file for the embeddings")
    p.add_argument("--tower", metavar="FILE", help="file for the image encoder")
    return p


def load_clip(name, pretrained):
    """(open_clip's CLIP, its tokenizer, its 80 templates, functions of a phrase). Raises UserError."""
    try:
        import open_clip  # here: nothing else needs it, and it takes seconds
    except ImportError as error:
        raise UserError(f"CLIP needs a pip package: pip install open_clip_torch ({error})") from None
    if name not in (names := open_clip.list_models()):
        near = difflib.get_close_matches(name, names)
        raise UserError(f"--clip {name}: open_clip has no such CLIP; {' or '.join(near)}?")
    is_file = os.path.isfile(pretrained)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not is_file and pretrained not in tags:
        raise UserError(
            f"--pretrained {pretrained}: no such file, and none of {', '.join(tags) or 'no names'}"
        )
    # what the text encoder was trained with; all published weights of RN50 with QuickGELU
    quick_gelu = is_file or open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False)
    archive = is_file and is_torchscript(pretrained)
    logging.disable()  # open_clip logs what is told below
    warnings.filterwarnings("ignore", message=".*(TorchScript|torch.jit)")
    try:
        model = open_clip.create_model(
            name, pretrained, force_quick_gelu=quick_gelu, weights_only=not archive
        )
    except Exception as error:  # of many kinds: no network; a file of another kind or network
        reason = " ".join(str(error).split())[:160]
        if is_file:
            raise UserError(f"--pretrained {pretrained}: does not fit {name} ({reason} ...)") from None
        raise UserError(
            f"cannot fetch {name} {pretrained}: run this where there is a network, or give --pretrained "
            f"FILE, such as OpenAI's {name}.pt ({reason} ...)"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return model.eval(), open_clip.get_tokenizer(name), open_clip.OPENAI_IMAGENET_TEMPLATES


def with_classes(phrases, classes):
    """[(phrase as given, class or None, text)]: a phrase with "{class}" in it stands for one text a class."""
    rows = []
    for phrase in phrases:
        for name in classes if "{class}" in phrase else [None]:
            text = phrase.replace("{class}", name.replace("_", " ")) if name else phrase
            rows.append((phrase, name, text))
    return rows


@torch.no_grad()
def embed(model, tokenize, templates, text):
    """(D,) float32, of length 1. Raises UserError where the text is too long."""
    tokens = tokenize(
        [template(text) for template in templates]
    )  # (templates, context), zeros behind the end
    if tokens[:, -1].any():
        raise UserError(f"{text!r}: is longer than the {tokens.shape[1]} tokens that CLIP reads; shorten it")
    return F.normalize(model.encode_text(tokens).float().mean(0), dim=0)


def save(path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())
    print(f"wrote {path}")


def main(args):
    if not args.out and not args.tower or bool(args.phrases) != bool(args.out):
        raise UserError("give phrases and --out FILE, or --tower FILE, or all of them")
    for path in filter(None, (args.out, args.tower)):
        if os.path.exists(path):
            raise UserError(f"{path}: is there already; name another file")
        check_file(path)
    classes = args.classes or []
    if args.classes_of:
        classes = checkpoint.load(args.classes_of, target=("semantic", "panoptic"))["data"]["classes"]
    if bool(classes) != any("{class}" in phrase for phrase in args.phrases):
        raise UserError(
            '--classes or --classes-of, and "{class}" in a phrase: one is of no use without the other'
        )

    model, tokenize, templates = load_clip(args.clip, args.pretrained)
    tower = model.visual.state_dict()
    if args.out:
        rows = with_classes(args.phrases, classes)
        targets = {
            "phrases": [phrase for phrase, _, _ in rows],
            "classes": [name for _, name, _ in rows],
            "embeddings": torch.stack([embed(model, tokenize, templates, text) for _, _, text in rows]),
            "tower": digest([v for name, v in tower.items() if "num_batches_tracked" not in name]),
            "clip": args.clip,
        }
        if not targets["embeddings"].isfinite().all():
            raise UserError(f"--pretrained {args.pretrained}: gives embeddings that are not finite")
        save(args.out, targets)
    if args.tower:
        save(args.tower, {f"visual.{name}": value for name, value in tower.items()})


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
