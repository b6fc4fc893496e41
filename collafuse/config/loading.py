"""Reading a configuration: YAML with overrides, checked, each mistake as a sentence with the closest match."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..core.errors import CollaFuseError, ConfigError
from .data import EXPRESSION, LIST
from .settings import Config, yaml_package

KIND = re.compile(r"bool|constrained-float|literal\[.*\]")
"""How pydantic names one of several kinds that a value may have, after the value's own name."""


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with ``a.b=c`` overrides applied on top.

    A name such as ``digits.yaml`` that is not in the working directory is looked up among those that ship. A file
    with ``base: OTHER.yaml`` (seen from its own folder) holds what differs from another.

    Raises ConfigError naming the key, its value and what was expected.
    """
    values = _read(_shipped_or_own(Path(path)))
    for override in overrides:
        _override(values, override)
    for override in overrides:
        given: dict[str, Any] = {}
        _override(given, override)
        _refuse_without_effect(given, values, f"override {override!r}")
    return from_mapping(values, source=str(path))


def _read(path: Path, *, as_base: bool = False) -> dict[str, Any]:
    """The values in a file, on top of those of its ``base``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"cannot read the configuration {path}: {reason}; see configs/ for examples.") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected keys and values; see configs/ for examples.")
    base = values.pop("base", None)
    if base is None:
        return values
    if as_base or not isinstance(base, str):
        raise ConfigError(f"{path}: base={base!r}; expected the path of a configuration that has no base of its own.")
    merged = dict(_merged(_read(path.parent / base, as_base=True), values))
    _refuse_without_effect(values, merged, str(path))
    return merged


def _shipped_or_own(path: Path) -> Path:
    """The file itself, or the one that ships with the package under this name, with or without configs/ before it."""
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    inside = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    shipped = Path(str(resources.files("configs"))) / inside
    return shipped if shipped.is_file() else path


def from_mapping(values: Mapping[str, Any], source: str = "the configuration") -> Config:
    """The configuration in a mapping; ``client`` is merged into each of ``clients``. Raises ConfigError."""
    values = dict(values)
    defaults = values.pop("client", None)
    defaults = {} if defaults is None else defaults
    if not isinstance(defaults, Mapping):
        raise ConfigError(f"{source}: client={defaults!r}: expected keys and values, the defaults of every client.")
    server = values.get("server")
    if isinstance(server, Mapping) and server.get("kind") == "statistics":
        defaults = {"handover": 1.0, **defaults}
    clients = values.get("clients")
    if isinstance(clients, Mapping):
        values["clients"] = {str(name): _merged(defaults, {} if one is None else one) for name, one in clients.items()}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(e, source) for e in error.errors()[:5])) from error


def _merged(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``, section by section. A cut is replaced whole, never mixed from two."""
    if not isinstance(over, Mapping) or not isinstance(base, Mapping):
        return over
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        deeper = isinstance(old, Mapping) and isinstance(value, Mapping) and key != "cut"
        merged[key] = _merged(old, value) if deeper else value
    return merged


def _refuse_without_effect(given: Mapping[str, Any], values: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError where a default of the clients was given on top of a configuration in which each client has its
    own: nothing would change, and a cut be another than was asked for."""
    clients = values.get("clients")
    if not isinstance(clients, Mapping) or not clients:
        return
    for place in _places(given.get("client")):
        if all(_says(client, place) for client in clients.values()):
            key = ".".join(place)
            raise ConfigError(
                f"{source}: client.{key} changes nothing, since every client ({', '.join(map(str, clients))}) has its "
                f"own; set clients.{next(iter(clients))}.{key}, or those of others."
            )


def _places(given: Any) -> Iterator[tuple[str, ...]]:
    """Where the values in nested settings stand; a cut counts as one."""
    for key, value in given.items() if isinstance(given, Mapping) else ():
        inner = [] if key == "cut" else [(str(key), *place) for place in _places(value)]
        yield from inner or [(str(key),)]


def _says(settings: Any, place: tuple[str, ...]) -> bool:
    """Whether a client's own settings have something at this place, or a plain value above it."""
    for part in place:
        if not isinstance(settings, Mapping):
            return settings is not None
        if part not in settings:
            return False
        settings = settings[part]
    return True


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form a.b=value, such as server.training.steps=500.")
    *sections, last = key.split(".")
    here = values
    for section in sections:
        if here.get(section) is None:  # not there, or there with nothing in it
            here[section] = {}
        here = here[section]
        if not isinstance(here, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section.")
    here[last] = _parse(text, f"override {override!r}")


def _sentence(error: Any, source: str) -> str:
    *outer, last = error["loc"] or ("",)
    kept = outer if KIND.fullmatch(str(last)) and outer else [*outer, last]
    where = ".".join(str(part) for part in kept if part not in (LIST, EXPRESSION))
    if error["type"] == "extra_forbidden":
        hint = _closest(str(error["loc"][-1]), _known_keys(error["loc"]))
        return f"{source}: unknown key {where}.{hint}"
    cause = (error.get("ctx") or {}).get("error")
    if isinstance(cause, CollaFuseError | ValueError):
        return f"{source}: {where + ': ' if where else ''}{cause}"
    if error["type"] == "missing":
        return f"{source}: {where} is missing; add it, as in the files under configs/."
    value = error["input"]
    shown = f"={value!r}" if isinstance(value, str | int | float | bool | None) else ""
    return f"{source}: {where}{shown}: {error['msg'][0].lower()}{error['msg'][1:]}."


def _closest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known are {', '.join(known)}."


def _known_keys(location: Sequence[Any]) -> list[str]:
    """The keys that exist in the section where an unknown key was found."""
    section: type[BaseModel] = Config
    for part in location[:-1]:
        for model in _models_in(section.model_fields[part].annotation) if part in section.model_fields else ():
            section = model
    extra = ["client"] if section is Config else []
    return [*section.model_fields, *extra]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _parse(text: str, source: str) -> Any:
    """YAML as plain values. A key that stands there twice is refused, where YAML itself keeps the last in silence."""
    yaml = yaml_package()

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined, misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((name for i, name in enumerate(names) if name in names[:i] and name != "<<"), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice!r} is given twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    try:
        return Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
