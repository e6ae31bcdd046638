"""Policies of self-training: which stages learn from human labels, and which from pseudo-labels.

A stage is called after its weight of pseudo-labels a: 0 human labels alone, 1 pseudo-labels alone.
Teh et al., "The GIST and RIST of Iterative Self-Training for Semi-Supervised Segmentation", CRV
2022 (arXiv 2103.17105).
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from noisyml.checks import Count, OpenShare, Share, WholeNonNegative
from noisyml.errors import UserError
from noisyml.stages.plan import Handover, Policy, StagePlan, StageResult

#: Choices of one stage after the other: the weights of pseudo-labels.
Path = tuple[float, ...]
#: Scores are compared on a part of the labelled samples that is held out, or on the data set's
#: validation split.
SelectOn = Literal["holdout", "val"]


class Scored(NamedTuple):
    """A trained model: the choices that led to it, and its score."""

    path: Path
    score: float


def candidates(beams: Sequence[Path]) -> list[Path]:
    """The models of the next stage: each beam followed by 0 and by 1, in this order."""
    return [(*beam, choice) for beam in beams for choice in (0.0, 1.0)]


def best_beams(found: Sequence[Scored], width: int) -> list[Path]:
    """The paths of the best `width` models, the best first; of equals the earlier one.

    Example:
        >>> models = [Scored((0.0,), 0.5), Scored((1.0,), 0.7), Scored((0.0, 1.0), 0.7)]
        >>> best_beams(models, 2)
        [(1.0,), (0.0, 1.0)]
    """
    order = sorted(range(len(found)), key=lambda i: (-comparable(found[i].score), i))
    return [found[i].path for i in order[:width]]


def comparable(score: float) -> float:
    """A score as it is compared: one that is no number is below all others."""
    return -math.inf if math.isnan(score) else score


def random_path(length: int, seed: int) -> list[float]:
    """So many choices between 0 and 1, each as likely, drawn up front (RIST).

    Example:
        >>> random_path(6, seed=0) == random_path(6, seed=0)
        True
    """
    words = [seed, *b"rist"]
    return np.random.default_rng(words).integers(0, 2, length).astype(float).tolist()


class SelfTrainingStages(Policy):
    """Base of the policies: a first stage on human labels, then stages that start from each other.

    All stages are runs of their own; the run itself trains nothing, it adopts the model of the last
    stage and beside it that of the best one, and tests both.

    Args:
        first: overrides of the first stage, e.g. ``[method=classification]``: any trainer whose
            network is that of the run.
        overrides: overrides of the stages after it.
        max_steps: steps of each of these; null: as the run says.
        select_on: what scores are measured on: ``holdout``, a part of the labelled samples that no
            stage trains on, or ``val``, the data set's validation split, which then serves the
            choice of the model. Written into every stage's configuration.
        holdout_fraction: share of the labelled samples that is held out.
        metric: of the validation split, larger is better; null: the first of ``miou`` and
            ``accuracy`` that is there.

    Raises:
        UserError: a setting that contradicts another.
    """

    def __init__(
        self,
        first: Sequence[str] = (),
        overrides: Sequence[str] = (),
        max_steps: Count | None = None,
        select_on: SelectOn = "holdout",
        holdout_fraction: OpenShare = 0.2,
        metric: str | None = None,
    ) -> None:
        if select_on == "holdout" and holdout_fraction == 0:
            raise UserError(
                "stages.select_on=holdout needs stages.holdout_fraction > 0, the share of the "
                "labelled samples to hold out; or say stages.select_on=val."
            )
        self.first = list(first)
        self.overrides = list(overrides)
        self.max_steps = max_steps
        self.select_on = select_on
        self.holdout_fraction = holdout_fraction
        self.metric = metric

    @abstractmethod
    def planned(self, done: Sequence[Scored]) -> list[Path]:
        """The models to train next, of which each extends one that is there.

        Args:
            done: all models so far, in the order in which they were trained, the first stage's
                with an empty path first. A score is looked at only where `scored` says so.

        Returns:
            Their paths; none: that is all.
        """

    @property
    def scored(self) -> bool:
        """True if the next stage depends on scores."""
        return False

    @abstractmethod
    def last(self, done: Sequence[Scored]) -> Path:
        """The path of the model that the search ends with."""

    # -- stages --------------------------------------------------------------------------------

    def next(self, done: Sequence[StageResult]) -> StagePlan | None:
        """The first stage, then what `planned` says."""
        if not done:
            return StagePlan(
                name=stage_name(()), overrides=self.first, settings=self._settings(0.0, None)
            )
        names = {result.name: result for result in done}
        models = self._models(done, scored=self.scored)
        for path in self.planned(models):
            name = stage_name(path)
            if name not in names:
                source = names[stage_name(path[:-1])]
                return StagePlan(
                    name=name,
                    overrides=self.overrides,
                    previous=source.path,
                    settings=self._settings(path[-1], source),
                )
        return None

    def hand_over(self, done: Sequence[StageResult]) -> Handover:
        """The models of the last and of the best stage."""
        models = self._models(done, scored=True)
        names = {result.name: result for result in done}
        last = names[stage_name(self.last(models))]
        best = names[stage_name(best_beams(models, 1)[0])]
        adopt = {"last": str(last.path), "best": str(best.path)}
        return Handover(previous=last.path, settings={**self._data_settings(), "adopt": adopt})

    def _models(self, done: Sequence[StageResult], scored: bool) -> list[Scored]:
        return [
            Scored(path_of(result.name), self._score(result) if scored else math.nan)
            for result in done
        ]

    def _score(self, result: StageResult) -> float:
        metrics = result.metrics
        wanted = [self.metric] if self.metric else ["miou", "accuracy"]
        for name in wanted:
            if f"val/{name}" in metrics:
                return metrics[f"val/{name}"]
        raise UserError(
            f"The stage {result.name} has no val/{wanted[0]} to compare models by: choose "
            f"stages.metric among {', '.join(m for m in metrics if m.startswith('val/')) or 'none'}"
            f" (a data set without a validation split wants stages.select_on=holdout)."
        )

    def _data_settings(self) -> dict[str, Any]:
        held = self.holdout_fraction if self.select_on == "holdout" else 0.0
        return {"data.labelled_holdout": held}

    def _settings(self, alpha: float, source: StageResult | None) -> dict[str, Any]:
        settings = self._data_settings()
        if source is None:
            return settings
        settings |= {"method.alpha": alpha, "method.pseudo.source": str(source.path)}
        if self.max_steps is not None:
            settings |= {"trainer.max_steps": self.max_steps, "trainer.max_epochs": -1}
        return settings


class Gist(SelfTrainingStages):
    """Greedy: each stage is tried with human and with pseudo-labels, the better model goes on.

    With several beams the best few models go on. Of equal scores the earlier model wins: beam by
    beam, human labels before pseudo-labels.

    Args:
        count: stages after the first, T.
        beams: models that go on, K.
        **settings: arguments of `SelfTrainingStages`.
    """

    def __init__(self, count: Count = 10, beams: Count = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.count = count
        self.beams = beams

    @property
    def scored(self) -> bool:
        """True: the better models go on."""
        return True

    def search(self, scores: Mapping[Path, float]) -> tuple[list[Path], list[Path]]:
        """The beams after the stages that are finished, and the models to train next.

        Args:
            scores: of the models that are there, by path.
        """
        beams: list[Path] = [()]
        for _ in range(self.count):
            wanted = candidates(beams)
            if any(path not in scores for path in wanted):
                return beams, wanted
            beams = best_beams([Scored(path, scores[path]) for path in wanted], self.beams)
        return beams, []

    def planned(self, done: Sequence[Scored]) -> list[Path]:
        """Both choices after every beam."""
        return self.search(dict(done))[1]

    def last(self, done: Sequence[Scored]) -> Path:
        """The best beam of the last stage."""
        return self.search(dict(done))[0][0]


class KnownPath(SelfTrainingStages):
    """Base of policies whose choices are known before the first stage: the path is `path`."""

    path: Path

    def planned(self, done: Sequence[Scored]) -> list[Path]:
        """The stages of the path, one after the other."""
        return [self.path[: number + 1] for number in range(len(self.path))]

    def last(self, done: Sequence[Scored]) -> Path:
        """The whole path."""
        return self.path


class FixedPath(KnownPath):
    """A given path of choices.

    Args:
        path: weights of pseudo-labels of the stages, e.g. ``[0, 1, 1]``; 0 human, 1 pseudo.
        **settings: arguments of `SelfTrainingStages`.
    """

    def __init__(self, path: Sequence[Share], **settings: Any) -> None:
        super().__init__(**settings)
        if not path:
            raise UserError("stages.path is empty: give one number for each stage, e.g. [0,1,1].")
        self.path = tuple(float(choice) for choice in path)


class Fist(KnownPath):
    """A fixed mixture of human and pseudo-labels in every stage (FIST); 0 or 1: one of them alone.

    Args:
        count: stages after the first, T.
        alpha: weight of pseudo-labels in every stage.
        **settings: arguments of `SelfTrainingStages`.
    """

    def __init__(self, count: Count = 10, alpha: Share = 0.5, **settings: Any) -> None:
        super().__init__(**settings)
        self.path = (float(alpha),) * count


class Rist(KnownPath):
    """Human or pseudo-labels at random in each stage, drawn before the first one (RIST).

    Args:
        count: stages after the first, T.
        seed: of the choices.
        **settings: arguments of `SelfTrainingStages`.
    """

    def __init__(self, count: Count = 10, seed: WholeNonNegative = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.path = tuple(random_path(count, seed))


_LETTERS = {0.0: "h", 1.0: "p"}
_CHOICE = re.compile(r"h|p|m[0-9.e-]+")


def stage_name(path: Path) -> str:
    """The name of the folder of a stage, which tells the choices that led to it.

    Example:
        >>> stage_name(()), stage_name((0.0, 1.0)), stage_name((0.5, 0.5))
        ('stage_0', 'stage_2-hp', 'stage_2-m0.5m0.5')
    """
    if not path:
        return "stage_0"
    return f"stage_{len(path)}-" + "".join(_LETTERS.get(a, f"m{a:g}") for a in path)


def path_of(name: str) -> Path:
    """Undo `stage_name`.

    Example:
        >>> path_of("stage_3-hpm0.25")
        (0.0, 1.0, 0.25)
    """
    numbers = {letter: choice for choice, letter in _LETTERS.items()}
    return tuple(
        numbers[word] if word in numbers else float(word[1:])
        for word in _CHOICE.findall(name.partition("-")[2])
    )
