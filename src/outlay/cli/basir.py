"""`outlay basir`: cut a speech, train and judge a sector identifier, rank sectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from outlay.cli import AsJson, errors, show_json

Rows = Annotated[
    str | None, typer.Argument(help="Excerpts, .jsonl or .csv; none: the synthetic sample.")
]
LabelFile = Annotated[str | None, typer.Option(help="Labels, JSON; none: outlay's 81 sectors.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        name="basir",
        help="Tag speech excerpts with economic sectors, and rank the sectors. Research output, "
        "not investment advice.",
        no_args_is_help=True,
    )
    app.add_typer(group)
    group.command()(segment)
    group.command()(train)
    group.command()(evaluate)
    group.command()(rank)


def segment(
    speech: Annotated[str, typer.Argument(help="A .pdf or text file.")],
    event: Annotated[str, typer.Option(help="Name of the event; default: the file's name.")] = "",
    date: Annotated[str, typer.Option(help="YYYY-MM-DD.")] = "",
    out: Annotated[str | None, typer.Option(help="Write .jsonl here, not to the screen.")] = None,
    model: Annotated[str | None, typer.Option(help="Tag with this trained folder.")] = None,
    min_words: Annotated[int, typer.Option(help="Join shorter paragraphs.")] = 20,
    max_words: Annotated[int, typer.Option(help="Cut longer paragraphs.")] = 120,
    as_json: AsJson = False,
) -> None:
    """Cut a speech into excerpts, and tag them if a trained folder is given."""
    with errors(as_json):
        from outlay.evals.basir.identifier import Identifier
        from outlay.evals.basir.speech import excerpts, read_speech
        from outlay.evals.basir.speech import segment as cut

        texts = cut(read_speech(speech), min_words=min_words, max_words=max_words)
        rows = excerpts(texts, event or Path(speech).stem, date)
        tags = Identifier.load(model).sectors(texts) if model else [()] * len(rows)
        found: list[dict[str, Any]] = [
            {
                "event": row.event,
                "date": row.date,
                "excerpt_id": row.excerpt_id,
                "text": row.text,
                "sectors": list(sectors),
            }
            for row, sectors in zip(rows, tags, strict=True)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        if out is not None:
            _write(out, lines)
        if as_json:
            show_json({"excerpts": len(found), "out": out} if out else {"excerpts": found})
        elif out is None:
            typer.echo(lines, nl=False)
        else:
            typer.echo(f"{len(found)} excerpts -> {out}")


def train(
    out: Annotated[str, typer.Option(help="Folder for the identifier and its card.")],
    rows: Rows = None,
    label_file: LabelFile = None,
    route: Annotated[str, typer.Option(help="frequent, tfidf or embed-zero/-lr/-ft.")] = "embed-lr",
    threshold: Annotated[str, typer.Option(help="auto, or a number.")] = "auto",
    per_label: Annotated[bool, typer.Option(help="One threshold per label.")] = False,
    min_one: Annotated[bool, typer.Option(help="Choose at least the top label.")] = False,
    split: Annotated[str, typer.Option(help="time, given or random.")] = "time",
    test_from: Annotated[str | None, typer.Option(help="First date of the test.")] = None,
    model: Annotated[str | None, typer.Option(help="Encoder: minilm or a folder.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of embed-ft.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a sector identifier, judge it, and save it with its model card."""
    with errors(as_json):
        from outlay.evals.basir.identifier import NOTICE
        from outlay.evals.basir.train import TrainConfig
        from outlay.evals.basir.train import train as run

        data, _, labels = _data(rows, label_file)
        config = TrainConfig(
            route=route,  # type: ignore[arg-type]
            threshold=_threshold(threshold),
            per_label=per_label,
            min_one=min_one,
            split=split,  # type: ignore[arg-type]
            test_from=test_from,
            model=model,
            epochs=epochs,
            seed=seed,
        )
        trained = run(data, labels, config)
        trained.identifier.save(out, trained.card())
        if as_json:
            show_json(
                {
                    "folder": out,
                    "validation": trained.validation.to_dict(labels=False),
                    "test": trained.test.to_dict(),
                    "warnings": list(trained.warnings),
                    "notice": NOTICE,
                }
            )
            return
        _show_f1("test", trained.test.to_dict(labels=False))
        _warn(trained.warnings)
        typer.echo(f"saved {out} (card: {Path(out) / 'README.md'})")


