"""Operation counts of the papers' items: against counts by hand, and the committed estimate against the code."""

import json
from dataclasses import asdict

import pytest

from qgoft.commands import estimate as hours
from qgoft.config.compose import compose_settings


@pytest.fixture(scope="module")
def deberta():
    return hours.ForwardCost.of("deberta-v3-base")


def test_forward_cost_by_hand(deberta):
    """Twelve blocks of four 768 x 768 and two 768 x 3072; scores and values of attention, and two products with 512 relative positions of
    which each token uses its own; both projections of these positions once per batch; a pooler of 768 x 768 and a head of two classes."""
    positions = 12 * 2 * 2 * 512 * 768
    assert deberta.token == pytest.approx(2 * 12 * (4 * 768**2 + 2 * 768 * 3072) + positions)
    assert deberta.pair == pytest.approx(12 * 4 * 768)
    assert deberta.batch == pytest.approx(positions * 768)
    assert deberta.row == pytest.approx(2 * (768**2 + 2 * 768))


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "weights", "head"),
    [
        ("minilm-l6", 6, 384, 4 * 384**2 + 2 * 384 * 1536, 0),
        ("llama-3.2-3b", 28, 3072, 2 * 3072**2 + 2 * 3072 * 1024 + 3 * 3072 * 8192, 3072 * 128256),
    ],
)
def test_forward_cost_of_other_models(name, layers, hidden, weights, head):
    cost = hours.ForwardCost.of(name)
    assert cost.token == pytest.approx(2 * (layers * weights + head))
    assert cost.pair == pytest.approx(4 * layers * hidden)
    assert cost.batch == 0


def test_steps_and_operations(deberta):
    settings = compose_settings(["protocol=goft_icml24", "task=glue/mrpc", "method=qgoft"])
    work = hours.training_work(settings, deberta, (10.0, 100.0))
    assert work.steps == 30 * 115  # epochs of 3668 rows in batches of 32
    assert work.petaflop == pytest.approx(30 * 115 * deberta.forward(32, 80) * 2 / 1e15)
    # At this speed kernel launches take longer than computing.
    assert hours.training_work(settings, deberta, (1e6, 1e6)).hours == pytest.approx(30 * 115 * hours.STEP_SECONDS / 3600)


def test_full_fine_tuning_cost(deberta):
    one, two = (
        hours.training_work(compose_settings(["protocol=goft_icml24", "task=glue/rte", f"method={name}"]), deberta, hours.SPEED)
        for name in ("lora", "full")
    )
    assert two.petaflop == pytest.approx(1.5 * one.petaflop)


def test_decoder_tasks_share_their_training():
    words = ["protocol=psoft_iclr26", "method=lora"]
    runs = [compose_settings([*words, f"task=math/{task}"]) for task in ("gsm8k", "math")]
    one, both = (hours.total(hours.work_by_task(some, hours.SPEED)) for some in (runs[:1], runs))
    assert one.steps == both.steps == 2 * 625
    assert both.runs == 2
    assert both.hours > one.hours


def test_committed_estimate_is_current():
    kept = json.loads(hours.HOURS.read_text())
    found = hours.estimate(hours.SPEED, 1, ("table4",), ("goft_icml24",))
    (tasks,) = found["goft_icml24"].values()
    assert asdict(hours.total(tasks)) == pytest.approx(kept["work"]["goft_icml24"]["table4"])
    assert kept["hours_a_run"]["goft_icml24"]["table4"] == pytest.approx({task: work.hours / work.runs for task, work in tasks.items()})
    assert (tuple(kept["speed"]), kept["step_seconds"]) == (hours.SPEED, hours.STEP_SECONDS)
