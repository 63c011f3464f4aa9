"""Where settings come from, which one wins, and what is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from config.settings import SecretInToml, UnknownSetting, load_settings
from farense_bot.session import session


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No setting of the machine that runs the tests, no `.env` of the checkout."""
    import os

    for name in os.environ:
        if name.startswith("FARENSE_"):
            monkeypatch.delenv(name)
    empty = tmp_path / "cwd"
    empty.mkdir()
    monkeypatch.chdir(empty)


def test_with_nothing_configured_the_web_chat_is_on_and_the_platforms_are_off(tmp_path):
    settings = load_settings(tmp_path)
    assert (settings.web.host, settings.web.port) == ("127.0.0.1", 8910)
    assert settings.telegram.token is None
    assert settings.discord.token is None
    assert settings.database == tmp_path / "farense.db"


def test_environment_wins_over_dotenv_which_wins_over_toml(tmp_path, monkeypatch):
    (tmp_path / "farense.toml").write_text("[engine]\nmodel = 'toml'\ncontext = 1000\nqueue = 5\n")
    (tmp_path / ".env").write_text("FARENSE_ENGINE__MODEL=dotenv\nFARENSE_ENGINE__CONTEXT=2000\n")
    monkeypatch.setenv("FARENSE_ENGINE__MODEL", "environment")
    engine = load_settings(tmp_path).engine
    assert (engine.model, engine.context, engine.queue) == ("environment", 2000, 5)


def test_the_command_line_wins_over_all(tmp_path, monkeypatch):
    monkeypatch.setenv("FARENSE_ENGINE__MODEL", "environment")
    settings = load_settings(tmp_path, engine={"model": "given"})
    assert settings.engine.model == "given"


def test_the_state_folder_may_be_named_in_a_dotenv_file(tmp_path):
    Path(".env").write_text(f"FARENSE_HOME={tmp_path / 'elsewhere'}\n")
    assert load_settings().home == tmp_path / "elsewhere"


def test_admins_are_a_json_list_and_nobody_by_default(tmp_path, monkeypatch):
    assert not load_settings(tmp_path).is_admin("telegram:1")
    monkeypatch.setenv("FARENSE_ADMINS", '["telegram:1","discord:2"]')
    settings = load_settings(tmp_path)
    assert settings.is_admin("telegram:1")
    assert settings.is_admin("discord:2")
    assert not settings.is_admin("discord:1")


@pytest.mark.parametrize("admins", ['["1"]', '["telegram:"]', '["myspace:1"]', "telegram:1"])
def test_an_admin_that_is_not_platform_and_id_is_refused(tmp_path, monkeypatch, admins):
    monkeypatch.setenv("FARENSE_ADMINS", admins)
    with pytest.raises((ValidationError, SettingsError)):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    "line", ["[telegram]\ntoken = 'x'", "[discord]\ntoken = 'x'", "[web]\npassword = 'x'"]
)
def test_secrets_are_refused_in_toml(tmp_path, line):
    (tmp_path / "farense.toml").write_text(line)
    with pytest.raises(SecretInToml):
        load_settings(tmp_path)


def test_a_misspelt_setting_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FARENSE_TELEGRM__TOKEN", "x")
    with pytest.raises(UnknownSetting, match="FARENSE_TELEGRM__TOKEN"):
        load_settings(tmp_path)
    monkeypatch.delenv("FARENSE_TELEGRM__TOKEN")
    monkeypatch.setenv("FARENSE_WEB__PORTT", "1")
    with pytest.raises(ValidationError, match=r"web\.portt"):
        load_settings(tmp_path)
    monkeypatch.delenv("FARENSE_WEB__PORTT")
    (tmp_path / "farense.toml").write_text("[wbe]\nport = 1")
    with pytest.raises(UnknownSetting, match="wbe"):
        load_settings(tmp_path)


def test_other_programs_names_in_a_dotenv_file_do_not_disturb(tmp_path):
    (tmp_path / ".env").write_text("OTHER=1\nFARENSE_WEB__PORT=9000\n")
    assert load_settings(tmp_path).web.port == 9000


def test_a_token_is_never_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("FARENSE_TELEGRAM__TOKEN", "12345:very-secret")
    settings = load_settings(tmp_path)
    assert "very-secret" not in repr(settings)
    assert "very-secret" not in settings.model_dump_json()


@pytest.fixture
def complaint(capsys):
    """Run `farense-bot doctor` here and return what it complains about."""

    def run() -> str:
        with pytest.raises(typer.Exit) as ended, session(None, None, "error"):
            pytest.fail("the settings were taken")
        assert ended.value.exit_code == 1
        return capsys.readouterr().err.replace("\n", " ")

    return run


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FARENSE_WEB__PORT", "seventy", "web.port"),
        ("FARENSE_WEB__PORT", "70000", "65535"),
        ("FARENSE_CONVERSATION__LANGUAGE", "fr", "conversation.language"),
        ("FARENSE_TELEGRM__TOKEN", "1", "FARENSE_TELEGRM__TOKEN"),
        ("FARENSE_ADMINS", "telegram:1", "JSON"),
        ("FARENSE_ADMINS", '["1"]', "telegram:123456789"),
        ("FARENSE_ENGINE", "foo", "JSON"),
        ("FARENSE_HOME", "~no-such-user/x", "configuração"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path, monkeypatch, complaint, name, value, says):
    monkeypatch.setenv("FARENSE_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert says in complaint()


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("farense.toml", b"telegram = 5", "telegram"),
        ("farense.toml", b"bad =", "farense.toml"),
        ("farense.toml", "# é".encode("latin-1"), "farense.toml"),
        (".env", "FARENSE_WEB__PASSWORD=é".encode("latin-1"), ".env"),
        ("farense.toml", b"[web]\npassword = 'x'", "web.password"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, monkeypatch, complaint, file, content, says):
    monkeypatch.setenv("FARENSE_HOME", str(tmp_path))
    (tmp_path / file).write_bytes(content)
    assert says in complaint()


def test_the_state_folder_is_for_its_owner_only(tmp_path):
    from farense_bot.app import state_folder

    settings = load_settings(tmp_path / "new" / "home")
    with state_folder(settings):
        assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
