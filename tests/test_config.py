"""Settings: who wins over whom, what is refused, and that the shipped file tells the truth."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomllib
from pydantic import BaseModel

from furnclip import config as configuration
from furnclip.config import config_template, load_config, sections
from furnclip.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shipped_file_is_what_init_writes() -> None:
    assert (ROOT / "furnclip.toml").read_text(encoding="utf-8") == config_template()


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
def test_every_key_is_documented(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no docstring"
        assert "\n" not in field.description.strip(), f"{model.__name__}.{name}: one line"


def test_order_of_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config().train.epochs == 10
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
    "[train]\nepochs = 0": ("`train.epochs` cannot be 0", "see `train.epochs`"),
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
