"""The report: results of runs and studies, as one HTML page."""
