"""The flags that scripts share, and what a script does with them before and after its work.

The one module of `utils` that knows parsers and namespaces: a flag that is added here means the same,
and has the same help, in every script.
"""

import argparse
import copy
import math
import sys

from utils import checkpoint, dist
from utils.errors import UserError
from utils.log import open_run

COLLAPSED = 3  # exit status of a training run that stopped itself, since its score fell
CLASS_LISTS = ["full", "fasseg", "celebamask", "lapa"]
PART_ORDERS = ["canonical", "farl"]
IDS = 'JSON {"train": [ids], "val": [ids]}, in place of --limit and --val-fraction'
RESUMABLE = ("resume", "out", "device", "workers")  # flags that may change when a run is resumed


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A script's docstring as it is written; behind each flag that has one its default."""

    def _get_help_string(self, action):
        default = action.default
        if not action.option_strings or default in (None, argparse.SUPPRESS, []) or default is False:
            return action.help
        words = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{action.help} (default {words})"


def parser(doc):
    """An empty parser. doc: the script's docstring."""
    return argparse.ArgumentParser(description=doc, allow_abbrev=False, formatter_class=HelpFormatter)


# ---- types of flags


def positive(text):
    """A whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def above_zero(text):
    """A finite number above zero."""
    if not 0 < (value := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return value


def at_least_zero(text):
    """A finite number, zero or above."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least zero")
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


def whole(text):
    """A whole number, zero or above, that 63 bits hold."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least zero")
    return int(text)


def _number(text):
    try:
        return float(text)
    except ValueError:
        return float("nan")


def named_weights(words, what, known=None):
    """["f1=1", "boundary_f1=0.5"] -> {"f1": 1.0, "boundary_f1": 0.5}; a name alone weighs 1.

    what: they are, for the message. known: the names that there are, where they are listed.
    """
    pairs = [word.rpartition("=") if "=" in word else (word, "", "1") for word in words]
    given = f"{what} {' '.join(words)}"
    try:
        weights = {name: float(weight) for name, _, weight in pairs}
    except ValueError:
        raise UserError(f"{given}: write NAME or NAME=WEIGHT") from None
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
    g.add_argument("--val-fraction", type=float, metavar="SHARE", help=share)
    g.add_argument("--size", type=positive, help="side that photos are stretched to, pixels")
    add_who_trains(g)
    return g


def add_who_trains(g):
    limit = (
        "labelled training images, spread over people and yaw, nested by --seed; all where it is not given"
    )
    g.add_argument("--limit", type=positive, metavar="N", help=limit)
    g.add_argument("--ids", metavar="FILE", help=IDS)


def add_device_flags(g):
    precision = "precision of the forward pass; bf16 on a GPU, off on a CPU"
    g.add_argument("--amp", choices=["off", "bf16", "fp16"], help=precision)
    g.add_argument("--device", help="cpu or cuda; a GPU where there is one")


def add_runtime_flags(p):
    """Of the training scripts that run under torchrun, too."""
    g = p.add_argument_group("runtime")
    g.add_argument("--seed", type=int, default=0, help="of order, augmentation and all that is drawn")
    add_device_flags(g)
    g.add_argument("--workers", type=int, default=0, help="processes that read batches")
    g.add_argument("--compile", action="store_true", help="torch.compile the training pass")


def add_output_flags(p, out, eval_every):
    g = p.add_argument_group("output")
    g.add_argument("--out", default=out, metavar="FOLDER", help="run folder")
    g.add_argument("--resume", action="store_true", help="go on with the run in --out, with its flags")
    steps = "steps between validations and checkpoints"
    g.add_argument("--eval-every", type=positive, default=eval_every, metavar="STEPS", help=steps)


def as_flags(values):
    """{"batch_size": 16, "loss": ["ce=1"]} -> "--batch-size 16 --loss ce=1", for a help text."""
    words = {k: " ".join(v) if isinstance(v, list) else v for k, v in values.items()}
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in words.items())


# ---- before the work, and after it


def run(main, args):
    """Call `main(args)`; a `UserError` becomes one line on stderr and exit status 2, the loss
    of another process one line and 1."""
    try:
        sys.exit(main(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if dist.is_loss(error):
            print(
                "error: another process of this run has gone or keeps silent; see what it said",
                file=sys.stderr,
            )
            sys.exit(1)
        if not _is_out_of_memory(error):
            raise
        print("error: out of memory; a smaller --batch-size or --size needs less", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # where a script does not stop by itself: see `dist.Stop`
        print("stopped by Ctrl-C; the same command goes on where it can", file=sys.stderr)
        sys.exit(130)


def _is_out_of_memory(error):
    """On a CPU PyTorch has no class for it."""
    words = "out of memory", "allocate memory"
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def start_run(args, parser, script, needs=(), free=RESUMABLE):
    """(run folder, flags, last checkpoint) of a run that begins (None for the checkpoint) or goes on.

    needs: flags without which no run can begin. free: flags that may change on resume.
    """
    for flag in needs:
        if getattr(args, flag) is None and not args.resume:
            raise UserError(f"--{flag.replace('_', '-')} is needed to begin a run; --resume goes on with one")
    out = open_run(args.out, args.resume)
    if not args.resume:
        return out, args, None
    last = checkpoint.load(out / "last.pt", script)
    args = resume_flags(parser, last["args"], free=free)
    if last["step"] >= args.steps:
        raise UserError(f"--resume: {out} has done all of its {args.steps} steps")
    return out, args, last


def describe(args, first, world, device):
    """The run that begins or goes on, as a line of text."""
    start = f" from {args.init}" if args.init else ""
    images = f"{args.batch_size} images" + f" in each of {world} processes" * (world > 1)
    return (
        f"{args.model}{start} on {device}, {args.amp} precision; steps {first} to {args.steps} of {images} "
        f"at {args.size} x {args.size}"
    )


def check_finite(loss, grad_norm, step, args):
    """Refuse to go on from a loss (a number) or a gradient norm (a tensor) that is not finite. In fp16 a norm
    may be infinite: the scaler skips that step."""
    if not math.isfinite(loss) or (args.amp != "fp16" and not grad_norm.isfinite()):
        raise UserError(
            f"no finite loss by step {step}; nothing was saved since the last checkpoint; "
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
                "and --resume goes on unchanged; a new stage needs --init and another --out"
            )
    return argparse.Namespace(**{**saved, **given})
