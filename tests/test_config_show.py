"""`klagg config show`: every setting, its meaning, and where its value comes from."""

import json

import pytest

from klagg_trio.cli import execute
from klagg_trio.settings import RULES


@pytest.fixture(autouse=True)
def bare_place(tmp_path, monkeypatch):
    """Run in an empty folder, with no settings of the machine's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in RULES:
        monkeypatch.delenv(f"KLAGG_{name.upper()}", raising=False)
    return tmp_path


def test_every_setting_is_shown(capsys):
    """Each setting comes with its value, unit, bounds and reason, on stdout alone."""
    assert execute(["config", "show"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for name, rule in RULES.items():
        assert f"\n{name} = " in "\n" + shown.out
        assert rule.reason in shown.out
    assert "(count, 1 to 64)" in shown.out


def test_origin_is_told(bare_place, monkeypatch, capsys):
    """--origin names the flag, the variable, the file or the default that each value is from."""
    monkeypatch.setenv("KLAGG_SHARDS", "2")
    (bare_place / "klagg.toml").write_text("inbox_max = 100\n")
    assert execute(["config", "show", "--origin", "--data-dir", "D", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["data_dir"]["origin"] == "--data-dir"
    assert shown["shards"] == {
        "value": "2",
        "origin": "KLAGG_SHARDS",
        "unit": "count",
        "bounds": "1 to 64",
        "reason": RULES["shards"].reason,
    }
    assert shown["inbox_max"]["origin"] == str(bare_place / "klagg.toml")
    assert shown["since"]["origin"] == "default"
    assert execute(["config", "show", "--origin"]) == 0
    assert "shards = 2\n    from KLAGG_SHARDS\n" in capsys.readouterr().out


def test_users_own_file_is_read(bare_place, capsys):
    """The user's own file counts where nothing stronger is set."""
    file = bare_place / "config" / "klagg" / "klagg.toml"
    file.parent.mkdir(parents=True)
    file.write_text("shards = 7\n")
    assert execute(["config", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"]["origin"] == str(file)


def test_bad_setting_is_one_line(monkeypatch, capsys):
    """A bad setting ends it with exit 78 and one line on stderr, nothing on stdout."""
    monkeypatch.setenv("KLAGG_SHARD", "2")
    assert execute(["config", "show"]) == 78
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "klagg: unknown setting 'KLAGG_SHARD'; did you mean shards?\n"
