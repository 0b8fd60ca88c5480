"""Planners without a language model: greedy, optimal by breadth-first search, random.

They are baselines for the frameworks, and what scripted policies decide with. `wishes` ranks what
every robot would do if it were alone; `greedy` lets robots with lower priority give way until
nothing collides; `optimal` searches all joint plans of a small world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from outlay.errors import InputError
from outlay.evals.robots.base import MAX_PLANS, Draw, Plan, World, check_whole
from outlay.evals.robots.boxlift import BoxLift, LiftState
from outlay.evals.robots.boxnet import BoxNet1, BoxNet2, CornerState
from outlay.evals.robots.grid import Cell, Corner, cell_text
from outlay.evals.robots.grid import corner_text as at_corner
from outlay.evals.robots.warehouse import HouseState, Warehouse

Wishes = dict[str, list[str]]
Floors = Mapping[int, int]
MAX_STATES = 200_000


def wishes(world: World[Any, Any], state: Any, *, floors: Floors | None = None) -> Wishes:
    """Per robot, useful actions from best to worst; robots in order of priority.

    Args:
        world: one of the four.
        state: of it.
        floors: BoxLift: per box, a sum of strengths (tenths) that is known to be too weak.
    """
    if isinstance(world, BoxNet1):
        return _cell_wishes(world, state)
    if isinstance(world, BoxNet2):
        return _corner_wishes(world, state)
    if isinstance(world, Warehouse):
        return _house_wishes(world, state)
    if isinstance(world, BoxLift):
        return {agent: [act] for agent, act in _teams(world, state, floors or {}).items()}
    raise InputError(f"no planner for {world.name}; write wishes for it")


def naive(world: World[Any, Any], state: Any, *, floors: Floors | None = None) -> dict[str, str]:
    """Every robot's first wish: a planner that ignores where the others go."""
    first = {agent: ranked[0] for agent, ranked in wishes(world, state, floors=floors).items()}
    return world.join(first)


def greedy(world: World[Any, Any], state: Any, *, floors: Floors | None = None) -> dict[str, str]:
    """First wishes, with robots of lower priority giving way until nothing collides."""
    return yielding(world, state, wishes(world, state, floors=floors))


def yielding(
    world: World[Any, Any], state: Any, ranked: Wishes, *, movable: set[str] | None = None
) -> dict[str, str]:
    """The plan after conflicts made robots fall back to later wishes, at last to none.

    Args:
        world, state: judge.
        ranked: wishes, robots in order of priority.
        movable: robots that may give way; conflicts among others stay. None for all.
    """
    order = list(ranked)
    place = dict.fromkeys(order, 0)
    able = set(order if movable is None else movable)

    def plan() -> dict[str, str]:
        chosen = {a: ranked[a][place[a]] for a in order if place[a] < len(ranked[a])}
        return world.join(chosen)

    def clashes() -> list[set[str]]:
        return [group & able for group in _clashes(world, state, plan()) if group & able]

    while groups := clashes():
        free = [[a for a in group if place.get(a, 0) < len(ranked.get(a, ()))] for group in groups]
        if not any(free):
            break
        for group in filter(None, free):  # the last in priority gives way
            place[max(group, key=order.index)] += 1
    # Some gave way in vain, because another one had to as well: back to the best that still fits.
    better = True
    while better:
        better = False
        for agent in order:
            for wish in range(place[agent]):
                kept, place[agent] = place[agent], wish
                if not clashes():
                    better = True
                    break
                place[agent] = kept
    return plan()


def _clashes(world: World[Any, Any], state: Any, plan: Plan) -> list[set[str]]:
    """Robots of every collision, and the key of every refused action."""
    step = world.step(state, plan)
    return [set(c.agents) for c in step.collisions] + [{r.key} for r in step.refusals]


