"""Pages that are made from commands, models and metrics are what these say now."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from aiomigrate.api.openapi import make_document
from aiomigrate.cli.app import app
from docs import make_command_line, make_metrics, make_rest

PAGES = ["make_command_line", "make_metrics", "make_rest"]


@pytest.fixture(params=PAGES)
def maker(request: pytest.FixtureRequest) -> ModuleType:
    return import_module(f"docs.{request.param}")


def test_the_page_is_what_the_source_says(maker: ModuleType) -> None:
    stale = f"{maker.PAGE} is stale: run `python -m {maker.__name__}`"
    assert maker.PAGE.read_text(encoding="utf-8") == maker.render(), stale


def test_main_writes_the_page(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(maker, "PAGE", page)
    maker.main()
    assert page.read_text(encoding="utf-8") == maker.render()


def test_every_command_has_its_section() -> None:
    page = make_command_line.render()
    titles = {line.lstrip("# ") for line in page.splitlines() if line.startswith("##")}
    commands = getattr(get_command(app), "commands")  # noqa: B009 - typer's type does not say it
    assert len(commands) > 10
    assert titles >= {f"aiomigrate {name}" for name in commands}
    assert {"aiomigrate offload snapshot", "aiomigrate offload restore"} <= titles
    assert "--throttle-cap" in page


def test_every_operation_and_every_member_is_there() -> None:
    page = make_rest.render()
    document = make_document()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"\n### {method.upper()} {path}\n" in page
    for name, schema in document["components"]["schemas"].items():
        section = page.partition(f"\n### {name.lstrip('_')}\n")[2].partition("\n### ")[0]
        assert [
            member for member in schema.get("properties", ()) if f"\n| `{member}` |" not in section
        ] == []


def test_metrics_have_types_and_labels() -> None:
    page = make_metrics.render()
    assert "| `aiomigrate_migrations_total` | counter | `direction`, `state` |" in page
    assert "| `aiomigrate_migration_rate` | gauge | `vm`, `direction` |" in page
