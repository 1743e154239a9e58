"""From run folders to one page that says which change stopped the training from going NaN.

report = write_report([RunDir(path), ...], out=Path("reports/local/swae3d_20261122_024500"))
report.verdict  # one sentence a model and scale
"""

from hpcstab.report.select import newest_campaign_runs, runs_of_model
from hpcstab.report.write import Report, write_report

__all__ = ["Report", "newest_campaign_runs", "runs_of_model", "write_report"]
