import re
import shlex
from pathlib import Path

import pytest

from videoattn.recipe import load as config
from videoattn.recipe.config import (
    AttentionConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
    limits,
    section,
)

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


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
    assert loaded.train.num_epochs == TrainConfig().num_epochs


@pytest.mark.parametrize("empty", ["{}", "{ }", " {} "])
def test_an_empty_mapping_removes_what_the_recipe_sets(recipe: Path, empty: str) -> None:
    recipe.write_text(
        "name: x\ndata: {root: x}\naugment: {flip_labels: {a: b}}\n"
        "model: {name: i3d_r18, options: {width: 8, dropout: 0.1}, attention: "
        "[{name: non_local, options: {form: gaussian}}, {name: cbam, options: {norm: none}}]}\n"
    )
    loaded = config.load(recipe, [f"augment.flip_labels={empty}", f"model.options={empty}"])
    assert (loaded.augment.flip_labels, loaded.model.options) == ({}, {})
    words = ["model.options.width=16", f"model.options={empty}", "model.options.shift_div=8"]
    assert config.load(recipe, words).model.options == {"shift_div": 8}
    for number in (0, 1):
        loaded = config.load(recipe, [f"model.attention.{number}.options={empty}"])
        options = [system.options for system in loaded.model.attention.systems]
        assert [bool(one) for one in options] == [number != 0, number != 1]


def test_an_empty_mapping_does_not_change_what_reads_it(recipe: Path) -> None:
    recipe.write_text(
        "name: x\ndata: {root: x}\nmodel: {name: i3d_r18, options: '${model.attention.options}',"
        " attention: {name: cbam, options: {norm: none}}}\n"
    )
    loaded = config.load(recipe, ["model.options={}"])
    assert (loaded.model.options, loaded.model.attention.options) == ({}, {"norm": "none"})


def test_dumped_config_loads_equal(recipe: Path, tmp_path: Path) -> None:
    loaded = config.load(recipe)
    (tmp_path / "dumped.yaml").write_text(config.to_yaml(loaded))
    assert config.load(tmp_path / "dumped.yaml") == loaded
    assert config.load(config.to_dict(loaded)) == loaded
    older = tmp_path / "older.yaml"  # a key that has another name since
    older.write_text(
        (tmp_path / "dumped.yaml").read_text().replace("official_split", "ucf101_split")
    )
    assert config.load(older, ["data.official_split=3"]).data.official_split == 3
    assert config.load(older) == loaded
    before = config.to_dict(loaded)
    before["data"]["ucf101_split"] = before["data"].pop("official_split") + 1
    assert config.load(before).data.official_split == loaded.data.official_split + 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_are_short_and_name_their_runs(path: Path, tmp_path: Path) -> None:
    loaded = config.load(path, ["data.root=x"])
    assert isinstance(loaded, Config)
    assert loaded.name == path.stem
    lines = path.read_text().splitlines()
    assert len(lines) <= 50  # a key per line
    assert f"videoattn train configs/{path.name}" in path.read_text()
    (tmp_path / "dumped.yaml").write_text(config.to_yaml(loaded))
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
        ("train={}", "override 'train={}': train is a section; change its keys, one by one"),
        ("model.attention={ }", "model.attention is a section; change its keys, one by one"),
        ("faster", "override 'faster' is not key=value, as in train.lr=0.02"),
    ],
)  # fmt: skip
def test_invalid_overrides_are_rejected(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.load(recipe, [override])


@pytest.mark.parametrize(("key", "least"), limits("at_least").items())
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
        ("- a\n- b\n", "recipe.yaml is not a recipe; need lines of key: value"),
        ("3\n", "recipe.yaml is not a recipe"),
        (
            "name: '${a'\ndata: {root: x}\n",
            r"is not a recipe: name: no viable alternative at input '\$\{a'$",
        ),
        ("name: a\ndata: {num_workers../: 2}\n", "recipe.yaml: unknown key 'data.num_workers../'"),
        ("name: a\nclip: {std.a: 2}\n", "recipe.yaml: unknown key 'clip.std.a'"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        config.load(path)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.yaml: no such recipe; give the path of a file"):
        config.load(tmp_path / "nowhere.yaml")


def test_choosing_another_attention_system_drops_the_recipes_options(recipe: Path) -> None:
    kept = config.load(recipe, ["model.attention.name=non_local"]).model.attention
    assert (kept.after, kept.options) == (("layer2.1",), {"key_pool": [1, 2, 2]})
    other = config.load(
        recipe, ["model.attention.name=cbam", "model.attention.options.reduction=4"]
    ).model.attention
    assert (other.name, other.after, other.options) == ("cbam", (), {"reduction": 4})
    assert config.load(recipe, ["model.attention.name=null"]).model.attention == AttentionConfig()


@pytest.mark.parametrize(
    "name", ["../proj", "/absolute", "..", ".", "", "a/b", "a\\b", "a\nb", "a\0b", "x" * 101]
)
def test_a_name_is_one_path_component(recipe: Path, name: str) -> None:
    values = {"name": name, "data": {"root": "videos"}}
    with pytest.raises(ValueError, match=r"^name: got .*; need the name of a folder in runs/"):
        config.load(values)
    with pytest.raises(ValueError, match=r"^name: got .*; need the name of a folder in runs/"):
        config.from_stored(values)


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "a ${oc.env:HOME} b", "${oc.decode:${name}}", "${oc.create:{a: 1}}", "${"],
)
def test_only_other_keys_are_inserted_in_a_recipe(recipe: Path, text: str) -> None:
    values = {"name": "x", "data": {"root": text}}
    with pytest.raises(ValueError, match=r"data.root: got .*; only the value of another key can"):
        config.load(values)
    with pytest.raises(ValueError, match=r"only the value of another key can be inserted"):
        config.load(recipe, [f"name={text}"])
    with pytest.raises(ValueError, match=r"only the value of another key can be inserted"):
        config.load({"name": "x", "data": {"root": "a"}, "model": {"options": {"a": {text: 1}}}})
    loaded = config.load({"name": "x${seed}", "seed": 3, "data": {"root": "${name}"}})
    assert (loaded.name, loaded.data.root) == ("x3", "x3")


