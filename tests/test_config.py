"""params.yaml: what it may say, how a mistake is named, and that the file and the dataclasses say the same."""

import dataclasses
import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from settings import raw_params, read_params

from pipeline.config import build_params, load_params
from pipeline.errors import UserError
from pipeline.ingest.columns import ITEM_NAMES, LOG_NAMES
from pipeline.ingest.config import COLUMNS, DEMO_ACTIONS, PUBLISHED_ACTIONS
from pipeline.ingest.demo import generate_demo_log
from pipeline.ingest.recipes import RECIPES


def refusal(changes: Any) -> str:
    """What is said of params.yaml with these changes."""
    with pytest.raises(UserError) as caught:
        read_params(changes)
    return str(caught.value)


def keys(tree: Any, prefix: str = "") -> list[str]:
    """Dotted names in order, sections and what they hold."""
    members = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
    members |= members.pop("strategies", {})  # whose sections stand beside the others
    names = []
    for name, value in members.items():
        names.append(prefix + name)
        if dataclasses.is_dataclass(value):
            names += keys(value, f"{prefix}{name}.")
    return names


def test_an_unknown_key_names_the_nearest_one() -> None:
    assert "unknown key 'train.learning_rat': did you mean 'learning_rate'?" in refusal({"train": {"learning_rat": 1}})
    assert "unknown key 'trian': did you mean 'train'?" in refusal({"trian": {}})


def test_an_unknown_value_names_the_nearest_one() -> None:
    assert "did you mean 'precomputed'?" in refusal({"embed": {"encoder": "precomputd"}})
    assert "did you mean 'amazon-beauty'?" in refusal({"dataset": "amazon-beaty"})
    assert "strategy 'fulll' is not known, did you mean 'full'?" in refusal({"strategy": "fulll"})


def test_every_problem_is_listed_at_once() -> None:
    text = refusal({"sed": 1, "train": {"beem": 10, "max_windows": "many"}, "quantize": {"codes": 1}})
    assert all(
        word in text
        for word in (
            "'sed'",
            "'train.beem'",
            "train.max_windows is 'many'",
            "quantize.codes is 1, expected a whole number from 2 to 65,536",
        )
    )


def test_a_refusal_ends_with_what_to_do_and_discards_no_settings() -> None:
    said = refusal({"seed": "x"})
    assert said.splitlines()[-1].startswith("mend the value, then `dvc repro`")
    assert "checkout" not in said


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("0.001", 0.001), ("1", 1.0), ("'3e-4'", 0.0003)])
def test_a_rate_may_be_written_in_any_way(text: str, value: float) -> None:
    """YAML 1.1 reads 1e-3 as text."""
    rate = read_params({"train": {"learning_rate": yaml.safe_load(text)}}).train.learning_rate
    assert rate == value
    assert isinstance(rate, float)


@pytest.mark.parametrize("text", ["yes", "on", "true", "1.5", "ten", "[1]", ""])
def test_a_count_is_a_whole_number(text: str) -> None:
    """YAML 1.1 reads yes and on as true, which Python would count as 1."""
    assert "seed is" in refusal({"seed": yaml.safe_load(text)})


def test_a_switch_is_true_or_false() -> None:
    assert "backbone.separators is 1" in refusal({"backbone": {"separators": 1}})
    assert "backbone.separators is 'maybe'" in refusal({"backbone": {"separators": "maybe"}})


def test_a_number_or_a_word_keeps_its_kind() -> None:
    assert read_params({"ingest": {"k_core": 7}}).ingest.k_core == 7
    assert read_params({"ingest": {"k_core": "recipe"}}).ingest.k_core == "recipe"
    assert "ingest.k_core is 'seven', expected a whole number from 0 to 1,000,000 or 'recipe'" in refusal(
        {"ingest": {"k_core": "seven"}}
    )


