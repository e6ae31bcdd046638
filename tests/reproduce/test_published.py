"""Published figures as data: their schema and counts, and an entry for every table."""

import importlib.util

import pytest
import yaml
from support import paths

from noisyml.data.datasets.embedded.digits import Digits
from noisyml.errors import UserError
from noisyml.reproduce.cells import cells, choose_rows, recipe_of, recipes
from noisyml.reproduce.figures import PUBLISHED, find_table, published_tables

#: Tables and figures of each paper, as counted in the sources.
COUNTS = {
    "ael": (2, 3),
    "bare": (6, 59),
    "cbml": (7, 203),
    "eac": (6, 31),
    "gist_rist": (2, 20),
    "iaa": (11, 556),
    "insclr": (3, 24),
    "mlnoise": (1, 78),
    "otter": (2, 42),
    "prism": (7, 40),
    "promptcal": (5, 90),
    "proxynca_pp": (4, 21),
    "rcml": (0, 0),
    "rkd": (8, 101),
    "tldr": (2, 14),
}


def collector():
    spec = importlib.util.spec_from_file_location(
        "collect_published", paths.ROOT / "scripts" / "collect_published.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_paper_has_its_tables_and_figures():
    found = {file.stem: [0, 0] for file in PUBLISHED.glob("*.yaml")}
    for table in published_tables().values():
        found[table.paper][0] += 1
        found[table.paper][1] += len(table.figures)
    assert {paper: tuple(counts) for paper, counts in found.items()} == COUNTS


def test_every_figure_has_a_setting_a_metric_a_value_and_a_unit():
    for table in published_tables().values():
        assert table.caption
        assert table.source
        settings = [
            (tuple(figure.setting.items()), figure.metric, figure.value) for figure in table.figures
        ]
        assert len(set(settings)) == len(settings), table.name
        for figure in table.figures:
            assert figure.setting, table.name
            assert isinstance(figure.value, int | float)
            assert figure.unit
            if figure.unit == "percent":
                assert 0 <= figure.value <= 100
            if figure.unit == "fraction":
                assert 0 <= figure.value <= 1


def test_a_source_becomes_figures(tmp_path):
    module = collector()
    row = {"dataset": "A", "metric": "accuracy", "value": 71.5, "std": 0.2, "unit": "percent"}
    tables = [
        {"id": "one", "caption": "a\n  caption", "source": "somewhere", "rows": [row]},
        {
            "id": "two",
            "caption": "b",
            "official": False,
            "rows": [{"dataset": "A", "n": 3, "m": 4}],
        },
    ]
    content = module.collected({"paper": {"id": "p", "title": "T"}, "tables": tables})
    module.write(content, tmp_path / "p.yaml")
    one, two = yaml.safe_load((tmp_path / "p.yaml").read_text(encoding="utf-8"))["tables"]
    assert one["caption"] == "a caption"
    assert one["figures"] == [
        {
            "setting": {"dataset": "A"},
            "metric": "accuracy",
            "value": 71.5,
            "unit": "percent",
            "std": 0.2,
        }
    ]
    assert two["secondary"]
    assert [(f["metric"], f["value"]) for f in two["figures"]] == [("n", 3), ("m", 4)]


def test_every_table_has_an_entry_and_every_entry_a_table():
    tables = published_tables()
    entries = {f"{paper}_{name}" for paper in COUNTS for name in recipes(paper)}
    assert entries == set(tables)
    for table in tables.values():
        entry = recipe_of(table)
        assert entry.keys() <= {
            *("not_a_run", "metrics", "words", "axes", "when", "then", "images", "asks", "desk"),
            "order",
        }


@pytest.mark.parametrize("scale", ["paper", "desk"])
def test_a_cell_has_words_or_a_reason(scale):
    able = 0
    for table in published_tables().values():
        found = cells(table, scale)
        assert sum(len(cell.figures) for cell in found) == len(table.figures)
        for cell in found:
            assert bool(cell.words) != bool(cell.lacking), (table.name, cell.label)
            assert cell.lacking or any(cell.metrics)
        able += sum(bool(cell.words) for cell in found)
    assert able > 350


def test_words_of_a_cell_are_those_of_its_setting():
    table = find_table("iaa_table3")
    cell = next(
        c
        for c in cells(table)
        if c.setting["dataset"] == "SOP" and c.setting["method"] == "Contrastive+IAA"
    )
    assert {
        *("dataset=sop", "method=iaa", "loss=iaa_contrastive", "backbone=googlenet"),
        *("method.strength=0.6", "method.copies=2", "optimizer.lr=1e-4", "sampler.batch_size=180"),
    } <= set(cell.words)
    assert cell.images == 59551
    assert "optimizer.lr=5e-5" not in cell.words


def test_images_at_desk_scale_are_those_of_the_embedded_data():
    table = find_table("bare_clothing1m")
    assert {cell.images for cell in cells(table, "paper")} == {1_000_000}
    embedded = {cell.images for cell in cells(table, "desk")}
    assert embedded == {len(Digits().splits()["train"])}


def test_rows_are_chosen_by_number_range_and_piece():
    found = cells(find_table("prism_table2"))
    assert [c.number for c in choose_rows(found, "1,3-4")] == [1, 3, 4]
    assert {c.setting["dataset"] for c in choose_rows(found, "cub")} == {"CUB"}
    with pytest.raises(UserError, match="rows=bird fits no row"):
        choose_rows(found, "bird")


def test_a_table_is_found_by_the_beginning_of_its_name():
    assert find_table("prism_table1").name == "prism_table1_symmetric"
    with pytest.raises(UserError, match="beginning of several tables"):
        find_table("prism_t")
    with pytest.raises(UserError, match="There is no table 'prism_table9'"):
        find_table("prism_table9")
