"""Traces: every outcome of a run as one Parquet file, a row each, for notebooks and data tools.

Columns: task, example, method, budget, seed, quality; tokens by kind and the seconds they took; the
texts that most runs have (question, prompt, thinking, answer, expected, finish), all others as a
map; and the marks of a task that finds intermediate solutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlay.errors import DependencyError
from outlay.example import Outcome

TRACES = "traces.parquet"
TEXTS = ("question", "prompt", "thinking", "answer", "expected", "finish")


def write_traces(path: str | Path, outcomes: Sequence[Outcome]) -> Path:
    """Write `outcomes` to a Parquet file, replaced whole.

    Raises:
        DependencyError: without pyarrow.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyError(
            f"traces are Parquet files, which need pyarrow ({error}); pip install 'outlay[eval]'"
        ) from error
    text, count = pa.string(), pa.int64()
    mark = pa.struct(
        [
            ("text", text),
            ("start", count),
            ("end", count),
            ("label", text),
            ("good", pa.bool_()),
        ]
    )
    schema = pa.schema(
        [
            *((name, text) for name in ("task", "example", "method", "budget")),
            ("seed", count),
            ("quality", pa.float64()),
            *((name, count) for name in ("prompt_tokens", "generated", "forced", "discarded")),
            ("seconds", pa.float64()),
            *((name, text) for name in TEXTS),
            ("more", pa.map_(text, text)),
            ("marks", pa.list_(mark)),
        ]
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(target.name + ".part")
    table = pa.Table.from_pylist([_row(outcome) for outcome in outcomes], schema=schema)
    parquet.write_table(table, draft, compression="zstd")
    draft.replace(target)
    return target


def _row(outcome: Outcome) -> dict[str, Any]:
    record, total = outcome.record, outcome.record.ledger.totals()
    # A model may produce half a surrogate pair, which Parquet's UTF-8 cannot hold.
    texts = {
        name: value.encode("utf-8", "replace").decode() for name, value in outcome.texts.items()
    }
    return {
        "task": record.task,
        "example": record.example,
        "method": record.method_stack,
        "budget": record.budget.label(),
        "seed": record.seed,
        "quality": record.quality,
        "prompt_tokens": total.prompt,
        "generated": total.generated,
        "forced": total.forced,
        "discarded": total.discarded,
        "seconds": total.seconds,
        **{name: texts.get(name) for name in TEXTS},
        "more": [(name, value) for name, value in texts.items() if name not in TEXTS],
        "marks": [
            {"text": name, **vars(mark)} for name, marks in outcome.marks.items() for mark in marks
        ],
    }