def test_an_unquoted_date_is_taken_as_its_text() -> None:
    split = {"protocol": "temporal", **yaml.safe_load("{valid_from: 2014-01-01, test_from: 2014-02-01}")}
    assert read_params({"split": split}).split.valid_from == "2014-01-01"


def test_values_that_contradict_each_other_are_refused() -> None:
    assert (
        "train.beam is 5, expected a whole number from 10 to 10,000: validation counts the first 10 items"
        in refusal({"train": {"beam": 5}})
    )
    assert "needs split.valid_from and split.test_from" in refusal({"split": {"protocol": "temporal"}})
    assert "ingest.files is for the dataset custom" in refusal({"dataset": "demo", "ingest": {"files": "*.csv"}})


def test_a_share_may_be_written_as_a_fraction() -> None:
    assert read_params({"rastp": {"keep": "1/3"}}).strategies["rastp"].keep == 1 / 3
    assert "rastp.keep is 'a third', expected a number from 1e-06 to 1" in refusal({"rastp": {"keep": "a third"}})
    assert "rastp.keep is '1/0', expected a number" in refusal({"rastp": {"keep": "1/0"}})


class TestSkipgr:
    def test_shares_are_below_1(self) -> None:
        for name in ("token_ratio", "sequence_ratio", "sequence_share"):
            assert f"skipgr.{name} is 1.0, expected a number at least 0 and below 1" in refusal({"skipgr": {name: 1.0}})
        assert "skipgr.level_ratios[1] is -0.1, expected a number at least 0" in refusal(
            {"skipgr": {"level_ratios": [0.1, -0.1, 0.1]}}
        )
        assert "above skipgr.max_weight 2" in refusal({"skipgr": {"sequence_ratio": 0.6, "max_weight": 2.0}})
        read_params({"skipgr": {"sequence_ratio": 0.6, "max_weight": 2.0, "sequence_share": 0.3}})

    def test_each_scored_level_has_its_ratio(self) -> None:
        raw: dict[str, Any] = {"strategy": "skipgr", "skipgr": {"level_ratios": [0.1, 0.2, 0.3]}}
        read_params(raw)
        assert "has 3 entries for 4 levels" in refusal({**raw, "quantize": {"levels": 4}})
        assert "has 3 entries for 4 levels" in refusal({**raw, "skipgr": {**raw["skipgr"], "include_digit": True}})

    @pytest.mark.parametrize("apply_to", ["input", "both"])
    def test_with_rastp_only_whole_items_leave_a_history(self, apply_to: str) -> None:
        raw: dict[str, Any] = {"strategy": "rastp+skipgr", "skipgr": {"apply_to": apply_to}}
        assert "rastp counts a history by items" in refusal(raw)
        for allowed in ({"input_unit": "item"}, {"apply_to": "loss"}, {"token_ratio": 0.0}):
            read_params({**raw, "skipgr": {**raw["skipgr"], **allowed}})
        read_params({"strategy": "skipgr+rastp"})
        assert "intrr counts a history by items" in refusal({**raw, "strategy": "intrr+skipgr"})

    def test_where_every_item_is_a_target_none_leaves_a_history(self) -> None:
        raw = {"strategy": "skipgr", "backbone": {"name": "decoder"}, "train": {"targets": "all"}}
        read_params(raw)
        for skipgr in ({"apply_to": "both", "input_unit": "item"}, {"sequence_unit": "window"}):
            assert "the items of a history are targets too" in refusal({**raw, "skipgr": skipgr})

    def test_single_tokens_leave_an_encoder_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.strategies.skipgr.WITH_ENCODER", ("other",))
        assert "backbone t5 has none" in refusal({"strategy": "skipgr", "skipgr": {"apply_to": "both"}})
        read_params({"strategy": "skipgr", "skipgr": {"apply_to": "both", "input_unit": "item"}})

    def test_padding_would_fill_what_single_tokens_leave(self) -> None:
        raw = {"strategy": "skipgr", "skipgr": {"apply_to": "input"}, "train": {"batching": "padded"}}
        assert "that padding would fill again" in refusal(raw)
        read_params({**raw, "skipgr": {"apply_to": "loss"}})


