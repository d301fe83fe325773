"""Evaluation of bimanual policies by RoboTwin's protocol: simulators, results, statistics, report."""
