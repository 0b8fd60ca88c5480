"""The default graph: facts about countries, from the PyPI package `countryinfo`.

Capital, currency, languages, region, subregion, neighbours, calling code and Internet domain of
about 250 countries and territories. Facts are as that package states them, its errors included
(its version is recorded as `Graph.version`): answers are right when they agree with the graph.
Entries without an ISO code of their own (Wales, Burma) are left out, so that a country counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any

from outlay.errors import DependencyError, InputError
from outlay.evals.factuality.graph import Graph, Triple

PACKAGE = "countryinfo"
LANGUAGES = {
    "af": "Afrikaans",
    "am": "Amharic",
    "ar": "Arabic",
    "az": "Azerbaijani",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "bs": "Bosnian",
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "dv": "Divehi",
    "dz": "Dzongkha",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fi": "Finnish",
    "fo": "Faroese",
    "fr": "French",
    "ga": "Irish",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "ht": "Haitian Creole",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "kl": "Greenlandic",
    "km": "Khmer",
    "ko": "Korean",
    "ku": "Kurdish",
    "ky": "Kyrgyz",
    "la": "Latin",
    "lb": "Luxembourgish",
    "ln": "Lingala",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mg": "Malagasy",
    "mk": "Macedonian",
    "mn": "Mongolian",
    "ms": "Malay",
    "mt": "Maltese",
    "my": "Burmese",
    "ne": "Nepali",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "ps": "Pashto",
    "pt": "Portuguese",
    "qu": "Quechua",
    "ro": "Romanian",
    "ru": "Russian",
    "rw": "Kinyarwanda",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovene",
    "sm": "Samoan",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "tg": "Tajik",
    "th": "Thai",
    "ti": "Tigrinya",
    "tk": "Turkmen",
    "tn": "Tswana",
    "to": "Tongan",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
"""English names (ISO 639-1); a language without one here is left out."""

CAPITAL, CAPITAL_OF, CURRENCY = "capital", "capital of", "currency"
LANGUAGE, REGION, SUBREGION = "official language", "region", "subregion"
BORDERS, CALLING, DOMAIN = "shares border with", "calling code", "internet domain"

WORDS: Mapping[str, tuple[str, ...]] = {
    CAPITAL_OF: ("capital city of",),
    CURRENCY: ("currency code", "money"),
    LANGUAGE: ("language", "speak", "spoken"),
    REGION: ("continent",),
    SUBREGION: ("sub-region",),
    BORDERS: ("borders", "border with", "bordering", "neighbour", "neighbor", "neighbours"),
    CALLING: ("dialling code", "dialing code", "country code"),
    DOMAIN: ("top-level domain", "domain"),
}
"""Further words by which a text names a relation."""


@lru_cache(maxsize=1)
def countries() -> Graph:
    """The graph of countries.

    Raises:
        DependencyError: without the package.
        InputError: if its data cannot be read.
    """
    try:
        import countryinfo

        version = metadata.version(PACKAGE)
    except (ImportError, metadata.PackageNotFoundError) as error:
        raise DependencyError(
            f"the graph 'countries' needs {PACKAGE}; pip install 'outlay[eval]'"
        ) from error
    entries: dict[str, Mapping[str, Any]] = {}
    for entry in countryinfo.CountryInfo.all().values():  # sovereign states come first
        code = str((entry.get("ISO") or {}).get("alpha3") or "")
        if code and code not in entries:
            entries[code] = entry
    if len(entries) < 100:
        raise InputError(f"{PACKAGE} {version} gives {len(entries)} countries; use 1.0.1")
    labels: dict[str, str] = {}
    aliases: dict[str, list[str]] = defaultdict(list)
    triples: list[Triple] = []
    for code, info in sorted(entries.items()):
        node = f"country/{code}"
        labels[node] = info["name"]
        aliases[node] += _other_names(info)
        for relation, kind, text in _values(info, set(entries)):
            target = f"{kind}/{text}"
            if kind == "city":  # two cities may share a name
                target += f"/{code}"
                triples.append(Triple(target, CAPITAL_OF, node))
            if kind != "country":
                labels[target] = LANGUAGES[text] if kind == "language" else text
            if kind == "calling":
                aliases[target] += [f"+{text}"]
            triples.append(Triple(node, relation, target))
    return Graph(triples, labels=labels, aliases=aliases, name="countries", version=version)


def _other_names(info: Mapping[str, Any]) -> list[str]:
    """Spellings that people use: codes are left out, "IS" and "IT" are words."""
    names = [*(info.get("altSpellings") or ()), info.get("nativeName") or ""]
    return [name for name in names if len(name) > 3 and name != info["name"] and name.strip()]


def _values(info: Mapping[str, Any], known: set[str]) -> Iterator[tuple[str, str, str]]:
    """(relation, kind of the object, its text) of every usable fact."""
    for field, relation, kind in (
        ("capital", CAPITAL, "city"),
        ("currencies", CURRENCY, "currency"),
        ("languages", LANGUAGE, "language"),
        ("region", REGION, "region"),
        ("subregion", SUBREGION, "subregion"),
        ("borders", BORDERS, "country"),
        ("callingCodes", CALLING, "calling"),
        ("tld", DOMAIN, "domain"),
    ):
        found = info.get(field) or []
        for value in [found] if isinstance(found, str) else found:
            text = value.strip()
            usable = {
                "language": text in LANGUAGES,
                "country": text in known,
                "domain": text.isascii() and text != "",
            }.get(kind, bool(text))
            if usable and "/" not in text:  # some capitals list several cities
                yield relation, kind, text
