"""What a command can be told: read off signatures and docstrings in the source, so that nothing heavy is imported."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import docstring_parser
import yaml

from kgpyro.errors import InputError, meant
from kgpyro.inference.options import checked
from kgpyro.names import MODELS, OWN, PUBLIC

PLAIN = {"str": str, "int": int, "float": float, "bool": bool, "None": type(None)}
OWN_CODE = "package.module:object"
WRITTEN = {  # what stands for a text in the help, by the name of the argument
    **{f"run_{key}": OWN_CODE for key in OWN}, **dict.fromkeys(OWN, f"NAME|{OWN_CODE}"),
    **dict.fromkeys(("run", "dataset", "out", "resume", "config", "features", "queries", "facts", "labels"), "PATH"),
    "model": f"{{{','.join(MODELS)}}}|{OWN_CODE}", "device": "{auto,cpu,gpu,mps,cuda:0}", "columns": "NAME,NAME,NAME",
}  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """An argument of a command: its name in Python, what the help says of it, and its default as the source has it.

    ``kinds`` are the types that can be written: str, int, float, bool, None, a Literal, a tuple of one of these.
    """

    name: str
    text: str
    kinds: tuple[Any, ...] = (str,)
    default: str | None = None

    @property
    def choices(self) -> list[str]:
        return [choice for kind in self.kinds if get_origin(kind) is Literal for choice in get_args(kind)]

    @property
    def written(self) -> str:
        """What stands for its value in the help."""
        words = [word for kind, word in ((int, "INT"), (float, "NUMBER")) if kind in self.kinds]
        words += ["all"] * (type(None) in self.kinds and self.default not in (None, "None"))
        words += [f"{{{','.join(self.choices)}}}" if len(self.choices) > 1 else choice for choice in self.choices[:1]]
        return "|".join(words) if words and str not in self.kinds else WRITTEN.get(self.name, "NAME")

    @property
    def help(self) -> str:
        text, default = as_flags(self.text), (self.default or "None").strip("'")
        default = {"True": "yes", "False": "no"}.get(default, default)
        if default != "None" and "Default:" not in text:
            text = f"{text.removesuffix('.')} (default: {default})."
        return text.replace("%", "%%")

    def value(self, given: Any) -> Any:
        """What a text of the command line stands for, or a value of a file. Raises InputError for what cannot be."""
        items = [get_args(kind)[0] for kind in self.kinds if get_origin(kind) is tuple]
        if isinstance(given, str) and items and ("," in given or not {int, float} & set(self.kinds)):
            return tuple(replace(self, kinds=(items[0],)).value(part) for part in given.split(","))
        if isinstance(given, str) and str in self.kinds:
            if not given and self.written == "PATH":
                raise InputError(f"`{self.name}` is empty; name a path, or leave it out.")
            return os.path.expanduser(given) if self.written == "PATH" else given
        if isinstance(given, str) and given.lower() not in self.choices:
            if given.lower() in ("none", "all") and type(None) in self.kinds:
                return None
            with suppress(ValueError):
                given = int(given) if re.fullmatch(r"[+-]?\d+", given) else float(given)
        return checked(self.name, given, Union[self.kinds])  # noqa: UP007


@cache
def arguments_of(public: str) -> dict[str, Argument]:
    """The parameters of a public function, method or dataclass, such as ``Posterior.predict``, by their names."""
    name, _, method = public.partition(".")
    if (node := _definition(PUBLIC[name], name, method)) is None:
        return {}
    said = docstring_parser.parse(ast.get_docstring(node) or "").params
    plain = re.compile(r'``"?|"?``| \(:\w+:`[^`]*`\)')  # of markup
    texts = {
        n.strip(): plain.sub("", " ".join((p.description or "").split())) for p in said for n in p.arg_name.split(",")
    }
    if isinstance(node, ast.ClassDef):
        found = [(line.target, line.annotation, line.value) for line in node.body if isinstance(line, ast.AnnAssign)]
    else:
        a, given = node.args, [*node.args.args, *node.args.kwonlyargs]
        defaults = [None] * (len(a.args) - len(a.defaults)) + [*a.defaults, *a.kw_defaults]
        found = [(ast.Name(p.arg), p.annotation, value) for p, value in zip(given, defaults, strict=True)]
    rows: list[tuple[str, Any, Any]] = [
        (ast.unparse(name), _kinds(kind), value and ast.unparse(value)) for name, kind, value in found
    ]
    return {n: Argument(n, texts.get(n, ""), kinds, default) for n, kinds, default in rows if n not in ("self", "cls")}


def _definition(module: str, name: str, method: str = "") -> Any:
    """Where a name is defined, or a method of the class of that name, inherited ones too; None where it is not."""
    tree = _tree(module)
    homes = {a.name: line.module or "" for line in tree.body if isinstance(line, ast.ImportFrom) for a in line.names}
    found: Any = next((line for line in tree.body if getattr(line, "name", None) == name), None)
    if not method or found is None:
        return found
    own = next((line for line in found.body if getattr(line, "name", None) == method), None)
    bases = [(homes.get(base.id, module), base.id) for base in found.bases if isinstance(base, ast.Name)]
    inherited = (_definition(home, base, method) for home, base in bases if home.startswith("kgpyro."))
    return own or next(filter(None, inherited), None)


@cache
def _tree(module: str) -> ast.Module:
    path = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _kinds(hint: ast.expr | None) -> tuple[Any, ...]:
    """The types of an annotation that can be written on a command line; a text where there is none."""
    found: list[Any] = []
    for part in ast.unparse(hint).split(" | ") if hint else []:
        kind, _, inner = part.removesuffix("]").partition("[")
        if part in PLAIN:
            found.append(PLAIN[part])
        elif kind == "Literal":
            found.append(Literal[tuple(ast.literal_eval(f"[{inner}]"))])
        elif kind in ("Sequence", "list", "tuple") and (item := PLAIN.get(inner.partition(",")[0])):
            found.append(tuple[item, ...])  # type: ignore[valid-type]
    return tuple(found) if set(found) - {type(None)} else (str, *found)


def as_flags(text: str) -> str:
    """A text of the library with the options that it names as a terminal knows them: `kl_weight` is --kl-weight."""
    return re.sub(r"`([a-z][a-z_]*)`", lambda found: "--" + found[1].replace("_", "-"), text)


class Form(argparse.ArgumentParser):
    """The arguments of a command, in groups. What is not given is left to the defaults of the library."""

    def __init__(self, prog: str, says: str | None, place: str):
        width = min(100, shutil.get_terminal_size().columns) - 2
        formatter: Any = lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=width)  # noqa: E731
        usage = " ".join(filter(None, [prog, place, "[--option VALUE …]"]))
        super().__init__(prog, usage, says, formatter_class=formatter, allow_abbrev=False, add_help=False)
        self.arguments: dict[str, Argument] = {}

    def group(self, title: str, *given: Argument, **how: Any) -> None:
        """Add a titled group of options, or of what ``how`` says; those that the form has already are left out."""
        place = self.add_argument_group(title)
        for one in given:
            if one.name not in self.arguments:
                self.arguments[one.name] = one
                option = {"action": argparse.BooleanOptionalAction} if bool in one.kinds else {"metavar": one.written}
                name = one.name if how else as_flags(f"`{one.name}`")
                place.add_argument(name, default=argparse.SUPPRESS, help=one.help, **(how or option))

    def _get_values(self, action: argparse.Action, words: list[str]) -> Any:
        """The value of an argument; ``--option=--`` has one too, which argparse drops before Python 3.13."""
        return words[0] if action.option_strings and words == ["--"] else super()._get_values(action, words)

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """What was given, by name. Raises InputError for whatever cannot be."""
        read, others = self.parse_known_args(words)
        if others:
            flag, see = others[0].partition("=")[0], f"see {self.prog} --help."
            if re.match("--?[^-]", flag):
                raise InputError(f"there is no option {flag}; {meant(flag, self._option_string_actions, see)}")
            raise InputError(f"there is no place for {others[0]!r}; {see}")
        given = vars(read)
        found = self._of_file(given.pop("config")) if "config" in given else {}
        for name, value in given.items():
            value_of = self.arguments[name].value
            found[name] = [*map(value_of, value)] if isinstance(value, list) else value_of(value)
        return found

    def _of_file(self, path: str) -> dict[str, Any]:
        try:
            options = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"`config` {path}: no such file.") from error
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"`config` {path} cannot be read: {' '.join(str(error).split())}.") from error
        if not isinstance(options, dict):
            raise InputError(f"`config` {path} holds no options, such as dim: 50.")
        if wrong := [str(name) for name in options if name not in self.arguments]:
            raise InputError(f"`config` {path}: there is no option {wrong[0]}; {meant(wrong[0], self.arguments)}")
        return {name: self.arguments[name].value(value) for name, value in options.items()}

    def error(self, message: str) -> NoReturn:
        for pattern, sentence in (
            ("argument (.*): expected one argument", r"\1 needs a value; one that begins with - is written \1=-x"),
            ("argument (.*): ignored explicit argument.*", r"\1 takes no value"),
            ("the following arguments are required: (.*)", r"name a \1"),
            ("argument (.*)", r"\1"),
        ):
            message = re.sub(f"^{pattern}$", sentence, message)
        raise InputError(f"{message}; see {self.prog} --help.")