def test_a_stored_config_describes_the_network_and_nothing_else() -> None:
    stored = {
        "name": "x",
        "data": {"root": "http://host/${oc.env:HOME}", "layout": "shards", "num_workers": 24},
        "model": {"name": "i3d_r18", "weights": "/etc/passwd"},
    }
    loaded = config.from_stored(stored)
    assert loaded.data == DataConfig(root="")
    assert loaded.model == ModelConfig("i3d_r18", edition=1)
    typed = config.from_stored(stored, {"root": "mine", "layout": "list"}, ["data.root=typed"])
    assert typed.data == DataConfig(root="typed", layout="list")
    for name in ("clip", "model", "augment"):
        with pytest.raises(ValueError, match=rf"{name}.a holds an interpolation, '\$\{{name}}'"):
            config.from_stored({**stored, name: {"a": "${name}"}})
    with pytest.raises(ValueError, match="the checkpoint's config is damaged: it is not a mapping"):
        config.from_stored([])


def test_a_command_is_typed_and_not_read_from_a_recipe(recipe: Path) -> None:
    values = {"name": "x", "data": {"root": "", "train_split": "pipe:touch ran; cat a.tar"}}
    with pytest.raises(ValueError, match=r"data.train_split: a recipe cannot run a command; type"):
        config.load(values)
    assert config.load(recipe, ["data.test_split=pipe:cat a.tar"]).data.test_split.startswith("p")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("name=007", "007"),
        ("name=no", "no"),
        ("name=@x", "@x"),
        ("data.separator=,", ","),
        ("data.separator=::", "::"),
        ("data.separator=|", "|"),
        ("data.separator=\t", "\t"),
        ('data.separator=","', ","),
        ("data.root='day:1'", "day:1"),
        ("data.root=a=b", "a=b"),
        ("data.class_list=null", None),
        ("data.class_list=[x]", "[x]"),
        ("data.layout=list", "list"),
    ],
)
def test_text_fields_take_the_text_as_typed(recipe: Path, word: str, value: str | None) -> None:
    loaded = config.load(recipe, [word])
    section, _, key = word.partition("=")[0].rpartition(".")
    assert getattr(getattr(loaded, section) if section else loaded, key) == value


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('data.separator=","', {"separator": ","}),
        ('data.separator="::"', {"separator": "::"}),
        ("data.separator='|' data.root='my clips'", {"separator": "|", "root": "my clips"}),
        (r"data.separator=\; data.root=my\ clips", {"separator": ";", "root": "my clips"}),
        ('data.columns="path frames label"', {"columns": "path frames label"}),
        ('data.columns="path label ..."', {"columns": "path label ..."}),
        ("data.frame_template=img_{:05d}.jpg", {"frame_template": "img_{:05d}.jpg"}),
        ('data.class_list="a, b #1.txt"', {"class_list": "a, b #1.txt"}),
    ],
)
def test_settings_as_typed_in_a_shell(recipe: Path, line: str, expected: dict[str, str]) -> None:
    data = config.load(recipe, shlex.split(line)).data
    assert {key: getattr(data, key) for key in expected} == expected


