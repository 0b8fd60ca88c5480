"""Running the program of a response instead of trusting its emulated output.

An extension of the paper, where the model emulates its programs. The program runs in
`outlay.sandbox`; whatever goes wrong there means "no result", and the emulated answer stands.
"""

from __future__ import annotations

import json
import secrets

from outlay.errors import OutlayError
from outlay.sandbox import Sandbox

LONGEST_PROGRAM = 20_000  # characters
LONGEST_RESULT = 2_000

# The value of the last expression, else what was printed last; of a dict, its field "answer".
_RUNNER = """\
import ast, contextlib, io, json
tree = ast.parse({source!r})
last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
scope = {{"__name__": "__main__"}}
printed = io.StringIO()
value = None
with contextlib.redirect_stdout(printed):
    exec(compile(tree, "program", "exec"), scope)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "program", "eval"), scope)
if value is None:
    lines = printed.getvalue().strip().splitlines()
    value = lines[-1] if lines else None
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(value) if value is not None else None
if isinstance(value, dict):
    value = value.get("answer")
print({marker!r} + json.dumps(None if value is None else str(value)))
"""


def run_program(sandbox: Sandbox, source: str) -> str | None:
    """The answer that a Python program gives; None where it fails, is stopped, or gives none.

    Args:
        sandbox: where it runs.
        source: a program whose last expression, or last printed line, is the answer or a dict with
            the key "answer".
    """
    if not source.strip() or len(source) > LONGEST_PROGRAM:
        return None
    marker = secrets.token_hex(8)
    try:
        outcome = sandbox.run(_RUNNER.format(source=source, marker=marker))
    except OutlayError:
        return None
    if outcome.status != "ok":
        return None
    said = outcome.stdout.rpartition(marker)[2].strip()
    try:
        value = json.loads(said)
    except ValueError:
        return None
    usable = isinstance(value, str) and value.strip() and len(value) <= LONGEST_RESULT
    return value.strip() if usable else None
