"""Runs behind the proof of T2T-ViT: small classifiers on few pictures, trained once and stored.

A `Cell` says everything that decides a run; its result is a JSON file named by a hash of it. A
killed proof goes on where it stopped. All tokenisers of a seed get the same pictures in the same
order and the same initial backbone.

Shapes: B pictures of a batch, N pictures, S side, T test pictures.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from outlay.errors import DependencyError, InputError, ResultsError
from outlay.machine import commit, machine, today
from outlay.proofs.base import Progress
from outlay.testbeds import fashion
from outlay.vision.t2t_vit.method import T2TViT
from outlay.vision.t2t_vit.tokens import SPLITS_SMALL, Split, Start, TokensType

World = Literal["garments", "digits"]

PATCH: TokensType = "patch"
CONV: TokensType = "conv"
ATTENTION: TokensType = "transformer"
PERFORMER: TokensType = "performer"
TYPES = (PATCH, CONV, ATTENTION, PERFORMER)
NAMES: Mapping[TokensType, str] = {
    PATCH: "patches",
    CONV: "convolutions",
    ATTENTION: "T2T, transformer",
    PERFORMER: "T2T, performer",
}
MOST_WORKERS = 14
"""Most processes that share a GPU."""
_LAYOUT = 1


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        world: "garments" (Fashion-MNIST) or "digits" (scikit-learn's).
        samples: pictures to train on, as many of every class.
        tokens_type: the tokeniser.
        seed: of pictures, order, weights, augmentation.
        seen: pictures shown in all; epochs are `seen / samples`.
        test: test pictures, the first of their file.
        side: in pixels; pictures are scaled to it.
        splits, token_dim: of the tokeniser.
        embed_dim, depth, heads, mlp_ratio: of the backbone.
        batch: pictures a step.
        rate: peak learning rate.
        drop_path: of the backbone.
        curve: also evaluate after every epoch.
        start: of the tokeniser's weights.

    Raises:
        InputError: for another world, or less than one picture, step or seed.
    """

    world: World
    samples: int
    tokens_type: TokensType
    seed: int
    seen: int
    test: int = 2000
    side: int = 28
    splits: tuple[Split, ...] = SPLITS_SMALL
    token_dim: int = 32
    embed_dim: int = 96
    depth: int = 6
    heads: int = 3
    mlp_ratio: float = 2.0
    batch: int = 64
    rate: float = 1e-3
    drop_path: float = 0.1
    curve: bool = False
    start: Start = "released"

    def __post_init__(self) -> None:
        if self.world not in ("garments", "digits"):
            raise InputError(f"world={self.world!r}; choose garments or digits")
        if min(self.samples, self.test, self.batch, self.seen // self.batch) < 1 or self.seed < 0:
            raise InputError(
                f"samples={self.samples}, test={self.test}, seen={self.seen}, batch={self.batch}, "
                f"seed={self.seed}; need at least one picture and one step, and a seed >= 0"
            )

    @property
    def key(self) -> str:
        """A hash of everything that decides the run."""
        text = json.dumps([_LAYOUT, asdict(self)], sort_keys=True)
        return sha256(text.encode()).hexdigest()[:16]

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.seen // self.batch

    @property
    def method(self) -> T2TViT:
        """The model."""
        return T2TViT(
            splits=self.splits,
            tokens_type=self.tokens_type,
            token_dim=self.token_dim,
            embed_dim=self.embed_dim,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            drop_path=self.drop_path,
            img_size=self.side,
            channels=1,
            num_classes=10,
            start=self.start,
        )


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Args:
        cell: what was run.
        right: (T,) 1 or 0 of each test picture, by the averaged weights.
        last: accuracy of the last weights.
        curve: accuracy after every epoch, by the averaged weights; empty where not asked for.
        loss: training loss, mean over each tenth of the run.
        seconds: of CPU time.
        parameters: of the model, fixed tables included.
        about: machine, commit and date.
    """

    cell: Cell
    right: list[int]
    last: float
    curve: list[float]
    loss: list[float]
    seconds: float
    parameters: int
    about: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Share of right answers by the averaged weights."""
        return sum(self.right) / len(self.right)


def run_cells(cells: Sequence[Cell], folder: Path, progress: Progress) -> list[Outcome]:
    """Results of all cells; what the folder lacks is trained, on a GPU by several processes.

    Raises:
        ResultsError: if the folder or a stored result cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot use {folder} ({error}); give another folder") from error
    places = {cell: folder / f"{cell.key}.json" for cell in cells}
    missing = [cell for cell, path in places.items() if not path.is_file()]
    if missing:
        for number, made in enumerate(_trained(missing, places), 1):
            cell = made.cell
            progress(
                f"{number}/{len(missing)} {cell.world} {cell.samples} {NAMES[cell.tokens_type]}, "
                f"seed {cell.seed}: {made.accuracy:.3f} in {made.seconds:.0f} s"
            )
    return [load(places[cell]) for cell in cells]


def _trained(cells: Sequence[Cell], places: Mapping[Cell, Path]) -> Iterator[Outcome]:
    """Outcomes as they are stored. Models this small leave a GPU idle, so that processes share it;
    on a CPU cells run one by one."""
    import torch

    if len(cells) == 1 or not torch.cuda.is_available():
        for cell in cells:
            yield _stored(cell, places[cell])
        return
    workers = min(len(cells), MOST_WORKERS, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        waiting = [pool.submit(_stored, cell, places[cell]) for cell in cells]
        for done in as_completed(waiting):
            yield done.result()


def _stored(cell: Cell, path: Path) -> Outcome:
    made = train(cell)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")
    draft.replace(path)
    return made


def load(path: Path) -> Outcome:
    """A stored result.

    Raises:
        ResultsError: if it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        cell = data.pop("cell")
        splits = tuple(tuple(split) for split in cell.pop("splits"))
        return Outcome(Cell(**cell, splits=splits), **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} is no stored run ({error}); delete it and run again") from error


def pictures(cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test pictures (N, S, S) in [-1, 1], each with its labels.

    Raises:
        DependencyError: if Fashion-MNIST or scikit-learn is not installed.
        InputError: for more pictures than there are.
    """
    train_NSS, labels_N, test_NSS, test_labels_N = _world(cell.world, cell.side)
    per_class = cell.samples // 10
    rng = np.random.default_rng(cell.seed)
    chosen = []
    for label in range(10):
        found = np.flatnonzero(labels_N == label)
        if len(found) < per_class or cell.samples % 10:
            raise InputError(
                f"samples={cell.samples} of {cell.world}; give a multiple of 10, at most "
                f"{10 * np.bincount(labels_N).min()}"
            )
        chosen.append(rng.permutation(found)[:per_class])
    index_N = np.concatenate(chosen)
    if cell.test > len(test_NSS):
        raise InputError(f"test={cell.test} of {cell.world}; there are {len(test_NSS)}")
    return (
        train_NSS[index_N],
        labels_N[index_N],
        test_NSS[: cell.test],
        test_labels_N[: cell.test],
    )


@cache
def _world(name: World, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Garments by their files; digits: the first three quarters, and the rest for tests."""
    if name == "garments":
        parts = [fashion.images("train"), fashion.images("test")]
        scaled = [pictures / np.float32(127.5) - 1 for pictures, _ in parts]
        labels = [label for _, label in parts]
    else:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DependencyError(
                f"the digits come with scikit-learn ({error}); pip install scikit-learn"
            ) from error
        data = load_digits()
        cut = len(data.images) * 3 // 4
        scaled = [(part / 8 - 1).astype(np.float32) for part in np.split(data.images, [cut])]
        labels = list(np.split(data.target, [cut]))
    return _resized(scaled[0], side), labels[0], _resized(scaled[1], side), labels[1]


def _resized(pictures_NSS: np.ndarray, side: int) -> np.ndarray:
    import torch
    from torch.nn.functional import interpolate

    if pictures_NSS.shape[-1] == side:
        return pictures_NSS
    source = torch.from_numpy(pictures_NSS)[:, None]
    made = interpolate(source, (side, side), mode="bilinear", align_corners=False)
    found: np.ndarray = made[:, 0].numpy()
    return found


def fresh(cell: Cell) -> Any:
    """A fresh model; all tokenisers of a seed get the same initial backbone."""
    import torch

    def built(each: Cell) -> Any:
        torch.manual_seed(each.seed)
        return each.method.build()

    model, other = built(cell), built(replace(cell, tokens_type=PATCH))
    shared = {
        name: value for name, value in other.state_dict().items() if "patch_embeddings" not in name
    }
    model.load_state_dict(shared, strict=False)
    return model


def train(cell: Cell) -> Outcome:
    """Train and evaluate one cell, on a GPU where there is one.

    AdamW, a tenth of the steps to warm up, then a cosine to 0; bfloat16 autocast with eager
    attention, which is the fastest on a CPU; pictures are shifted by up to a fourteenth of their
    side, garments also mirrored.
    """
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from outlay.vision.t2t_vit.training import averaged, parameter_groups

    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.process_time()
    train_NSS, labels_N, test_NSS, test_labels_N = (
        torch.from_numpy(np.array(part)).to(device) for part in pictures(cell)
    )
    model = fresh(cell).to(device)
    model.set_attn_implementation("eager")
    mean = averaged(model, cell.steps, cell.method.ema_decay)
    optimiser = torch.optim.AdamW(parameter_groups(model), lr=cell.rate)
    warm_up = max(1, cell.steps // 10)
    schedule = get_cosine_schedule_with_warmup(optimiser, warm_up, cell.steps)
    generator = torch.Generator().manual_seed(cell.seed)
    order_N = torch.empty(0, dtype=torch.long)
    losses, curve = [], []
    torch.manual_seed(cell.seed)
    for step in range(cell.steps):
        while len(order_N) < cell.batch:
            fresh_N = torch.randperm(len(train_NSS), generator=generator)
            order_N = torch.cat([order_N, fresh_N])
        index_B, order_N = order_N[: cell.batch], order_N[cell.batch :]
        index_B = index_B.to(device)
        batch_BSS = augmented(train_NSS[index_B], cell.world == "garments", generator)
        model.train()
        with torch.autocast(device, torch.bfloat16):
            loss = model(batch_BSS[:, None], labels=labels_N[index_B]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        mean.update_parameters(model)
        losses.append(loss.detach())
        epochs = [(done * cell.batch) // cell.samples for done in (step, step + 1)]
        if cell.curve and epochs[0] < epochs[1]:
            curve.append(float(_right(mean.module, test_NSS, test_labels_N).mean()))
    right_T = _right(mean.module, test_NSS, test_labels_N)
    return Outcome(
        cell,
        [int(value) for value in right_T],
        float(_right(model, test_NSS, test_labels_N).mean()),
        curve,
        [round(float(part), 4) for part in _tenths(torch.stack(losses))],
        round(time.process_time() - began, 2),
        sum(value.numel() for value in model.state_dict().values()),
        {"machine": machine(), "commit": commit(), "date": today(), "device": device},
    )


def _tenths(losses_S: Any) -> list[Any]:
    """Means of each tenth of the steps."""
    steps = len(losses_S)
    return [part.mean() for part in losses_S.float().tensor_split(min(10, steps))]


def augmented(batch_BSS: Any, mirror: bool, generator: Any) -> Any:
    """Every picture shifted at random, the border repeated, and perhaps mirrored."""
    import torch

    count, side, _ = batch_BSS.shape
    most, device = side // 14, batch_BSS.device
    shift_2B = torch.randint(-most, most + 1, (2, count), generator=generator).to(device)
    mirrored_B = torch.rand(count, generator=generator).to(device) < (0.5 if mirror else 0.0)
    place_S = torch.arange(side, device=device)
    rows_BS, columns_BS = ((place_S + shift_B[:, None]).clamp(0, side - 1) for shift_B in shift_2B)
    columns_BS = torch.where(mirrored_B[:, None], columns_BS.flip(1), columns_BS)
    index_B = torch.arange(count, device=device)[:, None, None]
    return batch_BSS[index_B, rows_BS[:, :, None], columns_BS[:, None, :]]


def _right(model: Any, test_NSS: Any, labels_N: Any) -> np.ndarray:
    """(T,) 1.0 or 0.0 of each test picture."""
    import torch

    model.eval()
    with torch.no_grad(), torch.autocast(test_NSS.device.type, torch.bfloat16):
        found = [model(part_BSS[:, None]).logits.argmax(-1) for part_BSS in test_NSS.split(500)]
    right_T: np.ndarray = (torch.cat(found) == labels_N).float().cpu().numpy()
    return right_T
