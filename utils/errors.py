"""A user's mistake: one line that says what is wrong, where, and what to do; exit status 2."""

import argparse
import sys


class UserError(Exception):
    """Something only the user can mend: a path, a flag, a file. Its text is all that they see."""


def positive(text):
    """For argparse's `type`: a whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def above_zero(text):
    """For argparse's `type`: a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return value


def run(main, args):
    """Call `main(args)`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
