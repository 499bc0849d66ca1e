"""What becomes of each column of a table that nobody has described: numbers, dates, categories, words, or nothing.

A column is judged by its values as text, and by its name only where its values number the rows. The user is told what
becomes of each column in a sentence, and of many alike in one.
"""

import re
from typing import Any

import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer

from etpo_paper.use.columns import MOST_WORDS, dates, numbers, texts

MOSTLY = 0.9  # share of the values that make a column one of numbers or dates
FORMS = (
    *("ISO8601", "%d.%m.%Y", "%d.%m.%y", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y", "%d-%m-%Y", "%Y/%m/%d"),
    *("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M:%S"),
    *("%H:%M", "%H:%M:%S", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%d %B %Y"),
)
A_DATE = re.compile(
    r"\d{4}-\d\d-\d\d|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}/\d{1,2}/\d|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}"
    r"|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4}|\d{1,2}:\d\d"
)
UNIT = r"^[-+]?\d[\d.,]*\s*([^\d\s.,%€$£¥][^\d\s]{0,7})$"
IDENTIFIER = re.compile(r"(^|[^a-z])(id|uuid|guid|key|index|nr|no|number|#)$|^unnamed: ?\d+$", re.IGNORECASE)
SHOWN = 3  # columns that are named in a sentence, or have one each


def make_plan(frame: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """What becomes of each feature column, and sentences about those that are changed or left out."""
    plan, told = [], []
    for name in frame.columns:
        values = texts(frame[name])
        entry, rule, detail = _judge(str(name), values)
        gaps = int((values == "").sum())
        if entry is not None:
            plan.append({"name": name, **entry})
            if gaps and entry["kind"] in ("number", "date"):
                rule = f"{rule}; missing values become the median".lstrip("; ")
                detail = "; ".join(filter(None, [detail, f"{gaps} missing"]))
            elif gaps and entry["kind"] == "category":
                rule = f"{rule}; missing is a value of its own"
        if rule:
            told.append((str(name), rule, detail))
    return plan, _sentences(told)


def _judge(name: str, values: pd.Series) -> tuple[dict[str, Any] | None, str, str]:
    """The plan of a column without its name, None to leave it out; what the user is told; and details of it."""
    there = values[values != ""]
    distinct = there.nunique()
    if distinct == 0:
        return None, "left out, because it has no values", ""
    if distinct == 1 and len(there) == len(values):
        return None, "left out, because all its values are the same", ""
    if distinct == 1:
        return {"kind": "category"}, f"1 where it is {there.iloc[0]!r}", ""
    unit = _unit(there)
    decimal = decimal_of(there)
    parsed = numbers(there, decimal, unit)
    if parsed.notna().mean() >= MOSTLY:
        return _number(name, there, parsed, {"kind": "number", "decimal": decimal, "unit": unit})
    if distinct > 2 and (form := _date_form(there)):
        odd = int(dates(there, form).isna().sum())
        shown = "" if form == "ISO8601" else f" written {form}"
        rule = f"times{shown}" if form.startswith("%H") else f"dates{shown}, as day, month and weekday"
        return {"kind": "date", "format": form}, rule, _odd(odd, "date")
    words = there.str.count(r"\s") + 1
    if distinct > 0.5 * len(there) and distinct > 20:
        if words.mean() >= 3 and _has_words(there):
            return {"kind": "words"}, f"free text, as the tf-idf weights of its {MOST_WORDS} most frequent words", ""
        if distinct > 0.9 * len(there):
            return None, "left out, because nearly every row has a value of its own", ""
    if distinct <= 2:
        return {"kind": "category"}, "a column of 0 and 1" if len(there) == len(values) else "a column a value", ""
    return {"kind": "category"}, "a column for each of its most frequent values", f"{distinct} values"


def _number(
    name: str, there: pd.Series, parsed: pd.Series, entry: dict[str, Any]
) -> tuple[dict[str, Any] | None, str, str]:
    whole = parsed.dropna()
    unique = whole.nunique() == len(whole) > 20 and bool((whole % 1 == 0).all())
    if unique and (IDENTIFIER.search(name) or (whole.diff().dropna() == 1).all()):
        return None, "left out, because it numbers the rows", ""
    rule = "numbers with a decimal comma" if entry["decimal"] == "," else ""
    if entry["unit"]:
        rule = f"{rule or 'numbers'} of the unit {entry['unit']}"
    elif not rule and re.search(r"[€$£¥%']|\d,\d", "|".join(there)):
        rule = "numbers, read without their signs"
    odd = int(parsed.isna().sum())
    if odd:
        rule = f"{rule}; what is no number counts as missing".lstrip("; ")
    return entry, rule, _odd(odd, "number")


def _unit(values: pd.Series) -> str:
    """What stands behind the numbers of a column, such as kg; empty unless it is the same behind nearly all."""
    found = values.str.extract(UNIT, expand=False)
    if found.notna().mean() < MOSTLY or found.nunique() != 1:
        return ""
    return str(found.dropna().iloc[0])


def _odd(count: int, what: str) -> str:
    return f"{count} no {what}" if count else ""


def decimal_of(values: pd.Series) -> str:
    """The sign before the decimals of a column of numbers."""
    if "," not in "".join(values):
        return "."
    comma = values.str.contains(r"^[^,]*,\d*[^,]*$", regex=True)
    if not comma.any():
        return "."
    after = values[comma].str.extract(r",(\d*)", expand=False).str.len()
    point_last = values.str.contains(r",.*\.", regex=True).any()
    thousands = (after == 3).all() and not values.str.contains(r"\..*,|^[-+]?0\d*,", regex=True).any()
    return "." if point_last or thousands else ","


def _date_form(values: pd.Series) -> str | None:
    """The form of a column of dates; of two that fit equally well the first of `FORMS`."""
    if values.map(lambda value: A_DATE.match(value) is not None).mean() < MOSTLY:
        return None
    few = values.drop_duplicates().head(200)
    shares = {form: float(dates(few, form).notna().mean()) for form in FORMS}
    best = max(shares, key=lambda form: shares[form])
    return best if shares[best] >= MOSTLY else None


def _has_words(values: pd.Series) -> bool:
    try:
        TfidfVectorizer(max_features=MOST_WORDS).fit(values)
    except ValueError:
        return False
    return True


def _sentences(told: list[tuple[str, str, str]]) -> list[str]:
    """A sentence for each column, one for all that are alike where they are many."""
    rules: dict[str, list[tuple[str, str]]] = {}
    for name, rule, detail in told:
        rules.setdefault(rule, []).append((name, detail))
    sentences = []
    for name, rule, detail in told:
        alike = rules.get(rule, [])
        if 0 < len(alike) <= SHOWN:
            sentences.append(f"{name}: {rule}{f' ({detail})' if detail else ''}.")
        elif alike:
            sentences.append(f"{len(alike)} columns ({some([other for other, _ in alike])}): {rule}.")
            del rules[rule]
    return sentences


def some(names: list[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
