"""The one error that is the user's, and the log that says what else they should know. They stand
apart from the tables so that `quarry --help` need not import Arrow.
"""

import logging

log = logging.getLogger("quarry")


class UserError(Exception):
    """The user's mistake: one line that says what was found, what was expected and what to do.
    The CLI exits with 2.
    """
