# %% [markdown]
# # Comparing two selectors
#
# Does leaving out samples help when 30 % of the labels are wrong? Two arms that differ in the
# selector alone, three pairs of runs: both arms of a pair have the same seed, data and wrong
# labels. The digits of scikit-learn, nothing is downloaded.

# %%
import matplotlib.pyplot as plt

import noisyml

METRIC = "test/map_at_r"  # how well images of a class find each other
SETTINGS = {
    "method": "prism",
    "dataset": "digits",
    "noise": "symmetric",
    "noise.rate": 0.3,
    "backbone": "mlp",
    "backbone.hidden_features": [64],
    "trainer.max_epochs": 8,
    "model_choice": ["last"],
    "callbacks.progress": None,
}

# %%
trained = {}
for seed in range(3):
    for selector in ("prism_avg", "keep_all"):
        trained[selector, seed] = noisyml.train(
            SETTINGS,
            selector=selector,
            seed=seed,
            **{"noise.seed": seed, "hydra.run.dir": f"runs/{selector}/{seed}"},
        )

# %% [markdown]
# Runs as a data frame, a row each:

# %%
runs = noisyml.load_runs("runs")
runs[["selector", "seed", METRIC, "selection/precision"]].round(3)

# %% [markdown]
# The difference, pair by pair, with its 95 % interval over the pairs:

# %%
found = noisyml.compare("runs/prism_avg", "runs/keep_all", METRIC)
print(f"{found.difference.mean:+.3f} ({found.difference.low:+.3f} to {found.difference.high:+.3f})")
found.pairs.round(3)

# %%
fig, ax = plt.subplots(figsize=(5, 3), dpi=80)
for _, pair in found.pairs.iterrows():
    ax.plot([0, 1], [pair["second"], pair["first"]], marker="o", label=f"seed {pair['seed']}")
ax.set_xticks([0, 1], ["keep_all", "prism_avg"])
ax.set_ylabel("MAP@R")
ax.legend()
plt.show()

# %% [markdown]
# How much of the training set is kept, and how much of it is labelled rightly:

# %%
history = trained["prism_avg", 0].history
fig, ax = plt.subplots(figsize=(5, 3), dpi=80)
for name in ("kept", "precision", "recall"):
    values = history[f"selection/{name}"].dropna()
    ax.plot(range(1, len(values) + 1), values, label=name)
ax.set_xlabel("epoch")
ax.set_ylim(0, 1)
ax.legend()
plt.show()
