"""A recipe file, opened: its `recipe(run, ...)` function, and the flags that its keyword arguments
become.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


def load_recipe(path: Path) -> Callable[..., Any]:
    """The function `recipe` of a .py file, which is executed as a module.

    FileNotFoundError if there is no such file; ValueError if it is not Python or holds no
    `recipe(run, ...)`.
    """
    if not path.is_file():
        beside = sorted(path.parent.glob("*.py"))
        names = [
            str(file) for file in beside if "\ndef recipe(" in file.read_text(encoding="utf-8")
        ]
        raise FileNotFoundError(
            f"{path}: no such recipe{'; there are ' + ', '.join(names) if names else ''}"
        )
    if path.suffix != ".py":
        raise ValueError(
            f"{path}: a recipe is a Python file (.py) with a function recipe(run, ...)"
        )
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: not Python: {error.msg}") from error
    recipe = getattr(module, "recipe", None)
    if not inspect.isfunction(recipe) or not inspect.signature(recipe).parameters:
        raise ValueError(f"{path}: no function recipe(run, ...); a recipe file must define one")
    recipe.__doc__ = recipe.__doc__ or module.__doc__
    return recipe


def parse_flags(
    recipe: Callable[..., Any], path: Path, words: list[str], help_end: str = ""
) -> dict[str, Any]:
    """The recipe's own arguments, read from the command line by their annotated types.

    Parameters after `run` without a default are required and positional; the others are flags.
    `--help` among the words prints the recipe's docstring and flags and raises typer.Exit; so does
    a word that fits nothing, with exit status 2.
    """
    parsed: dict[str, Any] = {}
    command = _command(recipe, parsed)
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(help=_escaped(inspect.getdoc(recipe) or f"The recipe {path}."), epilog=help_end)(
        command
    )
    try:
        app(words, prog_name=f"pocketlm run {path}", standalone_mode=True)
    except SystemExit as leaving:
        if leaving.code:
            raise typer.Exit(int(leaving.code)) from None
    if "done" not in parsed:
        raise typer.Exit(0)  # --help was asked for, and shown
    return parsed["arguments"]


def _command(recipe: Callable[..., Any], parsed: dict[str, Any]) -> Callable[..., None]:
    """A function with the recipe's arguments (all but `run`) that puts what it is called with in
    `parsed`.
    """

    def command(**arguments: Any) -> None:
        parsed.update(done=True, arguments=arguments)

    hints = get_type_hints(recipe)
    parameters = []
    for parameter in list(inspect.signature(recipe).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(
                f"recipe(run, ...): *{parameter.name} cannot become a flag; name every argument"
            )
        required = parameter.default is parameter.empty
        kind = hints.get(parameter.name, str if required else type(parameter.default))
        about = typer.Argument(show_default=False) if required else typer.Option()
        default = {} if required else {"default": parameter.default}
        annotation = Annotated[kind, about]
        parameters.append(
            inspect.Parameter(
                parameter.name, parameter.KEYWORD_ONLY, annotation=annotation, **default
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _escaped(text: str) -> str:
    """A docstring for rich's markup: brackets are text, and its lines stay lines."""
    return text.replace("[", "\\[")
