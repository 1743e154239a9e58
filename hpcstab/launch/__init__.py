"""Campaigns as jobs: what is submitted, started, running, lost; the only room that knows submitit."""
