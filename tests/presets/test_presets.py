"""presets/: each file is a part of one kind or a whole, and what follows from it; params.yaml stays readable."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from settings import some

from pipeline.backbones.config import OVER_ITEMS
from pipeline.config import build_params, load_params
from pipeline.errors import UserError
from pipeline.ingest.config import COLUMNS
from pipeline.presets.apply import apply_preset
from pipeline.presets.document import leaves
from pipeline.presets.kinds import PARTS, WHOLE, describe, owned
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.pruner import Pruner

FOLDER = Path(__file__).parents[2] / "presets"
NAMES = sorted(path.stem for path in FOLDER.iterdir())
KINDS = {name: preset.kind for name, preset in describe(FOLDER).items()}
VALUES = {name: dict(leaves(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))) for name in NAMES}
DEFAULTS = VALUES["demo"]
PUBLISHED = {
    *("amazon-beauty", "amazon-sports", "amazon-toys"),
    *("movielens-100k", "movielens-1m", "movielens-20m", "movielens-latest"),
    *("flan-t5-xl", "qwen2.5-vl-7b", "simvq", "tiger", "decoder", "hstu", "sasrec", "gr", "gr-large"),
    *("rastp", "rastp-paper", "rastp-released", "skipgr", "skipgr-paper", "skipgr-token", "skipgr-sequence"),
    *("intrr", "intrr-sac", "intrr-ssl"),
    *("demo", "beauty-fast", "beauty-sprint"),
}


def after(*names: str) -> dict[str, Any]:
    """`section.key` -> value of a params.yaml with an edit in every kind, when the presets were written onto it."""
    values = {key: ("edited", key) for key in DEFAULTS}
    for name in names:
        values |= VALUES[name]
    return values


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`section.key` -> value, as params.yaml has it."""
    raw: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (raw.setdefault(section, {}) if section else raw)[name] = value
    return raw


class TestTheLaw:
    """Stated in pipeline/presets/kinds.py."""

    def test_every_key_belongs_to_one_kind_or_is_named_as_nobodys(self) -> None:
        parts = [key for kind in PARTS for key in owned(kind, DEFAULTS)]
        assert len(parts) == len(set(parts))
        nobodys = {"seed", "split.protocol", "split.ties", "split.valid_from", "split.test_from"}
        assert set(DEFAULTS) - set(parts) == nobodys | {key for key in DEFAULTS if key.startswith("track.")}

    @pytest.mark.parametrize("name", NAMES)
    def test_a_preset_sets_every_key_of_the_kind_that_its_head_says_and_no_other(self, name: str) -> None:
        wanted = list(DEFAULTS) if name == "demo" else owned(KINDS[name], DEFAULTS)
        assert set(VALUES[name]) == set(wanted), "presets/demo.yaml has the keys and defaults to copy"

    @pytest.mark.parametrize("kind", [WHOLE, *PARTS])
    def test_every_kind_has_presets(self, kind: str) -> None:
        assert kind in KINDS.values()

    def test_of_two_parts_of_a_kind_the_second_leaves_nothing_of_the_first(self) -> None:
        for first, second in itertools.permutations(NAMES, 2):
            if KINDS[first] == KINDS[second] and first != "demo":
                assert after(first, second) == after(second), (first, second)

    def test_the_order_of_parts_of_different_kinds_does_not_matter(self) -> None:
        for first, second in itertools.combinations(NAMES, 2):
            if KINDS[first] != KINDS[second] and WHOLE not in (KINDS[first], KINDS[second]):
                assert after(first, second) == after(second, first), (first, second)

    def test_a_whole_leaves_nothing_but_data_encoder_seed_and_track(self) -> None:
        for first, whole in itertools.product(NAMES, [name for name in NAMES if KINDS[name] == WHOLE]):
            left = {key for key, value in after(whole).items() if value == ("edited", key)}
            assert {key.split(".")[0] for key in left} <= {"dataset", "ingest", "embed", "seed", "track"}
            if KINDS[first] not in ("data", "encoder") and first != "demo":
                assert after(first, whole) == after(whole), (first, whole)
        assert after("demo") == DEFAULTS

    def test_holds_for_the_files_too(self, project: Path) -> None:
        names = ["amazon-beauty", "flan-t5-xl", "rkmeans-256x3", "tiger", "rastp"]
        others = ["movielens-1m", "qwen2.5-vl-7b", "simvq", "tiger", "skipgr"]
        written = []
        for order in (names, [*others, *names[::-1]]):  # in another order, and after others of the same kinds
            for name in order:
                apply_preset(name, [])
            written.append((project / "params.yaml").read_bytes())
        assert written[0] == written[1]


