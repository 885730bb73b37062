"""The two ways in which a run ends early without a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: one plain line on what is wrong and what to do. Exit code 2."""


class Interrupted(Exception):
    """A signal asked the run to stop; everything is saved and the same command goes on. Exit code 75 (EX_TEMPFAIL)."""