class TestRastp:
    def test_needs_an_encoder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.strategies.rastp.WITH_ENCODER", ("other",))
        assert "backbone t5 has none: set backbone.name to other" in refusal({"strategy": "rastp"})

    def test_needs_as_many_blocks_as_it_waits_for(self) -> None:
        raw = {"strategy": "rastp", "backbone": {"encoder_layers": 2}, "rastp": {"after_layer": 3}}
        assert "rastp.after_layer is 3, and backbone.encoder_layers only 2" in refusal(raw)
        assert read_params({**raw, "rastp": {"after_layer": 2}}).strategies["rastp"].after_layer == 2
        assert read_params({**raw, "strategy": "full"}).strategies["rastp"].after_layer == 3

    def test_is_refused_on_backbones_without_an_encoder(self) -> None:
        for name in ("decoder", "hstu"):
            said = refusal({"strategy": "rastp", "backbone": {"name": name}})
            assert f"backbone {name} has none: set backbone.name to t5" in said

    @pytest.mark.parametrize("rastp", [{"base": "padded"}, {"padded_queries": "count"}])
    def test_needs_padding_where_padding_counts(self, rastp: dict[str, str]) -> None:
        assert "set train.batching=padded" in refusal({"strategy": "rastp", "rastp": rastp})
        read_params({"strategy": "rastp", "rastp": rastp, "train": {"batching": "padded"}})

    @pytest.mark.parametrize("text", ["full+rastp", "rastp+full"])
    def test_is_not_full(self, text: str) -> None:
        assert "full means that nothing is skipped" in refusal({"strategy": text})

    @pytest.mark.parametrize("text", ["rastp+intrr", "intrr+rastp"])
    def test_needs_more_than_one_token_per_item(self, text: str) -> None:
        assert "intrr gives each item a single token" in refusal({"strategy": text})


@pytest.mark.parametrize("raw", ["text", ["list"], 3])
def test_a_file_that_is_no_mapping_is_refused(raw: Any) -> None:
    with pytest.raises(UserError, match="the file must be a mapping"):
        build_params(raw)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not here"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: {beam: 10\nseed: 1")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")


class TestNothingHasADefault:
    """A line that is deleted must not train something else."""

    @pytest.mark.parametrize("key", keys(read_params()))
    def test_a_missing_key_or_section_is_an_error(self, key: str) -> None:
        raw = raw_params()
        section, *name = key.split(".")
        del (raw[section] if name else raw)[name[0] if name else section]
        with pytest.raises(UserError) as caught:
            build_params(raw)
        assert caught.value.what == f"missing key '{key}'"
        assert caught.value.fix.startswith("`python -m pipeline migrate` adds missing keys")

    def test_is_listed_with_all_else_that_is_wrong(self) -> None:
        raw = raw_params({"seed": "x", "train": {"learning_rat": 1}, "evaluate": {"beam": 1}})
        del raw["train"]["compile"], raw["intrr"]
        with pytest.raises(UserError) as caught:
            build_params(raw)
        first, second, third, *missing = caught.value.what.splitlines()
        assert first.startswith("seed is 'x'")
        assert second.startswith("unknown key 'train.learning_rat'")
        assert third.startswith("evaluate.beam is 1, expected a whole number from 10 to 10,000")
        assert missing == ["missing key 'train.compile'", "missing key 'intrr'"]
        assert caught.value.fix.splitlines()[0].startswith("mend the value, then `dvc repro`")
        assert "pipeline migrate" in caught.value.fix.splitlines()[1]

    def test_an_empty_file_lacks_everything(self, tmp_path: Path) -> None:
        (tmp_path / "params.yaml").write_text("")
        with pytest.raises(UserError) as caught:
            load_params(tmp_path / "params.yaml")
        assert caught.value.what.splitlines() == [
            f"missing key '{key}'" for key in keys(read_params()) if "." not in key
        ]

    def test_no_dataclass_of_a_section_has_one(self) -> None:
        params = read_params()
        for section in (params, *vars(params).values(), *params.strategies.values()):
            if dataclasses.is_dataclass(section):
                fields = dataclasses.fields(section)
                assert all(field.default is field.default_factory is dataclasses.MISSING for field in fields), section
                assert all(field.kw_only for field in fields), section


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(1e-6, 1), st.integers(1, 999), st.sampled_from(["source", "shuffled"]))
def test_what_is_written_reads_back_equal(seed: int, rate: float, history: int, ties: str) -> None:
    params = read_params(
        {"seed": seed, "train": {"learning_rate": rate}, "split": {"max_history": history, "ties": ties}}
    )
    assert build_params(yaml.safe_load(yaml.safe_dump(params.plain()))) == params


