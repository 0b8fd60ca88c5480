"""Alembic's scripts for the gateway's database."""
