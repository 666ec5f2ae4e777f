"""The flags that scripts share, and what a script does with them before and after its work.

The one module of `utils` that knows parsers and namespaces: a flag that is added here means the same,
and has the same help, in every script.
"""

import argparse
import copy
import difflib
import math
import os
import sys

import torch

from utils import checkpoint, dist, files, lineage
from utils.errors import UserError
from utils.log import open_run

COLLAPSED = 3  # exit status of a training run that stopped itself, since its score fell
CLASS_LISTS = ["full", "fasseg", "celebamask", "lapa"]
PART_ORDERS = ["canonical", "farl"]
SCENES = "scenes of one to N faces instead of photos as they are; 0: as they are"
IDS = 'JSON {"train": [ids], "val": [ids]}, in place of --limit and --val-fraction'
# flags that may change when a run is resumed; of data that has moved, contents are compared (but scores are
# kept by the path of a photo, so photos to ask about stay where they are)
RESUMABLE = ("resume", "out", "device", "workers", "data", "ids")
# flags of files that are read; what others say is none, whatever is called cpu, but for FILE.py:FUNCTION
FILES = ("init", "teacher", "weights", "augment", "styles", "ids", "targets", "photo", "boxes", "arms")
POLICIES = ("none", "flip", "crop", "randaugment", "trivial", "cutmix")
LIMITED = ("full", "geometric", "standardise", "half", "quarter", "photometric", "grey-world", "synthetic")
# what some of them take for a name, before they look for a file
NAMES = {"augment": POLICIES, "arms": POLICIES + LIMITED, "weights": ("none", "imagenet", "coco")}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A script's docstring as it is written; behind each flag that has one its default."""

    def _get_help_string(self, action):
        default = action.default
        if not action.option_strings or default in (None, argparse.SUPPRESS, []) or default is False:
            return action.help
        words = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{action.help} (default {words})"


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line, and names the nearest flag."""

    def parse_args(self, args=None, namespace=None):
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():
            if value == "" or isinstance(value, list) and "" in value:
                self.error(f"argument --{name.replace('_', '-')}: is empty")
        return found

    def error(self, message):
        flags = [option for action in self._actions for option in action.option_strings]
        words = [word.partition("=")[0].rstrip(":") for word in message.split()]
        unknown = [word for word in words if word.startswith("--") and word not in flags]
        near = difflib.get_close_matches(unknown[0], flags, 1, cutoff=0.7) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {message}{hint or '; --help lists the flags'}", file=sys.stderr)
        sys.exit(2)


def parser(doc):
    """An empty parser. doc: the script's docstring."""
    return Parser(description=doc, allow_abbrev=False, formatter_class=HelpFormatter)


# ---- types of flags


