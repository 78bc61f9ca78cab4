"""What the stages that train cost: pre-training, fine-tuning, the long context, four bits."""

from dataclasses import replace

from pocketlm.estimate.stage import NO_TRAINING, Known, Stage, one_input
from pocketlm.estimate.teachers import teacher_shape
from pocketlm.estimate.work import Work
from pocketlm.model.lora import num_lora_parameters
from pocketlm.model.model_config import ModelConfig
from pocketlm.runner.record import Call
from pocketlm.train.distill.teacher import is_cached


def pretrain_cost(call: Call, known: Known) -> Stage:
    shape = call.config.model or known.model(one_input(call, "model"))
    return _training(call, known, shape, masked=call.config.separate_documents, teacher="teacher")


def finetune_cost(call: Call, known: Known) -> Stage:
    return _training(
        call, known, known.model(one_input(call, "model")), masked=True, teacher="teacher"
    )


def prefer_cost(call: Call, known: Known) -> Stage:
    """A row holds both answers of a pair. The reference reads all pairs once beside it: not
    counted, for how many there are is not known before.
    """
    stage = _training(call, known, known.model(one_input(call, "model")), masked=True)
    return replace(stage, notes=(*stage.notes, "without the one pass of the reference"))


def reinforce_cost(call: Call, known: Known) -> Stage:
    """Tokens are at most so many: answers may end early. What the model writes is a forward pass of
    as many tokens, one at a time, which costs more time than its operations tell.
    """
    shape = known.model(one_input(call, "model"))
    stage = _training(call, known, shape, masked=False, teacher="teacher")
    note = "answers are written one token at a time: that time is not in the estimate"
    return replace(stage, at_most=True, notes=(*stage.notes, note))


def extend_cost(call: Call, known: Known) -> Stage:
    config, shape = call.config, known.model(one_input(call, "model"))
    if shape is not None:
        theta = shape.rope_theta * config.rope_theta_factor
        shape = replace(shape, max_position_embeddings=config.seq_len, rope_theta=theta)
    return _training(call, known, shape, masked=False, teacher="teacher")


def quantize_cost(call: Call, known: Known) -> Stage:
    shape = known.model(one_input(call, "model"))
    teacher = "teacher" if call.inputs.get("teacher") else "model"
    return _training(
        call,
        known,
        shape,
        masked=call.config.shares is None,
        teacher=teacher,
        scheme=call.config.scheme,
    )


def _training(
    call: Call,
    known: Known,
    shape: ModelConfig | None,
    *,
    masked: bool,
    teacher: str | None = None,
    scheme: str | None = None,
) -> Stage:
    """A stage that goes through the training loop, or where optim is None only writes its model
    again.
    """
    known.models[call.folder] = shape
    if scheme:
        known.four_bits.add(call.folder)
    config, optim = call.config, call.config.optim
    tokens = optim.num_steps * config.rows_per_step * config.seq_len if optim else 0
    if shape is None:
        missing = "input model is not there: its shape is unknown"
        return Stage(call=call, tokens=tokens, notes=(missing,))
    teacher_path = one_input(call, teacher) if teacher and optim else None
    if teacher_path in known.cached or is_cached(teacher_path):
        teacher_path = None  # what is read from disk computes nothing
    teacher_is, note = known.models.get(teacher_path) if teacher_path else None, None
    if teacher_path and teacher_is is None:
        teacher_is, note = teacher_shape(teacher_path, shape)
    lora = getattr(config, "lora", None)
    work = Work(
        model=shape,
        optim=optim or NO_TRAINING,
        seq_len=config.seq_len,
        rows_per_step=config.rows_per_step,
        micro_batch_size=config.micro_batch_size,
        masked=masked,
        teacher=teacher_is,
        scheme=scheme,
        save=config.save,
        trained=None if lora is None else num_lora_parameters(shape, lora),
    )
    if optim is None:
        return Stage(call=call, like=work, tokens=0, disk=work.checkpoint_bytes)
    return Stage(
        call=call,
        work=work,
        tokens=tokens,
        disk=work.checkpoint_bytes,
        resume=work.resume_bytes,
        notes=(note,) if note else (),
    )
