"""Give logged models a registered name, its versions and the alias `champion` in MLflow's model registry."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.printing import shown
from pipeline.results.mlflow_client import EXISTS, PATIENCE, bytes_of, open_store, store_alone, told_plainly, within
from pipeline.results.mlflow_model import DROP_SEEN, MODEL_HASH, MlflowException, download_artifacts, drop_seen_tag
from pipeline.results.tracking_uri import tracking_uri

ALIAS = "champion"
STANDS = "the same command completes what it began: alias and published folder always name one model"
AGAIN = "run the same command again"
MISSING = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True)
class Registered:
    """A registered model has a name and one of its versions."""

    name: str
    version: str


def champion(name: str) -> Registered | None:
    """Return the version that has the alias; None where nothing has it."""
    with told_plainly(STANDS, AGAIN), store_alone():
        try:
            found = open_store().get_model_version_by_alias(name, ALIAS)
        except MlflowException as error:
            if error.error_code in (MISSING, "INVALID_PARAMETER_VALUE"):  # no such model, or no such alias
                return None
            raise
        return Registered(name, str(found.version))


def register(name: str, experiment: str, model_hash: str, *, drop_seen: bool) -> Registered:
    """Return the version of the model with that content hash; it is made where it is missing. No alias moves.

    Args:
        drop_seen: whether the model leaves out the items of the history.

    Raises:
        UserError: `track` has logged no such model, or the store cannot be used.
    """
    with told_plainly(STANDS, AGAIN), store_alone():
        client = open_store()
        known = client.get_experiment_by_name(experiment)
        logged = (
            client.search_logged_models(
                [known.experiment_id], f"tags.{MODEL_HASH} = '{model_hash}'", order_by=[{"field_name": "creation_time"}]
            )
            if known
            else []
        )
        rule = drop_seen_tag(drop_seen)  # a model that an earlier version logged has no such tag
        ready = [model for model in logged if model.status == "READY" and model.tags.get(DROP_SEEN, rule) == rule]
        if not ready:
            raise UserError(
                f"MLflow's experiment '{shown(experiment)}' has no model of this run",
                "what is promoted is the model that `track` recorded",
                "run `dvc repro` with track.log_model: true",
            )
        model = ready[0]
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != EXISTS:
                raise
        source = f"models:/{model.model_id}"
        for found in client.search_model_versions(f"name = '{name}'"):
            if found.source == source:
                return Registered(name, str(found.version))
        made = client.create_model_version(name, source, run_id=model.source_run_id, model_id=model.model_id)
        return Registered(name, str(made.version))


def download_version(registered: Registered, folder: Path) -> Path:
    """Copy the files of a version into `folder`, and return the folder of the MLflow model."""
    with told_plainly(STANDS, AGAIN), store_alone():
        client = open_store()
        source = str(client.get_model_version(registered.name, registered.version).source)
        location = client.get_logged_model(source.removeprefix("models:/")).artifact_location

        def download() -> Path:
            return Path(download_artifacts(artifact_uri=location, dst_path=str(folder), tracking_uri=tracking_uri()))

        copied: Path = within(PATIENCE, download, moved=lambda: bytes_of(folder))
        return copied


def crown(registered: Registered | None, name: str) -> None:
    """Give the alias to a version; None takes it away. The same again changes nothing."""
    with told_plainly(STANDS, AGAIN), store_alone():
        client = open_store()
        if registered is None:
            client.delete_registered_model_alias(name, ALIAS)
        else:
            client.set_registered_model_alias(name, ALIAS, registered.version)
