"""Wrong labels as scikit-learn sees them: an auditor, and a classifier that leaves them out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from noisyml.audit.judging import Judgements, judge_labels
from noisyml.checks import Count, Ge, Share, check_arguments
from noisyml.estimators.tldr import value_errors

#: Rows below which nothing can be judged: every label is taken for right.
FEWEST = 4


class LabelAuditor(BaseEstimator):
    """Probability that each label of a data set is wrong.

    The judgement of ``noisyml clean``, see `noisyml.audit.judging.judge_labels`.

    Args:
        n_neighbors: nearest rows that vote on each label.
        n_folds: parts of the data, each judged by a classifier of the others.
        n_rounds: fits; each after the first learns from the judgements of the one before.
        random_state: of folds.

    Attributes:
        issues_: data frame, a row for each row of `X` in its order: ``given``, ``suggested``,
            ``p_wrong``, ``p_suggested``, ``is_issue`` (``p_wrong`` above one half).
        noise_rate_: share of the labels that are wrong by estimate.
        transition_: share of the rows of each true class (first axis) that carry each label [C, C].
        classes_: the labels that there are [C].
        n_features_in_: D.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> y[0] = 2
        >>> auditor = LabelAuditor(n_neighbors=10, n_folds=5, random_state=0).fit(X, y)
        >>> int(auditor.issues_["p_wrong"].argmax()), int(auditor.issues_["suggested"][0])
        (0, 0)
    """

    issues_: pd.DataFrame

    def __init__(
        self,
        n_neighbors: Count = 30,
        n_folds: Annotated[int, Ge(2)] = 10,
        n_rounds: Count = 2,
        random_state: Any = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.n_folds = n_folds
        self.n_rounds = n_rounds
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Judge the labels `y` [N] of the rows `X` [N, D]."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        with value_errors():
            check_arguments(type(self), self.get_params(deep=False))
            self.classes_, labels = np.unique(y, return_inverse=True)
            judged = self._judged(X, labels.astype(np.int64))
        if judged is None:
            p_wrong, suggested = np.zeros(len(y)), labels
            p_suggested = p_wrong
            self.noise_rate_, self.transition_ = 0.0, np.eye(len(self.classes_))
        else:
            p_wrong, suggested = judged.p_wrong, judged.suggested
            p_suggested = judged.p_suggested
            self.noise_rate_, self.transition_ = judged.noise_rate.value, judged.transition
        self.issues_ = pd.DataFrame(
            {
                "given": y,
                "suggested": self.classes_[suggested],
                "p_wrong": p_wrong,
                "p_suggested": p_suggested,
                "is_issue": p_wrong > 0.5,
            }
        )
        return self

    def _judged(self, X: NDArray[Any], labels: NDArray[np.int64]) -> Judgements | None:
        """Judgements; None where one class or a few rows allow none."""
        if len(self.classes_) < 2 or len(labels) < FEWEST:
            return None
        seed = int(check_random_state(self.random_state).randint(2**31))
        return judge_labels(
            X,
            labels,
            len(self.classes_),
            neighbours=self.n_neighbors,
            folds=self.n_folds,
            rounds=self.n_rounds,
            seed=seed,
            replicates=1,
        )


def _base_has(method: str) -> Any:
    def check(self: NoisyLabelClassifier) -> bool:
        base = self.classifier_ if hasattr(self, "classifier_") else self._base()
        getattr(base, method)
        return True

    return check


class NoisyLabelClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """A classifier trained on labels that were audited first.

    Args:
        base: any classifier of scikit-learn's kind; None: logistic regression.
        selector: an auditor with ``fit(X, y).issues_``; None: `LabelAuditor`.
        treatment: what becomes of labels that are probably wrong: ``drop`` the rows, ``relabel``
            them where the suggestion is likelier than the label, or ``weight`` all rows by the
            probability that their label is right (the base must take ``sample_weight``).
        threshold: probability from which a label is probably wrong. A class never loses all rows.

    Attributes:
        classifier_: the trained base.
        selector_: the fitted auditor.
        classes_: the labels that there are [C].
        n_features_in_: D.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> noisy = y.copy()
        >>> noisy[::5] = 0
        >>> auditor = LabelAuditor(n_neighbors=10, n_folds=5, random_state=0)
        >>> NoisyLabelClassifier(selector=auditor).fit(X, noisy).score(X, y) > 0.9
        True
    """

    def __init__(
        self,
        base: Any = None,
        selector: Any = None,
        treatment: Literal["drop", "relabel", "weight"] = "drop",
        threshold: Share = 0.5,
    ) -> None:
        self.base = base
        self.selector = selector
        self.treatment = treatment
        self.threshold = threshold

    def _base(self) -> Any:
        return LogisticRegression(max_iter=1000) if self.base is None else self.base

    def fit(self, X: Any, y: Any) -> Self:
        """Audit the labels `y` [N] of the rows `X` [N, D], then train on what is trusted."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        with value_errors():
            check_arguments(type(self), self.get_params(deep=False))
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"NoisyLabelClassifier needs two classes at least, and y has {len(self.classes_)} "
                f"class."
            )
        auditor = LabelAuditor(random_state=0) if self.selector is None else self.selector
        self.selector_ = clone(auditor).fit(X, y)
        issues = self.selector_.issues_
        p_wrong = issues["p_wrong"].to_numpy()
        base = clone(self._base())
        if self.treatment == "weight":
            if not has_fit_parameter(base, "sample_weight"):
                raise ValueError(
                    f"treatment='weight' needs a base whose fit takes sample_weight, and "
                    f"{type(base).__name__} does not: choose drop or relabel."
                )
            self.classifier_ = base.fit(X, y, sample_weight=np.maximum(1 - p_wrong, 1e-6))
            return self
        doubtful = p_wrong > self.threshold
        if self.treatment == "relabel":
            better = doubtful & (issues["p_suggested"].to_numpy() > 1 - p_wrong)
            y = np.where(better, issues["suggested"].to_numpy(), y)
            keep = np.ones(len(y), dtype=bool)
        else:
            keep = ~doubtful
        for label in self.classes_:
            given = np.asarray(issues["given"].to_numpy() == label)
            if not (keep & (y == label)).any():
                keep |= given
                y = np.where(given, label, y)
        self.classifier_ = base.fit(X[keep], y[keep])
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels [N] of the rows `X` [N, D]."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray(self.classifier_.predict(X))

    @available_if(_base_has("predict_proba"))
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities [N, C] of the classes; where the base has them."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray(self.classifier_.predict_proba(X))
