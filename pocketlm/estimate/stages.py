"""What each stage of a recipe will train, write and read, from its call alone: shapes are followed
from stage to stage.

A stage that is not in COSTS, and whatever hangs on something that is not there yet, is unknown.
"""

from collections.abc import Callable

from pocketlm.estimate.data_costs import (
    curate_cost,
    export_cost,
    leave_one_out_cost,
    merge_cost,
    mix_cost,
    probes_cost,
    select_cost,
    teach_cost,
)
from pocketlm.estimate.stage import Known, Stage
from pocketlm.estimate.training_costs import (
    extend_cost,
    finetune_cost,
    prefer_cost,
    pretrain_cost,
    quantize_cost,
    reinforce_cost,
)
from pocketlm.model.checkpoint import shape_of
from pocketlm.runner.record import Call


def plan_stages(calls: list[Call]) -> list[Stage]:
    """Every stage of a dry pass, in order."""
    known = Known()
    return [COSTS.get(call.record["stage"], unknown_cost)(call, known) for call in calls]


def unknown_cost(call: Call, known: Known) -> Stage:
    """A stage whose cost is not estimated. Its model is known where it has written one."""
    written = (call.folder / "config.json").is_file()
    known.models[call.folder] = shape_of(call.folder) if written else None
    return Stage(call=call, notes=("not estimated",))


def check_cost(call: Call, known: Known) -> Stage:
    """A stage that only checks what later ones will need."""
    return Stage(call=call, tokens=0, disk=0, other_seconds=0.0)


COSTS: dict[str, Callable[[Call, Known], Stage]] = {
    "pretrain": pretrain_cost,
    "finetune": finetune_cost,
    "prefer": prefer_cost,
    "reinforce": reinforce_cost,
    "extend_context": extend_cost,
    "quantize": quantize_cost,
    "curate": curate_cost,
    "build_probes": probes_cost,
    "find_mix": mix_cost,
    "leave_one_out": leave_one_out_cost,
    "select": select_cost,
    "teach": teach_cost,
    "merge": merge_cost,
    "export": export_cost,
    "check_formats": check_cost,
    "check_chats": check_cost,
    "check_vocabulary": check_cost,
}
