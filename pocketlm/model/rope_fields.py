"""The RoPE that a config.json describes, under its older names and its newer ones."""

from pocketlm.model.json_shape import NUMBER, TEXT, WHOLE, JsonObject, described
from pocketlm.model.model_config import GLOBAL, LOCAL
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


def gemma_ropes(raw: JsonObject) -> tuple[JsonObject, float]:
    """(config.json with the RoPE of the global layers as its own, theta of the local ones) of
    Gemma 3, whose file has both under their kinds; rope_scaling, the older name, acts on the global
    ones, as in transformers.
    """
    both = raw.object("rope_parameters", None)
    kinds = {GLOBAL: both.object(GLOBAL, None), LOCAL: both.object(LOCAL, None)}
    if both.keys() - kinds.keys():
        raise raw.wrong("rope_parameters", f"is to hold {GLOBAL} and {LOCAL}, and nothing else")
    local = kinds[LOCAL]
    if local.typed("rope_type", TEXT, "default") != "default":
        raise local.wrong("rope_type", f"is {described(local['rope_type'])}; known: default")
    refuse_partial(raw, local)
    beside = {"rope_theta": raw["rope_theta"]} if "rope_theta" in raw else {}
    whole = {**beside, **kinds[GLOBAL], **raw.object("rope_scaling", None)}
    flat = {name: value for name, value in raw.items() if name != "rope_scaling"}
    return JsonObject({**flat, "rope_parameters": whole}, raw.file), theta_of(
        raw, local, 1e4, beside="rope_local_base_freq"
    )


def theta_of(
    raw: JsonObject, rope: JsonObject, default: float, *, beside: str = "rope_theta"
) -> float:
    """The theta among the RoPE fields, else that beside them, under that name."""
    where, name = (rope, "rope_theta") if "rope_theta" in rope else (raw, beside)
    theta = float(where.typed(name, NUMBER, default, most=MOST_THETA))
    if theta <= 0:
        raise where.wrong(name, f"is {described(theta)}, more than 0 is needed")
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