def _cell_wishes(world: BoxNet1, state: tuple[tuple[str, ...], ...]) -> Wishes:
    targets: dict[str, list[Cell]] = {}
    for cell, items in zip(world.cells, state, strict=True):
        for item in items:
            if item.startswith("target_"):
                targets.setdefault(item[7:], []).append(cell)
    found: Wishes = {}
    for agent, cell, items in zip(world.agents, world.cells, state, strict=True):
        ranked: list[tuple[int, str]] = []
        for box in dict.fromkeys(item for item in items if item.startswith("box_")):
            goals = targets.get(box[4:], [])
            if cell in goals:
                ranked.append((0, f"move({box}, target_{box[4:]})"))
                continue
            if not goals:
                continue
            goal = min(goals, key=lambda g: (_steps(cell, g), g))
            to = min(world.neighbours(cell), key=lambda n: (_steps(n, goal), n))
            ranked.append((_steps(cell, goal), f"move({box}, square[{cell_text(to)}])"))
        if ranked:
            found[agent] = [action for _, action in sorted(ranked)]
    return found


def _steps(a: Cell, b: Cell) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _corner_wishes(world: BoxNet2, state: CornerState) -> Wishes:
    goals = dict(state.targets)
    names = {cell: agent for agent, cell in zip(world.agents, world.cells, strict=True)}
    reach = [(agent, world.corners(cell)) for cell, agent in names.items()]

    def far(corner: Corner, colour: str) -> int:
        return min(
            max(abs(corner[0] - x), abs(corner[1] - y)) for x, y in world.corners(goals[colour])
        )

    found: Wishes = {}
    # Boxes that are nearly there first: they make room.
    for colour, at in sorted(state.boxes, key=lambda box: (far(box[1], box[0]), box[0])):
        now = far(at, colour)
        choices: list[tuple[int, str, str]] = []
        if now == 0:
            choices.append((-1, names[goals[colour]], f"move(box_{colour}, target_{colour})"))
        for agent, corners in reach:
            if at in corners:
                choices += [
                    (far(to, colour) - now, agent, f"move(box_{colour}, {at_corner(to)})")
                    for to in corners
                    if to != at
                ]
        useful = sorted(choice for choice in choices if choice[0] < 0)
        sideways = sorted(choice for choice in choices if choice[0] == 0 and now > 0)
        for _, agent, _ in useful:
            if agent not in found:
                ranked = [a for _, who, a in (*useful, *sideways) if who == agent]
                found[agent] = ranked
                break
    return found


def _house_wishes(world: Warehouse, state: HouseState) -> Wishes:
    loads = [robot for robot in state.robots if robot[2]]
    ranked: list[tuple[tuple[int, int, int], str, list[str]]] = []
    claimed: set[tuple[int, int]] = set()
    for number, (track, column, carrying) in enumerate(state.robots):
        agent = f"agent{number}"
        out = "move to target" if column == 0 else "move left"
        if carrying:
            ranked.append(((0, column, number), agent, [out]))
            continue
        if track < 0:
            near = {
                i: min((c for t, c in state.boxes if t in (i - 1, i)), default=None)
                for i in range(world.tracks)
            }
            rows = sorted((c, i) for i, c in near.items() if c is not None)
            if rows:
                turns = [f"move to track_{i}" for _, i in rows]
                ranked.append(((3, number, number), agent, turns))
            continue
        beside = [b for b in state.boxes if b[1] == column and b[0] in (track - 1, track)]
        free = [b for b in beside if b not in claimed] or beside
        if free:
            claimed.add(free[0])
            pick = [f"pick box_{b[0]}.5_{b[1]}" for b in (*free, *beside)]
            ranked.append(((1, column, number), agent, list(dict.fromkeys(pick))))
            continue
        columns = [c for t, c in state.boxes if t in (track - 1, track)]
        goal = min(columns, key=lambda c: (abs(c - column), c), default=None)
        if goal is not None and goal > column:
            back = [out] if world.swap_is_collision or _blocked(loads, track, column) else []
            ranked.append(((2, column, number), agent, ["move right", *back]))
        else:
            ranked.append(((2, column, number), agent, [out]))
    return {agent: actions for _, agent, actions in sorted(ranked)}


def _blocked(loads: Sequence[tuple[int, int, bool]], track: int, column: int) -> bool:
    """Whether a loaded robot comes the other way, one place off from passing."""
    return (track, column + 1, True) in loads