# ---------------------------------------------------------------------------------------------------- the file itself


def test_lists_stand_as_dvc_writes_them(root: Path) -> None:
    """`-S` rewrites a list in brackets as one entry per line, and its diff would then show more than the new value."""
    text = (root / "params.yaml").read_text()
    assert not re.findall(r"^ *\w+: (?:\[.+\]|\{.+\})$", text, re.MULTILINE)


def test_params_yaml_holds_every_key_and_no_other(root: Path) -> None:
    raw = yaml.safe_load((root / "params.yaml").read_text())
    inner = [f"{section}.{key}" for section, value in raw.items() if isinstance(value, dict) for key in value]
    assert sorted([*raw, *inner]) == sorted(keys(load_params(root / "params.yaml")))


def test_presets_demo_yaml_is_params_yaml_as_it_comes(root: Path) -> None:
    """Its defaults and comments stay at hand when a user has edited params.yaml."""
    head, _, rest = (root / "presets/demo.yaml").read_text().partition("\n\n")
    assert all(line.startswith("# ") for line in head.splitlines())
    assert rest == (root / "params.yaml").read_text()


def values_of(section: Any) -> list[Any]:
    """The values of a section, and the entries of its lists and mappings."""
    parts = section.values() if isinstance(section, dict) else section if isinstance(section, list) else None
    return [section] if parts is None else [value for part in parts for value in values_of(part)]


def test_params_yaml_keeps_the_form_that_dvc_writes(root: Path) -> None:
    """Then `dvc exp run -S` changes one line. The reader and writer here are DVC's own settings of ruamel.yaml."""
    text = (root / "params.yaml").read_text()
    writer = YAML()
    writer.default_flow_style = False
    stream = io.StringIO()
    writer.dump(writer.load(text), stream)
    assert stream.getvalue() == text
    assert None not in [value for section in yaml.safe_load(text).values() for value in values_of(section)]


def test_params_yaml_has_no_comment_after_a_list_or_mapping(root: Path) -> None:
    """ruamel.yaml ties such a line to the list's last entry, and `-S` replaces lists and mappings as a whole."""
    lines = (root / "params.yaml").read_text().splitlines()
    for line, after in itertools.pairwise(lines):
        inside = line.lstrip().startswith("- ") or line.endswith(("{}", "]")) or line.startswith("    ")
        assert not (inside and (after.strip() == "" or after.lstrip().startswith("#"))), after


