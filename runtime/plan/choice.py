"""Choose a type, a cache and a load mode for a model in a given memory, and say why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from infer_os.models.shape import ModelShape, WeightOption
from infer_os.models.weight_types import RECIPES
from infer_os.sizes import size_text

from ..errors import SettingsError
from ..kv.schedule import KvSchedule, KvStage, coarsest_type, schedule_from_budget
from .memory_plan import Plan, Planner, kv_model

#: Types to choose from, the finest first.
CHOSEN_TYPES = tuple(name for name, recipe in RECIPES.items() if recipe.is_chosen)

# cache types that come before coarser weights
_FINE_KV = ("f16", "q8_0")
#: Tokens per second that a recommended model can reach: about as fast as people read aloud.
FLOOR = 3.0
_LEAST_LEFT = 1_000_000_000
# private copies should leave room for the page cache and other programs
_ROOM = 0.9


@dataclass(frozen=True, slots=True)
class Wish:
    """What is already fixed; None leaves the choice open."""

    type: str | None = None
    schedule: KvSchedule | None = None
    load: str | None = None


def choose(planner: Planner, wish: Wish) -> Plan:
    """The finest weights whose plan fits, with the finest cache that fits next to them.

    A cache that ends in Q8_0, or Q8_0 keys, comes before coarser weights, a coarser one after all
    of them. If nothing fits: the smallest plan, whose ``fits`` is false.
    """
    options = _options(planner.shape, wish)
    load = wish.load or "mmap"
    found: list[Plan] = []
    for weights in options:
        schedule = wish.schedule or automatic_schedule(planner, weights, load)
        if schedule is not None:
            found.append(planner.plan(weights, schedule, load))
    fitting = [plan for plan in found if plan.fits]
    fine = [plan for plan in fitting if plan.schedule.stages[-1].type_k in _FINE_KV]
    best = next(iter(fine if wish.schedule is None and fine else fitting), None)
    if best is None:
        return _smallest(planner, options, wish, load)
    if wish.load is None and _gains(planner, best.weights):
        fast = planner.plan(best.weights, best.schedule, "fast")
        if fast.total <= _ROOM * fast.limit:
            best = fast
    return replace(best, reasons=tuple(_reasons(planner, best, wish)))


def headroom(usable: int) -> int:
    """Bytes of the usable memory that a recommended model leaves to other programs."""
    return max(usable // 10, _LEAST_LEFT)


def advise(planner: Planner) -> Plan | None:
    """The plan to recommend: with memory to spare, and fast enough to read along.

    The finest weights that leave :func:`headroom` of the limit, with a cache no coarser than Q8_0,
    and whose bound, if known, is at least :data:`FLOOR` tokens per second. None if there are none.
    """
    budget = planner.budget
    roomy = replace(planner, budget=replace(budget, limit=budget.limit - headroom(budget.limit)))
    for option in _options(planner.shape, Wish()):
        plan = choose(roomy, Wish(option.type))
        fine = plan.fits and plan.schedule.stages[-1].type_k in _FINE_KV
        if fine and (plan.tokens_per_s is None or plan.tokens_per_s >= FLOOR):
            return plan
    return None


def type_table(planner: Planner, chosen: Plan) -> tuple[Plan, ...]:
    """The plan for every type of the weights, with the chosen cache and load mode."""
    return tuple(
        planner.plan(weights, chosen.schedule, chosen.load) for weights in planner.shape.options
    )


def _options(shape: ModelShape, wish: Wish) -> Sequence[WeightOption]:
    if wish.type is not None:
        return [shape.option(wish.type)]
    if shape.is_file:
        return shape.options
    return [option for option in shape.options if option.type in CHOSEN_TYPES]


def _gains(planner: Planner, weights: WeightOption) -> bool:
    """Whether most of the weights get a faster layout in private copies."""
    return weights.main in planner.budget.repacked.of(weights.kinds)


def _plain(planner: Planner, kind: str) -> KvSchedule:
    """One type throughout."""
    return KvSchedule((KvStage(kind, kind, planner.sizes.n_ctx),))


def automatic_schedule(planner: Planner, weights: WeightOption, load: str) -> KvSchedule | None:
    """The schedule of ``--kv auto``: F16 throughout if that fits, else the best one that does.

    That keeps F16 or Q8_0 for as many tokens as it can. The context is never cut; None if no
    schedule fits.
    """
    plain = planner.plan(weights, _plain(planner, "f16"), load)
    if plain.fits:
        return plain.schedule
    # a quantized cache may need larger buffers than the plain one
    small = planner.plan(weights, smallest_schedule(planner), load)
    rest = plain.weights.n_bytes + plain.program + plain.draft + plain.logits
    room = plain.limit - rest - max(plain.compute, small.compute)
    model = kv_model(planner.shape, planner.sizes.n_threads)
    try:
        schedule, cut = schedule_from_budget(
            room // planner.sizes.n_seq, model, planner.sizes.n_ctx
        )
    except SettingsError:  # not even the smallest cache
        return None
    return schedule if not cut and planner.plan(weights, schedule, load).fits else None


def smallest_schedule(planner: Planner) -> KvSchedule:
    """The smallest cache that the model can have."""
    return _plain(planner, coarsest_type(kv_model(planner.shape)))


def _smallest(planner: Planner, options: Sequence[WeightOption], wish: Wish, load: str) -> Plan:
    weights = min(options, key=lambda option: option.n_bytes)
    schedule = wish.schedule or smallest_schedule(planner)
    plan = planner.plan(weights, schedule, load)
    over = f"{size_text(plan.total - plan.limit, up=True)} too much"
    if plan.total - plan.kv <= plan.limit:
        remedy = "or quantize the cache with --kv" if wish.schedule else "no cache type is enough"
        return replace(plan, reasons=(f"{over}: lower --context; {remedy}",))
    what = "the file's type" if planner.shape.is_file else f"the smallest type, {weights.type}"
    return replace(plan, reasons=(f"{over}, even without a cache, with {what}",))


def _reasons(planner: Planner, chosen: Plan, wish: Wish) -> Iterator[str]:
    limit = size_text(chosen.limit)
    kind = chosen.weights.type
    if chosen.shape.is_file:
        yield f"type {kind}: the file's own"
    elif wish.type is not None:
        yield f"type {kind}: as requested"
    else:
        yield f"type {kind}: the finest whose weights, cache and buffers fit in {limit}"
    if wish.schedule is not None:
        yield f"kv {chosen.schedule.spec}: as requested"
    elif chosen.schedule.spec == "f16":
        yield "kv f16: full precision fits"
    else:
        plain = planner.plan(chosen.weights, _plain(planner, "f16"), chosen.load)
        yield (
            f"kv {chosen.schedule.spec}: with f16 throughout it would be {size_text(plain.total)}"
        )
    if wish.load is not None:
        yield f"load {chosen.load}: as requested"
    elif chosen.load == "fast":
        yield f"load fast: {kind} has a faster layout, and private copies leave room"
    elif _gains(planner, chosen.weights):
        yield f"load mmap: private copies of {kind} in its faster layout would fill the memory"
    else:
        yield f"load mmap: {kind} has no faster layout; the file's pages are shared"
