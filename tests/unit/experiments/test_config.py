"""Config: round trips, refusals and presets."""

from __future__ import annotations

import ast
import math
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import config as config_module
from experiments.cli import parse_overrides
from experiments.config import (
    RunConfig,
    field_names,
    load_config,
    override,
    secret_environment,
    to_flat,
    to_public,
    to_yaml,
)
from experiments.errors import UserError
from experiments.fields import fields_help
from experiments.study.search_space import check_against, load_search_space, study_space
from experiments.yaml_files import parse_yaml
from lightning_modules.redaction import public_url
from tests.conftest import REPOSITORY

PRESETS = [path for path in sorted((REPOSITORY / "conf").rglob("*.yaml")) if path.parent.name != "cloud"]
"""Those of `experiments`; tests/unit/sagemaker_launch/settings/test_cloud.py has the others."""

quick = settings(max_examples=30, deadline=None)  # an example takes 20 ms, and more on a busy machine

PRESETS = sorted((REPOSITORY / "conf").glob("*.yaml"))

values = st.fixed_dictionaries(
    {},
    optional={
        "data.image_size": st.integers(16, 1024),
        "data.batch_size": st.integers(1, 4096),
        "data.fraction": st.floats(0.001, 1),
        "data.augment": st.sampled_from(["none", "light", "strong"]),
        "data.root": st.sampled_from(["photos", "/a/b c", "s3://bucket/prefix"]),
        "model.backbone": st.text(min_size=1, max_size=20),
        "model.dropout": st.floats(0, 0.99),
        "optimizer.learning_rate": st.floats(1e-12, 1e3),
        "optimizer.name": st.sampled_from(["sgd", "adamw"]),
        "trainer.max_epochs": st.integers(1, 10_000),
        "trainer.compile": st.sampled_from([True, False, "auto"]),
        "sweep.timeout_seconds": st.none() | st.floats(0.1, 1e6),
        "tracking.uri": st.none() | st.sampled_from(["http://127.0.0.1:5000", "sqlite:///x.db"]),
        "seed": st.integers(0, 2**31),
    },
)


@quick
@given(values)
def test_flat_values_make_the_same_config_again(chosen: dict[str, object]) -> None:
    config = load_config(None, chosen)
    assert override(RunConfig(), to_flat(config)) == config


@quick
@given(values)
def test_values_given_as_text_make_the_same_config(chosen: dict[str, object]) -> None:
    text = {name: "null" if value is None else str(value) for name, value in chosen.items()}
    assert load_config(None, text) == load_config(None, chosen)


@quick
@given(values)
def test_a_config_written_as_yaml_loads_as_itself(chosen: dict[str, object]) -> None:
    import tempfile

    config = load_config(None, chosen)
    with tempfile.TemporaryDirectory() as folder:
        preset = Path(folder) / "preset.yaml"
        preset.write_text(to_yaml(config))
        assert load_config(preset) == config


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optimizer.learning_rate", "1e-05", 1e-5),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", "0.1", 0.1),
        ("trainer.compile", "True", True),
        ("trainer.compile", "false", False),
        ("sweep.timeout_seconds", "null", None),
        ("data.batch_size", "128", 128),
        ("data.root", "null", None),
        ("model.weights", "1.5", "1.5"),
        ("model.weights", "none", "none"),
        ("sweep.study_name", "007", "007"),
        ("tracking.uri", "null", None),
    ],
)
def test_text_is_read_as_the_type_of_its_field(name: str, text: str, value: object) -> None:
    read = to_flat(load_config(None, {name: text}))[name]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("trainer.max_ep", "trainer.max_epochs"),
        ("learning_rate", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("data.batchsize", "data.batch_size"),
        ("sweep.trials", "sweep.n_trials"),
    ],
)
def test_unknown_override_names_the_key_and_the_nearest_field(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be the name of a field, got '{name}'; did you mean {near}"):
        load_config(None, {name: 1})


@pytest.mark.parametrize("name", ["foo", "zzz", "zzz.qqq"])
def test_a_name_like_no_other_is_sent_to_the_help(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be the name of a field, .*`sweep --help`"):
        load_config(None, {name: 1})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sheduler: {name: cosine}", "sheduler.name"),
        ("data: {optimizer: {learning_rate: 0.1}}", "data.optimizer.learning_rate"),
        ("optimizer: {learning_rate: {value: 0.1}}", "optimizer.learning_rate.value"),
        ("seed: {value: 1}", "seed.value"),
        ("learning_rate: 0.1", "learning_rate"),
        ("data: 5", "data"),
        ("1: 2", "1"),
        # Nothing in it, and still not a section or a field that takes one.
        ("sheduler: {}", "sheduler"),
        ("optimizer: {sheduler: {}}", "optimizer.sheduler"),
    ],
)
def test_what_a_preset_does_not_have_is_refused_at_every_level(tmp_path: Path, text: str, name: str) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.yaml: {re.escape(name)} must be the name of a field"):
        load_config(preset)