class TestMappingsThatAnySettingMayFill:
    """`dvc exp run -S 'ingest.minimum={rating: 4}'` is refused by Hydra where params.yaml has an empty mapping."""

    @pytest.mark.parametrize("empty", ["", None, {}])
    def test_nothing_may_be_written_in_any_way(self, empty: Any) -> None:
        ingest = read_params({"ingest": {"minimum": empty, "columns": empty}}).ingest
        assert (ingest.minimum, ingest.mapping) == ({}, {})

    @pytest.mark.parametrize("text", ["rating", 4, ["rating"], False, 0])
    def test_what_is_no_mapping_is_refused(self, text: Any) -> None:
        assert "ingest.minimum must be a mapping" in refusal({"ingest": {"minimum": text}})

    def test_params_yaml_has_no_empty_mapping(self, root: Path) -> None:
        for path in (root / "params.yaml", *(root / "presets").glob("*.yaml")):
            assert "{}" not in path.read_text(), path

    def test_a_column_that_is_left_empty_is_recognised(self) -> None:
        columns = {"user": "customer", "item": "", "timestamp": None, "title": 0, "watch": "seconds", "session": ""}
        mapping = read_params({"ingest": {"columns": columns}}).ingest.mapping
        assert mapping == {"user": "customer", "title": "0", "watch": "seconds", "session": ""}

    def test_every_column_of_the_log_and_of_the_item_file_has_its_key(self, root: Path) -> None:
        assert set(COLUMNS) == {*LOG_NAMES, *ITEM_NAMES}
        for path in (root / "params.yaml", *(root / "presets").glob("*.yaml")):
            columns = yaml.safe_load(path.read_text()).get("ingest", {}).get("columns")
            assert columns is None or columns == dict.fromkeys(COLUMNS, ""), path


class TestNamesOfActions:
    """A name that no log can give a meaning to is refused by `check`, before DVC removes what ingest wrote."""

    @pytest.mark.parametrize("setting", ["minimum", "actions"])
    @pytest.mark.parametrize("name", ["user", "item", "timestamp", "user_id", "position", "__nth", ""])
    def test_no_column_of_another_meaning_is_an_action(self, setting: str, name: str) -> None:
        said = refusal({"dataset": "custom", "ingest": {setting: {"rating": 1, name: 1}}})
        assert f"ingest.{setting} names '{name}', which is " in said
        assert "and no action: name a column of numbers" in said

    @pytest.mark.parametrize("name", ["user_id", "position", "__nth"])
    def test_an_action_cannot_have_a_name_of_our_own(self, name: str) -> None:
        said = refusal({"ingest": {"columns": {name: "who"}}})
        assert f"names '{name}', which is a name that ingest reserves" in said

    @pytest.mark.parametrize(
        ("columns", "refused"),
        [
            ({"user": "who", "item": "who"}, "as 'user' and as 'item'"),
            ({"timestamp": "at", "watch": "at"}, "as 'timestamp' and as 'watch'"),
            ({"item": "sku", "title": "sku"}, "as 'item' and as 'title'"),
            ({"user": "name", "title": "name"}, ""),  # of the log, and of the item file
            ({"watch": "", "click": ""}, ""),
        ],
    )
    def test_one_column_has_one_meaning(self, columns: dict[str, str], refused: str) -> None:
        changes = {"dataset": "custom", "ingest": {"columns": columns}}
        if refused:
            assert refused in refusal(changes)
        else:
            read_params(changes)

    def test_what_is_left_out_is_no_action(self) -> None:
        said = refusal({"dataset": "custom", "ingest": {"columns": {"watch": ""}, "actions": {"watch": 3}}})
        assert "which ingest.columns leaves out by an empty name" in said

    def test_a_published_log_has_its_own_actions(self) -> None:
        said = refusal({"ingest": {"actions": {"watch_second": 1}}})
        assert "which is no action that the log of demo is known to have: did you mean 'watch_seconds'?" in said
        said = refusal({"dataset": "movielens-1m", "ingest": {"minimum": {"click": 1}}})
        assert "valid: rating" in said
        read_params({"dataset": "custom", "ingest": {"actions": {"watch_second": 1}, "minimum": {"title": 2}}})
        named = {"columns": {"vote": "overall"}, "actions": {"vote": [3], "rating": [4]}}
        read_params({"dataset": "amazon-beauty", "ingest": named})

    def test_the_known_actions_are_those_of_the_recipes_and_of_the_demo(self) -> None:
        for recipe in RECIPES.values():
            assert set(recipe.log_columns) - set(LOG_NAMES) == set(PUBLISHED_ACTIONS)
        assert generate_demo_log.__doc__ is not None
        assert f"timestamp in seconds, {', '.join(DEMO_ACTIONS)};" in generate_demo_log.__doc__


