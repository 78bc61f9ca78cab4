"""A tokenizer's files: our own folders read directly, all others by transformers' own classes.

Those know tokenizer.json and what corrects it: special_tokens_map.json, added tokens, a
sentencepiece tokenizer.model, lists of templates, classes that rebuild their pre-tokenizer. What
tells where an answer ends is read from generation_config.json, or else config.json, as
transformers' generate does.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from pocketlm.model.files import read_json, write_json, write_text
from pocketlm.model.json_shape import described

if TYPE_CHECKING:
    from pocketlm.model.tokenizer import Tokenizer

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "tiktoken.model")
ADDED = ("add_bos_token", "add_eos_token")  # flags, not names of tokens
PANIC = "PanicException"  # of Rust: no Exception, and no name of it to import
OURS = "pocketlm"  # the key of tokenizer_config.json that marks a folder of ours
WRITTEN_BY_TRAINING = "truncation and padding that a script left in tokenizer.json"


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer of a folder. FileNotFoundError where it has none; ValueError names the file
    that is wrong.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in FILES):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer.json (nor {', '.join(FILES[1:])}): a tokenizer's files "
            "are missing"
        )
    config = _object(folder / CONFIG)
    if isinstance(config.get(OURS), dict) and (folder / "tokenizer.json").is_file():
        return _load_own(folder, config)
    return _load_by_transformers(folder)


def _load_own(folder: Path, config: dict[str, Any]) -> "Tokenizer":
    from pocketlm.model.tokenizer import Tokenizer

    ours = config[OURS]
    roles = {
        name: value
        for name, value in config.items()
        if name.endswith("_token") and name not in ADDED
    }
    for name, value in [*roles.items(), ("tokenizer_class", config.get("tokenizer_class"))]:
        # transformers would not open that
        if value is not None and not _is_printable(_text_of(value)):
            raise ValueError(
                f"{folder / CONFIG}: field {name} is {described(value)}, a text is needed"
            )
    names = {name: text for name, value in roles.items() if (text := _text_of(value))}
    template = folder / TEMPLATE
    eos = ours.get("eos_token") or names.get("eos_token")
    if not isinstance(eos, str):
        raise ValueError(
            f"{folder / CONFIG}: no eos_token; the file was changed by hand? import the model again"
        )
    backend = backend_of(folder / "tokenizer.json")
    by_file, notes = _stops_of_files(folder, backend)
    # what was added to the config since counts too
    stops = {**by_file, **_told_stops(ours, folder)}
    with _naming(folder / CONFIG):
        tokenizer = Tokenizer(
            backend,
            bos_token=names.get("bos_token"),
            eos_token=eos,
            end_of_turn_token=ours.get("end_of_turn_token"),
            chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
            named_templates=_named_templates(folder),
            stop_tokens=stops,
            special_tokens=names,
            adds_bos=bool(config.get("add_bos_token")),
            adds_eos=bool(config.get("add_eos_token")),
        )
    tokenizer.notes += notes
    return tokenizer


def _told_stops(ours: dict[str, Any], folder: Path) -> dict[str, list[str]]:
    """The tokens that end answers, with who says so, as a folder of ours keeps them."""
    stop_tokens = ours.get("stop_tokens", {})
    lists = isinstance(stop_tokens, dict) and all(
        isinstance(sources, list) for sources in stop_tokens.values()
    )
    if not lists or not all(
        isinstance(source, str) for sources in stop_tokens.values() for source in sources
    ):
        raise ValueError(
            f"{folder / CONFIG}: field {OURS}.stop_tokens is no object of lists of texts; import "
            "the model again"
        )
    return dict(stop_tokens)


def backend_of(file: Path) -> tokenizers.Tokenizer:
    """The `tokenizers` object of a tokenizer.json."""
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 at byte {error.start}; fetch or save it again"
        ) from None
    except BaseException as error:  # the library raises bare Exception, and panics
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise ValueError(
            f"{file}: not a tokenizer the `tokenizers` library reads ({error})"
        ) from None


def _load_by_transformers(folder: Path) -> "Tokenizer":
    from transformers import AutoTokenizer

    from pocketlm.model.tokenizer import END_OF_TEXT, Tokenizer

    for name in ("special_tokens_map.json", "added_tokens.json"):
        _object(folder / name)
    stored = None
    if (folder / "tokenizer.json").is_file():
        stored = backend_of(folder / "tokenizer.json")  # its own words for what is wrong with it
    with _quiet(), _naming(folder):
        foreign: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    backend = getattr(foreign, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ValueError(
            f"{folder}: transformers opens this tokenizer as {type(foreign).__name__}, which has "
            "no tokenizer.json; save it as one that has (tokenizer.save_pretrained of a fast "
            "tokenizer)"
        )
    if getattr(foreign, "split_special_tokens", False):
        raise ValueError(
            f"{folder / CONFIG}: split_special_tokens makes the template's own tokens text, so "
            "turns could not be distinguished; remove it"
        )
    template, named = _templates(foreign.chat_template, folder)
    adds_bos, adds_eos = _adds(foreign)
    special = {
        name: str(token)
        for name, token in foreign.special_tokens_map.items()
        if isinstance(token, str)
    }
    by_file, notes = _stops_of_files(folder, backend)
    eos = foreign.eos_token or next(iter(by_file), None)
    if eos is None and backend.token_to_id(END_OF_TEXT) is not None:
        eos = END_OF_TEXT
    if eos is None:
        raise ValueError(
            f"{folder}: no eos_token in {CONFIG}, special_tokens_map.json or "
            "generation_config.json, and none is "
            f"{END_OF_TEXT}; name the token that ends a text"
        )
    if stored is not None and (stored.truncation or stored.padding):
        notes.append(f"{WRITTEN_BY_TRAINING} are state, no vocabulary: dropped")
    with _naming(folder / CONFIG):
        tokenizer = Tokenizer(
            backend,
            bos_token=foreign.bos_token,
            eos_token=eos,
            end_of_turn_token=None,
            chat_template=template,
            named_templates=named,
            stop_tokens=by_file,
            special_tokens=special,
            adds_bos=adds_bos,
            adds_eos=adds_eos,
        )
    tokenizer.notes += notes
    return tokenizer


def _templates(source: Any, folder: Path) -> tuple[str | None, dict[str, str]]:
    """(the default template, the others by name): what transformers read, checked."""
    named: dict[str, Any] = dict(source) if isinstance(source, Mapping) else {}
    default: Any = named.pop("default", None) if named else source
    for name, text in {"default": default, **named}.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{folder}: the chat template {name!r} is {type(text).__name__}, not a text"
            )
    if default is None and named:
        raise ValueError(
            f"{folder}: its chat templates are {', '.join(named)}, and none is the default one"
        )
    return default or None, named


def _named_templates(folder: Path) -> dict[str, str]:
    files = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


def _adds(foreign: Any) -> tuple[bool, bool]:
    """Whether transformers puts bos before, and eos behind, a plain text."""
    ids = foreign("a")["input_ids"]
    bos, eos = foreign.bos_token_id, foreign.eos_token_id
    return bool(ids) and ids[0] == bos and bos is not None, len(ids) > 1 and ids[-1] == eos


def _ending_ids(folder: Path) -> tuple[list[int], str]:
    """(ids at which answers end, the file that says so): transformers' generate asks the same files
    in this order.
    """
    for name in ("generation_config.json", "config.json"):
        ids = _object(folder / name).get("eos_token_id")
        if ids is None:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise ValueError(f"{folder / name}: eos_token_id is {ids!r}; whole numbers are needed")
        return ids, name
    return [], ""


def _stops_of_files(
    folder: Path, backend: tokenizers.Tokenizer
) -> tuple[dict[str, list[str]], list[str]]:
    """(tokens that end answers by who says so, what was not taken, in words) of a folder's configs.

    An id that is no token, or a plain word, ends nothing: it belongs to another tokenizer, as the
    default of a class that config.json often keeps.
    """
    ids, file = _ending_ids(folder)
    added = backend.get_added_tokens_decoder()
    stops: dict[str, list[str]] = {}
    notes = []
    for i in ids:
        token = backend.id_to_token(i) if 0 <= i < 1 << 31 else None
        if token is not None and i in added:
            stops.setdefault(token, []).append(file)
        else:
            what = (
                f"the plain word {token!r}" if token is not None else "no token of this tokenizer"
            )
            notes.append(f"{file} lets answers end at {i}, which is {what}; not taken")
    return stops, notes


def _object(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file."""
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object, found {type(content).__name__}")
    return content