@pytest.mark.parametrize("name", ["seed", "search", "output_dir"])
def test_an_empty_mapping_is_no_value_for_a_field_outside_the_sections(tmp_path: Path, name: str) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(f"{name}: {{}}")
    with pytest.raises(ValueError, match=name):
        load_config(preset)


def test_a_duplicate_key_in_a_preset_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("trainer: {max_epochs: 1}\ndata: {batch_size: 8}\ntrainer: {devices: 2}\n")
    with pytest.raises(ValueError, match="trainer"):
        load_config(preset)


def test_an_unknown_key_in_a_preset_names_the_file(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("optimizer:\n  lr: 0.1\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: optimizer\.lr must be the name of a field"):
        load_config(preset)


REFUSED = [
    ("data.image_size", 8, "must be 16..1024, got 8"),
    ("data.image_size", 1025, "must be 16..1024, got 1025"),
    ("data.crop_fraction", 0.4, "must be 0.5..1, got 0.4"),
    ("data.crop_fraction", 1.1, "must be 0.5..1, got 1.1"),
    ("data.batch_size", 0, "must be >= 1, got 0"),
    ("data.num_workers", -1, "must be >= 0, got -1"),
    ("data.fraction", 0.0, "must be in (0, 1], got 0.0"),
    ("data.fraction", 1.5, "must be in (0, 1], got 1.5"),
    ("data.valid_fraction", 0.0, "must be in (0, 1), got 0.0"),
    ("data.valid_fraction", 1.0, "must be in (0, 1), got 1.0"),
    ("data.max_bad_fraction", -0.1, "must be 0..1, got -0.1"),
    ("data.max_bad_fraction", 1.1, "must be 0..1, got 1.1"),
    ("data.cache_views", 0, "must be >= 1, got 0"),
    ("data.cache_max_gb", 0.0, "must be > 0, got 0.0"),
    ("model.dropout", 1.0, "must be in [0, 1), got 1.0"),
    ("model.label_smoothing", 1.0, "must be in [0, 1), got 1.0"),
    ("optimizer.learning_rate", -1.0, "must be > 0, got -1.0"),
    ("optimizer.learning_rate", 0.0, "must be > 0, got 0.0"),
    ("optimizer.weight_decay", -0.1, "must be >= 0, got -0.1"),
    ("optimizer.backbone_learning_rate_scale", 0.0, "must be > 0, got 0.0"),
    ("optimizer.warmup_epochs", -1.0, "must be >= 0, got -1.0"),
    ("trainer.max_epochs", 0, "must be >= 1, got 0"),
    ("trainer.min_steps", 0, "must be >= 1, got 0"),
    ("trainer.devices", 0, "must be >= 1, got 0"),
    ("trainer.num_nodes", 0, "must be >= 1, got 0"),
    ("trainer.gradient_clip", -0.5, "must be >= 0, got -0.5"),
    ("trainer.early_stopping_patience", -1, "must be >= 0, got -1"),
    ("trainer.checkpoint_minutes", -1.0, "must be >= 0, got -1.0"),
    ("trainer.on_rule", "stop", "must be warn without trainer.record light or full, which has the rules, got 'stop'"),
    ("tracking.flush_timeout_seconds", 0.0, "must be > 0, got 0.0"),
    ("sweep.n_trials", 0, "must be >= 1, got 0"),
    ("sweep.timeout_seconds", 0.0, "must be > 0, got 0.0"),
    ("sweep.workers", 0, "must be >= 1, got 0"),
    ("sweep.claim_timeout_seconds", 0.0, "must be > 0, got 0.0"),
    ("sweep.population", -1, "must be >= 0, got -1"),
    ("sweep.study_name", "a/b", "must be usable as a folder name, got 'a/b'"),
    ("sweep.study_name", "..", "must be usable as a folder name, got '..'"),
    ("sweep.max_failures", -1, "must be >= 0, got -1"),
    ("sweep.direction", "maximize", "must be minimize for val_loss, got 'maximize'"),
    ("seed", -1, "must be >= 0, got -1"),
    ("seed", 2**32, "must be < 2**32, got 4294967296"),
]


@pytest.mark.parametrize(("name", "value", "rule"), REFUSED)
def test_a_value_against_a_rule_is_refused_with_key_rule_and_value(name: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name} {rule}')}$"):
        load_config(None, {name: value})


def test_features_of_a_backbone_that_trains_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^data\.cache must be auto, none or decoded unless model\.trainable is head"):
        load_config(None, {"data.cache": "features", "model.trainable": "all"})


@pytest.mark.parametrize(
    "other", [{"model.trainable": "all"}, {"data.cache": "none"}, {"data.cache": "decoded"}], ids=str
)
def test_what_can_not_train_together_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^sweep\.population must be 0 or 1 without cached features .*, got 8$"):
        load_config(None, {"sweep.population": 8, **other})


def test_heads_that_train_together_are_not_recorded() -> None:
    with pytest.raises(ValueError, match=r"^trainer\.record must be none with sweep\.population, .*, got 'light'$"):
        load_config(None, {"sweep.population": 8, "trainer.record": "light"})


def test_every_rule_of_the_config_is_tried_above() -> None:
    calls = [
        node for node in ast.walk(ast.parse(Path(config_module.__file__).read_text())) if isinstance(node, ast.Call)
    ]
    rules = [call.args[1] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "require"]
    keys = {rule.value for rule in rules if isinstance(rule, ast.Constant)}
    assert keys == {name for name, _, _ in REFUSED} | {"data.root", "data.cache", "trainer.record"}


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("sweep.metric", "val_accuracy", "sweep.direction must be maximize"),
        ("seed", "three", "seed.*three"),
        ("seed", 1.5, "seed.*1.5"),
        ("trainer.max_epochs", 1.5, "trainer.max_epochs.*1.5"),
        ("trainer.max_epochs", True, "trainer.max_epochs.*True"),
        ("trainer.compile", 1, "trainer.compile.*1"),
        ("model.trainable", "tail", "model.trainable must be one of head, last_block, all, got 'tail'"),
        ("model.backbone", 50, "model.backbone.*50"),
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate.*fast"),
        ("optimizer.learning_rate", [0.1], r"optimizer.learning_rate.*\[0.1\]"),
        ("optimizer.learning_rate", {}, "optimizer.learning_rate.*{}"),
        ("tracking.uri", 5, "tracking.uri.*5"),
    ],
)
def test_a_refused_value_names_key_rule_and_value(name: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as error:
        load_config(None, {name: value})
    assert "\n" not in str(error.value)


NULLABLE = {
    "data.image_size",
    "data.crop_fraction",
    "data.root",
    "trainer.max_epochs",
    "tracking.uri",
    "sweep.timeout_seconds",
    "sweep.sampler",
    "sweep.pruner",
    "sweep.storage",
    "search",
}


def is_refused(name: str, value: object) -> bool:
    """Whether a value is refused with a message that names its field."""
    try:
        load_config(None, {name: value})
    except ValueError as error:
        return name in str(error)
    except (TypeError, KeyError):
        return False
    return False


def test_null_is_refused_where_a_field_has_no_such_value() -> None:
    assert [name for name in field_names() if name not in NULLABLE and not is_refused(name, None)] == []


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_must_be_finite(value: float) -> None:
    numbers = [name for name, default in to_flat(RunConfig()).items() if isinstance(default, float)]
    assert [name for name in [*numbers, "sweep.timeout_seconds"] if not is_refused(name, value)] == []


def test_a_seed_that_torch_refuses_is_refused() -> None:
    assert load_config(None, {"seed": 2**32 - 1}).seed == 2**32 - 1
    with pytest.raises(ValueError, match=r"^seed must be"):
        load_config(None, {"seed": 2**32})


@pytest.mark.parametrize("text", ["5", "text", "[1]", "[]", "false", "0"])
def test_a_preset_that_holds_something_else_is_refused(tmp_path: Path, text: str) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml must hold sections .*, got "):
        load_config(preset)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "data: {}\n"])
