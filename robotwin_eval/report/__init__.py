"""The report of an evaluation: one self-contained HTML page and the numbers behind it as JSON."""

from robotwin_eval.report.data import (
    CurveData,
    FilmData,
    LatencyData,
    ModeData,
    PairData,
    RateData,
    ReportData,
    build_report_data,
)
from robotwin_eval.report.page import render_page, write_report

__all__ = [
    "CurveData",
    "FilmData",
    "LatencyData",
    "ModeData",
    "PairData",
    "RateData",
    "ReportData",
    "build_report_data",
    "render_page",
    "write_report",
]
