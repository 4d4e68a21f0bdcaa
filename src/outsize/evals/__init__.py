"""Datasets: requests, results, few-shot experiments and lm-evaluation-harness."""