def test_the_settings_on_the_page_about_data(recipe: Path) -> None:
    page = (ROOT / "data/README.md").read_text()
    codes = re.findall(r"`([^`]+)`", page) + re.findall(r"^    (data\..*)$", page, re.MULTILINE)
    lines = [code for code in codes if re.match(r"(data|clip|augment)\.\w+=", code)]
    assert len(lines) > 10
    for line in lines:
        words = shlex.split(line)
        loaded = config.to_dict(config.load(recipe, words))
        for key, _, text in (word.partition("=") for word in words):
            section, _, name = key.partition(".")
            value = loaded[section][name]
            assert (value if isinstance(value, str) else str(value).lower()) == text, line


def test_values_that_are_not_yaml_are_named(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"^override 'train.lr=\[': '\[' is not a value \("):
        config.load(recipe, ["train.lr=["])


def test_settings_that_are_dropped_or_renamed_are_noted(recipe: Path) -> None:
    notes: list[str] = []
    config.load(recipe, ["model.attention.name=cbam"], notes=notes)
    assert notes == [
        "model.attention.after and options of the recipe belong to non_local and are not used "
        "with cbam"
    ]
    notes.clear()
    config.load({"name": "x", "data": {"root": "a", "ucf101_split": 2}}, notes=notes)
    assert notes == ["data.ucf101_split is now called data.official_split"]


@pytest.mark.parametrize(
    "content",
    [
        "name: h\u00f6".encode("latin-1"),
        "name: x\n".encode("utf-16"),
        "name: x\n".encode("utf-16-le"),
        b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",  # a video
        b"GIF89a\x40\0\x40\0\xf7\xff\xff",
    ],
)
def test_a_recipe_in_another_encoding(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.yaml is not UTF-8 text; save it as UTF-8$"):
        config.load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("root: x does not exist", "data.root: x does not exist"),
        ("nope.txt: no such class list", "nope.txt: no such class list"),
        ("names: got 3", "names: got 3"),
        ("no video", "no video"),
    ],
)
def test_a_section_is_added_to_messages_about_its_keys(message: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}$"), section("data"):
        raise ValueError(message)


@pytest.mark.parametrize(
    "word", ["augment.scales=[[]]", "clip.mean=[[0, 0, 0]]", "model.attention.after=[{a: b}]"]
)
def test_lists_in_lists_are_refused(recipe: Path, word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ValueError, match=rf"{key}: got \[.*\]; need a list of single values$"):
        config.load(recipe, [word])
    options = config.load(recipe, ["model.options.head_window=[[1, 2]]"]).model.options
    assert options == {"head_window": [[1, 2]]}


LISTED = """
name: listed
data: {root: x}
model:
  attention:
    - {name: non_local, after: [layer2.1], options: {key_pool: null}}
    - cbam
    - {name: non_local, after: [layer3.1]}
"""


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "listed.yaml"
    path.write_text(LISTED)
    return path


def systems(loaded: Config) -> list[tuple[object, ...]]:
    return [(s.name, s.after, s.options) for s in loaded.model.attention.systems]


FIRST, SECOND = ("non_local", ("layer2.1",), {"key_pool": None}), ("cbam", (), {})
THIRD = ("non_local", ("layer3.1",), {})


def test_attention_is_one_system_or_a_list(listed: Path, recipe: Path) -> None:
    loaded = config.load(listed)
    assert systems(loaded) == [FIRST, SECOND, THIRD]
    assert systems(config.load(recipe)) == [("non_local", ("layer2.1",), {"key_pool": [1, 2, 2]})]
    for empty in ("[]", "null"):
        assert systems(config.load(listed, [f"model.attention={empty}"])) == [], empty


