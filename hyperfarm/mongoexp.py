"""A drop-in for `hyperopt.mongoexp`: change the import, and the program runs on the farm.

    from hyperfarm.mongoexp import MongoTrials

`install()` puts it in hyperopt's place for programs whose imports cannot be changed. docs/migrate.md says what
differs, and why.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperfarm.mongo_jobs import (
        MongoJobs,
        OperationFailure,
        as_mongo_str,
        connection_from_string,
        parse_url,
    )
    from hyperfarm.mongo_trials import DomainSwapError, InvalidMongoTrial, MongoTrials
    from hyperfarm.trials import MongoTrials as FarmTrials
    from hyperfarm.worker.mongo_command import Shutdown, WaitQuit, main_worker, main_worker_helper
    from hyperfarm.worker.mongo_worker import MongoCtrl, MongoWorker, ReserveTimeout

_HOMES = {
    "MongoJobs": "hyperfarm.mongo_jobs",
    "OperationFailure": "hyperfarm.mongo_jobs",
    "as_mongo_str": "hyperfarm.mongo_jobs",
    "connection_from_string": "hyperfarm.mongo_jobs",
    "parse_url": "hyperfarm.mongo_jobs",
    "DomainSwapError": "hyperfarm.mongo_trials",
    "InvalidMongoTrial": "hyperfarm.mongo_trials",
    "MongoTrials": "hyperfarm.mongo_trials",
    "MongoCtrl": "hyperfarm.worker.mongo_worker",
    "MongoWorker": "hyperfarm.worker.mongo_worker",
    "ReserveTimeout": "hyperfarm.worker.mongo_worker",
    "Shutdown": "hyperfarm.worker.mongo_command",
    "WaitQuit": "hyperfarm.worker.mongo_command",
    "main_worker": "hyperfarm.worker.mongo_command",
    "main_worker_helper": "hyperfarm.worker.mongo_command",
}
__all__ = [
    "DomainSwapError",
    "InvalidMongoTrial",
    "MongoCtrl",
    "MongoJobs",
    "MongoTrials",
    "MongoWorker",
    "OperationFailure",
    "ReserveTimeout",
    "Shutdown",
    "WaitQuit",
    "as_mongo_str",
    "connection_from_string",
    "fmin",
    "install",
    "main",
    "main_worker",
    "main_worker_helper",
    "parse_url",
]


def __getattr__(name: str) -> Any:
    """Import each name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hyperfarm.mongoexp' has no attribute {name!r}")


def fmin(fn: Any, space: Any, *args: Any, **kwargs: Any) -> Any:
    """`hyperopt.fmin`, in which `points_to_evaluate` is heeded with MongoTrials too.

    The points are the first trials of the experiment and part of `max_evals`. All else is hyperopt's own.
    """
    return _fmin_of(_hyperopts_fmin())(fn, space, *args, **kwargs)


def _hyperopts_fmin() -> Any:
    """hyperopt's own function, also after `install`."""
    module = importlib.import_module("hyperopt.fmin")
    return getattr(module.fmin, "hyperopts_own", module.fmin)


def _fmin_of(original: Any) -> Any:
    import functools
    import inspect

    @functools.wraps(original)
    def fmin(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        trials, points = given.get("trials"), given.get("points_to_evaluate")
        if not points or not isinstance(trials, _farm_trials()):
            return original(*args, **kwargs)
        given.pop("points_to_evaluate")
        with trials.beginning_with(points):
            return original(**given)

    fmin.hyperopts_own = original  # type: ignore[attr-defined]
    return fmin


def _farm_trials() -> type[FarmTrials]:
    from hyperfarm.trials import MongoTrials

    return MongoTrials


def install() -> None:
    """Put this module in the place of `hyperopt.mongoexp`, and our templates in that of hyperas, in this process.

    From then on `from hyperopt.mongoexp import MongoTrials`, `from hyperas import optim`, `from hyperas.distributions
    import choice` and the like give hyperfarm's, and `hyperopt.fmin` heeds `points_to_evaluate` with MongoTrials.
    What was imported before keeps what it has. Safe to call again.
    """
    import hyperopt

    from hyperfarm.template_install import install as install_hyperas

    sys.modules["hyperopt.mongoexp"] = hyperopt.mongoexp = sys.modules[__name__]
    own = _hyperopts_fmin()
    replaced = _fmin_of(own)
    importlib.import_module("hyperopt.fmin").fmin = replaced  # type: ignore[attr-defined]
    hyperopt.fmin = replaced
    install_hyperas()


def main() -> None:
    """The command `hyperfarm-mongo-worker`, which takes `hyperopt-mongo-worker`'s options."""
    from hyperfarm.worker.mongo_command import main as run

    run()


if __name__ == "__main__":
    main()
