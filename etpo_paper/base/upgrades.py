"""Settings of earlier versions in today's words, so that finished runs stay finished.

A run card holds the settings that the run was made with. Settings come, go and change their names; as long as that
changes no number, the run need not be made again. `RULES` says what changed and why no number did, in the order in
which it happened, and `upgrade` applies it. A change that does alter numbers has no rule: its runs are made anew.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

ETPO = ("etpo", "etpo_no_reflection", "etpo_action_level", "etpo_memory")


class Rule(NamedTuple):
    """One change of a section.

    Attributes:
        why: the reason why it changes no number.
        methods: whose runs it concerns, by the name of the class; empty for all.
        section: the section of the run's parameters.
        when: settings that must have these values for the rule to apply.
        drop: settings that are removed.
        rename: new names of settings.
        put: settings that get these values.
        default: settings that get these values if they have none.
    """

    why: str
    methods: tuple[str, ...] = ()
    section: str = "method"
    when: Mapping[str, Any] = {}
    drop: tuple[str, ...] = ()
    rename: Mapping[str, str] = {}
    put: Mapping[str, Any] = {}
    default: Mapping[str, Any] = {}


RULES = (
    Rule(
        "ETPO has the dueling form of Q only, which was its default",
        methods=ETPO,
        when={"reading": "dueling"},
        drop=("reading",),
    ),
    *(
        Rule(
            "forms of Q without a value are a method of their own, to which the settings of V never mattered",
            methods=("etpo",),
            when={"reading": form},
            rename={"reading": "parameterisation"},
            put={"method": "etpo_on_logits"},
            drop=("advantage_prior", "value_decay", "value_ridge", "center"),
        )
        for form in ("residual", "raw")
    ),
    Rule(
        "a value that is not centred is what ETPO has",
        methods=("etpo",),
        when={"center": False},
        drop=("center",),
    ),
    Rule(
        "centring without a memory is a setting of the variant that can do both",
        methods=("etpo",),
        when={"center": True},
        put={"method": "etpo_memory", "remember": False},
    ),
    Rule(
        "the variant with a memory always remembered, and centred where it said so",
        methods=("etpo_memory",),
        default={"remember": True, "center": False},
    ),
    Rule(
        "NTPO is POAD with the discount between tokens as well",
        methods=("ntpo",),
        put={"method": "poad", "discount_tokens": True},
    ),
    Rule(
        "POAD never discounted between tokens",
        methods=("poad",),
        default={"discount_tokens": False},
    ),
    Rule(
        "all runs sample from the policy itself, so there is no other distribution to ignore",
        methods=("released",),
        drop=("ignore_sampling",),
        rename={"reading": "parameterisation"},
    ),
    Rule(
        "an episode that reached the step limit always was bootstrapped",
        section="environment",
        default={"bootstrap_at_limit": True},
    ),
)


def upgrade(parameters: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The parameters of a run as they would be written today.

    Args:
        parameters: from a run card: the sections that decide a run's numbers, by name.
        name: the run's method; its section says which class it belongs to if that has another name.
    """
    sections = {key: dict(section) for key, section in parameters.items()}
    for rule in RULES:
        section = sections.get(rule.section)
        kind = sections.get("method", {}).get("method", name)
        if section is None or (rule.methods and kind not in rule.methods):
            continue
        if any(key not in section or section[key] != value for key, value in rule.when.items()):
            continue
        kept = {rule.rename.get(k, k): v for k, v in section.items() if k not in rule.drop}
        sections[rule.section] = {**rule.default, **kept, **rule.put}
    return sections
