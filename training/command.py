"""How the training programs end: what a user can cause is one line on standard error, not a traceback."""

import sys

from surveycat.errors import SurveycatError, one_line

__all__ = ["exit_code"]


def exit_code(work):
    """Do the work of a program and say how it went.

    Parameters
    ----------
    work : callable
        Takes nothing.

    Returns
    -------
    int
        0; 1 after a line of error, for what surveycat refuses and for files that cannot be read or written; 130 after
        Ctrl-C.
    """
    try:
        work()
    except SurveycatError as error:
        return _failed(one_line(error))
    except OSError as error:
        if error.filename is None:  # no file of the user's
            raise
        return _failed(f"{one_line(error)}; check the path, and the options that lead to it")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _failed(why):
    print(f"error: {why}", file=sys.stderr)
    return 1
