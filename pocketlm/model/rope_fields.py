"""The RoPE that a config.json describes, under its older names and its newer ones."""

from pocketlm.model.json_shape import NUMBER, TEXT, WHOLE, JsonObject, described
from pocketlm.model.rope import RopeScaling

MOST_POSITIONS = 2**31
MOST_THETA = 1e18  # as a whole number it must fit in 64 bits


def rope_fields(raw: JsonObject) -> JsonObject:
    """The object that holds the RoPE fields: rope_scaling, the older name, goes first, as in
    transformers.
    """
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.object(name, None)
    nested = [key for key, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise raw.wrong(
            name,
            f"differs by kind of layer ({', '.join(nested)}), which this network cannot honour",
        )
    return rope


def theta_of(raw: JsonObject, rope: JsonObject, default: float) -> float:
    where = rope if "rope_theta" in rope else raw
    theta = float(where.typed("rope_theta", NUMBER, default, most=MOST_THETA))
    if theta <= 0:
        raise where.wrong("rope_theta", f"is {described(theta)}, more than 0 is needed")
    return theta


def refuse_partial(raw: JsonObject, rope: JsonObject) -> None:
    beside = raw.get("partial_rotary_factor")
    if rope.get("partial_rotary_factor", 1.0 if beside is None else beside) != 1.0:
        raise ValueError(
            f"{raw.file}: this network cannot honour partial_rotary_factor as set there"
        )


def scaling_of(raw: JsonObject, rope: JsonObject) -> RopeScaling | None:
    kind = rope.typed("rope_type" if "rope_type" in rope else "type", TEXT, "default")
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(
            f"{raw.file}: rope type {kind[:40]!r} cannot be honoured here; known: default, llama3"
        )
    factors = {}
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        if name not in rope:
            raise ValueError(f"{raw.file}: rope type llama3 lacks {name}")
        factors[name] = float(rope.typed(name, NUMBER, most=MOST_THETA))
        if factors[name] <= 0:
            raise rope.wrong(name, f"is {described(rope[name])}, more than 0 is needed")
    first = "original_max_position_embeddings"
    # transformers lets the outer one win
    places = [where for where in (raw, rope) if first in where]
    original = (
        places[0].typed(first, WHOLE, least=1, most=MOST_POSITIONS)
        if places
        else raw["max_position_embeddings"]
    )
    return RopeScaling(**factors, original_max_position_embeddings=original)
