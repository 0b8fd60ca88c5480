"""What TokenFLEX's proof runs: models that differ only in how many visual tokens they train with.

All start from the same weights, share one frozen tower, and see the same scenes and questions in
the same order; a scene is encoded once for all of them. Training stops at any step and goes on
later, and every measured cell is stored.

S scenes, K kinds of question, B scenes of a batch, N visual tokens, C width.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlay.errors import ResultsError
from outlay.proofs.base import Progress
from outlay.testbeds.seer.evaluate import Examples, answered
from outlay.testbeds.seer.model import SIZES, Seer, build, look, normalised
from outlay.testbeds.seer.questions import BOS, Packed, Question, draw, one_each, pack, possible
from outlay.testbeds.seer.scenes import Scenes, generator, scenes
from outlay.testbeds.seer.train import FEATURE, Optimiser, Prefix, TrainConfig, answer_loss
from outlay.vision.tokenflex import CountDraw, Grid, ProjectorConfig, convert, grid_of
from outlay.vision.tokenflex.models import need_flexible

COUNTS = (9, 36, 144)
PROBS = (0.2, 0.3, 0.5)
BETWEEN = (4, 16, 64)  # counts that no model was trained with
SIZE = replace(SIZES["M"], layers=4, max_objects=4)
FINE, COARSE = ("digit", "garment"), ("count", "exist")
KINDS = (*FINE, *COARSE, "kind", "colour")
EVERY = 50  # steps between two stored states
BATCH = 64  # rows of a measured batch


@dataclass(frozen=True)
class Arm:
    """One model.

    Args:
        name: of it.
        counts: that it is trained with.
        probs: of each.
        projector: gated, or LLaVA's MLP.
        joint: whether every step takes all counts, and so costs their sum.
    """

    name: str
    counts: tuple[int, ...]
    probs: tuple[float, ...]
    projector: str = "swiglu"
    joint: bool = False

    def draw(self, seed: int) -> CountDraw:
        """The counts of its steps."""
        return CountDraw(self.counts, self.probs, seed=seed)

    def at(self, step: int, seed: int) -> list[Grid]:
        """The grids of one step."""
        counts = self.counts if self.joint else self.draw(seed).at(step)
        return [grid_of(count) for count in counts]


ARMS = {
    arm.name: arm
    for arm in (
        *(Arm(f"fixed-{n}", (n,), (1.0,)) for n in COUNTS),
        Arm("flex", COUNTS, PROBS),
        Arm("flex-mlp", COUNTS, PROBS, projector="mlp"),
        Arm("flex-even", COUNTS, (1 / 3, 1 / 3, 1 / 3)),
        Arm("joint", COUNTS, PROBS, joint=True),
    )
}


@dataclass(frozen=True)
class Plan:
    """One grid of models.

    Args:
        arms: their names.
        steps: of each.
        batch: scenes of a step.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        scenes: held out, for measuring.
        seeds: trainings of each.
    """

    arms: tuple[str, ...]
    steps: int
    batch: int
    scenes: int
    seeds: int
    lr: float = 2e-3
    warmup: int = 100

    def config(self, seed: int) -> TrainConfig:
        """As the seer's own training takes it."""
        return TrainConfig(
            size="M", seed=seed, batch=self.batch, lr=self.lr, warmup=self.warmup, token_drop=False
        )


