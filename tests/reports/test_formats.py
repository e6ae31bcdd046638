"""The table of results in Markdown, LaTeX and CSV."""

import csv
import io

import pytest
from support.synthetic_runs import RunMaker

from noisyml.reports import csv_table, latex_table, load_runs, markdown_table, result_table

P1, LOSS = "test/precision_at_1", "selection/auroc"


@pytest.fixture
def runs(maker: RunMaker):
    """Two selectors with two seeds at one rate, one of them alone at another."""
    for seed, value in enumerate((0.71, 0.72)):
        maker.run(f"s/a{seed}", "prism_avg", 0.3, seed, metrics={P1: value}, files=False)
        other = {P1: value - 0.2, LOSS: 0.5}
        maker.run(f"s/b{seed}", "keep_all", 0.3, seed, metrics=other, files=False)
    maker.run("s/c", "keep_all", 0.5, 0, metrics={P1: None}, files=False)
    return load_runs([maker.root / "s"])


def test_markdown(runs):
    assert markdown_table(result_table(runs)) == (
        "| noise.rate | selector | runs | P@1 (last) | Kept set: AUROC |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| 0.3 | prism_avg | 2 | **0.7150 ± 0.0071** | – |\n"
        "| 0.3 | keep_all | 2 | 0.5150 ± 0.0071 | 0.500 ± 0.000 |\n"
        "| 0.5 | keep_all | 1 | – | – |\n"
    )


def test_latex(runs):
    assert latex_table(result_table(runs)) == (
        "% needs \\usepackage{booktabs}\n"
        "% in all runs: method=Prism\n"
        "% in all runs: dataset=Glyphs\n"
        "% in all runs: noise=Symmetric\n"
        "% in all runs: experiment=demo\n"
        "\\begin{tabular}{llrrr}\n"
        "\\toprule\n"
        " &  &  & \\multicolumn{1}{c}{Test, last checkpoint} & \\multicolumn{1}{c}{Kept set} \\\\\n"
        "\\cmidrule(lr){4-4} \\cmidrule(lr){5-5}\n"
        "noise.rate & selector & runs & P@1 & AUROC \\\\\n"
        "\\midrule\n"
        "0.3 & prism\\_avg & 2 & \\textbf{0.7150} $\\pm$ 0.0071 & -- \\\\\n"
        "0.3 & keep\\_all & 2 & 0.5150 $\\pm$ 0.0071 & 0.500 $\\pm$ 0.000 \\\\\n"
        "\\midrule\n"
        "0.5 & keep\\_all & 1 & -- & -- \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_csv_has_the_figures_in_full(runs):
    rows = list(csv.DictReader(io.StringIO(csv_table(runs, result_table(runs)))))
    assert list(rows[0]) == [
        *("noise.rate", "selector", "runs"),
        *(f"{metric} {what}" for metric in (P1, LOSS) for what in ("mean", "std", "n")),
    ]
    assert float(rows[0][f"{P1} mean"]) == pytest.approx(0.715)
    assert float(rows[0][f"{P1} std"]) == pytest.approx(0.01 / 2**0.5)
    assert rows[0][f"{LOSS} mean"] == ""
    assert (rows[2]["runs"], rows[2][f"{P1} mean"], rows[2][f"{P1} n"]) == ("1", "", "0")


def test_names_from_outside_stay_text_in_every_format(maker: RunMaker):
    for name in ("a|b", "<img src=x>", "=cmd()", "50%_$x$ {y} \\input{z}"):
        maker.run(f"s/{len(name)}", name, metrics={P1: 0.5}, files=False)
    runs = load_runs([maker.root / "s"])
    table = result_table(runs)
    markdown = markdown_table(table)
    assert r"| a\|b |" in markdown
    assert r"| \<img src=x\> |" in markdown
    assert r"50\%\_\$x\$ \{y\} \textbackslash{}input\{z\} &" in latex_table(table)
    cells = [row[0] for row in csv.reader(io.StringIO(csv_table(runs, table)))]
    assert "'=cmd()" in cells
    assert "=cmd()" not in cells


def test_many_settings_stand_behind_the_results(maker: RunMaker):
    keys = ("a", "b", "c")
    for number in range(2):
        maker.run(
            f"s/{number}",
            ("x", "y")[number],
            extra_config=dict.fromkeys(keys, number + 2),
            extra_overrides=tuple(f"{key}={number + 2}" for key in keys),
            metrics={P1: 0.5},
            files=False,
        )
    table = result_table(load_runs([maker.root / "s"]))
    assert table.keys == ("selector", "a", "b", "c")
    assert table.results_first
    assert markdown_table(table) == (
        "| group | P@1 (last) | runs | selector | a | b | c |\n"
        "| --- | ---: | ---: | --- | --- | --- | --- |\n"
        "| x, a=2, b=2, c=2 | 0.5000 | 1 | x | 2 | 2 | 2 |\n"
        "| y, a=3, b=3, c=3 | 0.5000 | 1 | y | 3 | 3 | 3 |\n"
    )
    latex = latex_table(table)
    assert "\\begin{tabular}{lrrllll}\n" in latex
    assert "group & P@1 & runs & selector & a & b & c \\\\\n" in latex
    assert "\\cmidrule(lr){2-2}\n" in latex
