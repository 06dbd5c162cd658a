"""Orchestration: when, where, how often, and what happens on failure. The only importer of prefect.

DVC owns what is up to date, so a Prefect task is one `dvc repro --single-item` and nothing else.
"""
