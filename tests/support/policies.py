"""Policies as another package may bring them."""

import os
import signal
from collections.abc import Sequence

from noisyml.stages.plan import Handover, Policy, StagePlan, StageResult
from noisyml.stages.self_training import Gist


class BetterOfTwo(Policy):
    """A greedy search: each round trains two candidates, the better one goes on.

    Args:
        rates: learning rates of the candidates of each round.
        metric: larger is better.
    """

    def __init__(self, rates: Sequence[Sequence[float]], metric: str = "val/map_at_r") -> None:
        self.rates = [(number, rate) for number, pair in enumerate(rates, 1) for rate in pair]
        self.metric = metric

    def next(self, done: Sequence[StageResult]) -> StagePlan | None:
        """The next candidate, which starts from the best of the rounds before."""
        if len(done) == len(self.rates):
            self.best(done)
            return None
        number, rate = self.rates[len(done)]
        before = done[: 2 * (number - 1)]
        start = self.best(before).path if before else None
        return StagePlan(
            name=f"round_{number}_{'ab'[len(done) % 2]}",
            overrides=[f"optimizer.lr={rate}"],
            previous=start,
            init_from=start,
        )

    def hand_over(self, done: Sequence[StageResult]) -> Handover:
        """The best candidate's encoder and rate."""
        best = self.best(done)
        rate = best.config["optimizer"]["lr"]
        return Handover(previous=best.path, init_from=best.path, settings={"optimizer.lr": rate})

    def best(self, done: Sequence[StageResult]) -> StageResult:
        """The candidate with the largest metric; a test may want the process dead by then."""
        best = max(done, key=lambda result: result.metrics[self.metric])
        if os.environ.get("DIE_BEFORE_DECIDING"):
            os.kill(os.getpid(), signal.SIGKILL)
        return best


class RandomPath(Policy):
    """So many stages drawn from several options, each from the encoder of the one before."""

    def __init__(self, options: Sequence[str], length: int, seed: int) -> None:
        self.options, self.length, self.seed = list(options), length, seed

    def next(self, done: Sequence[StageResult]) -> StagePlan | None:
        """A draw that depends on the seed and the number of stages alone."""
        import random

        if len(done) == self.length:
            return None
        drawn = random.Random(f"{self.seed} {len(done)}").choice(self.options)
        start = done[-1].path if done else None
        return StagePlan(name=f"step_{len(done)}", overrides=[drawn], init_from=start)


class TwoStages(Policy):
    """Another method first; the run itself starts from its encoder."""

    def next(self, done: Sequence[StageResult]) -> StagePlan | None:
        """The first stage alone."""
        return None if done else StagePlan(name="first", overrides=["method=other"])

    def hand_over(self, done: Sequence[StageResult]) -> Handover:
        """The first stage's encoder."""
        return Handover(previous=done[0].path, init_from=done[0].path)


class MortalGist(Gist):
    """A greedy self-training whose process may be wanted dead before it chooses."""

    def search(self, scores):
        """Choose, unless death comes first: after the fifth model."""
        if os.environ.get("DIE_BEFORE_CHOOSING") and len(scores) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().search(scores)
