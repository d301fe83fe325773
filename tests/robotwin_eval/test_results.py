import dataclasses

import pytest

from robotwin_eval.results import EpisodeResult, ResultsError, ResultsLog, counted, read_results
from robotwin_eval.rollout import Episode


def result(seed=0, **changes):
    row = EpisodeResult(
        policy="ofp@1",
        task="press",
        seed=seed,
        instruction="tap the knöb",
        success=True,
        steps=12,
        mode="left",
        chunks=2,
        latencies=(0.125, 0.0625),
        batches=(4, 3),
        error="",
        error_source="",
        execute=16,
        run_seed=5,
        checkpoint="ab12",
        versions={"numpy": "2.2.6"},
    )
    return dataclasses.replace(row, **changes)


def open_log(path, **changes):
    return ResultsLog(path, **{"policy": "ofp@1", "checkpoint": "ab12", "run_seed": 5, **changes})


def test_what_was_appended_is_read_back_unchanged(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    rows = [result(0), result(1, success=False, mode="", error="NaN", error_source="policy")]
    log = open_log(path)
    for row in rows:
        log.append(row)
    assert read_results(path) == rows


def test_resume_leaves_the_episodes_that_have_no_counted_result(tmp_path):
    path = tmp_path / "results.jsonl"
    log = open_log(path)
    log.append(result(0))
    log.append(result(1, success=False, error="lost GL context", error_source="simulator"))
    log.append(result(2, success=False, error="NaN", error_source="policy"))
    episodes = [Episode("press", seed, "tap") for seed in range(4)]
    resumed = open_log(path)
    assert [episode.seed for episode in resumed.remaining(episodes)] == [1, 3]
    resumed.append(result(1))
    assert [row.seed for row in counted(read_results(path))] == [0, 2, 1]


def test_a_half_written_last_line_is_dropped_with_a_warning_and_cut_off_before_appending(tmp_path):
    path = tmp_path / "results.jsonl"
    log = open_log(path)
    log.append(result(0))
    log.append(result(1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match="half-written last line"):
        assert [row.seed for row in read_results(path)] == [0]
    with pytest.warns(UserWarning, match="half-written last line"):
        resumed = open_log(path)
    resumed.append(result(1))
    assert path.read_bytes() == whole


def test_a_line_without_its_newline_does_not_count_even_where_its_json_is_complete(tmp_path):
    path = tmp_path / "results.jsonl"
    open_log(path).append(result(0))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="half-written"):
        assert read_results(path) == []


@pytest.mark.parametrize("line", ["{broken", '{"policy": "x"}', "[]"])
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "results.jsonl"
    open_log(path).append(result(0))
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(ResultsError, match="line 2"):
        read_results(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "cd34"}, "checkpoint 'ab12', this run has 'cd34'"),
        ({"run_seed": 6}, "run seed 5, this run has 6"),
    ],
)
def test_a_file_of_another_checkpoint_or_run_seed_is_refused(tmp_path, changes, message):
    path = tmp_path / "results.jsonl"
    open_log(path).append(result(0))
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=message):
        open_log(path, **changes)
    assert path.read_bytes() == before


def test_two_policies_with_their_own_checkpoints_share_a_file(tmp_path):
    path = tmp_path / "results.jsonl"
    open_log(path).append(result(0))
    other = open_log(path, policy="base@10", checkpoint="cd34")
    assert other.done == set()
    other.append(result(0, policy="base@10", checkpoint="cd34"))
    assert open_log(path).done == {("press", 0)}
    assert len(counted(read_results(path))) == 2


def test_append_refuses_a_second_result_another_policy_and_another_execution_length(tmp_path):
    log = open_log(tmp_path / "results.jsonl")
    log.append(result(0))
    with pytest.raises(ResultsError, match="already"):
        log.append(result(0))
    with pytest.raises(ResultsError, match="in the log of"):
        log.append(result(1, policy="base@10"))
    with pytest.raises(ResultsError, match="executing 16 actions"):
        log.append(result(1, execute=8))


def test_counted_refuses_merged_runs_and_results_cannot_be_both_success_and_error():
    with pytest.raises(ResultsError, match="two results for task 'press' seed 3"):
        counted([result(3), result(3)])
    with pytest.raises(ValueError, match="success together with error"):
        result(0, error="NaN", error_source="policy")
    with pytest.raises(ValueError, match="error_source is 'gpu'"):
        result(0, success=False, error_source="gpu")
