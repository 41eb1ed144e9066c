"""The spec round-trips: what is printed is read back as an equal attack."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from helpers.catalogue import CLASSES, fields_of, values
from hypothesis import assume, given
from hypothesis import strategies as st

from holdfast import spec
from holdfast.attacks import CATALOGUE, PGD, parse, parse_trial
from holdfast.errors import SpecError
from holdfast.evaluation.protocols import PROTOCOLS, SMALLEST
from holdfast.norms import NORMS
from holdfast.targets.target import Access
from holdfast.threats.threat import Threat


def likely(name: str, field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    default = values(name, field.name)[0]
    if isinstance(default, bool):
        return st.booleans()
    limits = field.metadata["limits"]
    low, high = (
        limits.get(closed, limits.get(open_))
        for closed, open_ in (("at least", "above"), ("at most", "below"))
    )
    if isinstance(default, int):
        return st.integers(low if low is not None else -10, high or 10**9)
    if isinstance(default, float):
        share = st.floats(0, 1, exclude_min=True, exclude_max=True)
        fraction = st.builds(lambda a, b: a / (a + b), st.integers(1, 255), st.integers(1, 255))
        return st.one_of(st.floats(low, high, allow_nan=False), share, fraction)
    return st.sampled_from(values(name, field.name))


@pytest.mark.parametrize("name", CATALOGUE)
@given(data=st.data())
def test_every_attack_round_trips(name: str, data: st.DataObject) -> None:
    fields = {f: data.draw(likely(name, field), f) for f, field in fields_of(name).items()}
    # NaN equals nothing
    assume(not any(isinstance(v, float) and math.isnan(v) for v in fields.values()))
    try:
        attack = CATALOGUE[name](**fields)
    except SpecError:
        assume(False)
    assert parse(repr(attack)) == attack
    assert parse(spec.write(attack, whole=True)) == attack
    assert repr(parse(repr(attack))) == repr(attack)
    assert hash(parse(repr(attack))) == hash(attack)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_bare_name_is_its_defaults(name: str) -> None:
    assert parse(name) == parse(f"{name}()") == CATALOGUE[name]()
    assert parse(repr(parse(name))) == parse(name)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_field_has_its_help(cls: type) -> None:
    for field in dataclasses.fields(cls):
        assert field.metadata["help"], f"{cls.__name__}.{field.name} has no help"


@pytest.mark.parametrize("name", CATALOGUE)
def test_words_are_checked_at_the_border(name: str) -> None:
    for field in fields_of(name):
        if isinstance(values(name, field)[0], str):
            assert len(values(name, field)) > 1, f"{field} knows one word only"
            with pytest.raises(SpecError):
                parse(f'{name}({field}="no such word")')
    with pytest.raises(SpecError):
        parse(f"{name}(steps=0)")
    with pytest.raises(SpecError, match="did you mean steps"):
        parse(f"{name}(stepps=3)")


LIMITED = [
    pytest.param(cls, field, word, limit, id=f"{cls.__name__}.{field.name} {word} {limit:g}")
    for cls in CLASSES
    for field in dataclasses.fields(cls)
    for word, limit in field.metadata["limits"].items()
]


@pytest.mark.parametrize(("cls", "field", "word", "limit"), LIMITED)
def test_a_limit_parts_the_values_on_either_side(
    cls: type, field: dataclasses.Field[Any], word: str, limit: float
) -> None:
    whole = isinstance(field.default, int)
    up = limit + 1 if whole else math.nextafter(limit, math.inf)
    down = limit - 1 if whole else math.nextafter(limit, -math.inf)
    inside, outside = {
        "at least": (limit, down),
        "above": (up, limit),
        "at most": (limit, up),
        "below": (down, limit),
    }[word]
    assert getattr(cls(**{field.name: inside}), field.name) == inside
    with pytest.raises(SpecError, match=f"{field.name}=.* {word} "):
        cls(**{field.name: outside})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_no_option_takes_a_value_of_another_type_or_no_number(cls: type) -> None:
    for field in dataclasses.fields(cls):
        for bad in (None, True, math.nan, math.inf, (1,)):
            with pytest.raises(SpecError, match=f"has {field.name}="):
                cls(**{field.name: bad})


@dataclasses.dataclass
class Every:
    count: int = spec.option(1, "of rounds", at_least=1)
    share: float = spec.option(0.5, "of the rows", above=0, at_most=1)
    far: float = spec.option(math.inf, "how far", finite=False)
    kind: str = spec.option("red", "colour", choices=("red", "blue"))
    on: bool = spec.option(False, "whether")
    sides: tuple[int, ...] = spec.option((), "lengths")
    model: object = None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "every has count=0, but it must be a whole number at least 1 (of rounds)."),
        (
            "count",
            2.0,
            "every has count=2.0, but it must be a whole number at least 1 (of rounds).",
        ),
        ("share", 0, "but it must be a finite number above 0 and at most 1 (of the rows)."),
        ("far", math.nan, "every has far=nan, but it must be a number (how far)."),
        ("kind", "bleu", "unknown kind 'bleu' in every(kind='bleu'); did you mean blue?"),
        ("kind", 3, "every has kind=3, but it must be one of red, blue (colour)."),
        ("on", 1, "every has on=1, but it must be True or False (whether)."),
        ("sides", 3, "every has sides=3, but it must be a list (lengths)."),
    ],
)
def test_a_check_says_what_was_wanted(field: str, value: Any, message: str) -> None:
    spec.check(Every())
    with pytest.raises(SpecError) as error:
        spec.check(Every(**{field: value}))
    assert str(error.value).endswith(message)


@given(value=st.floats())
def test_numbers_keep_every_bit(value: float) -> None:
    text = spec.number(value)
    _, (back,), _ = spec.call(f"f({text})")
    assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize("norm", NORMS)
@given(eps=st.floats(min_value=0, exclude_min=True, allow_nan=False))
def test_threats_round_trip(norm: str, eps: float) -> None:
    t = getattr(Threat, norm)(eps)
    assert Threat.parse(repr(t)).eps == eps
    assert Threat.parse(repr(t)).norm is t.norm


@pytest.mark.parametrize(
    "text", [t for _, _, lists in PROTOCOLS.values() for ts in lists.values() for t in ts]
)
def test_the_trials_of_protocols_round_trip(text: str) -> None:
    trial = parse_trial(text)
    assert parse_trial(repr(trial)) == trial
    assert parse_trial(trial.write(whole=True)) == trial


@pytest.mark.parametrize(
    "text",
    [
        "pgd(steps=__import__('os'))",
        "pgd(steps=().__class__)",
        "pgd(*[1])",
        "pgd(**{})",
        "pgd.x()",
        "1",
        "pgd(lambda: 1)",
        "pgd(steps=10**9)",
        "pgd(steps=[1][0])",
        "pgd(f'{1}')",
        "(" * 300,
        "pgd(steps=1/0)",
        "",
        "pgd(1, 2, 3, 4, 5, 6)",
    ],
)
def test_what_is_not_a_literal_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse(text)


def test_a_loss_without_choices_is_held_to_the_known_ones() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(PGD):
        loss: str = "ce"

    with pytest.raises(SpecError, match="unknown loss 'ze' in own"):
        Own(loss="ze")


def test_a_norm_as_text_says_how_a_threat_is_made() -> None:
    with pytest.raises(SpecError, match=r"norm of a threat is 'linf'; .*Threat\.linf\(0\.1\)"):
        Threat("linf", 0.1)  # pyright: ignore[reportArgumentType]


def test_thorough_with_gradients_begins_with_standard() -> None:
    bounded = {name: lists for name, (_, _, lists) in PROTOCOLS.items()}
    for lists in (bounded, SMALLEST[Access.GRADIENTS]):
        for norm, trials in lists["thorough"].items():
            standard = lists["standard"].get(norm, lists["standard"].get("other"))
            assert standard is not None
            assert trials[: len(standard)] == standard, norm


@pytest.mark.parametrize(
    "text", ["pgd(max_margin=0.123456789)", "pgd(max_margin=0.99999999)", "acg(restarts=1000001)"]
)
def test_a_trial_is_written_to_the_last_digit(text: str) -> None:
    assert parse_trial(repr(parse_trial(text))) == parse_trial(text)


@pytest.mark.parametrize("text", ["max_margin='0.3'", "max_margin=None", "restarts='3'"])
def test_an_option_of_a_trial_of_another_type_is_shown_as_given(text: str) -> None:
    with pytest.raises(SpecError, match=rf"pgd\({text}\): .* (share|whole number)"):
        parse_trial(f"pgd({text})")