@dataclass
class Model:
    """One arm on its way.

    Args:
        arm: which.
        seer: model and language.
        optimiser: of projector and language model.
        losses: of every step.
        tokens: visual tokens of every step, all scenes together.
        seconds: of process time in this arm's own forward and backward passes.
    """

    arm: Arm
    seer: Seer
    optimiser: Optimiser
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def step(self, hidden_BNC: torch.Tensor, packed: Packed, seed: int) -> None:
        """One update on a batch that is encoded already."""
        began, model = time.process_time(), self.seer.model
        grids = self.arm.at(len(self.losses), seed)
        projector = need_flexible(model)
        with torch.autocast("cpu", torch.bfloat16):
            features = [projector.at(hidden_BNC, grid) for grid in grids]
            parts = [answer_loss(model, prefix_of(one), packed) for one in features]
        self.losses.append(self.optimiser.step(torch.stack(parts).mean()))
        self.tokens.append(sum(one.shape[0] * one.shape[1] for one in features))
        self.seconds += time.process_time() - began

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on; the tower is not part of it."""
        weights = self.seer.model.state_dict()
        return {
            "weights": {k: v for k, v in weights.items() if "vision_tower" not in k},
            "adam": self.optimiser.adam.state_dict(),
            "schedule": self.optimiser.schedule.state_dict(),
            "losses": self.losses,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.seer.model.load_state_dict(state["weights"], strict=False)
        self.optimiser.adam.load_state_dict(state["adam"])
        self.optimiser.schedule.load_state_dict(state["schedule"])
        self.losses, self.tokens = list(state["losses"]), list(state["tokens"])
        self.seconds = state["seconds"]


def prefix_of(visual_BNC: torch.Tensor) -> Prefix:
    """The image part of training sequences: <bos>, then every feature, without gaps."""
    rows, n = visual_BNC.shape[:2]
    return Prefix(
        visual=torch.cat([torch.zeros_like(visual_BNC[:, :1]), visual_BNC], 1),
        ids=torch.tensor([BOS] + [FEATURE] * n).expand(rows, -1),
        positions=torch.arange(1 + n).expand(rows, -1),
        after=torch.full((rows,), 1 + n),
    )


def made(arm: Arm, tower: Any, plan: Plan, seed: int) -> Model:
    """An arm before its first step: the same weights for all, but for the kind of projector."""
    plain = build(SIZE, seed)
    plain.model.vision_tower = tower
    settings = ProjectorConfig(projector=arm.projector, counts=COUNTS)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = convert(plain, settings)
    model.set_attn_implementation("eager")  # bf16 on CPU wins with eager attention alone
    inner = model.model
    modules = [inner.multi_modal_projector, inner.language_model, model.lm_head]
    return Model(arm, Seer(SIZE, model), Optimiser(modules, plan.lr, plan.steps, plan.config(seed)))


def digest(plan: Plan, seed: int, tower: Any) -> str:
    """Of all that a training depends on."""
    told = {
        "plan": {k: v for k, v in asdict(plan).items() if k not in ("scenes", "seeds")},
        "arms": [asdict(ARMS[name]) for name in plan.arms],
        "size": asdict(SIZE),
        "seed": seed,
        "tower": [
            float(parameter.detach().double().abs().sum()) for parameter in tower.parameters()
        ],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def encoded(tower: Any, pictures: np.ndarray) -> torch.Tensor:
    """(B, N, C): what the frozen tower says of a batch of pictures."""
    with torch.no_grad():
        return look(tower, normalised(pictures))[0].float()


def trained(
    plan: Plan, tower: Any, seed: int, folder: Path, progress: Progress
) -> dict[str, Model]:
    """All arms after their last step.

    Args:
        plan: what to train.
        tower: frozen.
        seed: of weights, scenes and draws.
        folder: where states are stored; a training that was stopped goes on.
        progress: told every `EVERY` steps.

    Raises:
        ResultsError: for a damaged state.
    """
    home = folder / digest(plan, seed, tower)
    home.mkdir(parents=True, exist_ok=True)
    models = {name: made(ARMS[name], tower, plan, seed) for name in plan.arms}
    path = home / "state.pt"
    if path.is_file():
        try:
            stored = torch.load(path, weights_only=True)
            for name, model in models.items():
                model.restore(stored[name])
        except Exception as error:
            raise ResultsError(f"{path} cannot be read ({error}); remove it") from error
    start = len(models[plan.arms[0]].losses)
    for step in range(start, plan.steps):
        shown = scenes(
            plan.batch,
            side=SIZE.side,
            patch=SIZE.patch,
            max_objects=SIZE.max_objects,
            split="train",
            seed=(seed, 60, step),
        )
        packed = pack(draw(shown, generator((seed, 61, step), "train")))
        hidden_BNC = encoded(tower, shown.images)
        for model in models.values():
            model.step(hidden_BNC, packed, seed)
        if (step + 1) % EVERY == 0 or step + 1 == plan.steps:
            torch.save({name: model.state() for name, model in models.items()}, f"{path}.new")
            Path(f"{path}.new").replace(path)
            recent = {k: np.mean(model.losses[-EVERY:]) for k, model in models.items()}
            told = ", ".join(f"{name} {value:.3f}" for name, value in recent.items())
            progress(f"seed {seed}, step {step + 1} of {plan.steps}: {told}")
    for model in models.values():
        model.seer.model.set_attn_implementation("sdpa")
        model.seer.model.train(False)
    return models


@dataclass(frozen=True)
class Bed:
    """Held-out scenes, encoded, with a question of every kind about each.

    Args:
        seen: scenes.
        hidden_SNC: what the tower says of them.
        asked: by kind, scenes asked about and their questions.
    """

    seen: Scenes
    hidden_SNC: torch.Tensor
    asked: Mapping[str, tuple[np.ndarray, list[Question]]]


def bed(tower: Any, n: int, seed: int) -> Bed:
    """Draw scenes, ask, and encode.

    Args:
        tower: frozen.
        n: scenes.
        seed: of them.
    """
    seen = scenes(
        n,
        side=SIZE.side,
        patch=SIZE.patch,
        max_objects=SIZE.max_objects,
        split="test",
        seed=(seed, 62),
    )
    asked = {}
    for kind in KINDS:

        def ask(scene: int, rng: np.random.Generator, kind: str = kind) -> list[Question]:
            return possible(seen, scene, kind, rng)

        asked[kind] = one_each(n, ask, generator((seed, 63), "test"))
    parts = [encoded(tower, seen.images[i : i + BATCH]) for i in range(0, n, BATCH)]
    return Bed(seen, torch.cat(parts), asked)


@torch.no_grad()
def right(bed_: Bed, seer: Seer, count: int) -> np.ndarray:
    """(S, K): 1 where the answer is exact, 0 where not, NaN where nothing was asked."""
    projector, grid = need_flexible(seer.model), grid_of(count)
    features_SNC = torch.cat([projector.at(part, grid) for part in bed_.hidden_SNC.split(BATCH)])
    found = np.full((len(bed_.seen), len(KINDS)), np.nan)
    for column, kind in enumerate(KINDS):
        index, questions = bed_.asked[kind]
        for start in range(0, len(index), BATCH):
            own = index[start : start + BATCH]
            part = Examples(kind, bed_.seen[own], tuple(questions[start : start + BATCH]))
            inputs = seer.inputs_of_features([[features_SNC[i]] for i in own], part.questions)
            found[own, column] = answered(seer, part, inputs)
    return found


@torch.no_grad()
def by_method(bed_: Bed, seer: Seer, method: Any, most: int) -> np.ndarray:
    """(S, K) as `right`, of the first scenes, through prompts with all placeholders and a method's
    own context, tower included."""
    found = np.full((most, len(KINDS)), np.nan)
    for column, kind in enumerate(KINDS):
        index, questions = bed_.asked[kind]
        wanted = int((index < most).sum())
        for start in range(0, wanted, BATCH):
            own = index[start : min(start + BATCH, wanted)]
            asked = Examples(kind, bed_.seen[own], tuple(questions[start : start + len(own)]))
            inputs = seer.inputs(asked.seen, asked.questions)
            with method(seer.model):
                found[own, column] = answered(seer, asked, inputs)
    return found


def cell(path: Path, compute: Any) -> np.ndarray:
    """A measured table, read where it is stored.

    Args:
        path: of the stored table.
        compute: makes it.

    Raises:
        ResultsError: for a damaged file.
    """
    if path.is_file():
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path} cannot be read ({error}); remove it") from error
    table: np.ndarray = compute()
    np.save(path, table, allow_pickle=False)
    return table


def columns(kinds: Sequence[str]) -> list[int]:
    """Columns of some kinds in a table."""
    return [KINDS.index(kind) for kind in kinds]
