"""One scaled-down experiment a system; `outlay prove <slug>` runs it."""
