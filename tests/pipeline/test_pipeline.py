"""The pipeline under real DVC and MLflow: what runs, what is restored, what is recorded."""

import csv
import io
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from patience import wait_until
from project_folder import STAGES, Repository, stages_run

from pipeline.artifacts import read_parquet
from pipeline.manifest import CHECKSUM, FILES
from pipeline.metric_names import MEASURED, METRICS

pytestmark = pytest.mark.slow
# A new strategy: one folder, one section of params.yaml and one line of dvc.yaml
FOLDER = Path(__file__).parent / "thinning"
SECTION = "thinning:\n  share: 0.3\n"
LINE = "    - skipgr\n"  # the last of the parameters of train


def test_the_first_repro_runs_every_stage_and_shows_the_result(repository: Repository, first_run: str) -> None:
    assert stages_run(first_run) == STAGES
    shown = first_run[first_run.index("Running stage 'track'") :]
    for words in (
        "strategy full, dataset demo, seed 42",
        "recall@10",
        "co-occurrence",
        "popularity",
        "report: reports/index.html",
        f"mlflow ui --backend-store-uri sqlite:///{repository.path}/mlflow.db",
    ):
        assert words in shown, words


def test_a_second_repro_runs_only_track_and_changes_nothing(repository: Repository) -> None:
    runs = repository.query("select run_uuid, end_time from runs")
    assert stages_run(repository.run("dvc", "repro")) == ["track"]
    assert repository.run("git", "status", "--porcelain") == ""
    assert repository.query("select run_uuid, end_time from runs") == runs


def test_an_experiment_runs_what_its_parameter_touches_and_changes_one_line(
    repository: Repository, seventh: dict[str, str]
) -> None:
    untouched = ("ingest", "embed", "count")  # none reads the seed, and the split is the same to the byte
    assert stages_run(seventh["output"]) == [stage for stage in STAGES if stage not in untouched]
    changed = [line for line in seventh["params"].splitlines() if line[0] in "+-" and line[1] not in "+-"]
    assert changed == ["-seed: 42", "+seed: 7"]
    assert "| recall_at_10" in seventh["metrics"]
    (name,) = repository.query(
        "select t.value from tags t join params p on t.run_uuid = p.run_uuid "
        "where t.key = 'dvc_experiment' and p.key = 'seed' and p.value = '7'"
    )
    assert name == ("seventh",)


@pytest.mark.usefixtures("seventh")
def test_the_return_to_earlier_parameters_trains_nothing(repository: Repository) -> None:
    before = repository.outputs()
    repository.run("git", "checkout", "-q", repository.revision("seventh"), "--", "params.yaml", "dvc.lock", "reports")
    assert stages_run(repository.run("dvc", "repro")) == ["track"]
    assert repository.outputs()["models/generator"] != before["models/generator"]
    repository.run("git", "checkout", "-q", "main", "--", "params.yaml")
    assert stages_run(repository.run("dvc", "repro")) == ["track"]
    page = "reports/index.html"  # it draws the other result beside its own
    assert {**repository.outputs(), page: ""} == {**before, page: ""}
    seeds = repository.recorded_seeds()
    assert (seeds.count("42"), seeds.count("7")) == (1, 1)


def test_queued_experiments_are_recorded_in_the_project_itself(repository: Repository) -> None:
    """MLflow also records the run that DVC takes from its cache: seed 42 was run before."""
    repository.run("dvc", "exp", "run", "--queue", "-S", "seed=1,42")
    repository.run("dvc", "queue", "start")
    wait_until(repository.queue_is_done, "the queue is still at work", look=1)
    status = repository.run("dvc", "queue", "status")
    assert status.count("Success") == 2, status
    seeds = repository.recorded_seeds()
    assert (seeds.count("1"), seeds.count("42")) == (1, 1)
    assert repository.run("git", "status", "--porcelain") == ""
    for (uri,) in repository.query(
        "select artifact_uri from runs join tags using (run_uuid) where key = 'run_kind' and value = 'result'"
    ):
        folder = Path(urlparse(uri).path)
        assert folder.is_relative_to(repository.path / "mlartifacts")
        assert (folder / "report/index.html").is_file()
    assert len(list((repository.path / "mlartifacts").rglob("model.safetensors"))) >= 2  # a model of each run
    names = [name for (name,) in repository.query("select value from tags where key = 'dvc_experiment'")]
    assert "" not in names, "the first run got its name when the queue met the result again"


