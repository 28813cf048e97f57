"""Settings: who wins over whom, what is refused, and that the shipped file tells the truth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tomllib

from furnclip import config as configuration
from furnclip.config import config_template, load_config, sections
from furnclip.config.paths import Section
from furnclip.errors import ConfigError, InputError
from tests.bench.tools.make_flags import FLAGS, flags_source

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shipped_file_is_what_init_writes() -> None:
    assert (ROOT / "furnclip.toml").read_text(encoding="utf-8") == config_template()


def test_flags_are_what_the_settings_make() -> None:
    assert FLAGS.read_text(encoding="utf-8") == flags_source()


def test_shipped_file_holds_every_default(folder: Path) -> None:
    values = tomllib.loads(config_template())
    assert list(values) == list(sections())
    (folder / "furnclip.toml").write_text(config_template(), encoding="utf-8")
    assert load_config() == load_config(None)
    (folder / "furnclip.toml").unlink()
    without_file = load_config()
    (folder / "furnclip.toml").write_text(config_template(), encoding="utf-8")
    assert load_config() == without_file


@pytest.mark.parametrize("model", sections().values(), ids=sections())
def test_every_key_is_documented(model: type[Section]) -> None:
    assert list(model.meanings()) == list(model.model_fields)
    assert all(model.meanings().values())


def test_order_of_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config().train.epochs == 0
    (folder / "furnclip.toml").write_text("[train]\nepochs = 2\nlr = 0.5\n", encoding="utf-8")
    assert load_config().train.epochs == 2
    (folder / ".env").write_text("FURNCLIP_TRAIN__EPOCHS=3\n", encoding="utf-8")
    assert load_config().train.epochs == 3
    monkeypatch.setenv("FURNCLIP_TRAIN__EPOCHS", "4")
    assert load_config().train.epochs == 4
    loaded = load_config(None, {"train": {"epochs": 5}})
    assert (loaded.train.epochs, loaded.train.lr) == (5, 0.5)


def test_names_of_the_seed_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("OPENAI_API_KEY=sk-from-file-123\nMODEL_NAME=some/model\n", encoding="utf-8")
    assert load_config().openai_api_key.get_secret_value() == "sk-from-file-123"
    assert load_config().model.name == "some/model"
    monkeypatch.setenv("MODEL_NAME", "other/model")
    assert load_config().model.name == "other/model"


def test_secret_is_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    loaded = load_config()
    assert "very-secret" not in repr(loaded) + str(loaded.model_dump()) + loaded.model_dump_json()


def test_dotenv_hands_aws_to_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "kept")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    (folder / ".env").write_text("AWS_ACCESS_KEY_ID=from-file\nAWS_REGION=ignored\n", encoding="utf-8")
    load_config()
    environment = configuration.environment_variables()
    assert (environment["AWS_ACCESS_KEY_ID"], environment["AWS_REGION"]) == ("from-file", "kept")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "so that monkeypatch takes it back")


def test_paths_start_from_the_file(folder: Path) -> None:
    other = folder / "elsewhere"
    other.mkdir()
    (other / "furnclip.toml").write_text('[paths]\nproducts = "a.csv"\n', encoding="utf-8")
    paths = load_config(other / "furnclip.toml").paths
    assert (paths.products, paths.work) == (other / "a.csv", other / "work")


MISTAKES = {
    "[train]\nepoch = 3": ("unknown setting `train.epoch`", "did you mean `train.epochs`?"),
    "[trian]\nepochs = 3": ("unknown setting `trian`", "did you mean `train`?"),
    "[train]\nepochs = -1": ("`train.epochs` cannot be -1", "see `train.epochs`"),
    '[train]\nlr = "fast"': ("`train.lr` cannot be", "see `train.lr`"),
    "[train]\nlr = nan": ("`train.lr` cannot be", "see `train.lr`"),
    "[train\n": ("is not valid TOML", "fix that line"),
    "train = 3": ("`train` cannot be 3", "see `train`"),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.items())
def test_mistakes_are_named(folder: Path, text: str, expected: tuple[str, str]) -> None:
    (folder / "furnclip.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert expected[0] in caught.value.message
    assert expected[1] in caught.value.hint
    assert caught.value.exit_code == 2


def test_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file `.*absent\.toml`"):
        load_config(folder / "absent.toml")


def test_config_cannot_be_changed(folder: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("name", [".env", "furnclip.toml"])
def test_settings_in_the_encodings_that_editors_write(folder: Path, name: str, encoding: str) -> None:
    text = "FURNCLIP_PATHS__WORK=büro\n" if name == ".env" else '[paths]\nwork = "büro"\n'
    marks = {"utf-16-le-bom": b"\xff\xfe", "utf-16-be-bom": b"\xfe\xff"}
    data = marks.get(encoding, b"") + text.encode(encoding.removesuffix("-bom"))
    (folder / name).write_bytes(data)
    assert load_config().paths.work.name == "büro"


@pytest.mark.parametrize(
    "data",
    [
        "MODEL_NAME=büro\n".encode("utf-16-le"),
        "MODEL_NAME=büro\n".encode("utf-16-be"),
        "MODEL_NAME=büro\n".encode("utf-32"),
        "MODEL_NAME=büro\n".encode("cp1252"),
        b"\xff\xfeM\x00O",
        b"MODEL_NAME=a\0b\n",
        b"A" * (1 << 24) + b"=1",
    ],
    ids=["utf-16-le", "utf-16-be", "utf-32", "cp1252", "odd utf-16", "nul", "huge"],
)
@pytest.mark.parametrize("name", [".env", "furnclip.toml"])
def test_other_encodings_are_refused_by_name(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert name in caught.value.message
    assert (name if len(data) < 1000 else "check") in caught.value.hint


@pytest.mark.parametrize("name", [".env", "furnclip.toml"])
def test_what_is_no_file_is_not_waited_for(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=f"{name}` is not a regular file"):
        load_config()


LISTS = {
    "FURNCLIP_TRAIN__LORA_TARGETS": ("train", "lora_targets"),
    "FURNCLIP_CLEAN__STYLES": ("clean", "styles"),
    "furnclip_clean__colors": ("clean", "colors"),
}


@pytest.mark.parametrize(("variable", "place"), LISTS.items())
@pytest.mark.parametrize("text", ["a,b c", " a , b c ,", '["a", "b c"]', '\n["a",\n"b c"]'])
@pytest.mark.parametrize("in_file", [False, True])
def test_lists_from_variables(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    place: tuple[str, str],
    text: str,
    in_file: bool,
) -> None:
    if in_file:
        (folder / ".env").write_text(f"{variable}='{text}'\n")
    else:
        monkeypatch.setenv(variable, text)
    assert getattr(getattr(load_config(), place[0]), place[1]) == ("a", "b c")


def test_a_viewer_with_commas_stays_one_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FURNCLIP_VIEWER", "show --box 1,2 {path}")
    assert load_config().arena.viewer == "show --box 1,2 {path}"
    monkeypatch.setenv("FURNCLIP_VIEWER", '["show", "a b", "{path}"]')
    assert load_config().arena.viewer == ("show", "a b", "{path}")


def test_tables_and_sections_from_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FURNCLIP_CLEAN__MODELS", '{"mine": {"input_usd": 1.5}}')
    monkeypatch.setenv("FURNCLIP_TRAIN", '{"epochs": 3, "lr": 0.5}')
    monkeypatch.setenv("FURNCLIP_TRAIN__EPOCHS", "4")
    monkeypatch.setenv("FURNCLIP_EMBED__IMAGE_WEIGHT", "0.25")
    loaded = load_config()
    assert loaded.clean.models == {"mine": {"input_usd": 1.5}}
    assert (loaded.train.epochs, loaded.train.lr, loaded.embed.image_weight) == (4, 0.5, 0.25)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FURNCLIP_TRAIN__LORA_TARGETS", "[a, b]"),
        ("FURNCLIP_CLEAN__MODELS", "mine"),
        ("FURNCLIP_TRAIN", "{"),
        ("FURNCLIP_CLEAN__STYLES", '["a"'),
        ("FURNCLIP_TRAIN__LORA_TARGETS", "[" * 100_000),
    ],
    ids=lambda text: text[:30],
)
def test_json_that_is_none_is_told_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=f"^{variable} is not valid JSON"):
        load_config()


MISSPELT = {
    "FURNCLIP_TRAIN__EPOCH": "FURNCLIP_TRAIN__EPOCHS",
    "FURNCLIP_TRIAN__EPOCHS": "FURNCLIP_TRAIN__EPOCHS",
    "FURNCLIP_TRAIN_EPOCHS": "FURNCLIP_TRAIN__EPOCHS",
    "FURNCLIP_CLEAN__MAX_COST": "FURNCLIP_CLEAN__MAX_COST_USD",
    "FURNCLIP_CLEAN__MAX_COST__USD": "FURNCLIP_CLEAN__MAX_COST_USD",
    "furnclip_storage__buket": "FURNCLIP_STORAGE__BUCKET",
    "FURNCLIP_OPENAI_KEY": "FURNCLIP_OPENAI_API_KEY",
    "FURNCLIP_VIEWR": "FURNCLIP_VIEWER",
}


@pytest.mark.parametrize(("variable", "meant"), MISSPELT.items())
@pytest.mark.parametrize("in_file", [False, True])
def test_a_misspelt_variable_is_told_with_the_nearest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, meant: str, in_file: bool
) -> None:
    if in_file:
        (folder / ".env").write_text(f"{variable}=3\n")
    else:
        monkeypatch.setenv(variable, "3")
    with pytest.raises(ConfigError, match=f"unknown setting {variable}") as caught:
        load_config()
    assert f"did you mean {meant}?" in caught.value.hint


def test_an_unknown_variable_that_is_like_no_setting_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FURNCLIP_BENCH_SHOP", "3")
    load_config()
    assert "FURNCLIP_BENCH_SHOP is not a setting" in capsys.readouterr().err