class TestTheHead:
    @pytest.mark.parametrize("name", NAMES)
    def test_says_where_the_values_come_from_and_how_to_run_them(self, name: str) -> None:
        comment = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
        assert any(line.startswith("# Source: ") for line in comment)
        assert f"python -m pipeline preset {name}" in "\n".join(comment)

    @pytest.mark.parametrize("name", NAMES)
    def test_names_presets_that_there_are(self, name: str) -> None:
        comment = "\n".join(re.findall("^#.*", (FOLDER / f"{name}.yaml").read_text(), re.MULTILINE))
        assert set(re.findall(r"pipeline preset ([a-z0-9][\w.-]*)", comment)) <= set(NAMES)
        assert {re.split("[, ]", line)[0] for line in describe(FOLDER)[name].add} <= set(NAMES)

    @pytest.mark.parametrize("name", [name for name in NAMES if KINDS[name] == "data"])
    def test_of_a_data_set_says_what_to_add_and_what_it_reaches_with_the_source(self, name: str, root: Path) -> None:
        add = describe(FOLDER)[name].add
        assert add
        for line in add:
            if "none was measured on this dataset" not in line:
                (reached,) = re.findall(r"(?:recall@10|AUC) (0\.\d{4})", line)
                (source,) = re.findall(r"[\w/]+\.md", line)
                assert reached in (root / source).read_text()
                (cost,) = re.findall(r"\d+ s (?:of training )?on one (?:H200|CPU thread)", line)
                assert cost.split(" s ")[0] + " s" in (root / source).read_text()

    def test_of_a_model_names_its_quantizer(self) -> None:
        for name, preset in describe(FOLDER).items():
            if preset.kind == "model":
                # A network over items reads no Semantic IDs.
                expected = [] if VALUES[name]["backbone.name"] in OVER_ITEMS else ["quantizer"]
                assert [KINDS[line.split(",")[0]] for line in preset.add] == expected, name

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
    def test_is_followed_by_values_of_which_those_that_differ_name_the_default(self, name: str) -> None:
        said, section = {}, ""
        for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
            if line.endswith(":") and not line.startswith(" "):
                section = line[:-1] + "."
            if " # default: " in line:
                entry, _, default = line.partition(" # default: ")
                key = entry.split(":")[0]
                said[section + key.strip() if key.startswith(" ") else key] = yaml.safe_load(default)
        assert said == {key: DEFAULTS[key] for key, value in VALUES[name].items() if value != DEFAULTS[key]}


def test_every_published_setting_has_its_preset() -> None:
    assert set(NAMES) >= PUBLISHED


def _lay_ground(name: str) -> None:
    """Apply the presets without which this one is refused, as its head says."""
    for ground in re.findall(r"(?m)^# After: (\S+)$", (FOLDER / f"{name}.yaml").read_text()):
        assert KINDS[ground] == "data"
        with pytest.raises(UserError, match=r"ingest\.actions names no column"):
            apply_preset(name, [])
        apply_preset(ground, [])


@pytest.mark.parametrize("name", NAMES)
def test_each_preset_is_valid_leaves_its_comments_behind_and_demo_brings_everything_back(
    name: str, project: Path
) -> None:
    before = (project / "params.yaml").read_text()
    _lay_ground(name)
    apply_preset(name, ["train.learning_rate=1e-5", "ingest.columns={user: member}", "embed.template=['{title}']"])
    assert "# default: " not in (project / "params.yaml").read_text()
    params = load_params()
    assert (params.train.learning_rate, params.ingest.mapping) == (1e-5, {"user": "member"})
    assert params.embed.template == ("{title}",)
    assert params.dataset == VALUES[name].get("dataset", "demo")
    apply_preset("demo", ["ingest.actions="])
    assert (project / "params.yaml").read_text() == before