def test_one_changed_raw_byte_runs_ingest_again(repository: Repository) -> None:
    scenario = repository.path / "data/demo/scenario.yaml"
    scenario.write_text(scenario.read_text().replace("# Shares are", "# Shares ars"))
    assert stages_run(repository.run("dvc", "repro")) == ["ingest", "track"]


def test_the_tables_and_plots_of_dvc_read_well(repository: Repository) -> None:
    (row, *_) = csv.DictReader(io.StringIO(repository.run("dvc", "exp", "show", "--csv", "--hide-workspace")))
    assert (
        float(row["recall_at_10"]) == json.loads((repository.path / "reports/metrics.json").read_text())["recall_at_10"]
    )
    assert not [name for name in row if name.startswith("reports/metrics.json:")], "names are short and occur once"
    shown = json.loads(repository.run("dvc", "metrics", "show", "--json"))
    values = next(iter(shown.values()))["data"]["reports/metrics.json"]["data"].values()
    assert all(isinstance(value, int | float) for value in values)
    plots = json.loads(repository.run("dvc", "plots", "show", "--json"))["data"]
    assert {
        "Loss",
        "reports/frontier.csv",
        "reports/history.csv",
        "reports/by_history.csv",
        "reports/by_popularity.csv",
    } <= {name.removeprefix("dvc.yaml::") for name in plots}


@pytest.mark.long
@pytest.mark.usefixtures("seventh")
def test_the_table_of_experiments_fits_160_columns_with_the_options_of_the_readme(
    repository: Repository, root: Path
) -> None:
    (line,) = [line for line in (root / "README.md").read_text().splitlines() if line.startswith("dvc exp show")]
    shown = repository.run(*shlex.split(line, comments=True)).splitlines()
    assert max(map(len, shown)) <= 160
    heading = next(line for line in shown if "recall_at_10" in line)
    assert {"recall_at_10", "ndcg_at_10", "train_seconds", "seed"} <= set(heading.split())


def test_a_bad_value_is_told_before_anything_is_removed(repository: Repository) -> None:
    before = repository.files()
    text = repository.run("dvc", "exp", "run", "-S", "train.select=recall_at_50", "-S", "seed=8", code=255)
    assert "error: train.select is 'recall_at_50', did you mean 'recall_at_5'?" in text
    assert "Traceback" not in text
    assert stages_run(text) == ["check"]
    assert repository.files() == before
    params = repository.path / "params.yaml"
    params.write_text(params.read_text().replace("recall_at_50", "recall_at_10").replace("seed: 8", "seed: 42"))
    assert stages_run(repository.run("dvc", "repro", "evaluate")) == []
    assert repository.files() == before


def test_a_missing_key_and_a_path_that_is_not_there_remove_nothing(repository: Repository) -> None:
    params, before = repository.path / "params.yaml", repository.files()
    text = params.read_text()
    for line, instead, said in (
        ("  accumulate: 1\n", "", "error: missing key 'train.accumulate'"),
        (
            "  clip_norm: 0.0\n",
            "  clip_norm: .inf\n",
            "error: train.clip_norm is inf, expected a number from 0",
        ),
        ("  levels: 3\n", "  levels: 2000\n", "error: quantize.levels is 2000, expected a whole number from 1 to 32"),
        ("  path: data/demo\n", "  path: data/demos\n", "error: ingest.path data/demos is not here"),
    ):
        assert text.count(line) == 1
        params.write_text(text.replace(line, instead))
        shown = repository.run("dvc", "repro", code=255)
        assert said in shown
        assert stages_run(shown) == ["check"]
        assert repository.files() == before
    params.write_text(text)