def test_a_preset_may_leave_everything_as_it_is(tmp_path: Path, text: str) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    assert load_config(preset) == RunConfig()


@pytest.mark.parametrize("data", [b"a: [", b"a: {b: 1\nc", b"\xff\xfe\x00"], ids=["list", "mapping", "no text"])
def test_broken_yaml_is_named_in_one_line(tmp_path: Path, data: bytes) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_bytes(data)
    with pytest.raises(ValueError, match=r"mine\.yaml is not YAML") as error:
        load_config(preset)
    assert "\n" not in str(error.value)


def test_a_preset_that_runs_code_is_not_run(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(preset)


PAIRS = list(pairwise("abcdefghi"))
ALIASES = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in PAIRS)
MERGED = "".join(f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n" for before, name in PAIRS)


@pytest.mark.parametrize(
    "text",
    [
        f"a: &a [1, 2]\n{ALIASES}",
        f"a: &a {{b: 1}}\n{MERGED}",
        "seed: &a [*a]\n",
        "model: &a {b: *a}\n",
        f"seed: {'[' * 3000}{']' * 3000}\n",
        f"seed: {'9' * 5000}\n",
        f"seed: [{'1, ' * 100_001}]\n",
        "seed: !!timestamp 2020-99-99\n",
    ],
    ids=["aliases", "merged", "list in itself", "mapping in itself", "nested", "digits", "values", "date"],
)
def test_a_preset_that_stands_for_too_much_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml is not YAML: ") as error:
        load_config(preset)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_large_file_is_not_read_as_a_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"# {'x' * 1_000_000}\n")
    with pytest.raises(UserError, match=r"must name a file of at most 1,000,000 bytes"):
        load_config(tmp_path / "mine.yaml")


