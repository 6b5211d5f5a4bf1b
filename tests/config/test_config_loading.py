"""Training configs: inheritance, overrides, imports, and errors that name the key."""

import pytest

from fbnetv3.config import check_config, get_cfg, is_detection_config, load_config
from fbnetv3.config.defaults import ConfigKey
from fbnetv3.errors import UsageError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files to the current folder, which is a temporary one."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return name

    return write


def test_the_defaults_are_valid():
    check_config(get_cfg())
    assert get_cfg().SOLVER.EPOCHS == 400


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"low": 0}, "at least 0"),
        ({"above": 0}, "above 0"),
        ({"below": 1}, "below 1"),
        ({"high": 9000}, "at most 9,000"),
        ({"above": 0, "high": 1}, "in (0, 1]"),
        ({}, ""),
    ],
)
def test_bounds_are_described(limits, text):
    assert ConfigKey(0.5, **limits).describe() == text


def test_numbers_that_may_be_left_to_the_program(write):
    assert ConfigKey("auto", auto=True, low=0).describe() == "auto, or at least 0"
    for text, value in {"auto": "auto", "0": 0, "12": 12}.items():
        from_file = load_config(write(f"DATA: {{WORKERS: {text}}}"))
        from_command_line = load_config(write("SEED: 1"), ["DATA.WORKERS", text])
        assert from_file.DATA.WORKERS == from_command_line.DATA.WORKERS == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-1", "DATA.WORKERS -1 must be auto, or at least 0"),
        ("many", "DATA.WORKERS 'many' must be auto, or at least 0"),
        ("2.5", "DATA.WORKERS 2.5 must be an integer or auto"),
        ("True", "DATA.WORKERS True must be an integer or auto"),
    ],
)
def test_neither_a_number_nor_auto(write, value, message):
    with pytest.raises(UsageError, match=f"^{message}$"):
        load_config(write("SEED: 1"), ["DATA.WORKERS", value])


def test_an_empty_section_changes_nothing(write):
    assert load_config(write("SOLVER: {}")).SOLVER == get_cfg().SOLVER


def test_configs_do_not_share_lists():
    get_cfg().INPUT.MEAN.append(0.0)
    assert len(get_cfg().INPUT.MEAN) == 3


def test_a_file_overrides_its_bases_and_the_command_line_both(write):
    write("SOLVER: {LR: 1, EPOCHS: 10, WARMUP_EPOCHS: 1}\nSEED: 1", "first.yaml")
    write("SOLVER: {LR: 2}\nEVAL: {PERIOD: 3}", "second.yaml")
    write("_BASE_: [first.yaml, second.yaml]\nSEED: 3")
    cfg = load_config("config.yaml", ["EVAL.PERIOD", "4"])
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.LR, cfg.SEED, cfg.EVAL.PERIOD) == (10, 2.0, 3, 4)


def test_a_base_is_relative_to_the_file_that_names_it(write):
    write("SEED: 1", "bases/first.yaml")
    write("_BASE_: first.yaml", "bases/second.yaml")
    assert load_config(write("_BASE_: bases/second.yaml")).SEED == 1