def _teams(world: BoxLift, state: LiftState, floors: Floors) -> dict[str, str]:
    """Largest boxes first, each with the weakest team of free robots that should lift it."""
    need = {number: max(weight, floors.get(number, -1) + 1) for number, _, weight in state.boxes}
    free = list(range(len(state.strengths)))
    doing: dict[str, str] = {}
    for number in sorted(need, key=lambda n: (-need[n], n)):
        team = _weakest(state.strengths, free, need[number])
        if team is None and len(free) == len(state.strengths):
            team = tuple(free)  # nobody is stronger than all together
        for robot in team or ():
            doing[f"agent{robot}"] = f"lift box{number}"
            free.remove(robot)
    return doing


def _weakest(strengths: Sequence[int], free: Sequence[int], need: int) -> tuple[int, ...] | None:
    """The team of least total strength >= `need`; of those the smallest, then the first."""
    best: dict[int, tuple[int, ...]] = {0: ()}
    for robot in free:
        for total, team in list(best.items()):
            new, bigger = total + strengths[robot], (*team, robot)
            if new not in best or (len(bigger), bigger) < (len(best[new]), best[new]):
                best[new] = bigger
    enough = [total for total in best if total >= need]
    return best[min(enough)] if enough else None


def random_plan(world: World[Any, Any], state: Any, draw: Draw) -> dict[str, str]:
    """A uniform choice per robot among its actions and none, conflicts on objects dropped."""
    plan: dict[str, str] = {}
    for agent, actions in world.actions(state).items():
        pick = draw.below(len(actions) + 1)
        if pick == len(actions):
            continue
        chosen = world.join({**world.split(plan), agent: actions[pick]})
        if not world.check(state, chosen):
            plan = chosen
    return plan


def rollout(
    world: World[Any, Any],
    state: Any,
    policy: Callable[[Any], Plan],
    *,
    step_limit: int | None = None,
) -> tuple[list[dict[str, str]], bool]:
    """Plans of a policy until solved, collision or limit; and whether it solved the instance.

    Raises:
        InputError: if the policy gives a plan that the world refuses.
    """
    plans: list[dict[str, str]] = []
    limit = world.step_limit if step_limit is None else step_limit
    while not world.solved(state) and len(plans) < limit:
        plan = dict(policy(state))
        step = world.step(state, plan)
        if step.refusals:
            raise InputError(f"the policy's plan is refused: {step.refusals[0].text()}")
        plans.append(plan)
        state = step.state
        if step.collisions:
            return plans, False
    return plans, world.solved(state)


def optimal(
    world: World[Any, Any], state: Any, *, max_states: int = MAX_STATES, max_plans: int = MAX_PLANS
) -> list[dict[str, str]]:
    """A shortest list of plans without collision, by breadth-first search over joint plans.

    For BoxLift it knows the weights.

    Args:
        world: any world with simultaneous application.
        state: where to start.
        max_states: give up after so many states.
        max_plans: joint plans of one state.

    Raises:
        InputError: if the world is too large, or the instance has no solution.
    """
    check_whole("max_states", max_states, 1, 100_000_000)
    if world.apply != "simultaneous":
        raise InputError("optimal plans are searched for apply='simultaneous' only")
    came: dict[Any, tuple[Any, dict[str, str]] | None] = {state: None}
    layer = [state]
    while layer:
        following: list[Any] = []
        for here in layer:
            if world.solved(here):
                return _path(came, here)
            for plan in world.plans(here, limit=max_plans):
                step = world.step(here, plan)
                if step.collisions or step.state in came:
                    continue
                if len(came) >= max_states:
                    raise InputError(
                        f"more than {max_states} states of {world.name}; take a smaller world or "
                        "raise max_states="
                    )
                came[step.state] = (here, plan)
                following.append(step.state)
        layer = following
    raise InputError(f"this instance of {world.name} has no solution without a collision")


def _path(came: Mapping[Any, tuple[Any, dict[str, str]] | None], end: Any) -> list[dict[str, str]]:
    plans: list[dict[str, str]] = []
    while (link := came[end]) is not None:
        end = link[0]
        plans.append(link[1])
    return plans[::-1]
