"""Where keys, budgets, reservations and the ledger live: SQLite or PostgreSQL."""
