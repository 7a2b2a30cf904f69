"""The printed parameter counts, computed from shapes only."""

import pytest

from qgoft.commands import counts as script
from qgoft.config.compose import model_files
from qgoft.errors import QgoftError
from qgoft.methods.registry import REGISTRY
from qgoft.models.architectures import build_shapes
from qgoft.report.counts import REASONS, agrees
from qgoft.report.items import ITEMS
from qgoft.report.published import load_figures
from qgoft.sweep.items import ItemFilter, plan_items, read_items
from qgoft.sweep.planned_run import compose_seeded


@pytest.fixture(scope="module")
def table():
    return script.build_table()


def test_published_counts_agree_or_have_a_reason(table):
    verdicts = [row[-1] for row in table.rows if row[4] != "-"]
    assert "DIFFERS" not in verdicts
    assert "" not in verdicts
    assert verdicts.count("agrees") == 113
    assert len(table.notes) == len(REASONS)


def test_counts_cover_methods_and_models(table):
    names = {name.partition("@")[0] for name in REGISTRY}
    for model in {row[0] for row in table.rows}:
        counted = {row[2].partition("@")[0] for row in table.rows if row[0] == model}
        assert names - counted <= {"base", "linear", "bitfit"}, model


@pytest.mark.parametrize("protocol", ["goft_icml24", "psoft_iclr26"])
def test_items_adapt_the_counted_layers(protocol):
    places = script.published()
    expected: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for place, rows in places.items():
        for printed in (printed for found in rows.values() for printed in found):
            expected.setdefault((printed.paper, printed.table), set()).add(place)
    seen = 0
    for name in read_items(protocol):
        item = ITEMS.get(name)
        if item is None or item.no_published_values or not item.is_comparable(protocol) or (item.paper, item.table) not in expected:
            continue
        (part,) = plan_items([name], ItemFilter(protocol, seeds=("0",)))
        plain = next(words for words, _ in part.overrides if {"method=lora", "method=psoft"} & set(words))  # without layers of its own
        (cell,) = compose_seeded([(plain, ("0",))], 1)
        place = (model_files()[cell.settings.model.name], cell.settings.method.targets)
        assert place in expected[item.paper, item.table], name
        seen += 1
    assert seen >= 4


def test_count_reasons_name_differing_rows(table):
    for paper, name, row in REASONS:
        assert row in load_figures(paper, name)["rows"]


@pytest.mark.parametrize(
    ("count", "printed", "total", "expected"),
    [
        (331_776, "0.33M", 1, True),
        (339_999, "0.33M", 1, True),  # truncated, not rounded
        (341_000, "0.33M", 1, False),
        (183_831_552, "184M", 1, True),
        (3_212_749_824, "3.21B", 1, True),
        (524_160, "0.007%", 6_738_415_616, True),
        (524_160, "0.009%", 6_738_415_616, False),
        (29_900, "29K", 1, True),
        (420_224, "420224", 1, True),
        (420_224, "420244", 1, False),
    ],
)
def test_counts_agree_to_the_last_digit(count, printed, total, expected):
    assert agrees(count, printed, total) == expected


def test_count_unknown_format():
    with pytest.raises(ValueError, match="is not a printed count"):
        agrees(1, "a third of a million", 1)


def test_counts_unknown_architecture():
    with pytest.raises(QgoftError, match="deberta_v3_base"):
        build_shapes("gpt5")


def test_shapes_use_no_memory():
    model = build_shapes("llama31_8b")
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 8_030_261_248


def test_readme_states_the_counts(table, repository):
    verdicts = [row[-1] for row in table.rows if row[4] != "-"]
    assert f"{verdicts.count('agrees')} of {len(verdicts)} printed counts" in " ".join((repository / "README.md").read_text().split())