def test_data_then_beauty_fast_then_a_strategy_is_the_published_recipe() -> None:
    """The form that everybody uses."""
    for strategy in ("rastp", "rastp-paper", "skipgr", "skipgr-paper", "skipgr-token", "skipgr-sequence", "intrr"):
        values = {**DEFAULTS, **VALUES["amazon-beauty"], **VALUES["beauty-fast"], **VALUES[strategy]}
        params = build_params(nested(values))
        assert (params.dataset, params.quantize.codes, params.backbone.d_model) == ("amazon-beauty", 256, 128)
        assert (params.train.max_windows, params.evaluate.beam) == (15_000_000, 50)
        assert params.strategy == strategy.split("-")[0]
        assert VALUES[strategy].items() <= values.items()


def test_a_paper_s_whole_is_its_parts_but_for_what_its_head_says() -> None:
    for whole, parts, apart in (
        (
            "rastp-released",
            ("rkmeans-256x3", "tiger", "rastp-paper"),
            {"train.batching", "evaluate.beam", "evaluate.decoding"},
        ),
        ("intrr-ssl", ("rkmeans-128x3", "decoder", "intrr-sac"), {"split.max_history"}),
    ):
        values = {key: value for part in parts for key, value in VALUES[part].items()}
        differing = {key for key in values if values[key] != VALUES[whole][key] and not key.startswith("rastp.")}
        assert differing == apart


@pytest.mark.parametrize(
    ("name", "blocks", "heads", "width", "items", "negatives", "dropout"),
    [
        ("gr", 2, 1, 50, 200, 128, 0.2),
        ("gr-large", 8, 2, 50, 200, 128, 0.2),
        ("gr-movielens-20m", 4, 4, 256, 200, 128, 0.2),
        ("gr-large-movielens-20m", 16, 8, 256, 200, 128, 0.2),
        ("gr-books", 4, 4, 64, 50, 512, 0.5),
        ("gr-large-books", 16, 8, 64, 50, 512, 0.5),
    ],
)
def test_sizes_of_gr_are_those_of_hstu_s_configurations(
    name: str, blocks: int, heads: int, width: int, items: int, negatives: int, dropout: float
) -> None:
    """Typed from configs/*/hstu-sampled-softmax-*.gin; a step has 128 users."""
    values = VALUES[name]
    sizes = [values[f"backbone.{key}"] for key in ("decoder_layers", "heads", "d_model", "negatives", "dropout")]
    assert sizes == [blocks, heads, width, negatives, dropout]
    assert values["backbone.d_head"] * heads == width
    assert (values["split.max_history"], values["train.batch_tokens"]) == (items, 128 * items)
    assert (values["backbone.temperature"], values["train.learning_rate"]) == (0.05, 0.001)


def test_presets_say_what_the_papers_say() -> None:
    """Against the papers' numbers, typed from them: items of a history, what chooses the checkpoint, budgets."""
    for name in ("tiger", "rastp-released"):
        assert (VALUES[name]["split.max_history"], VALUES[name]["train.select"]) == (30, "recall_at_5")
    assert (VALUES["rastp-released"]["evaluate.beam"], VALUES["rastp-released"]["evaluate.decoding"]) == (
        10,
        "unconstrained",
    )
    paper = some(RastpConfig, **section("rastp-paper", "rastp"))
    # 30 items of 4 codes and a separator: 40 of the 120 codes of each history that has as many.
    assert [Pruner(paper, 4, True, 0).budget(items) for items in (8, 10, 11, 30)] == [32, 40, 40, 40]
    assert [Pruner(paper, 4, True, 0).base_length, VALUES["rastp-paper"]["rastp.after_layer"]] == [150, 2]
    for name in ("skipgr-paper", "skipgr-token", "skipgr-sequence"):
        assert (VALUES[name]["skipgr.apply_to"], VALUES[name]["skipgr.normalise"]) == ("loss", "kept")
        assert not VALUES[name]["skipgr.equal_steps"]
    for name in ("decoder", "hstu", "intrr-ssl"):
        assert VALUES[name]["train.batch_tokens"] // 4 / 4.27 == pytest.approx(512, abs=4)  # items of a history
    assert "{price}" in VALUES["flan-t5-xl"]["embed.template"]


# Steps of a run, counted over an epoch of the dataset's windows (training/steps.py); of networks over items those of
# the shortest measured run, which patience ended.
STEPS = {"beauty-fast": 13_127, "beauty-best": 13_127, "sports-best": 11_317, "beauty-sprint": 2_542, "sasrec": 1_440}
DENSE_STEPS = 1_440


