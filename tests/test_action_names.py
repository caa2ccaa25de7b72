"""Names of labels, for people and for keys of metrics."""

import re

from pipeline.actions import Actions, label_keys


def test_keys_of_labels_are_plain_and_never_alike() -> None:
    actions = Actions(
        ("click", "watch seconds", "watch_seconds", "größe", "x"),
        ((1.0,), (3.0, 10.5), (3.0,), ("median",), (-1.0, 1e6, 2.5e-7)),
    )
    keys = label_keys(actions.labels)
    assert keys == [
        "click_1",
        "watch_seconds_3",
        "watch_seconds_10.5",
        "watch_seconds_3__2",
        "gr_e_median",
        "x_-1",
        "x_1e06",
        "x_2.5e-07",
    ]
    assert all(re.fullmatch(r"[\w. /:-]+", key, re.ASCII) for key in keys)  # as MLflow takes names
    assert [label.name for label in actions.labels][:3] == ["click>=1", "watch seconds>=3", "watch seconds>=10.5"]
