"""A SPARQL endpoint on loopback over a list of triples, for the kind of query that outlay sends.

It evaluates unions of basic graph patterns with BIND, one FILTER of inequalities, and OPTIONAL
labels, by joining patterns over all triples. Objects are IRIs, or (text, language) for literals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs

Term = str | tuple[str, str]
Row = dict[str, Term]

GROUP = re.compile(r'\{ ((?:\S+ \S+ \S+ \. )+)BIND\("([<>]+)" AS \?way\) \}')
FILTER = re.compile(r"^\s*FILTER\((.*)\)$", re.M)
OPTIONAL = re.compile(
    r"OPTIONAL \{ ((?:\S+ \S+ \S+ [.;] ?|\S+ \S+ \. )+)"
    r'FILTER\(LANG\(\?\w+\) IN \("([\w-]+)", ""\)\) \}'
)


def term(text: str, row: Row) -> Term | None:
    """What a pattern's part stands for; None for an unbound variable."""
    return row.get(text[1:]) if text.startswith("?") else text.strip("<>")


def join(rows: list[Row], pattern: Sequence[str], triples: Sequence[tuple]) -> list[Row]:
    found = []
    for row in rows:
        for triple in triples:
            extended = dict(row)
            for part, value in zip(pattern, triple, strict=True):
                known = term(part, extended)
                if known is None:
                    extended[part[1:]] = value
                elif known != value:
                    break
            else:
                found.append(extended)
    return found


def patterns(text: str) -> list[list[str]]:
    """Triple patterns; after ";" the subject is repeated."""
    made, words = [], text.split()
    subject = words[0]
    at = 0
    while at < len(words):
        if at == 0 or words[at - 1] == ".":
            subject, at = words[at], at + 1
        made.append([subject, words[at], words[at + 1]])
        at += 3
    return made


def keeps(row: Row, condition: str) -> bool:
    if inside := re.fullmatch(r"isIRI\((\S+)\)", condition):
        return isinstance(term(inside[1], row), str)
    left, sign, right = condition.split()
    assert sign == "!="
    return term(left, row) != term(right, row)


def evaluate(query: str, triples: Sequence[tuple]) -> list[Row]:
    rows: list[Row] = []
    groups = GROUP.findall(query)
    assert groups, query
    for body, way in groups:
        matched: list[Row] = [{}]
        for pattern in patterns(body):
            matched = join(matched, pattern, triples)
        rows += [{**row, "way": (way, "")} for row in matched]
    if conditions := FILTER.search(query):
        parts = conditions[1].split(" && ")
        rows = [row for row in rows if all(keeps(row, part) for part in parts)]
    for body, language in OPTIONAL.findall(query):
        extended: list[Row] = []
        for row in rows:
            more = [row]
            for pattern in patterns(body):
                more = join(more, pattern, triples)
            label = body.split()[-2][1:]
            more = [
                r for r in more if isinstance(r[label], tuple) and r[label][1] in (language, "")
            ]
            extended += more or [row]
        rows = extended
    limit = re.search(r"LIMIT (\d+)", query)
    assert limit
    return rows[: int(limit[1])]


class Endpoint(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, triples: Sequence[tuple]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.triples = triples
        self.queries: list[str] = []
        self.answer: tuple[int, str] | None = None  # sent instead of results

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/sparql"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        query = parse_qs(body)["query"][0]
        self.server.queries.append(query)
        if self.server.answer is not None:
            self.reply(*self.server.answer)
            return
        bindings = [
            {
                key: {"type": "uri", "value": value}
                if isinstance(value, str)
                else {"type": "literal", "value": value[0]}
                for key, value in row.items()
            }
            for row in evaluate(query, self.server.triples)
        ]
        self.reply(200, json.dumps({"head": {}, "results": {"bindings": bindings}}))

    def reply(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/sparql-results+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(triples: Sequence[tuple]) -> Iterator[Endpoint]:
    endpoint = Endpoint(triples)
    thread = Thread(target=endpoint.serve_forever, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.shutdown()
        endpoint.server_close()
        thread.join()
