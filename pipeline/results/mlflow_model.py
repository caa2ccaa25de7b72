"""Write models/generator as an MLflow model, and log it beside the run of its result: a model that MLflow can serve.

The model is a code file (`pipeline/serving/pyfunc_model.py`), a copy of the package and the files of the model, with
nothing pickled. It needs the packages of its requirements.txt and nothing of the project, and loads offline.
"""

import os
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import read_parquet, write_bytes, write_json
from pipeline.metric_names import METRICS
from pipeline.results.companions import companions
from pipeline.results.mlflow_client import open_store, store_alone, told_plainly
from pipeline.results.ranks import Origin, model_hash
from pipeline.results.serving_facts import FACTS_FILE, serving_facts

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import pandas as pd
from mlflow.artifacts import download_artifacts as download_artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.exceptions import MlflowException as MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, ColSpec

CODE = Path("serving/pyfunc_model.py")
MODEL_NAME = "model"  # of the logged model, so that `runs:/RUN/model` finds it
MODEL_HASH = "model_hash"  # the tag that finds the logged model of ranks
DROP_SEEN = "drop_seen"  # tag, true or false: whether the model leaves out the items of the history
REQUIRED = ("mlflow", "numpy", "pandas", "pyarrow", "safetensors", "scipy", "torch")
EXAMPLE = 3  # items of the example's history
RECORDED = "the result is complete in reports/ and its run is recorded, only the model is missing there"


def log_model(
    run_id: str,
    experiment_id: str,
    *,
    generator: Path,
    splits: Path,
    ranks: Path | None,
    tags: dict[str, str],
    origin: Origin | None = None,
) -> str:
    """Make sure that a run has its model in the store, with the run's metrics, and return the model's id.

    A model is logged once: a recording that was killed half-way is made again. Models come without the alias or the
    registered name by which they are served; `compare --promote` gives these.

    Args:
        run_id: the run.
        experiment_id: the run's experiment.
        generator: its folder; what the ranking needs lies beside it.
        splits: the folder of the splits.
        ranks: ranks.parquet of the model's evaluation, which has a row per user; None: the model comes without.
        tags: of the logged model.
        origin: of the evaluation, whose ranking and rule for seen items the model answers by; None: the generator's
            ranking, with seen items.

    Raises:
        UserError: the store cannot be used.
    """
    with told_plainly(RECORDED), store_alone():
        client = open_store()
        known = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
        if ready := [model for model in known if model.status == "READY"]:
            return str(ready[0].model_id)
        for model in known:
            client.delete_logged_model(model.model_id)  # by a process that was killed
        tags = {**tags, MODEL_HASH: origin.served if origin else model_hash(generator)}
        tags |= {DROP_SEEN: drop_seen_tag(origin is not None and origin.filter_seen)}
        model = client.create_logged_model(experiment_id, MODEL_NAME, run_id, tags, model_type="sidpipe")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            about = Model(run_id=run_id, model_id=model.model_id)
            write_model(folder, generator, splits, ranks, about, origin=origin)
            client.log_model_artifacts(model.model_id, str(folder))
        _link(client, client.get_run(run_id), model)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)


def drop_seen_tag(drop_seen: bool) -> str:
    """Return the value of the tag `DROP_SEEN`."""
    return "true" if drop_seen else "false"


def _link(client: Any, run: Run, model: LoggedModel) -> None:
    """Give the model the run's test metrics, and the dataset that they were measured on."""
    datasets = [entry.dataset for entry in run.inputs.dataset_inputs] if run.inputs else []
    for name in METRICS:
        for key in (name, f"test/{name}"):
            if key in run.data.metrics:
                (*_, last) = client.get_metric_history(run.info.run_id, key)
                # The same point again: the run has it already, and the model gets it.
                client.log_metric(
                    run.info.run_id,
                    key,
                    last.value,
                    last.timestamp,
                    last.step,
                    dataset_name=datasets[0].name if datasets else None,
                    dataset_digest=datasets[0].digest if datasets else None,
                    model_id=model.model_id,
                )


# What the columns of a request mean, in the metadata of the model
MEANING = {
    "history": "list of raw item ids, oldest first; unknown ones are ignored and counted; [] asks for popular items",
    "user": "any name, which comes back with the answer",
    "times": "list with the time of each item of the history, in any form that a log may have",
    "k": "items of an answer at most",
    "filter_seen": "leave out the items of the history; as in the model's evaluation where a request does not say",
}


def signature(*, filter_seen: bool) -> ModelSignature:
    """Return what a request and an answer hold.

    filter_seen: whether items of the history leave an answer where the request does not say.

    The two lists of a request are of type Any: MLflow's Array refuses a row without times beside one that has them,
    ids that are numbers, and the form {"inputs": {"history": [[...]]}}.
    """
    anything = AnyType()  # type: ignore[no-untyped-call]
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(anything, "history"),
                ColSpec(anything, "user", required=False),
                ColSpec(anything, "times", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(anything, "user", required=False),
                ColSpec(Array(DataType.string), "items"),
                ColSpec(Array(DataType.string), "titles"),
                ColSpec(Array(DataType.double), "scores"),
                ColSpec(DataType.long, "unknown"),
                ColSpec(DataType.string, "source"),
            ]
        ),
        params=ParamSchema(
            [ParamSpec("k", DataType.long, 10), ParamSpec("filter_seen", DataType.boolean, filter_seen)]
        ),
    )


def write_model(
    folder: Path,
    generator: Path,
    splits: Path,
    ranks: Path | None = None,
    about: Model | None = None,
    origin: Origin | None = None,
) -> None:
    """Write an MLflow model into `folder`, which does not exist yet.

    Args:
        ranks: ranks.parquet of the model's evaluation, by which models are compared later; None: without.
        about: ids of the run and of the logged model; None: the model is in no store.
        origin: as in `log_model`.
    """
    ranking = origin.ranking if origin else "generator"
    package = Path(__file__).parents[1]
    items = read_parquet(generator / "items.parquet")
    with tempfile.TemporaryDirectory() as scratch:
        facts = Path(scratch) / FACTS_FILE
        write_json(facts, {**serving_facts(splits), "ranking": ranking})
        files = {"generator": generator, "facts": facts, **({"ranks": ranks} if ranks and ranks.exists() else {})}
        files |= companions(generator, ranking)
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(package / CODE),
            code_paths=[str(package)],
            artifacts={name: str(path.absolute()) for name, path in files.items()},
            signature=signature(filter_seen=origin.filter_seen if origin else False),
            input_example=(pd.DataFrame({"history": [items["raw_id"].astype(str).head(EXAMPLE).tolist()]}), {"k": 5}),
            pip_requirements=pinned(),
            mlflow_model=about,
            metadata=MEANING,
        )
    _forget_paths(folder)


def _forget_paths(folder: Path) -> None:
    """Take the paths of this machine out of the file MLmodel: the loader reads only what lies in the folder."""
    path = folder / "MLmodel"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    flavor = content["flavors"]["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    write_bytes(path, yaml.safe_dump(content, sort_keys=True).encode())


def pinned() -> list[str]:
    """Return the packages that a served model imports, at the installed versions; `2.11.0+cpu` is 2.11.0."""
    return [f"{name}=={re.sub('[+].*', '', version(name))}" for name in REQUIRED]
