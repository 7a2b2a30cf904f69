"""Work of the papers' items: against counting by hand, and the committed estimate against the code."""

import json
from dataclasses import asdict

import pytest

from qgoft.commands import estimate as hours
from qgoft.config.compose import compose_settings


@pytest.fixture(scope="module")
def deberta():
    return hours.Architecture.of("deberta-v3-base")


def test_weights_of_the_linear_layers(deberta):
    # Twelve blocks of four 768 x 768 and two 768 x 3072, a pooler of 768 x 768, a head of two classes.
    assert deberta.weights == 12 * (4 * 768**2 + 2 * 768 * 3072) + 768**2 + 2 * 768
    assert deberta.attention == 12 * 768


def test_steps_and_operations_by_hand(deberta):
    settings = compose_settings(["protocol=goft_icml24", "task=glue/mrpc", "method=qgoft"])
    work = hours.training_work(settings, deberta, (10.0, 100.0))
    assert work.steps == 30 * 115  # epochs of 3668 rows in batches of 32
    a_token = 2 * deberta.weights + 4 * 80 * deberta.attention
    assert work.petaflop == pytest.approx(30 * 115 * 32 * 80 * a_token * 2 / 1e15)
    # At this speed launching takes longer than computing.
    assert hours.training_work(settings, deberta, (1e6, 1e6)).hours == pytest.approx(30 * 115 * hours.STEP_SECONDS / 3600)


def test_full_fine_tuning_costs_half_as_much_again(deberta):
    one, two = (
        hours.training_work(compose_settings(["protocol=goft_icml24", "task=glue/rte", f"method={name}"]), deberta, hours.SPEED)
        for name in ("lora", "full")
    )
    assert two.petaflop == pytest.approx(1.5 * one.petaflop)


def test_tasks_of_a_decoder_share_their_training():
    words = ["protocol=psoft_iclr26", "method=lora"]
    runs = [compose_settings([*words, f"task=math/{task}"]) for task in ("gsm8k", "math")]
    one, both = (hours.total(hours.work_by_task(some, hours.SPEED)) for some in (runs[:1], runs))
    assert one.steps == both.steps == 2 * 625
    assert both.runs == 2
    assert both.hours > one.hours


def test_the_committed_estimate_is_that_of_the_code():
    kept = json.loads(hours.HOURS.read_text())
    found = hours.estimate(hours.SPEED, 1, ("table4",), ("goft_icml24",))
    (tasks,) = found["goft_icml24"].values()
    assert asdict(hours.total(tasks)) == pytest.approx(kept["work"]["goft_icml24"]["table4"])
    assert kept["hours_a_run"]["goft_icml24"]["table4"] == pytest.approx({task: work.hours / work.runs for task, work in tasks.items()})
    assert (tuple(kept["speed"]), kept["step_seconds"]) == (hours.SPEED, hours.STEP_SECONDS)
