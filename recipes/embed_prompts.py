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
import logging
import os
import pathlib
import sys
import warnings

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from models import targets
from models.weights import is_torchscript
from utils import cli, files
from utils.errors import UserError


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


@torch.no_grad()
def embed(model, tokenize, templates, text):
    """(D,) float32, of length 1. Raises UserError where the text is too long."""
    tokens = tokenize(
        [template(text) for template in templates]
    )  # (templates, context), zeros behind the end
    if tokens[:, -1].any():
        raise UserError(f"{text!r}: is longer than the {tokens.shape[1]} tokens that CLIP reads; shorten it")
    return F.normalize(model.encode_text(tokens).float().mean(0), dim=0)


def main(args):
    if not args.out and not args.tower or bool(args.phrases) != bool(args.out):
        raise UserError("give phrases and --out FILE, or --tower FILE, or all of them")
    for path in filter(None, (args.out, args.tower)):
        files.check_new(path)
    rows = targets.with_classes(args.phrases, args.classes, args.classes_of)

    model, tokenize, templates = load_clip(args.clip, args.pretrained)
    tower = model.visual.state_dict()
    if args.out:
        embeddings = torch.stack([embed(model, tokenize, templates, text) for _, _, text in rows])
        kept = [value for name, value in tower.items() if "num_batches_tracked" not in name]
        targets.save(args.out, rows, embeddings, kept, args.clip)
    if args.tower:
        with files.whole(args.tower) as file:
            torch.save({f"visual.{name}": value for name, value in tower.items()}, file)
        print(f"wrote {args.tower}")


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