def test_a_preset_may_use_aliases_and_merges(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("data: &a {batch_size: 8}\nmodel: &b {backbone: &n resnet18}\n")
    assert load_config(preset).data.batch_size == 8
    parsed = parse_yaml("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: [*b, *b, *a]\n")
    assert parsed == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1, "y": 2}] * 2 + [{"x": 1}]}


def test_overrides_win_over_the_preset_and_leave_the_rest_of_it(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("data: {batch_size: 8, image_size: 32}\n")
    config = load_config(preset, {"data.batch_size": "16"})
    assert (config.data.batch_size, config.data.image_size) == (16, 32)
    again = override(config, {"data.image_size": 64})
    assert (again.data.batch_size, again.data.image_size) == (16, 64)


def test_a_preset_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "list.yaml"
    preset.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="must hold sections"):
        load_config(preset)
    preset.write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(preset)
    with pytest.raises(UserError):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_every_preset_loads_with_its_search_space(preset: Path) -> None:
    config = load_config(preset)
    check_against(load_search_space(REPOSITORY / config.search) if config.search else study_space(config), config)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_every_file_in_conf_opens_with_the_command_that_runs_it(path: Path) -> None:
    assert "python -m experiments" in path.read_text().splitlines()[0]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_the_command_in_a_file_of_conf_uses_that_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    first_line = path.read_text().splitlines()[0]
    words = shlex.split(first_line.partition("python -m experiments ")[2])
    assert words[:2] == ["sweep", "--config"]
    preset = Path(words[2])
    config = load_config(preset, parse_overrides(words[3:]))
    assert path.relative_to(REPOSITORY) in (preset, config.search)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf/search").glob("*.yaml")), ids=lambda path: path.name)
