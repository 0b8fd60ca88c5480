"""Bringing a database to this version's schema, by Alembic."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from outlay.errors import ResultsError

SCRIPTS = Path(__file__).resolve().parent.parent / "migrations"
_LOCK = 0x6F75746C6179  # "outlay"; replicas that start together migrate one after another


def upgrade(engine: Engine) -> None:
    """Run the migrations that the database lacks.

    Raises:
        ResultsError: if the database cannot be reached, or belongs to a newer version.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except SQLAlchemyError as error:
        raise ResultsError(
            f"the database cannot be prepared ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); check store.url and that the server is up"
        ) from error
    except CommandError as error:
        raise ResultsError(
            f"the database does not fit this version of outlay ({error}); upgrade outlay, "
            "or name another store.url"
        ) from error
