# %% [markdown]
# # Reproducing a claim
#
# Published figures are data of the package; claims of the papers are pairs of runs. What
# `noisyml reproduce` does from the command line, step by step.

# %%
import pandas as pd

from noisyml.reproduce.figures import find_table

table = find_table("prism_table1_symmetric")
print(f"{table.caption}\n{table.source}")
pd.DataFrame([{**f.setting, f.metric: f.value, "unit": f.unit} for f in table.figures])

# %% [markdown]
# Each row as words of `noisyml train`: with the paper's settings, and at desk scale on embedded
# data:

# %%
from noisyml.reproduce.cells import cells

print("noisyml train", *cells(table)[3].words)
print()
print("noisyml train", *cells(table, "desk")[3].words)

# %% [markdown]
# A claim: two arms that differ in one thing, paired by seeds.

# %%
from noisyml.reproduce.claims import choose_claims, claim_jobs, load_claims

(claim,) = choose_claims(load_claims(), ["cbml_constraint"])
print(f"{claim.paper}, {claim.source}: {claim.statement}\n{claim.data}")
print("first: ", *claim.first)
print("second:", *claim.second)

# %%
import noisyml

PAIRS = 2
arms = claim_jobs([claim])[0][claim.name]
for side, jobs in zip(("first", "second"), arms, strict=True):
    for number, job in enumerate(jobs[:PAIRS]):
        words = dict(word.split("=", 1) for word in job.overrides)
        noisyml.train(words, **{"hydra.run.dir": f"runs/{side}/{number}"})

found = noisyml.compare("runs/first", "runs/second", claim.metric)
found.pairs.round(3)

# %% [markdown]
# `noisyml reproduce claims cbml_constraint` runs all pairs and writes the verdict; the package
# keeps the last measured one:

# %%
import matplotlib.pyplot as plt

from noisyml.reproduce.verdicts import stored_trials

trials = [trial for trial in stored_trials(load_claims()) if trial.difference.count > 1]
fig, ax = plt.subplots(figsize=(6, 3.2), dpi=80)
for row, trial in enumerate(trials):
    d = trial.difference
    ax.plot([d.low, d.high], [row, row], color="tab:blue")
    ax.plot(d.mean, row, "o", color="tab:blue")
ax.axvline(0, color="grey", linewidth=1)
ax.set_yticks(range(len(trials)), [trial.claim.name for trial in trials], fontsize=8)
ax.set_xlabel("effect, 95 % interval (more is in favour of the claim)")
fig.tight_layout()
plt.show()
