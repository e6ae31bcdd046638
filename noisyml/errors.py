"""The one exception a user may see: a sentence, not a traceback."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints the message alone and exits with status 2; set ``NOISYML_DEBUG=1`` for
    the traceback.
    """
