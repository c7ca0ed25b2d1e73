from pathlib import Path

import pytest

from videoattn.recipe import config
from videoattn.recipe.config import AttentionConfig, Config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\ndata: {root: videos}\n"
        "model: {attention: {name: non_local, after: [layer2.1], options: {key_pool: [1, 2, 2]}}}\n"
    )
    return path


def test_overrides_win_and_defaults_stay(recipe: Path) -> None:
    overrides = ["train.lr=0.5", "clip.mean=[0, 0, 0]", "data.root=other"]
    loaded = config.load(recipe, [*overrides, "train.auxiliary_weights.diversity=1"])
    assert loaded.train.lr == 0.5
    assert loaded.train.auxiliary_weights == {"diversity": 1.0}
    assert loaded.clip.mean == (0.0, 0.0, 0.0)
    assert loaded.data.root == "other"
    assert loaded.model.attention.after == ("layer2.1",)
    assert loaded.model.attention.options == {"key_pool": [1, 2, 2]}
    assert loaded.train.num_epochs == config.TrainConfig().num_epochs


def test_dumped_config_loads_equal(recipe: Path, tmp_path: Path) -> None:
    loaded = config.load(recipe)
    config.dump(loaded, tmp_path / "dumped.yaml")
    assert config.load(tmp_path / "dumped.yaml") == loaded
    assert config.from_dict(config.to_dict(loaded)) == loaded
    older = tmp_path / "older.yaml"  # a key that has another name since
    older.write_text(
        (tmp_path / "dumped.yaml").read_text().replace("official_split", "ucf101_split")
    )
    assert config.load(older, ["data.official_split=3"]).data.official_split == 3
    assert config.load(older) == loaded
    before = config.to_dict(loaded)
    before["data"]["ucf101_split"] = before["data"].pop("official_split") + 1
    assert config.from_dict(before).data.official_split == loaded.data.official_split + 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_are_short_and_name_their_runs(path: Path, tmp_path: Path) -> None:
    loaded = config.load(path, ["data.root=x"])
    assert isinstance(loaded, Config)
    assert loaded.name == path.stem
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert f"videoattn train configs/{path.name}" in path.read_text()
    config.dump(loaded, tmp_path / "dumped.yaml")
    assert config.load(tmp_path / "dumped.yaml") == loaded


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", r"^train.lrr=1: unknown key 'train.lrr' \(did you mean lr\?\); it may be"
         " one of num_epochs, batch_size"),
        ("foo=1", r"^foo=1: unknown key 'foo'; it may be one of name, seed, data, clip, augment"),
        ("model.attention.afte=[x]", r"key 'model.attention.afte' \(did you mean after\?\)"),
        ("train.lr=fast", "train.lr=fast: train.lr: Value 'fast' of type 'str' could not be conv"),
        ("train.num_epochs=1.5", "train.num_epochs: Value '1.5' of type 'float' could not be"),
        ("train.optimizer=adam", r"train.optimizer: Invalid value 'adam', expected one of \['sgd'"),
        ("clip.mean=[1,2]", r"^clip.mean=\[1,2\]: TupleConfig length 2 does not match"),
        ("faster", "override 'faster' is not key=value, as in train.lr=0.02"),
    ],
)  # fmt: skip
def test_bad_overrides(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.load(recipe, [override])


@pytest.mark.parametrize(
    ("key", "least"),
    [
        (f"{section}.{key}", least)
        for section, keys in config._AT_LEAST.items()
        for key, least in keys.items()
    ],
)
def test_numbers_that_are_too_small(recipe: Path, key: str, least: int) -> None:
    section, name = key.split(".")
    loaded = config.load(recipe, [f"{key}={least}"])
    assert getattr(getattr(loaded, section), name) == least
    with pytest.raises(ValueError, match=rf"^{key}: got -?\d.*; need at least {least}$"):
        config.load(recipe, [f"{key}={least - 1}"])


def test_not_a_number(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"^train.lr: got nan; need at least 0$"):
        config.load(recipe, ["train.lr=nan"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\n", "data.root has no value; give one, as in data.root=..."),
        ("data: {root: x}\n", "name has no value; give one, as in name=..."),
        ("name: a\ndatas: 1\n", r"recipe.yaml: unknown key 'datas' \(did you mean data\?\)"),
        ("name: [a\n", "recipe.yaml is not valid YAML: while parsing a flow sequence"),
        ("- a\n- b\n", "recipe.yaml is not a recipe: it must hold key: value lines"),
        ("3\n", "recipe.yaml is not a recipe"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        config.load(path)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recipe at .*nowhere.yaml; see configs/ for those"):
        config.load(tmp_path / "nowhere.yaml")


def test_another_attention_system_leaves_the_options_of_the_recipe_s_own(recipe: Path) -> None:
    kept = config.load(recipe, ["model.attention.name=non_local"]).model.attention
    assert (kept.after, kept.options) == (("layer2.1",), {"key_pool": [1, 2, 2]})
    other = config.load(
        recipe, ["model.attention.name=cbam", "model.attention.options.reduction=4"]
    ).model.attention
    assert (other.name, other.after, other.options) == ("cbam", (), {"reduction": 4})
    assert config.load(recipe, ["model.attention.name=null"]).model.attention == AttentionConfig()