def test_every_item_as_a_target_needs_a_causal_backbone() -> None:
    said = refusal({"train": {"targets": "all"}})
    assert "train.targets all" in said
    assert "t5 is none: set backbone.name to decoder or hstu" in said
    assert read_params({"train": {"targets": "all"}, "backbone": {"name": "hstu"}}).train.targets == "all"


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ({"name": "gr"}, "ingest.actions names no column of the log"),
        (
            {"name": "t5"},
            "needs a backbone that reads item by item, and t5 does not: set backbone.name to decoder or hstu",
        ),
        ({"name": "decoder", "separators": True}, "set backbone.separators to false"),
    ],
)
def test_actions_need_columns_of_the_log_and_a_causal_backbone(backbone: dict[str, Any], said: str) -> None:
    assert said in refusal({"backbone": {**backbone, "actions": True}})
    good = {"backbone": {"name": "gr", "actions": True}, "ingest": {"actions": {"like": [1]}}}
    assert read_params(good).backbone.actions
    assert "backbone.actions adds another" in refusal(
        {**good, "backbone": {"name": "hstu", "separators": False, "actions": True}, "strategy": "intrr"}
    )


RANKING = {
    "backbone": {"name": "gr", "actions": True},
    "ingest": {"actions": {"click": [1], "like": [1]}},
    "train": {"task": "ranking", "select": "auc"},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"backbone": {"name": "gr"}},
            "train.task ranking predicts actions, which a network has with backbone.actions",
        ),
        ({"train": {"task": "ranking"}}, "train.select recall_at_10 measures a ranking of items"),
        ({"train": {"select": "auc"}}, "train.select auc measures predicted actions"),
        (
            {"strategy": "rastp"},
            "train.task ranking trains the plain network, and strategy rastp changes how codes are read",
        ),
        ({"strategy": "intrr+skipgr"}, "train.task ranking trains the plain network, and strategy intrr changes"),
        ({"evaluate": {"ranking": "fused"}}, "evaluate.ranking fused ranks items, and train.task ranking predicts"),
        (
            {"strategy": "skipgr", "skipgr": {"apply_to": "both", "input_unit": "item"}},
            "train.task ranking scores actions: set skipgr.apply_to=loss",
        ),
        (
            {"strategy": "skipgr", "skipgr": {"level_ratios": [0.1, 0.1, 0.2]}},
            "3 entries for 2 columns that are scored (train.task ranking scores each column of ingest.actions)",
        ),
        ({"ingest": {"actions": {}}}, "ingest.actions names no column of the log"),
    ],
)
def test_a_ranking_of_exposures_refuses_what_means_nothing_for_it(changes: dict[str, Any], said: str) -> None:
    read_params(RANKING)
    read_params({**RANKING, "strategy": "skipgr", "skipgr": {"level_ratios": [0.1, 0.3]}})
    read_params({**RANKING, "train": {"task": "ranking", "select": "loss"}})
    assert said in refusal({**RANKING, **changes})


def test_whole_sequences_need_every_item_as_a_target() -> None:
    assert "set train.targets to all" in refusal({"train": {"windows": "sequences"}, "backbone": {"name": "decoder"}})


def test_only_hstus_time_bias_wants_times() -> None:
    cases = {
        ("t5", "silu", True): False,
        ("decoder", "silu", True): False,
        ("hstu", "silu", True): True,
        ("hstu", "silu", False): False,
        ("hstu", "softplus", True): False,
    }
    for (name, attention, bias), wanted in cases.items():
        backbone = {"name": name, "hstu_attention": attention, "time_bias": bias}
        assert read_params({"backbone": backbone}).backbone.wants_times == wanted
