import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import check_estimator

from noisyml.estimators.labels import LabelAuditor, NoisyLabelClassifier


@pytest.fixture(scope="module")
def digits():
    rows, true = load_digits(return_X_y=True)
    rows, true = rows[:400], true[:400]
    rng = np.random.default_rng(0)
    labels = true.copy()
    wrong = rng.choice(400, 120, replace=False)
    labels[wrong] = (true[wrong] + rng.integers(1, 10, 120)) % 10
    return rows, labels, true


@pytest.fixture(scope="module")
def auditor(digits):
    rows, labels, _ = digits
    return LabelAuditor(n_neighbors=10, n_folds=5, random_state=0).fit(rows, labels)


@pytest.mark.further
def test_the_auditor_passes_the_checks_of_scikit_learn():
    check_estimator(LabelAuditor(n_neighbors=5, n_folds=2, n_rounds=1))


@pytest.mark.further
def test_the_classifier_passes_the_checks_of_scikit_learn():
    quick = LabelAuditor(n_neighbors=5, n_folds=2, n_rounds=1, random_state=0)
    check_estimator(NoisyLabelClassifier(GaussianNB(), quick))


@pytest.mark.long
def test_issues_stand_in_the_order_of_the_rows(auditor, digits):
    _, labels, true = digits
    issues = auditor.issues_
    assert issues["given"].tolist() == labels.tolist()
    wrong = labels != true
    assert issues["is_issue"][wrong].mean() > 0.85
    assert (issues["suggested"] == true)[wrong].mean() > 0.9
    assert auditor.noise_rate_ == pytest.approx(0.3, abs=0.06)


@pytest.mark.long
@pytest.mark.parametrize("treatment", ["drop", "relabel", "weight"])
def test_a_classifier_of_audited_labels_beats_one_of_all(digits, auditor, treatment):
    rows, labels, true = digits
    base = GaussianNB(var_smoothing=1e-2)
    plain = base.fit(rows, labels).score(rows, true)
    tool = LabelAuditor(n_neighbors=10, n_folds=5, n_rounds=1, random_state=0)
    found = NoisyLabelClassifier(base, tool, treatment).fit(rows, labels)
    assert found.score(rows, true) > plain
    assert found.predict_proba(rows).shape == (400, 10)


def test_a_base_without_weights_or_probabilities_is_told(digits):
    rows, labels, _ = digits
    quick = LabelAuditor(n_neighbors=5, n_folds=2, n_rounds=1)
    with pytest.raises(ValueError, match="whose fit takes sample_weight"):
        NoisyLabelClassifier(KNeighborsClassifier(), quick, "weight").fit(rows, labels)
    with pytest.raises(ValueError, match="threshold=2"):
        NoisyLabelClassifier(LogisticRegression(), quick, threshold=2).fit(rows, labels)
