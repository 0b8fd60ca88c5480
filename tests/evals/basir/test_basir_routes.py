"""Routes: what they learn, what they save, and the mask of the fine-tuning."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from outlay.errors import InputError, ModelError, ResultsError
from outlay.evals.basir.base import Route
from outlay.evals.basir.embedding import EmbedFT, EmbedLR, EmbedZero, load_encoder
from outlay.evals.basir.finetune import MaskedNegativesLoss
from outlay.evals.basir.identifier import Identifier, make_route
from outlay.evals.basir.labels import Label, LabelSet
from outlay.evals.basir.linear import LinearHead
from outlay.evals.basir.tfidf import Frequent, Tfidf
from outlay.evals.basir.threshold import fixed

LABELS = LabelSet(
    (
        Label("steel", "Steel", "Iron and steel making."),
        Label("banks", "Banks", "Deposits and credit."),
        Label("tea", "Tea", "Tea gardens."),
        Label("ships", "Ships", "Cargo by sea."),
    )
)
TEXTS = [
    "The duty on steel and iron falls.",
    "Blast furnaces and iron ore get support.",
    "Deposits with banks are insured.",
    "Credit by lenders will be cheaper.",
    "Steel mills may borrow from banks.",
    "Tea gardens get a grant.",
    "Leaves of tea are exported.",
    "Nothing is changed here.",
]
TRUTH = LABELS.matrix(
    [["steel"], ["steel"], ["banks"], ["banks"], ["steel", "banks"], ["tea"], ["tea"], []]
)
ROUTES = [Frequent(), Tfidf(), EmbedZero(), EmbedLR(), EmbedFT(epochs=1, lr=1e-4, batch=4)]


@pytest.fixture(scope="module", params=ROUTES, ids=lambda route: route.name)
def fitted(request):
    return request.param.fit(TEXTS, TRUTH, LABELS)


def test_a_fitted_route_scores_every_label_and_comes_back_from_disk(fitted, tmp_path):
    assert isinstance(fitted, Route)
    scores = fitted.scores(TEXTS)
    assert scores.shape == (8, 4)
    identifier = Identifier(fitted, LABELS, fixed(0.1, 4, min_one=True), {"made": "here"})
    identifier.save(tmp_path / "model", "card")
    again = Identifier.load(tmp_path / "model")
    assert again.route.scores(TEXTS) == pytest.approx(scores, abs=1e-6)
    assert again.sectors(TEXTS) == identifier.sectors(TEXTS)
    assert (again.labels, again.about) == (LABELS, {"made": "here"})
    assert not list((tmp_path / "model").rglob("*.pkl"))


def test_a_route_that_reads_prefers_the_right_label(fitted):
    if fitted.name == "frequent":
        assert len({tuple(row) for row in fitted.scores(TEXTS).tolist()}) == 1
        return
    asked = ["Iron and steel prices.", "Credit and deposits.", "Tea leaves."]
    assert fitted.scores(asked).argmax(axis=1).tolist() == [0, 1, 2]


def test_a_label_without_a_text_is_not_predicted_by_a_supervised_route():
    for route in (Frequent(), Tfidf(), EmbedLR()):
        assert np.isneginf(route.fit(TEXTS, TRUTH, LABELS).scores(["Cargo by sea."])[0, 3])
    zero = EmbedZero().fit(TEXTS, TRUTH, LABELS)
    assert zero.scores(["Cargo ships at sea."]).argmax() == 3  # it needs no text


def test_a_label_on_every_text_is_always_predicted():
    route = Tfidf().fit(TEXTS, np.ones((8, 4), dtype=bool), LABELS)
    assert (route.scores(TEXTS) > 0).all()


def test_training_is_deterministic_and_leaves_the_shared_encoder_alone():
    before = load_encoder().network.encode(TEXTS)
    first, second = (
        EmbedFT(epochs=1, lr=1e-4, batch=4).fit(TEXTS, TRUTH, LABELS).scores(TEXTS)
        for _ in range(2)
    )
    assert (first == second).all()
    assert (first != EmbedZero().fit(TEXTS, TRUTH, LABELS).scores(TEXTS)).any()
    assert (load_encoder().network.encode(TEXTS) == before).all()


# -- the mask -------------------------------------------------------------------------------------


def losses(rows, columns, truth, order):
    generator = torch.Generator().manual_seed(0)
    anchors, labels = torch.randn(2, len(order), 6, generator=generator)
    masked = MaskedNegativesLoss(
        None, torch.tensor(rows), torch.tensor(columns), torch.tensor(truth)
    )
    plain = MultipleNegativesRankingLoss(None)
    pairs = torch.tensor(order)
    return (
        float(masked.compute_loss_from_embeddings([anchors, labels], pairs)),
        float(plain.compute_loss_from_embeddings([anchors, labels], pairs)),
        anchors,
        labels,
    )


def test_the_masked_loss_is_the_plain_one_when_every_text_has_one_label():
    masked, plain, _, _ = losses([0, 1, 2], [2, 0, 1], np.eye(3, dtype=bool)[[2, 0, 1]], [2, 0, 1])
    assert masked == pytest.approx(plain, rel=1e-6)


def test_another_true_label_of_the_text_is_no_negative():
    truth = np.array([[True, True, False], [False, False, True]])
    masked, plain, anchors, labels = losses([0, 0, 1], [0, 1, 2], truth, [0, 1, 2])
    cosine = torch.nn.functional.cosine_similarity(anchors[:, None], labels[None], dim=-1) * 20
    slow = 0.0
    for i, negatives in enumerate(([2], [2], [0, 1])):
        kept = torch.stack([cosine[i, j] for j in (i, *negatives)])
        slow -= float(cosine[i, i] - torch.logsumexp(kept, 0)) / 3
    assert masked == pytest.approx(slow, rel=1e-5)
    assert masked < plain


def test_the_same_label_of_another_pair_is_no_negative():
    masked, _, _, _ = losses([0, 1], [0, 0], np.array([[True], [True]]), [0, 1])
    assert masked == pytest.approx(0.0, abs=1e-6)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_route("magic"), "route='magic'"),
        (lambda: make_route("tfidf", epochs=2), "no knob 'epochs'"),
        (lambda: Tfidf(c=0), "c=0"),
        (lambda: Tfidf(ngrams=0), "ngrams"),
        (lambda: EmbedLR(c=-1), "c=-1"),
        (lambda: EmbedFT(epochs=0), "epochs"),
        (lambda: EmbedFT(lr=0), "lr=0"),
        (lambda: EmbedFT(batch=1), "batch"),
        (lambda: EmbedFT(temperature=0), "temperature"),
        (lambda: Tfidf().scores(["x"]), "call fit"),
        (lambda: EmbedZero().scores(["x"]), "call fit"),
        (lambda: EmbedLR().scores(["x"]), "call fit"),
        (lambda: EmbedFT().scores(["x"]), "call fit"),
        (lambda: Tfidf().fit([], TRUTH[:0], LABELS), "do not fit together"),
        (lambda: Tfidf().fit(TEXTS, TRUTH & False, LABELS), "nothing can be learnt"),
        (lambda: Tfidf().fit(["!", "?"], TRUTH[:2], LABELS), "no words"),
        (lambda: EmbedFT().fit(TEXTS[:1], TRUTH[:1], LABELS), "at least two"),
        (lambda: load_encoder().encode([]), "no text"),
        (lambda: LinearHead(np.zeros((4, 3)), np.zeros(4)).scores(np.zeros((1, 2))), "dimension"),
    ],
)
def test_bad_knobs_and_data_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_an_encoder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        load_encoder("no/such/folder")
    with pytest.raises(ModelError, match="no sentence encoder"):
        load_encoder(str(tmp_path))


def test_a_folder_that_is_no_identifier_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="no trained identifier"):
        Identifier.load(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    route = Frequent().fit(TEXTS, TRUTH, LABELS)
    identifier = Identifier(route, LABELS, fixed(0.1, 4))
    with pytest.raises(InputError, match="holds other files"):
        identifier.save(tmp_path, "card")
    place = identifier.save(tmp_path / "new", "card")
    state = json.loads((place / "identifier.json").read_text())
    for change, words in (({"format": 9}, "format 9"), ({"thresholds": [1]}, "1 thresholds")):
        (place / "identifier.json").write_text(json.dumps({**state, **change}))
        with pytest.raises(ResultsError, match=words):
            Identifier.load(place)
    (place / "identifier.json").write_text("{")
    with pytest.raises(ResultsError, match="damaged"):
        Identifier.load(place)
    with pytest.raises(InputError, match="text 1 is empty"):
        identifier.decide(["fine", " "])
