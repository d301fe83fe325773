"""One-step action generation for flow-matching vision-language-action policies (OFP, arXiv 2603.12480)."""

__version__ = "0.1.0"
