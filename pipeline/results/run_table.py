"""Give an experiment the view in which MLflow opens its table of runs: the columns that matter, the best run first.

MLflow reads a shared view from a tag of the experiment, as JSON. It does not document the tag, so tests/long reads the
page that a browser makes of it.
"""

import json
from typing import Any

from pipeline.results.tracking_uri import VIEW

TAG = f"mlflow.sharedViewState.{VIEW}"
BEST = "test/recall_at_10"
COLUMNS = (
    "tags.`strategy`",
    "tags.`backbone`",
    "tags.`data`",
    f"metrics.`{BEST}`",
    "metrics.`test/ndcg_at_10`",
    "metrics.`cost/train_seconds`",
    "metrics.`cost/windows_per_second`",
)


def view_state() -> str:
    """Return the view as MLflow's page reads it."""
    return json.dumps(
        {
            "searchFilter": "",
            "orderByKey": f"metrics.`{BEST}`",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(COLUMNS),
            "columnOrder": ["attributes.`Run Name`", *COLUMNS],
            "columnWidths": {"attributes.`Run Name`": 300, **dict.fromkeys(COLUMNS[-4:], 180)},
        }
    )


def set_view(client: Any, experiment_id: str) -> None:
    """Set the view, and MLflow's mode for trained models, where the experiment has another or none."""
    tags = client.get_experiment(experiment_id).tags
    for key, value in ((TAG, view_state()), ("mlflow.experimentKind", "custom_model_development")):
        if tags.get(key) != value:
            client.set_experiment_tag(experiment_id, key, value)
