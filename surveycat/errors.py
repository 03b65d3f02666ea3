"""Everything that can go wrong in a way a user can mend.

Each message is one line: what is wrong, the value that came, and the way out. The command line prints it
without a traceback and exits with 1; a Python caller catches `SurveycatError`.
"""


class SurveycatError(Exception):
    """Base of every error that surveycat raises for its user."""


class ImageError(SurveycatError):
    """The image cannot be read, or is not of a kind that can be searched for galaxies."""


class PositionError(SurveycatError):
    """The sky position or the WCS that was given cannot be used."""


class OutputError(SurveycatError):
    """The output cannot be written where, or as, it was asked for."""


class WeightsError(SurveycatError):
    """The weights are missing, damaged, or do not fit the network."""


class OptionError(SurveycatError):
    """An option has a value outside its range, or two options contradict each other."""


class RunFailed(SurveycatError):
    """The search itself could not be carried through, though its input was good."""


class ServiceError(SurveycatError):
    """A service on the net gave no usable answer."""


class OutsideFootprint(ServiceError):
    """The survey has no image of that part of the sky."""


def one_line(error):
    """Say an error in one line.

    Parameters
    ----------
    error : Exception
        A `SurveycatError`, or one of the system.

    Returns
    -------
    str
        What it says; errors of the system name the file first.
    """
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}"
    return " ".join(str(error).split())