def test_values_take_the_type_of_the_default(write):
    cfg = load_config(
        write("SOLVER: {LR: 1e-3, WEIGHT_DECAY: 0}"), ["INPUT.CROP_SCALE", "(0.5, 1)", "DATA.ROOT", "7"]
    )
    assert (cfg.SOLVER.LR, cfg.SOLVER.WEIGHT_DECAY) == (0.001, 0.0)
    assert isinstance(cfg.SOLVER.WEIGHT_DECAY, float)
    assert cfg.INPUT.CROP_SCALE == [0.5, 1]
    assert cfg.DATA.ROOT == "7"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("SOLVR: {LR: 1}", [], "config.yaml: unknown key SOLVR.LR: did you mean SOLVER.LR"),
        ("SOLVER: {LR: fast}", [], "config.yaml: SOLVER.LR 'fast' must be a number"),
        ("SOVLER: {}", [], "config.yaml: unknown key SOVLER: "),
        ("SOLVER: 3", [], "config.yaml: SOLVER 3 must be a section, with keys such as SOLVER.OPTIMIZER"),
        ("SOLVER: {LR: {}}", [], "config.yaml: SOLVER.LR {} must be a number"),
        ("SEED: 1", ["SOLVER.LR", "-1"], "SOLVER.LR -1.0 must be at least 0"),
        ("SEED: 1", ["EMA.DECAY", "1.0"], r"EMA.DECAY 1.0 must be in \[0, 1\)"),
        ("SEED: 1", ["SOLVER.DECAY", "0.0"], r"SOLVER.DECAY 0.0 must be in \(0, 1\]"),
        (
            "SEED: 1",
            ["INPUT.INTERPOLATION", "cubic"],
            "INPUT.INTERPOLATION 'cubic' must be one of empty, bilinear, bicubic",
        ),
        ("SEED: 1", ["INPUT.RESOLUTION", "100000"], r"INPUT.RESOLUTION 100000 must be in \[0, 8,192\]"),
        ("SEED: 1\nSEED: 2", [], "config.yaml: line 2: not YAML: duplicate key 'SEED'"),
        ("IMPORTS: [no_such_module]", [], "IMPORTS 'no_such_module' cannot be imported"),
        ("IMPORTS: no_such_module", [], "IMPORTS 'no_such_module' must be a list"),
    ],
)
def test_errors_name_the_key(write, text, overrides, message):
    with pytest.raises(UsageError, match=message):
        load_config(write(text), overrides)


@pytest.mark.parametrize(
    "text, items",
    [
        ("['a b=2', 'c=3']", ["a b=2", "c=3"]),
        ("[a b=2, c=3]", ["a b=2", "c=3"]),
        ("a b=2,c=3", ["a b=2", "c=3"]),
        ("[]", []),
    ],
)
def test_shells_may_remove_the_quotes_of_a_list_of_texts(write, text, items):
    assert items == load_config(write("SEED: 1"), ["SOLVER.CLASS_WEIGHTS", text]).SOLVER.CLASS_WEIGHTS


def test_imports_run_before_a_recipe_is_read(write, monkeypatch):
    """A recipe can use an optimizer that an imported module registers."""
    monkeypatch.syspath_prepend(".")
    write(
        "from fbnetv3.config.recipe import OPTIMIZERS\nOPTIMIZERS.add('imported', 'x:y', 'test')\n",
        "my_optimizer.py",
    )
    write("{optimizer: imported, lr: 0.1}", "recipe.yaml")
    try:
        cfg = load_config(write("IMPORTS: [my_optimizer]\nRECIPE: recipe.yaml"))
        assert cfg.SOLVER.OPTIMIZER == "imported"
    finally:
        from fbnetv3.config.recipe import OPTIMIZERS

        OPTIMIZERS.remove("imported")


def test_detection_configs_are_recognized_by_their_keys(write):
    assert is_detection_config(write("DATASETS: {TRAIN: [x]}"))
    assert is_detection_config(write("MODEL: {META_ARCHITECTURE: RetinaNet}"))
    assert not is_detection_config(write("MODEL: {ARCH: fbnetv3_a}"))
    with pytest.raises(
        UsageError, match=r"has keys of a detector \(DATASETS\) and of a classifier \(DATA\)"
    ):
        is_detection_config(write("DATASETS: {}\nDATA: {}"))


def test_shipped_configs_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/digits/fbnetv3_digits.yaml").DATA.NAME == "digits"
    assert load_config("digits/fbnetv3_digits.yaml").DATA.NAME == "digits"
    # One's own file comes first
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/fbnetv3_digits.yaml").write_text("DATA: {NAME: cifar10}")
    assert load_config("digits/fbnetv3_digits.yaml").DATA.NAME == "cifar10"
