"""What is shown of a data set."""

import torch
from rich.console import Console

from policyopt.methods.offline_dataset_metrics import Summary
from policyopt.reports.dataset import figure, table


def found(returns, **changed):
    columns = {
        "rows": 60,
        "episodes": 4,
        "returns": torch.tensor(returns).double(),
        "lengths": torch.tensor([10] * len(returns)),
        "states": 41,
        "pairs": 52,
        "quality": 0.25,
        "coverage": 0.5,
        "log_coverage": float("nan"),
        "positive_variance": 2.0,
        "zero_rewards": 0.125,
    }
    return Summary(**{**columns, **changed})


def printed(shown):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(shown)
    return {
        row.split("│")[1].strip(): row.split("│")[2].strip() for row in console.export_text().splitlines() if "│" in row
    }


def test_the_table_says_each_measure_in_numbers():
    rows = printed(table(found([1.0, 2.0, 6.0]), "mine"))
    assert rows["rows"] == "60" and rows["complete episodes, of all"] == "3 of 4"
    assert rows["return, mean"] == "3.000" and rows["return, least / median / greatest"] == "1.000 / 2.000 / 6.000"
    assert rows["steps an episode, mean"] == "10.0" and rows["share of zero rewards"] == "0.125"
    assert rows["different states"] == "41" and rows["different state-action pairs"] == "52"
    assert rows["trajectory quality TQ (0 random, 1 best)"] == "0.2500" and rows["coverage SACo"] == "0.5000"
    assert rows["log coverage lSACo"] == "give --reference"


def test_without_a_complete_episode_there_is_no_return():
    rows = printed(table(found([], quality=float("nan")), "mine"))
    assert rows["complete episodes, of all"] == "0 of 4" and rows["return, mean"] == "nan"
    assert rows["return, least / median / greatest"] == ""


def test_the_figure_is_a_histogram_with_its_mean(tmp_path):
    first, second = (figure(found([1.0, 2.0, 6.0]), tmp_path / "new" / name) for name in ("a.svg", "b.svg"))
    drawn = first.read_text()
    assert "<svg" in drawn and drawn == second.read_text()
    figure(found([]), tmp_path / "c.svg")