def test_after_an_unknown_key_a_mended_value_runs_only_the_check_and_what_reads_it(repository: Repository) -> None:
    params, before = repository.path / "params.yaml", repository.files()
    params.write_text(params.read_text().replace("log_model: true", "log_modle: false"))
    text = repository.run("dvc", "repro", code=255)
    assert "error: unknown key 'track.log_modle': did you mean 'log_model'?" in text
    assert stages_run(text) == ["check"]
    assert repository.files() == before
    params.write_text(params.read_text().replace("log_modle: false", "log_model: false"))
    assert stages_run(repository.run("dvc", "repro", "evaluate")) == ["check"], (
        "evaluate and those before read none of it"
    )
    assert repository.files() == before


def test_what_a_stage_run_alone_loses_comes_back_with_the_mended_value(repository: Repository) -> None:
    params, before = repository.path / "params.yaml", repository.files()
    mended = params.read_text()
    params.write_text(mended.replace("train:\n", "train:\n  learning_rat: 1\n"))
    text = repository.run("dvc", "repro", "--single-item", "train", code=255)
    assert "mend the value, then `dvc repro`" in text
    assert not (repository.path / "models/generator").exists(), "DVC removed what it was about to make again"
    params.write_text(mended)
    assert stages_run(repository.run("dvc", "repro", "evaluate")) == []
    assert repository.files() == before


def test_a_full_disk_is_told_and_loses_nothing(repository: Repository) -> None:
    """No file may grow past 1 kB: a write then fails as on a full disk."""
    before = {path: path.read_bytes() for path in (repository.path / "data/embeddings").iterdir()}
    text = repository.run("bash", "-c", "ulimit -f 1; python -m pipeline embed", code=1)
    assert "error: could not write data/embeddings/embeddings.safetensors: File too large" in text
    assert "free some space" in text
    assert "Traceback" not in text
    assert {path: path.read_bytes() for path in (repository.path / "data/embeddings").iterdir()} == before


def test_a_run_holds_all_that_comparing_needs(repository: Repository) -> None:
    key, _ = repository.query(
        "select run_uuid, start_time from runs join tags using (run_uuid) "
        "where key = 'run_kind' and value = 'result' order by start_time limit 1"
    )[0]
    params = dict(repository.query(f"select key, value from params where run_uuid = '{key}'"))
    assert {"strategy": "full", "train.max_windows": "3000", "ingest.minimum": "{}"}.items() <= params.items()
    metrics = json.loads((repository.path / "reports/metrics.json").read_text())
    final = dict(repository.query(f"select key, value from latest_metrics where run_uuid = '{key}'"))
    for name in METRICS:
        assert final[f"test/{name}"] == metrics[name]
    assert final["cost/train_seconds"] == metrics["train_seconds"]
    with (repository.path / "reports/history.csv").open() as file:
        curve = [float(row["valid_loss"]) for row in csv.DictReader(file)]
    logged = repository.query(
        f"select value from metrics where key = 'valid/loss' and run_uuid = '{key}' order by step"
    )
    assert [value for (value,) in logged] == curve
    tags = dict(repository.query(f"select key, value from tags where run_uuid = '{key}'"))
    assert tags["git_commit"] == repository.run("git", "rev-parse", "HEAD~1").strip()
    assert (tags["git_dirty"], tags["strategy"], tags["seed"], tags["dataset"]) == ("false", "full", "42", "demo")
    assert tags["hash_model"] + ".dir" == repository.outputs()["models/generator"]
    (dataset,) = repository.query(
        "select d.name, d.digest from datasets d join inputs i "
        f"on d.dataset_uuid = i.source_id where i.destination_id = '{key}'"
    )
    assert dataset == ("demo", repository.outputs()["data/interactions"].removesuffix(".dir"))