@pytest.mark.parametrize("name", NAMES)
def test_no_average_has_a_decay_that_a_run_never_reaches(name: str) -> None:
    """The decay is min(ema, (1 + step) / (10 + step)). The default of dense.ema serves logs of any size."""
    wanted = {"train.ema": STEPS.get(name, 0), "dense.ema": DENSE_STEPS}
    for key, steps in wanted.items():
        if (ema := VALUES[name].get(key, 0)) and ema != DEFAULTS[key]:
            assert (1 + steps) / (10 + steps) >= ema, f"{key}: a run has {steps} steps"


def section(preset: str, name: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in VALUES[preset].items() if key.startswith(f"{name}.")}


def test_a_preset_changes_only_the_lines_it_names(project: Path) -> None:
    before = (project / "params.yaml").read_text().splitlines()
    changes = apply_preset("amazon-beauty", ["ingest.path=/logs/beauty"])
    changed = (project / "params.yaml").read_text().splitlines()
    assert [line.strip() for old, line in zip(before, changed, strict=True) if old != line] == [
        "dataset: amazon-beauty",
        "path: /logs/beauty",
    ]
    assert [str(change) for change in changes] == [
        "dataset: demo -> amazon-beauty",
        "ingest.path: data/demo -> /logs/beauty",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        ["ingest.columns={user: member, rating: stars}", "ingest.columns.item=sku", "ingest.minimum={rating: 4}"],
        ["ingest.columns.user=member", "ingest.columns={item: sku, rating: stars}", "ingest.minimum.rating=4"],
    ],
)
@pytest.mark.parametrize("name", ["amazon-beauty", "tiger"])
def test_a_mapping_is_set_as_a_whole_or_by_entry_as_by_s(name: str, settings: list[str], project: Path) -> None:
    apply_preset(name, settings)
    ingest = load_params().ingest
    assert ingest.mapping == {"user": "member", "item": "sku", "rating": "stars"}
    assert ingest.minimum == {"rating": 4}
    columns = yaml.safe_load((project / "params.yaml").read_text())["ingest"]["columns"]
    assert list(columns)[: len(COLUMNS)] == list(COLUMNS), "keys stay: `-S ingest.columns.title=NAME` works later"
    apply_preset(name, ["ingest.minimum="])
    assert load_params().ingest.minimum == {}


@pytest.mark.usefixtures("project")
def test_what_was_set_by_hand_and_is_overwritten_is_told() -> None:
    apply_preset("tiger", ["train.device=cuda", "train.threads=3", "seed=7"])
    assert [str(change) for change in apply_preset("tiger", [])] == [
        "train.device: cuda -> auto",
        "train.threads: 3 -> 0",
    ]
    assert load_params().seed == 7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.max_window=1", "unknown key 'train.max_window': did you mean 'max_windows'"),
        ("trian.max_windows=1", "unknown key 'trian.max_windows': did you mean 'train'"),
        ("ingest.columns_.user=member", "unknown key 'ingest.columns_.user': did you mean 'columns'"),
        ("train.select=recall_at_50", "did you mean 'recall_at_5'"),
        ("seed", "no '='"),
    ],
)
def test_a_setting_that_is_refused_leaves_params_yaml_alone(setting: str, message: str, project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=message):
        apply_preset("tiger", [setting])
    assert (project / "params.yaml").read_bytes() == before


def test_a_date_is_written_as_text_which_dvc_needs(project: Path) -> None:
    apply_preset("demo", ["split.protocol=temporal", "split.valid_from=2014-01-01", "split.test_from=2014-02-01"])
    assert yaml.safe_load((project / "params.yaml").read_text())["split"]["valid_from"] == "2014-01-01"


def test_a_file_that_says_no_kind_is_listed_as_such(project: Path) -> None:
    (project / "presets/mine.yaml").write_text("# Our nightly run\ntrain:\n  patience: 3\n")
    (project / "presets/bare.yaml").write_text("seed: 3\n")
    assert [(preset.name, preset.summary) for preset in list(describe().values())[-2:]] == [
        ("bare", ""),
        ("mine", "Our nightly run"),
    ]
    assert [str(change) for change in apply_preset("mine", [])] == ["train.patience: 10 -> 3"]
