# %% [markdown]
# # Cleaning labels
#
# A tenth of the labels of 900 digits of scikit-learn are made wrong, with a record. Which ones are
# they, and what should they be?

# %%
import matplotlib.pyplot as plt
import pandas as pd
from sklearn.datasets import load_digits

import noisyml
from noisyml.estimators.labels import LabelAuditor

ROWS = 900
digits = load_digits()
images, X, truth = digits.images[:ROWS], digits.data[:ROWS], digits.target[:ROWS]
manifest = noisyml.Symmetric(rate=0.1).inject(truth, num_classes=10)
print(f"{manifest.changed.sum()} of {ROWS} labels are wrong")

# %%
auditor = LabelAuditor(random_state=0).fit(X, manifest.observed)
issues = auditor.issues_
print(f"estimated share of wrong labels: {auditor.noise_rate_:.3f}")
issues.sort_values("p_wrong", ascending=False).head().round(3)

# %% [markdown]
# What the record says about it, which nobody has of data of their own:

# %%
suspected = issues["is_issue"].to_numpy()
pd.Series(
    {
        "wrong labels found": (suspected & manifest.changed).sum() / manifest.changed.sum(),
        "of the suspected, wrong": (suspected & manifest.changed).sum() / suspected.sum(),
        "suggestions right": (issues["suggested"] == manifest.clean)[manifest.changed].mean(),
    }
).round(3)

# %% [markdown]
# A random forest on the labels as they are, and on those that are believed:

# %%
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from noisyml.estimators.labels import NoisyLabelClassifier

learn, test = train_test_split(range(ROWS), random_state=0)
forest = RandomForestClassifier(50, min_samples_leaf=1, random_state=0)
scores = {
    "as they are": forest.fit(X[learn], manifest.observed[learn]),
    "without suspects": NoisyLabelClassifier(forest).fit(X[learn], manifest.observed[learn]),
}
pd.Series({name: model.score(X[test], truth[test]) for name, model in scores.items()}).round(3)

# %% [markdown]
# The ten most suspicious, as they are labelled and as they should be:

# %%
worst = issues.sort_values("p_wrong", ascending=False).index[:10]
fig, axes = plt.subplots(2, 5, figsize=(6, 3), dpi=80)
for ax, row in zip(axes.flat, worst, strict=True):
    ax.imshow(images[row], cmap="gray_r")
    ax.set_title(f"{issues['given'][row]} → {issues['suggested'][row]}", fontsize=10)
    ax.axis("off")
plt.show()
