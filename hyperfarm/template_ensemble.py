"""Several models as one, by vote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hyperfarm.errors import UsageError


class VotingModel:
    """Classifiers that vote. `voting="hard"`: each has `weights[i]` votes for its most likely class; "soft": their
    probabilities are averaged with these weights. Without weights all count the same.

    `nb_classes` is not needed; it is checked if it is given. Raises UsageError for arguments that do not fit.
    """

    def __init__(
        self,
        model_list: Iterable[Any],
        voting: str = "hard",
        weights: Sequence[float] | None = None,
        nb_classes: int | None = None,
    ) -> None:
        self.model_list = list(model_list)
        self.voting, self.weights, self.nb_classes = voting, weights, nb_classes
        if voting not in ("hard", "soft"):
            raise UsageError(f"voting is {voting!r}; it must be 'hard' or 'soft'")
        if not self.model_list:
            raise UsageError("there are no models to vote")
        if weights is not None and len(weights) != len(self.model_list):
            raise UsageError(f"there are {len(self.model_list)} models, but {len(weights)} weights")

    def predict(self, X: Any, batch_size: int = 128, verbose: int = 0) -> Any:
        """Return the class of each row of `X`; of classes with equally many votes, the first."""
        probabilities = np.stack(
            [np.asarray(one.predict(X, batch_size=batch_size, verbose=verbose)) for one in self.model_list]
        )
        classes = probabilities.shape[-1]
        if self.nb_classes is not None and self.nb_classes != classes:
            raise UsageError(f"the models know {classes} classes, not {self.nb_classes}")
        if self.voting == "hard":
            probabilities = np.eye(classes)[probabilities.argmax(axis=-1)]
        weights = np.ones(len(self.model_list)) if self.weights is None else np.asarray(self.weights)
        return np.tensordot(weights, probabilities, axes=1).argmax(axis=-1)