@pytest.mark.parametrize("form", ["single", "listed"])
def test_attention_is_written_as_it_is_read(
    form: str, listed: Path, recipe: Path, tmp_path: Path
) -> None:
    """One system is a mapping without new keys, as before lists existed."""
    loaded = config.load(listed if form == "listed" else recipe)
    written = config.to_dict(loaded)["model"]["attention"]
    if form == "single":
        assert written == {
            "name": "non_local", "after": ["layer2.1"], "options": {"key_pool": [1, 2, 2]},
        }  # fmt: skip
    else:
        assert [system["name"] for system in written] == ["non_local", "cbam", "non_local"]
        assert [list(system) for system in written] == [["name", "after", "options"]] * 3
    (tmp_path / "again.yaml").write_text(config.to_yaml(loaded))
    assert config.load(tmp_path / "again.yaml") == loaded
    assert config.from_stored(config.to_dict(loaded)).model == loaded.model
    assert config.comparable(config.to_dict(loaded)) == config.to_dict(loaded)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.attention.name=cbam"], [SECOND]),
        (["model.attention.name=non_local"], [FIRST]),
        (["model.attention.name=sagan"], [("sagan", (), {})]),
        (["model.attention.name=null"], []),
        (["model.attention=[cbam,non_local]"], [SECOND, FIRST]),
        (["model.attention=[{name: cbam, after: [layer1.0]},sagan]"],
         [("cbam", ("layer1.0",), {}), ("sagan", (), {})]),
        (["model.attention.1.options.reduction=4"], [FIRST, ("cbam", (), {"reduction": 4}), THIRD]),
        (["model.attention[1].after=[layer1.0]"], [FIRST, ("cbam", ("layer1.0",), {}), THIRD]),
        (["model.attention.0.after=[layer2.0]"],
         [("non_local", ("layer2.0",), {"key_pool": None}), SECOND, THIRD]),
        (["model.attention.2.name=sagan"], [FIRST, SECOND, ("sagan", ("layer3.1",), {})]),
        (["model.attention.1.options.reduction=4", "model.attention=[sagan,cbam]"],
         [("sagan", (), {}), ("cbam", (), {"reduction": 4})]),
    ],
)  # fmt: skip
def test_words_choose_and_change_systems(
    listed: Path, words: list[str], expected: list[tuple[object, ...]]
) -> None:
    assert systems(config.load(listed, words)) == expected


def test_a_list_keeps_the_settings_of_the_recipes_single_system(recipe: Path) -> None:
    notes: list[str] = []
    loaded = config.load(recipe, ["model.attention=[sagan,non_local]"], notes=notes)
    assert systems(loaded)[1] == ("non_local", ("layer2.1",), {"key_pool": [1, 2, 2]})
    assert notes == []
    config.load(recipe, ["model.attention=[sagan,cbam]"], notes=notes)
    assert notes == [
        "model.attention.after and options of the recipe belong to non_local and are not used "
        "with sagan and cbam"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.attention.after=[layer1.0]"],
         r"3 attention systems; give the number of one, from 0, as in model.attention.0.after="),
        (["model.attention.3.after=[layer1.0]"],
         "the recipe has 3 attention systems, numbered from 0; add one in the recipe's list"),
        (["model.attention={0: {after: [layer2]}, 1: {after: [layer3]}}"],
         r"\}\}: changes several settings; change one system in each word$"),
        (["model.attention=[cbam]", "model.attention.name=sagan"],
         r"^model.attention=\[cbam\]: other words choose the attention too; leave them out"),
        (["model.attention=cbam"], "^model.attention=cbam: model.attention: got 'cbam'; need n"),
        (["model.attention=[3]"], r"^model.attention=\[3\]: model.attention: got 3; need name"),
        (["model.attention=[cbam,{nme: x}]"],
         r"unknown key 'model.attention.1.nme' \(did you mean name\?\); it may be one of name, "
         "after, options$"),
        (["model.attention.1.afte=[x]"],
         r"^model.attention.1.afte=\[x\]: unknown key 'model.attention.1.afte' \(did you mean"),
        (["model.attention.1.after=3"], r"^model.attention.1.after=3: model.attention.1.after: "),
        (["model.attention.then.1.after=[x]"], "unknown key 'model.attention.then'"),
        (["model.attention=[cbam,{name: x, after: [[y]]}]"],
         r"model.attention.then.1.after: got \[\['y'\]\]; need a list of single values"),
    ],
)  # fmt: skip
def test_wrong_words_about_systems_are_refused(
    listed: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config.load(listed, words)


def test_a_recipe_has_a_list_and_not_its_inner_form(recipe: Path) -> None:
    values = {"name": "x", "data": {"root": "y"}}
    inner = {"name": "cbam", "then": {"1": {"name": "sagan"}}}
    with pytest.raises(ValueError, match=r"model.attention: got {'name': 'cbam', 'then'.*; need n"):
        config.load({**values, "model": {"attention": inner}})
    many = [{"name": "cbam", "after": [f"layer1.{i}"]} for i in range(17)]
    with pytest.raises(
        ValueError, match=r"config: model.attention: got 17 systems; the limit is 16"
    ):
        config.from_stored({**values, "model": {"attention": many}})
    assert len(config.load({**values, "model": {"attention": many}}).model.attention.systems) == 17