def test_every_search_space_fits_the_default_config(path: Path) -> None:
    check_against(load_search_space(path), RunConfig())


def test_every_field_has_a_docstring_and_help_shows_it() -> None:
    shown = " ".join(fields_help(RunConfig, ["sweep"]).split())
    undocumented = []
    for node in ast.walk(ast.parse(Path(config_module.__file__).read_text())):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if not isinstance(field, ast.AnnAssign) or ast.unparse(field.annotation).endswith("Config"):
                    continue
                text = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
                )
                if not isinstance(text, str) or not text or " ".join(text.split()) not in shown:
                    undocumented.append(f"{node.name}.{ast.unparse(field.target)}")
    assert undocumented == []


def test_a_written_preset_has_the_sections_that_a_person_reads() -> None:
    written = parse_yaml(to_yaml(RunConfig()))
    assert isinstance(written, dict)
    assert list(written) == [
        "data",
        "model",
        "optimizer",
        "trainer",
        "tracking",
        "sweep",
        "seed",
        "search",
        "output_dir",
    ]


def test_reading_a_config_imports_nothing_heavy() -> None:
    code = "import sys, experiments.config; print([m for m in ('torch', 'mlflow', 'optuna') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:hunter2@host:5432/db",
        "postgresql://host/db?user=me&password=hunter2&x=1",
        "https://me:hunter2@mlflow.example.org/path",
    ],
)
def test_no_password_is_in_what_is_stored_beside_a_run(url: str) -> None:
    config = load_config(None, {"tracking.uri": url, "sweep.storage": url})
    assert "hunter2" not in str(to_public(config))
    assert "host" in public_url(url) or "example.org" in public_url(url)
    assert to_public(load_config(None)) == to_flat(load_config(None))


def test_a_field_with_a_password_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, {"tracking.uri": "http://me:hunter2@h", "output_dir": "out"})
    environment = secret_environment(config)
    assert environment == {"EXPERIMENTS_TRACKING_URI": "http://me:hunter2@h"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_config(None, {"output_dir": "out"}) == config
    assert load_config(None, {"tracking.uri": "http://typed"}).tracking.uri == "http://typed"


@pytest.mark.parametrize(
    ("values", "study", "experiment"),
    [
        ({}, "sweep", "experiments"),
        ({"data.name": "dog_images", "data.root": "data"}, "sweep", "experiments"),
        ({"data.name": "folder", "data.root": "my/photos"}, "photos", "photos"),
        ({"data.name": "folder", "data.root": "my/photos/../dogs/"}, "dogs", "dogs"),
        ({"data.name": "folder", "data.root": "s3://bucket/team/photos"}, "photos", "photos"),
        ({"data.name": "folder", "data.root": "C: photos"}, "C_ photos", "C_ photos"),  # MLflow takes no : in a model
        ({"data.name": "folder", "data.root": "/"}, "sweep", "experiments"),
        ({"data.name": "folder", "data.root": "photos", "sweep.study_name": "own"}, "own", "photos"),
        ({"data.name": "folder", "data.root": "photos", "tracking.experiment": "team"}, "photos", "team"),
    ],
)
def test_study_and_experiment_are_named_after_the_data_folder(
    values: dict[str, object], study: str, experiment: str
) -> None:
    config = load_config(None, values)
    assert (config.sweep.study_name, config.tracking.experiment) == (study, experiment)
    assert override(config, {"data.root": "moved"}).sweep.study_name == study, "a name is decided once"
