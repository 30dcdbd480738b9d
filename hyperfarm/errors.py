"""Every error that hyperfarm raises on purpose.

`HyperfarmError` is the base. Its message is one sentence for a person: what is wrong, where, what to do.
The command line prints that sentence and exits with 2; `HYPERFARM_DEBUG=1` adds the traceback.
"""

from __future__ import annotations


class HyperfarmError(Exception):
    """Base of all errors of hyperfarm; `str(error)` is fit to be shown to a user."""


class UsageError(HyperfarmError, ValueError):
    """What the user asked for cannot be done as asked (a bad value, a missing file, an unknown name)."""


class SettingsError(HyperfarmError):
    """A setting, a URL or a file of the user's configuration is wrong or unusable."""


class ExperimentNotFound(UsageError):
    """No experiment has this exp_key."""


class ExperimentConflict(UsageError):
    """The experiment exists with other code, another space or another budget, and nobody asked to change it."""


class BundleError(HyperfarmError):
    """An objective cannot be shipped to the workers, or a bundle cannot be loaded."""


class BundleRefused(BundleError):
    """A bundle is unsigned, altered or another experiment's: it is not unpickled."""


class DatabaseError(HyperfarmError):
    """MongoDB refused a statement, or cannot be used."""


class DatabaseUnavailable(DatabaseError):
    """MongoDB cannot be reached now; the statement had no effect."""


class OutcomeUnknown(DatabaseError):
    """The connection broke after a write was sent: it may or may not have taken effect."""


class EmbeddedError(HyperfarmError):
    """The private mongod cannot be found, fetched or started."""


class InvalidTransition(HyperfarmError):
    """A job's state does not allow this event; the message tells the job's history."""


class LeaseLost(HyperfarmError):
    """The job is no longer this worker's: nothing that it writes about the job is kept."""


class BudgetSpent(UsageError):
    """A study has no trial to hand out: all of its budget is finished, or in somebody's hands."""


class InvalidResult(HyperfarmError):
    """What an objective returned is not a result: neither a number nor a dict with a loss."""