def evaluate(
    folder: Annotated[str, typer.Argument(help="A trained folder.")],
    rows: Rows = None,
    test_from: Annotated[str | None, typer.Option(help="Only events from this date on.")] = None,
    llm: Annotated[str | None, typer.Option(help="A model: run llm and cascade, too.")] = None,
    shortlist: Annotated[int, typer.Option(help="Labels that the cascade's model sees.")] = 8,
    lo: Annotated[float | None, typer.Option(help="Cascade: below it, choose nothing.")] = None,
    hi: Annotated[float | None, typer.Option(help="Cascade: above it, skip the model.")] = None,
    max_tokens_per_excerpt: Annotated[
        int | None, typer.Option(help="All tokens of one excerpt.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many excerpts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a trained folder on tagged excerpts; with a model, the LLM route and the cascade."""
    with errors(as_json):
        from outlay.errors import InputError
        from outlay.evals.basir.cascade import Cascade
        from outlay.evals.basir.data import check_date
        from outlay.evals.basir.identifier import Identifier
        from outlay.evals.basir.llm import LLMRoute
        from outlay.evals.basir.train import evaluate as judge
        from outlay.evals.basir.train import evaluate_cascade, evaluate_llm

        identifier = Identifier.load(folder)
        data = _data(rows, None)[0]
        if test_from is not None:
            check_date(test_from, "--test-from")
            data = [row for row in data if row.date >= test_from]
        if limit is not None:
            data = data[: max(0, limit)]
        if not data:
            raise InputError("no excerpt to judge; change --test-from or --limit")
        found = {identifier.route.name: judge(identifier, data).to_dict()}
        if llm is not None:
            from outlay.models import load

            target = load(llm)
            asked = LLMRoute(max_tokens_per_excerpt=max_tokens_per_excerpt)
            cascade = Cascade(shortlist=shortlist, lo=lo, hi=hi, llm=asked)
            found["llm"] = evaluate_llm(target, data, identifier.labels, asked).to_dict()
            found["cascade"] = evaluate_cascade(target, data, identifier, cascade).to_dict()
        if as_json:
            show_json(found)
            return
        for name, report in found.items():
            _show_f1(name, report)


def rank(
    rows: Rows = None,
    prices: Annotated[str | None, typer.Option(help="Prices by event, .jsonl or .csv.")] = None,
    quotes: Annotated[str | None, typer.Option(help="Or daily opening prices.")] = None,
    label_file: LabelFile = None,
    scorer: Annotated[list[str] | None, typer.Option(help="Repeat for several.")] = None,
    window: Annotated[
        tuple[int, int], typer.Option(help="Trading days before and after, for --quotes.")
    ] = (-1, 1),
    agg: Annotated[str, typer.Option(help="mean, median or cap.")] = "mean",
    min_companies: Annotated[int, typer.Option(help="Drop sectors with fewer.")] = 1,
    relevance: Annotated[str, typer.Option(help="rank, shift or quantile.")] = "rank",
    k: Annotated[int | None, typer.Option(help="Places that count.")] = None,
    gain: Annotated[str, typer.Option(help="linear or exponential.")] = "linear",
    test_from: Annotated[str | None, typer.Option(help="First date of the test.")] = None,
    llm: Annotated[str | None, typer.Option(help="A model for llm-point, -pair, -list.")] = None,
    seed: Annotated[int, typer.Option(help="Of scorers and intervals.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Rank sectors by market reaction, with the level of a random order beside every figure."""
    with errors(as_json):
        from outlay.errors import InputError
        from outlay.evals.basir.prices import around, read_prices, read_quotes
        from outlay.evals.basir.train import RankConfig
        from outlay.evals.basir.train import rank as run

        data, sample, labels = _data(rows, label_file)
        if prices is not None and quotes is not None:
            raise InputError("give --prices or --quotes, not both")
        if rows is not None and prices is None and quotes is None:
            raise InputError("no prices; give --prices or --quotes")
        found = sample if prices is None else read_prices(prices)
        if quotes is not None:
            found = around(read_quotes(quotes), {row.event: row.date for row in data}, window)
        config = RankConfig(
            scorers=tuple(scorer) if scorer else RankConfig().scorers,
            test_from=test_from,
            agg=agg,  # type: ignore[arg-type]
            min_companies=min_companies,
            relevance=relevance,  # type: ignore[arg-type]
            k=k,
            gain=gain,  # type: ignore[arg-type]
            seed=seed,
        )
        target = None
        if llm is not None:
            from outlay.models import load

            target = load(llm)
        result = run(data, found, labels, config, model=target).to_dict()
        if as_json:
            show_json(result)
            return
        typer.echo("scorer             excess  95 % interval     Spearman  NDCG   random  worst")
        for name, row in result["scorers"].items():
            lo, hi = row["excess_ci"]
            typer.echo(
                f"{name:18} {row['excess']:+.3f}  {lo:+.3f} to {hi:+.3f}  {row['spearman']:+.3f}"
                f"    {row['ndcg']:.3f}  {row['random']:.3f}   {row['worst']:.3f}"
            )
        some = next(iter(result["scorers"].values()))
        typer.echo(
            f"{some['events']} events of {some['items']:.1f} sectors, {len(some['excluded'])} "
            f"excluded. {result['notice']}"
        )
        _warn(result["warnings"])


def _data(rows: str | None, label_file: str | None) -> tuple[list[Any], list[Any], Any]:
    """Excerpts, the sample's prices (none for the user's own excerpts), and labels."""
    from outlay.evals.basir.data import read_excerpts
    from outlay.evals.basir.labels import load_labels
    from outlay.evals.basir.synthetic import load_sample

    if rows is not None:
        return read_excerpts(rows), [], load_labels(label_file)
    sample, prices, labels = load_sample()
    return list(sample), list(prices), load_labels(label_file) if label_file else labels


def _threshold(text: str) -> Any:
    from outlay.errors import InputError

    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--threshold {text!r}; give auto or a number") from None


def _write(path: str, text: str) -> None:
    from outlay.errors import InputError

    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def _show_f1(name: str, report: dict[str, Any]) -> None:
    line = (
        f"{name}: F1 micro {report['micro']:.3f}, macro {report['macro']:.3f}, weighted "
        f"{report['weighted']:.3f}, samples {report['samples']:.3f} on {report['rows']} excerpts; "
        f"{report['never_predicted']} labels never predicted"
    )
    if "prompt_tokens_per_excerpt" in report:
        line += (
            f"; {report['prompt_tokens_per_excerpt']:.0f} prompt and "
            f"{report['generated_tokens_per_excerpt']:.0f} generated tokens per excerpt, "
            f"{report['skipped']} skipped, {report['unread_replies']} unread"
        )
    typer.echo(line)


def _warn(warnings: Any) -> None:
    for text in warnings:
        typer.secho(f"warning: {text}", fg=typer.colors.YELLOW, err=True)