def between(low, high):
    """The type of a flag that takes whole numbers from `low` to `high`."""

    def whole(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return whole


positive = between(1, 10**9)
images = between(1, 65536)  # in a batch
processes = between(0, 128)
faces = between(0, 254)  # in a scene, whose ids fill a byte but for nothing and unknown
seed = between(0, 2**32 - 1)


def above_zero(text):
    """A number above zero that float32 holds with room to spare: a rate of 1e38 overflows."""
    if not 0 < (value := _number(text)) <= 1e30:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero, or beyond 1e30")
    return value


def at_least_zero(text):
    """A number from 0 to 1e9."""
    value = _number(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1e9")
    return value


def share(text):
    """A number from 0 to 1."""
    if not 0 <= (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def below_one(text):
    """A number from 0 to below 1."""
    if not 0 <= (value := _number(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def _number(text):
    try:
        return float(text)
    except ValueError:
        return float("nan")


def named_weights(words, what, known=None, negative=True):
    """["f1=1", "boundary_f1=0.5"] -> {"f1": 1.0, "boundary_f1": 0.5}; a name alone weighs 1.

    what: they are, for the message. known: the names that there are, where they are listed. negative: whether
    a weight may be below zero, or all of them zero.
    """
    pairs = [word.rpartition("=") if "=" in word else (word, "", "1") for word in words]
    given = f"{what} {' '.join(words)}"
    try:
        weights = {name: float(weight) for name, _, weight in pairs}
    except ValueError:
        raise UserError(f"{given}: write NAME or NAME=WEIGHT") from None
    if not all(abs(weight) <= 1e9 for weight in weights.values()):
        raise UserError(f"{given}: weights need to be finite numbers, of at most 1e9 in size")
    if not negative and (min(weights.values()) < 0 or not any(weights.values())):
        raise UserError(f"{given}: need weights of at least zero, one of them above")
    if len(weights) < len(words):
        raise UserError(f"{given}: each name once")
    if known and not weights.keys() <= set(known):
        raise UserError(f"{given}: write NAME or NAME=WEIGHT, with names from {', '.join(known)}")
    return weights


# ---- groups of flags


def add_data_flags(p, default):
    """Which labelled faces, and who of them trains. default: what holds where a flag is not given."""
    g = p.add_argument_group("data", f"where a flag is not given: {default}")
    g.add_argument("--data", help="folder of faces, its layout recognised, or synthetic")
    g.add_argument("--classes", choices=CLASS_LISTS, help="class list of --data synthetic")
    g.add_argument("--part-order", choices=PART_ORDERS, help="which part of CelebAMask-HQ is painted last")
    share = "of the people held out, where the data has no validation split; 0: nobody"
    g.add_argument("--val-fraction", type=below_one, metavar="SHARE", help=share)
    g.add_argument("--size", type=positive, help="side that photos are stretched to, pixels")
    add_who_trains(g)
    return g


def add_who_trains(g):
    limit = (
        "labelled training images, spread over people and yaw, nested by --seed; all where it is not given"
    )
    g.add_argument("--limit", type=positive, metavar="N", help=limit)
    g.add_argument("--ids", metavar="FILE", help=IDS)
    empty = "classes that may be in no training mask"
    g.add_argument("--allow-empty", nargs="+", metavar="CLASS", help=empty)


def add_device_flags(g):
    precision = "precision of the forward pass; bf16 on a GPU, off on a CPU"
    g.add_argument("--amp", choices=["off", "bf16", "fp16"], help=precision)
    g.add_argument("--device", help="cpu or cuda; a GPU where there is one")


def add_runtime_flags(p):
    """Of the training scripts that run under torchrun, too."""
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=seed, default=0, help="of order, augmentation and all that is drawn")
    add_device_flags(g)
    g.add_argument("--workers", type=processes, default=0, help="processes that read batches")
    g.add_argument("--compile", action="store_true", help="torch.compile the training pass")


def add_output_flags(p, out, eval_every):
    g = p.add_argument_group("output")
    g.add_argument("--out", default=out, metavar="FOLDER", help="run folder")
    resume = "go on with the run in --out, with its flags; begin it where there is none"
    g.add_argument("--resume", action="store_true", help=resume)
    steps = "steps between validations and checkpoints"
    g.add_argument("--eval-every", type=positive, default=eval_every, metavar="STEPS", help=steps)


def as_flags(values):
    """{"batch_size": 16, "loss": ["ce=1"]} -> "--batch-size 16 --loss ce=1", for a help text."""
    words = {k: " ".join(v) if isinstance(v, list) else v for k, v in values.items()}
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in words.items())


# ---- before the work, and after it


def run(main, args):
    """Call `main(args)` and end with its status; what a user can mend becomes one line on stderr and 2."""
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what no encoding does
        stream.reconfigure(errors="backslashreplace")
    status = 1  # of an error that nobody expected
    try:
        status = _status(main, args)
    finally:
        lineage.finish(status)
        files.release()
    sys.exit(status)


def _status(main, args):
    try:
        return main(args) or 0
    except SystemExit as left:
        return left.code or 0
    except UserError as error:
        message = str(error)
    except OSError as error:  # of a file that nobody expected to fail: a full disk, a folder taken away
        message = files.cannot_use(error)
    except (MemoryError, RuntimeError, ValueError) as error:
        message = _known(error)
        if not message:
            raise
    except KeyboardInterrupt:  # where a script does not stop by itself: see `dist.Stop`
        print("stopped by Ctrl-C; the same command goes on where it can", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


def _known(error):
    """What the user can do about an error of torch's; None of any other."""
    text = str(error)
    if dist.is_loss(error):
        return "another process of this run has ended or keeps silent; what it said tells why"
    if "more than 1 value per channel" in text:
        return (
            "BatchNorm needs more than one value of each channel: a larger --batch-size or --size, or a "
            "--model without it, such as unet_gn or cnn_plain"
        )
    full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in text
    if full or "can't allocate memory" in text:
        return f"out of memory ({text.partition(chr(10))[0]}): a smaller --batch-size, --size or --model"
    return None


def start_run(args, parser, script, needs=(), free=RESUMABLE):
    """(run folder, flags, last checkpoint) of a run that begins (None for the checkpoint) or goes on.

    needs: flags without which no run can begin; "a or b": one of the two. free: flags that may change on
    resume.
    """
    begins = not (args.resume and os.path.isfile(os.path.join(args.out, "last.pt")))
    for names in needs if begins else []:
        if all(getattr(args, name) in (None, []) for name in names.split(" or ")):
            flags = " or ".join(f"--{name.replace('_', '-')}" for name in names.split(" or "))
            raise UserError(f"{flags} is needed to begin a run (see --help); --resume goes on with one")
    for name in ("data", "unlabelled"):
        folder = getattr(args, name, None)
        if folder and os.path.realpath(folder) == os.path.realpath(args.out):
            raise UserError(f"--out {args.out}: is the folder of --{name}; name another one")
    out = open_run(args.out, args.resume)
    if begins:
        if args.resume and dist.is_first():
            print(f"--resume: {out} holds no last.pt yet, so the run begins")
        return out, args, None
    last = checkpoint.load(out / "last.pt", script, target=None)
    args = resume_flags(parser, last["args"], free=free)
    if last["best"]["step"] or "before" in last:
        checkpoint.load(out / "best.pt", target=None)
    if last.get("collapsed"):
        if dist.is_first():
            print(f"--resume: the run in {out} has collapsed ({last['collapsed']}); begin in another --out")
        sys.exit(COLLAPSED)
    if last["step"] >= args.steps:  # no mistake: a queue may start what has just ended
        if dist.is_first():
            print(f"--resume: the run in {out} has done all of its {args.steps} steps")
        sys.exit(0)
    refuse_replaced(args, last, out)
    return out, args, last


def refuse_replaced(args, last, out):
    """A UserError where a file that flags name is not the one that the checkpoint `last` knows."""
    now = input_files(args)
    for path, digest in last.get("inputs", {}).items():
        if now.get(path, digest) != digest:
            raise UserError(f"--resume: {path} is not the file that the run in {out} began with; put it back")


def input_files(args, last=None, but=()):
    """{path: sha256} of the files that flags name, so that a resumed run can tell that one was replaced; with
    those that its checkpoint `last` knows and that are gone by now. but: names of flags that are left out."""
    paths = {path for path, flag in _named(args).items() if flag not in but}
    found = {path: files.sha256(path) for path in sorted(paths) if os.path.isfile(path)}
    return (last or {}).get("inputs", {}) | found


def files_of(args, known=()):
    """{path: {"flag", "sha256"}} of the files that flags name, for `utils.lineage`. known: {path: sha256},
    what `input_files` has found."""
    return {
        path: {"flag": flag, "sha256": known[path] if path in known else files.sha256(path)}
        for path, flag in _named(args).items()
        if path in known or os.path.isfile(path)
    }


def _named(args):
    """{path: flag} of what flags name as a file, whether it is there or not."""
    found = {}
    for flag, value in vars(args).items():
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str) and (path := files.file_of(word)):
                found[path] = flag
            elif isinstance(word, str) and flag in FILES and word not in NAMES.get(flag, ()):
                found[word] = flag
    return found


def refuse_idle_data_flags(given, args, faces):
    """Refuse what was given of `add_data_flags` and says nothing about the data that is used.

    given: the flags of the command line. args: those with what was not given filled in. faces: the data.
    """
    synthetic = args.data == "synthetic"
    rendered = synthetic or getattr(args, "synthetic", 0)
    validates = None  # --val-fraction 0, nobody, has an effect whatever there is
    if given.ids:
        validates = f"beside {given.ids}, which says who validates"
    elif "val" in faces.splits and not faces.holds_out:
        validates = f"on {args.data}, which has a validation split"
    reasons = {
        "classes": None if synthetic else f"on {args.data}, which says its own classes",
        "part_order": None if "part_order" in faces.options else "on other data than CelebAMask-HQ",
        "allow_empty": "on synthetic faces, which have every class" if rendered else None,
        "val_fraction": validates if given.val_fraction else None,
    }
    refuse_without_effect(given, {name: why for name, why in reasons.items() if hasattr(given, name)})
    check_allowed(given.allow_empty, faces.classes)


def check_allowed(names, classes):
    """A UserError where --allow-empty names what is no class."""
    if unknown := [name for name in names or [] if name not in classes]:
        raise UserError(f"--allow-empty {' '.join(unknown)}: the classes are {', '.join(classes)}")


def refuse_without_effect(args, reasons):
    """A UserError for each flag given that does nothing. reasons: {flag name: why, or None where it has an
    effect}."""
    for name, why in reasons.items():
        value = getattr(args, name)
        if why and value not in (None, False, []):
            words = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"--{name.replace('_', '-')} {words}: has no effect {why}; leave it out")


def describe(args, first, world, device):
    """The run that begins or goes on, as a line of text."""
    init = getattr(args, "init", None)
    start = f" from {init}" if init else ""
    images = f"{args.batch_size} images" + f" in each of {world} processes" * (world > 1)
    return (
        f"{args.model}{start} on {device}, {args.amp} precision; steps {first} to {args.steps} of {images} "
        f"at {args.size} x {args.size}"
    )


def check_finite(loss, grad_norm, done, args):
    """Refuse to go on from a loss (a number) or a gradient norm (a tensor) that is not finite. In fp16 a norm
    may be infinite: the scaler skips that step."""
    if not math.isfinite(loss) or (args.amp != "fp16" and not grad_norm.isfinite()):
        raise UserError(
            f"no finite loss by step {done}; nothing was saved since the last checkpoint; "
            f"lower --lr {args.lr}, or --amp off"
        )


def stopped(signal, step, out):
    """Tell how a run that a signal ended goes on; its exit status, as a shell counts it."""
    print(f"stopped by signal {signal} after step {step}; --out {out} --resume goes on")
    return 128 + signal


def inherit(args, init, **defaults):
    """`args` with every None among `defaults` filled in: from the flags of the checkpoint `init`, where there
    is one, else from `defaults`."""
    filled = copy.copy(args)
    for key, value in defaults.items():
        if getattr(args, key) is None:
            setattr(filled, key, init["args"].get(key, value) if init else value)
    return filled


def fill(args, defaults):
    """`args` with every None among the keys of `defaults` filled in."""
    return inherit(args, None, **defaults)


def resume_flags(parser, saved, argv=None, free=RESUMABLE):
    """The flags of the run that goes on: those it began with. A flag on the command line that says
    otherwise is refused, except `free` ones, which hold."""
    absent = object()  # tells a flag that was not written from one written with its default
    parser.set_defaults(**dict.fromkeys(saved, absent))
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not absent}
    for key, value in given.items():
        began = saved.get(key, parser.get_default(key))  # a flag may be younger than the run
        if key not in free and value != began:
            raise UserError(
                f"--{key.replace('_', '-')} {value}: the run in {saved['out']} began with {began} "
                "and --resume goes on unchanged; a new stage needs another --out"
            )
    return argparse.Namespace(**{**saved, **given})
