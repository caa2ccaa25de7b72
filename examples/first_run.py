"""# First run: from a log to recommendations in a minute

This tutorial walks once through the pipeline on the built-in data, in a temporary folder, without DVC: each step is one
call of a stage's `run`. Run it from the project's folder, on any CPU:

    python examples/first_run.py

An editor that knows `# %%` cells runs it step by step. `make repro` does the same at full length, and records it.
"""

# %% Imports
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

import pipeline.count.stage as count
import pipeline.embed.stage as embed
import pipeline.evaluate.stage as evaluate
import pipeline.ingest.stage as ingest
import pipeline.quantize.stage as quantize
import pipeline.split.stage as split
import pipeline.train.stage as train
from pipeline.artifacts import Interactions, Sids, Splits, read_parquet
from pipeline.config import load_params
from pipeline.evaluate.recommend import recommend

# %% Settings
# ## Settings
#
# Every stage is a function of the settings and of the files that the stages before it wrote. The settings are those of
# `params.yaml`, but for a shorter training: 25,000 windows, about one epoch, on one thread of the CPU.

project = Path(__file__).resolve().parents[1]
folder = Path(tempfile.mkdtemp(prefix="sidpipe-first-run-"))
params = load_params(project / "params.yaml")
params = dataclasses.replace(
    params,
    dataset="demo",
    strategy="full",
    ingest=dataclasses.replace(params.ingest, path=str(project / "data" / "demo")),
    embed=dataclasses.replace(params.embed, encoder="tfidf"),
    quantize=dataclasses.replace(params.quantize, interactions=0.0),
    train=dataclasses.replace(params.train, max_windows=25_000, validate_every=100, device="cpu", threads=1),
    evaluate=dataclasses.replace(params.evaluate, bootstrap_samples=100),
)

# %% The log
# ## The log: who clicked what, and when
#
# The built-in data is simulated: 2,000 users of a video platform whose tastes drift along a tree of categories.
# `ingest` writes the raw log, cleans it as it would yours (bad rows, repeats, the 5-core), and numbers users and items
# from 0.

interactions = folder / "interactions"
ingest.run(params, output=interactions, scratch=folder / "scratch")
items = read_parquet(Interactions(interactions).items)
print(items[["item_id", "raw_id", "title"]].head(3).to_string(index=False), "\n")

# %% Semantic IDs
# ## Semantic IDs: an item as a short word
#
# A generative recommender does not score every item. It *writes* the next item, as a language model writes a word: code
# by code. The word of an item is its **Semantic ID (SID)**. `embed` turns each item's text into a vector (here TF-IDF),
# and `quantize` turns the vector into codes by residual k-means: the first code names the nearest of 64 centroids, the
# second does so with what the first left over, the third with what the second left over. Items with similar texts share
# their first codes. A **deduplication digit** at the end tells items apart that share all codes.

embeddings, sids = folder / "embeddings", folder / "sids"
embed.run(params, interactions=interactions, output=embeddings, scratch=folder / "scratch")
quantize.run(params, embeddings=embeddings, interactions=interactions, output=sids)

codes_IL = Sids.read(sids).codes_IL  # I items, L levels: three codes and the digit
alike = np.lexsort(codes_IL.T[::-1])[:6]  # the first Semantic IDs in alphabetical order: neighbours in meaning
print("\nSix items whose Semantic IDs begin alike:")
for item in alike:
    print(f"  {codes_IL[item].tolist()!s:16} {items.title[item]}")

# %% Train, validate, test
# ## The split: the last item of each user is the test
#
# Leave-one-out: a user's last item is the test target, the one before it the validation target, and all before those is
# for training.

splits = folder / "splits"
split.run(params, interactions=interactions, output=splits)
counting = folder / "counting"
count.run(params, splits=splits, output=counting)

# %% Training
# ## Training on windows
#
# A **window** is one training example: a piece of a user's sequence, its last item as the *target* and the items before
# as the *history*. The model reads the history as tokens, four to an item, and learns to write the target's Semantic
# ID. Windows lie end to end on one axis, without padding.

model, reports = folder / "generator", folder / "reports"
train.run(
    params,
    interactions=interactions,
    sids=sids,
    splits=splits,
    output=model,
    reports=reports,
    scratch=folder / "scratch",
)

# %% Metrics
# ## How good is it?
#
# `evaluate` lets the model write the 20 likeliest Semantic IDs after each user's history, by beam search that can write
# only items of the catalogue, and looks up where the test item ranks. Recall@10 is the share of users whose test item
# is among the first ten. Two baselines that only count stand beside it. After so few windows the model is behind
# co-occurrence; the 60,000 of params.yaml bring it past (the README has the numbers).

metrics = evaluate.run(params, splits=splits, counting=counting, generator=model, reports=reports)
print("\nrecall@10")
for name, key in {
    "this model": "recall_at_10",
    "co-occurrence": "cooccurrence_recall_at_10",
    "popularity": "popularity_recall_at_10",
}.items():
    print(f"  {name:14} {metrics[key]:.4f}")

# %% Recommendations
# ## What would it show next?
#
# `recommend` takes all that is known of a user, and asks for the next item. The score is the log-probability of the
# item's whole Semantic ID.

user = "u00017"
number = read_parquet(Interactions(interactions).users).raw_id.tolist().index(user)
sequences = Splits.read(splits)  # all users' sequences end to end; user n has offsets[n] to offsets[n + 1]
history = sequences.items_N[sequences.offsets[number] : sequences.offsets[number + 1]]
print(f"\nThe last clicks of user {user}:")
for item in history[-5:]:
    print(f"           {items.title[item]}")

print("and what the model would show next:")
shown = recommend(user=user, k=5, interactions=interactions, splits=splits, generator=model, reports=reports)
for each in shown:
    print(f"  {each.score:7.2f}  {each.title}")
print(f"\nAll files are in {folder}")

# %% What next
# ## What next
#
# - `make repro` runs the same stages with DVC, which repeats only what changed, and records the result in MLflow.
# - Set `strategy="rastp"` above: the encoder then prunes tokens. Each strategy has its page.
# - [Architecture](../docs/architecture.md) follows one interaction through every file.
