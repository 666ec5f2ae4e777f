"""A user's mistake: one line that says what is wrong, where, and what to do."""


class UserError(Exception):
    """Something only the user can mend: a path, a flag, a file. Its text is all that they see."""
