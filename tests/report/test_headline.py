"""What the report says first."""

from __future__ import annotations

from dynroute.measure.alarms import of_times, one_route
from dynroute.report.headline import alarm_box, time_sentences, time_tiles
from tests.support.routed import routes, timed


def test_no_alarm_draws_nothing() -> None:
    assert alarm_box([], [{"step": 20, "loss": 1.0}]) == ""


def test_alarms_with_what_they_mean_and_what_to_try() -> None:
    alarms = [*of_times([timed(1.29, 0.98)]), one_route(routes(distinct=1))]
    page = alarm_box(alarms, [])  # type: ignore[arg-type]
    assert page.index('class="alarm red"') < page.index('class="alarm yellow"')
    assert "<b>At batch 1, own gates, routed takes 1.29 times as long as all open on this machine" in page
    assert "then a fixed network would do" in page and page.count("To try: ") == 2
    assert "Alarms in training" not in page


def test_a_line_of_what_training_had() -> None:
    log = [
        {"step": 20, "loss": 1.0},
        {"step": 40, "alarm": {"state": "began", "kind": "dead_nodes", "severity": "yellow"}},
        {"step": 60, "alarm": {"state": "began", "kind": "one_<route>"}},
        {"step": 80, "alarm": {"state": "ended", "kind": "dead_nodes", "since": 40}},
        {"step": 90, "alarm": {"state": "evaluation", "kind": "all_open"}},
        {"step": 95, "alarm": "?"},
    ]
    page = alarm_box([], log)
    assert "Alarms in training: dead nodes from step 40 to 80; one &lt;route&gt; from step 60 on." in page


def test_tiles_give_a_realised_share_only_where_there_is_one() -> None:
    slow, fast, noisy = timed(1.29, 0.98), timed(0.8, 0.72, batch=8), timed(0.99, 0.7, noise=0.1, batch=4)
    assert time_tiles([slow, noisy]) == [
        ("129%", "of the all-open time, batch 1: slower"),
        ("99%", "of the all-open time, batch 4: no difference measured"),
    ]
    values = [value for value, _ in time_tiles([fast, slow, timed(0.9, 0.7)])]
    assert values == ["80%", "129%", "90%", "0.78 to 0.90"]
    assert time_tiles([fast])[1][0] == "0.90"


def test_sentences_are_of_rows_without_an_alarm() -> None:
    slow, fast, noisy = timed(1.29, 0.98), timed(0.8, 0.72, batch=8), timed(0.99, 0.7, noise=0.1, batch=4)
    said = time_sentences([slow, fast, noisy, timed(1.0, 1.0, batch=2)])
    assert said.count("<p>") == 2 and "Batch 8: routed takes 80%" in said and "Batch 2: no difference measured" in said
