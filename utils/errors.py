"""A user's mistake: one line that says what is wrong, where, and what to do."""

import re


class UserError(Exception):
    """Something only the user can mend: a path, a flag, a file. Its text is all that they see."""

    def __str__(self):
        return printable(super().__str__())


def printable(text):
    """`text` with escapes in place of control characters and of what is no UTF-8 in the names of files, which
    no log takes. Line breaks stay."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], text)