@pytest.mark.usefixtures("seventh")
def test_runs_are_compared_by_name(repository: Repository) -> None:
    text = repository.run("python", "-m", "pipeline", "compare", "here=workspace", "there=seventh")
    assert "recall_at_10" in text
    assert "there, seed 7" in text


def test_the_model_answers_for_a_user_of_the_log(repository: Repository) -> None:
    user = read_parquet(repository.path / "data/interactions/users.parquet")["raw_id"][0]
    answer = repository.run("python", "-m", "pipeline", "recommend", "--user", user, "-k", "3").splitlines()
    assert [line.split()[0] for line in answer] == ["1", "2", "3"]


def test_another_clone_makes_the_same_bytes(repository: Repository, twin: Repository) -> None:
    """All outputs but measurements and the files that show them."""
    ours, theirs = repository.outputs(), twin.outputs()
    names = ("timings.json", "metrics.json", "details.json", "frontier.csv", "index.html")
    measured = {f"reports/{name}" for name in names}
    assert {path for path in ours if ours[path] != theirs.get(path)} <= measured  # seconds may be equal by chance
    assert ours.keys() == theirs.keys()
    first, second = (
        json.loads((uri.path / "reports/metrics.json").read_text())
        | json.loads((uri.path / "reports/details.json").read_text())
        for uri in (repository, twin)
    )
    sums = {FILES, CHECKSUM}  # of files with measurements, too
    assert {key for key in first if first[key] != second[key]} <= MEASURED | sums
    assert first.keys() == second.keys()


@pytest.fixture
def extended(repository: Repository) -> Iterator[Repository]:
    """The project with the strategy `thinning`."""
    shutil.copytree(FOLDER, repository.path / "pipeline/strategies/thinning", ignore=shutil.ignore_patterns("__py*"))
    with (repository.path / "params.yaml").open("a") as file:
        file.write(SECTION)
    yield repository
    shutil.rmtree(repository.path / "pipeline/strategies/thinning")


def add_line(repository: Repository) -> None:
    graph = repository.path / "dvc.yaml"
    assert graph.read_text().count(LINE) == 1
    graph.write_text(graph.read_text().replace(LINE, LINE + "    - thinning\n"))
    repository.run("git", "add", "-A")


def test_a_new_strategy_is_a_folder_a_section_and_a_line_and_it_composes(extended: Repository) -> None:
    before = json.loads((extended.path / "reports/timings.json").read_text())
    add_line(extended)
    settings = ("strategy=thinning+rastp", "rastp.after_layer=1", "thinning.share=0.4")
    output = extended.run("dvc", "exp", "run", *(word for setting in settings for word in ("-S", setting)))
    assert {"train", "evaluate", "track"} <= set(stages_run(output))
    timings = json.loads((extended.path / "reports/timings.json").read_text())
    assert 0.5 < timings["windows_trained"] / before["windows_trained"] < 0.7
    assert timings["keep_rate"] < 1
    config = json.loads((extended.path / "models/generator/config.json").read_text())
    assert config["thinning"] == {"share": 0.4}
    assert config["rastp"]["after_layer"] == 1


def test_what_is_wrong_with_a_new_strategy_is_told(extended: Repository) -> None:
    for value, said in (("1.5", "thinning.share is a share"), ("x", "thinning.share is 'x', expected a number")):
        params = extended.path / "params.yaml"
        params.write_text(params.read_text().replace("share: 0.3", f"share: {value}"))
        assert said in extended.run("python", "-m", "pipeline", "split", code=1)
        params.write_text(params.read_text().replace(f"share: {value}", "share: 0.3"))
    params.write_text(params.read_text().replace("strategy: full", "strategy: skipgr+thinning"))
    assert "no rule says what the combination would do" in extended.run("python", "-m", "pipeline", "split", code=1)
