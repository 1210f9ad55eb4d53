"""The one error that is the user's. It stands apart from the tables so that `quarry --help` need
not import Arrow.
"""


class UserError(Exception):
    """The user's mistake: one line that says what was found, what was expected and what to do.
    The CLI exits with 2.
    """
