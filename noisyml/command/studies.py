"""Studies of Optuna: what is drawn from, which trials are missing, and what came out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noisyml.command.words import Word
from noisyml.errors import UserError
from noisyml.runs.trials import RESULTS_FILE
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

#: The best values so far, in the folder of the search.
BEST_FILE = "best.json"
#: Finished trials from which on it is said which settings mattered.
ENOUGH_TRIALS = 10


def distribution(word: Word) -> BaseDistribution:
    """The values that a word lets a search choose from.

    Raises:
        UserError: an interval from high to low.
    """
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    sweep = word.sweep()
    log = "log" in getattr(sweep, "tags", ())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start or 0, sweep.end or 0
        if not low < high or (log and low <= 0):
            raise UserError(f"{word.text}: an interval runs from low to high, with log above 0.")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(sweep, RangeSweep) and all(
        isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step)
    ):
        values = [int(value) for value in word.values()]
        if len(values) > 1 and values[0] < values[-1]:
            return IntDistribution(values[0], values[-1], step=values[1] - values[0])
    return CategoricalDistribution(word.values())


def example(values: BaseDistribution) -> Any:
    """One of the values of a distribution."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(values, CategoricalDistribution):
        return values.choices[0]
    return values.low  # type: ignore[attr-defined]


def sampler(method: Literal["tpe", "random"], seed: int) -> BaseSampler:
    """Optuna's sampler of one trial."""
    from optuna import samplers

    kind = samplers.TPESampler if method == "tpe" else samplers.RandomSampler
    return kind(seed=seed % 2**32)


def missing_trials(study: Study, space: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    """The trials that a kill left under way; those of another space are given up.

    Args:
        study: begun or new.
        space: what is searched, by setting.
    """
    from optuna.trial import TrialState

    begun = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in begun:
        if trial.params.keys() != space.keys():
            # Killed while it was being drawn, or typed with another space.
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial for trial in begun if trial.params.keys() == space.keys()]


def write_best(home: Path, study: Study, objective: str) -> dict[str, Any] | None:
    """Write the best trial so far; None if none has finished.

    Args:
        home: of the search.
        study: of the search.
        objective: name of the metric.
    """
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        return None
    best = study.best_trial
    facts = {
        "objective": objective,
        "direction": study.direction.name.lower(),
        "value": best.value,
        "job": best.number,
        "params": best.params,
        "trials": len(done),
        "pruned": len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))),
    }
    write_atomically(home / BEST_FILE, json.dumps(facts, indent=2) + "\n")
    return facts


def write_results(
    home: Path, study: Study, facts: Mapping[str, Any], importance: bool = False
) -> None:
    """Write how the trials went, for the report.

    Args:
        home: of the search.
        study: of the search.
        facts: about the search.
        importance: compute also how much each setting mattered.
    """
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": _finite(trial.value),
            "params": trial.params,
            "reported": {str(e): _finite(v) for e, v in trial.intermediate_values.items()},
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    content = {
        **facts,
        "direction": study.direction.name.lower(),
        "trials": trials,
        "importance": _importance(study) if importance else {},
    }
    write_atomically(home / RESULTS_FILE, json.dumps(content, indent=2) + "\n")


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: None stands for them."""
    return value if value is not None and math.isfinite(value) else None


def _importance(study: Study) -> dict[str, float]:
    """Share of each setting in the variance of the objective (fANOVA), the greatest first.

    Nothing with too few finished trials, or where all had the same value.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH_TRIALS or len({trial.value for trial in done}) == 1:
        return {}
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))