def _is_printable(text: str | None) -> bool:
    """Whether it is a text without half surrogate pairs."""
    return text is not None and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _text_of(token: object) -> str | None:
    """A special token's text: transformers writes it as a string or as {"content": ...}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


@contextlib.contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Errors of the library become one line that names the place."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except ValueError as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(text if str(place) in text else f"{place}: {text}") from None
    except Exception as error:  # libraries raise whatever their parsers meet
        raise ValueError(
            f"{place}: its tokenizer cannot be opened ({type(error).__name__}: {error})"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remarks on class names: what matters is checked, and told, here."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def save_tokenizer(tokenizer: "Tokenizer", folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat templates, as transformers reads them."""
    write_text(folder / "tokenizer.json", tokenizer.backend.to_str())
    stop_tokens = {t: list(sources) for t, sources in tokenizer.endings.tokens.items()}
    template = tokenizer.chat_template
    eos = tokenizer.special_tokens.get("eos_token", tokenizer.eos_token)
    if template and "eos_token" not in template:
        eos = tokenizer.end_of_turn_token  # so that whoever stops at eos stops where an answer ends
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tokenizer.eos_token,
        **tokenizer.special_tokens,
        "eos_token": eos,
        "bos_token": tokenizer.bos_token,
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": tokenizer.adds_eos,
        "clean_up_tokenization_spaces": False,
        OURS: {
            "eos_token": tokenizer.eos_token,
            "end_of_turn_token": tokenizer.end_of_turn_token,
            "stop_tokens": stop_tokens,
        },
    }
    write_json(folder / CONFIG, config)
    if tokenizer.chat_template:
        write_text(folder / TEMPLATE, tokenizer.chat_template)
    for name, text in tokenizer.named_templates.items():
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        write_text(folder / "additional_chat_templates" / f"{Path(name).name}.jinja", text)
